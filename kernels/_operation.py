"""What surrounds the forms of every operation: gradient, `vmap` and meshes.

From the outside in: `jit` (one program in eager code, one trace for equal shapes);
`custom_vjp`; `custom_vmap`, which folds a mapped axis into the rows, or, where stored
arrays are mapped too, into a stack axis; `custom_partitioning`, which keeps stored
arrays where a mesh has them; and the form that `_dispatch` chooses, which sees the
shapes of one device. What follows a product (`_epilogue`) goes with it through all of
them, as three more arrays.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.kernels._dispatch import Forms, Implementation, check_named, dispatch
from jcompress.kernels._epilogue import ROLES, After, Elementwise, finish
from jcompress.kernels._integers import result_dtype
from jcompress.kernels._partition import (
    partitioned,
    partly_manual,
    vary,
    varying,
)

Arrays = tuple[Any, ...]
"""The arguments of an operation: arrays, or None for one left out."""


def _keep_all(*args: Any, **static: Any) -> Arrays:
    return args


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class KernelOperation:
    """A product of activations with stored arrays, `[M, K] -> [M, N]`.

    The first argument is the activations. The result has their dtype, or float32 if
    they are integers.

    Attributes:
        name: the public function's.
        forms: its implementations.
        roles: `roles(*args, **static)` gives for each argument that is not None one
            letter an axis: `m` rows of activations, `n` outputs, `k` inputs, `.` none
            of them. Axes of one letter may differ in size (numbers, packed bytes,
            groups); cut into as many equal parts, their parts belong together.
        backward: `backward(saved, cotangent, **static)`: the cotangents of the
            arguments, None for constants.
        save: `save(*args, **static)`: what `backward` needs.
        over_parts: `over_parts(run, axis_names, *args, **static)`: the whole result,
            in any float dtype, on devices each of which has a part of the inputs;
            `run(*args, **static)` multiplies a part. None if the inputs cannot be cut.
        results: `results(*args, **static)`: how many results there are, all of them of
            rows by outputs; forms, `over_parts` and the cotangents that `backward` gets
            are then tuples. None for one.
    """

    name: str
    forms: Forms
    roles: Callable[..., tuple[str, ...]]
    backward: Callable[..., Arrays]
    save: Callable[..., Arrays] = _keep_all
    over_parts: Callable[..., Any] | None = None
    results: Callable[..., int] | None = None

    def __call__(
        self,
        *args: Any,
        implementation: Implementation | None,
        after: After | None = None,
        constant: Any = None,
        **static: Any,
    ) -> jax.Array:
        """Compute it: `x [M, K]` and the others without a stack -> `[M, N]`.

        Args:
            *args: arrays, None for one left out.
            implementation: None for the fastest.
            after: what follows. The gradient is that of the product as it is without,
                which is computed again, and with respect to `factor` and `residual`.
            constant: what tells the stored arrays from any others if they are constants
                of the program (see `_constants`); else None.
            **static: keyword arguments of the forms.

        Raises:
            TypeError: `implementation` is of another kind.
            NotImplementedError: the operation has no such implementation, or that one
                refuses these arguments; with its reason.
        """
        product: jax.Array = self._run(args, implementation, after, constant, static)
        return product

    def several(
        self,
        *args: Any,
        implementation: Implementation | None,
        constant: Any = None,
        **static: Any,
    ) -> tuple[jax.Array, ...]:
        """The same for an operation of several results."""
        products: tuple[jax.Array, ...] = self._run(
            args, implementation, None, constant, static
        )
        return products

    def _run(
        self,
        args: Arrays,
        implementation: Implementation | None,
        after: After | None,
        constant: Any,
        static: dict[str, Any],
    ) -> Any:
        stacked = tuple(
            None if a is None else jax.ShapeDtypeStruct((1, *a.shape), a.dtype)
            for a in args
        )
        check_named(self.name, self.forms, implementation, stacked, static)
        then = None
        if after is not None:
            then, args = after.then, (*args, *after[1:])
        run = functools.partial(
            self._compiled,
            implementation,
            then,
            constant,
            tuple(sorted(static.items())),
        )
        if jax.sharding.get_abstract_mesh().explicit_axes:
            spec: Any = self._explicit_spec(args, self._roles(then, static, args))
            if self.results is not None:
                spec = (spec,) * self.results(*args, **static)
            run = jax.sharding.auto_axes(run, out_sharding=spec)
        # Inside a `shard_map` the gradient of an argument that is the same on devices
        # where another is not is summed over them.
        return run(*(vary(a, varying(args)) for a in args))

    def _explicit_spec(
        self, args: Arrays, roles: tuple[str, ...]
    ) -> jax.sharding.PartitionSpec:
        """How the result is cut where shardings are part of types."""
        names: dict[str, Any] = {}
        present = [a for a in args if a is not None]
        for letter in "nm":
            for a, role in zip(present, roles, strict=True):
                if letter in role and letter not in names:
                    names[letter] = jax.typeof(a).sharding.spec[role.index(letter)]
        # Stored arrays stay as they are; rows give way.
        outputs = names.get("n")
        rows = _without(names["m"], outputs)
        return jax.sharding.PartitionSpec(rows, outputs)

    def _roles(
        self, then: Elementwise | None, static: dict[str, Any], args: Arrays
    ) -> tuple[str, ...]:
        own, after = _split(then, args)
        roles = self.roles(*own, **static)
        if after is None:
            return roles
        pairs = zip(ROLES, after[1:], strict=True)
        return (*roles, *(role for role, a in pairs if a is not None))

    @functools.cached_property
    def _compiled(self) -> Callable[..., Any]:
        def product(
            implementation: Any, then: Any, constant: Any, static: Any, *args: Any
        ) -> Any:
            fixed = constant is not None
            return self._mapped(implementation, then, dict(static), args, fixed)

        product.__name__ = self.name
        run = jax.custom_vjp(product, nondiff_argnums=(0, 1, 2, 3))

        def forward(
            implementation: Any, then: Any, constant: Any, static: Any, *args: Any
        ) -> Any:
            own, after = _split(then, args)
            saved = self.save(*own, **dict(static))
            again = None
            if after is not None:
                bends = after.then.activation is not None or after.factor is not None
                again = (own if bends else None, after[1:])
            out = run(implementation, then, constant, static, *args)
            return out, (saved, again)

        def backward(
            implementation: Any,
            then: Any,
            constant: Any,
            static: Any,
            saved: Any,
            cotangent: Any,
        ) -> Arrays:
            kept, again = saved
            if again is None:
                return self.backward(kept, cotangent, **dict(static))
            own, arrays = again
            wide = cotangent.astype(jnp.float32)
            if own is None:
                product = jnp.zeros_like(wide)
            else:
                product = run(implementation, None, constant, static, *own)
                product = product.astype(jnp.float32)

            def last(product: jax.Array, *arrays: Any) -> jax.Array:
                return finish(product, After(then, *arrays))

            by_product, *by_after = jax.vjp(last, product, *arrays)[1](wide)
            by_own = self.backward(kept, by_product, **dict(static))
            return (*by_own, *by_after)

        run.defvjp(forward, backward)
        return jax.jit(run, static_argnums=(0, 1, 2, 3))

    def _mapped(
        self,
        implementation: Any,
        then: Elementwise | None,
        static: dict[str, Any],
        args: Arrays,
        fixed: bool,
    ) -> Any:
        roles = self._roles(then, static, args)
        by_row = ["m" in role for role in roles]
        present = [a is not None for a in args]

        def whole(arrays: Arrays) -> Arrays:
            rest = iter(arrays)
            return tuple(next(rest) if there else None for there in present)

        def run(*all_args: Any, fixed: bool) -> Any:
            own, after = _split(then, all_args)
            return self._form(implementation, static, own, after, fixed)

        def of_part(*own: Any, **changed: Any) -> Any:
            changed = {**static, **changed}
            return self._form(implementation, changed, own, None, fixed=False)

        def of_parts(names: tuple[str, ...], *arrays: jax.Array) -> Any:
            assert self.over_parts is not None
            own, after = _split(then, whole(arrays))
            total = self.over_parts(of_part, names, *own, **static)
            if after is not None:
                total = finish(total.astype(jnp.float32), after)
            return jax.tree.map(lambda y: y.astype(result_dtype(own[0])), total)

        results = None if self.results is None else self.results(*args, **static)

        @jax.custom_batching.custom_vmap
        def stacked(*arrays: jax.Array) -> Any:
            if partly_manual():
                return run(*whole(arrays), fixed=False)
            # On several devices a part of a constant may be another one on each.
            return partitioned(
                lambda *parts: run(*whole(parts), fixed=fixed),
                lambda *parts: run(*whole(parts), fixed=False),
                of_parts if self.over_parts else None,
                roles,
                arrays,
                results,
            )

        @stacked.def_vmap
        def _(size: int, mapped: list[bool], *arrays: jax.Array) -> Any:
            def wide(number: int) -> jax.Array:
                a = arrays[number]
                return a if mapped[number] else jnp.broadcast_to(a, (size, *a.shape))

            numbers = range(len(arrays))
            *_, stacks, rows, _ = wide(0).shape
            if any(mapped[i] and not by_row[i] for i in numbers):
                out = stacked(*(_merge(wide(i), 0) for i in numbers))
                return each(out, lambda y: y.reshape(size, stacks, *y.shape[1:]))
            out = stacked(
                *(
                    _merge(jnp.moveaxis(wide(i), 0, 1), 1) if by_row[i] else arrays[i]
                    for i in numbers
                )
            )

            def split(y: jax.Array) -> jax.Array:
                return jnp.moveaxis(y.reshape(stacks, size, rows, y.shape[2]), 1, 0)

            return each(out, split)

        def each(out: Any, change: Callable[[jax.Array], jax.Array]) -> Any:
            return jax.tree.map(change, out), jax.tree.map(lambda _: True, out)

        products = stacked(*(a[None] for a in args if a is not None))
        return jax.tree.map(lambda y: y[0], products)

    def _form(
        self,
        implementation: Any,
        static: dict[str, Any],
        args: Arrays,
        after: After | None,
        fixed: bool,
    ) -> Any:
        if any(a is not None and a.size == 0 for a in args):
            implementation = Implementation.REFERENCE
        if implementation is None and partly_manual():
            # XLA cuts what it compiles itself along the other axes of the mesh.
            implementation = Implementation.XLA
        return dispatch(
            self.name, self.forms, implementation, args, static, after, fixed=fixed
        )


def _split(then: Elementwise | None, args: Arrays) -> tuple[Arrays, After | None]:
    """The arguments of the product itself, and what follows it."""
    if then is None:
        return args, None
    count = len(args) - len(ROLES)
    return args[:count], After(then, *args[count:])


def _without(axes: Any, taken: Any) -> Any:
    """The names of mesh axes of one dimension that another does not use."""
    wanted = axes if isinstance(axes, tuple) else (axes,)
    used = taken if isinstance(taken, tuple) else (taken,)
    return tuple(name for name in wanted if name is not None and name not in used)


def _merge(x: jax.Array, axis: int) -> jax.Array:
    """Make one axis of this one and the next."""
    merged = x.shape[axis] * x.shape[axis + 1]
    return x.reshape(*x.shape[:axis], merged, *x.shape[axis + 2 :])
