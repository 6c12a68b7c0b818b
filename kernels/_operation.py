"""What surrounds the forms of every operation: gradient, `vmap` and meshes.

From the outside in: `jit` (one program in eager code, one trace for equal shapes);
`custom_vjp`; `custom_vmap`, which folds a mapped axis into the rows, or, where stored
arrays are mapped too, into a stack axis; `custom_partitioning`, which keeps stored
arrays where a mesh has them; and the form that `_dispatch` chooses, which sees the
shapes of one device.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.kernels._dispatch import Forms, Implementation, check_named, dispatch
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
        over_parts: `over_parts(run, axis_names, *args, **static)`: the whole result
            on devices each of which has a part of the inputs; `run(*args, **static)`
            multiplies a part. None if the inputs cannot be cut.
    """

    name: str
    forms: Forms
    roles: Callable[..., tuple[str, ...]]
    backward: Callable[..., Arrays]
    save: Callable[..., Arrays] = _keep_all
    over_parts: Callable[..., jax.Array] | None = None

    def __call__(
        self, *args: Any, implementation: Implementation | None, **static: Any
    ) -> jax.Array:
        """Compute it: `x [M, K]` and the others without a stack -> `[M, N]`.

        Raises:
            TypeError: `implementation` is of another kind.
            NotImplementedError: the operation has no such implementation, or that one
                refuses these arguments; with its reason.
        """
        stacked = tuple(
            None if a is None else jax.ShapeDtypeStruct((1, *a.shape), a.dtype)
            for a in args
        )
        check_named(self.name, self.forms, implementation, stacked, static)
        run = functools.partial(
            self._compiled, implementation, tuple(sorted(static.items()))
        )
        if jax.sharding.get_abstract_mesh().explicit_axes:
            spec = self._explicit_spec(args, self.roles(*args, **static))
            run = jax.sharding.auto_axes(run, out_sharding=spec)
        # Inside a `shard_map` the gradient of an argument that is the same on devices
        # where another is not is summed over them.
        product: jax.Array = run(*(vary(a, varying(args)) for a in args))
        return product

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

    @functools.cached_property
    def _compiled(self) -> Callable[..., jax.Array]:
        def product(implementation: Any, static: Any, *args: Any) -> jax.Array:
            return self._mapped(implementation, dict(static), args)

        product.__name__ = self.name
        run = jax.custom_vjp(product, nondiff_argnums=(0, 1))

        def forward(implementation: Any, static: Any, *args: Any) -> Any:
            saved = self.save(*args, **dict(static))
            return run(implementation, static, *args), saved

        def backward(_: Any, static: Any, saved: Any, cotangent: jax.Array) -> Arrays:
            return self.backward(saved, cotangent, **dict(static))

        run.defvjp(forward, backward)
        return jax.jit(run, static_argnums=(0, 1))

    def _mapped(
        self, implementation: Any, static: dict[str, Any], args: Arrays
    ) -> jax.Array:
        roles = self.roles(*args, **static)
        by_row = ["m" in role for role in roles]
        present = [a is not None for a in args]

        def whole(arrays: Arrays) -> Arrays:
            rest = iter(arrays)
            return tuple(next(rest) if there else None for there in present)

        def run(*all_args: Any, **changed: Any) -> jax.Array:
            return self._form(implementation, {**static, **changed}, all_args)

        def of_parts(names: tuple[str, ...], *arrays: jax.Array) -> jax.Array:
            assert self.over_parts is not None
            total: jax.Array = self.over_parts(run, names, *whole(arrays), **static)
            return total

        @jax.custom_batching.custom_vmap
        def stacked(*arrays: jax.Array) -> jax.Array:
            if partly_manual():
                return run(*whole(arrays))
            return partitioned(
                lambda *parts: run(*whole(parts)),
                of_parts if self.over_parts else None,
                roles,
                arrays,
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
                return out.reshape(size, stacks, *out.shape[1:]), True
            out = stacked(
                *(
                    _merge(jnp.moveaxis(wide(i), 0, 1), 1) if by_row[i] else arrays[i]
                    for i in numbers
                )
            )
            split = out.reshape(stacks, size, rows, out.shape[2])
            return jnp.moveaxis(split, 1, 0), True

        product: jax.Array = stacked(*(a[None] for a in args if a is not None))[0]
        return product

    def _form(
        self, implementation: Any, static: dict[str, Any], args: Any
    ) -> jax.Array:
        if any(a is not None and a.size == 0 for a in args):
            implementation = Implementation.REFERENCE
        if implementation is None and partly_manual():
            # XLA cuts what it compiles itself along the other axes of the mesh.
            implementation = Implementation.XLA
        return dispatch(self.name, self.forms, implementation, args, static)


def _without(axes: Any, taken: Any) -> Any:
    """The names of mesh axes of one dimension that another does not use."""
    wanted = axes if isinstance(axes, tuple) else (axes,)
    used = taken if isinstance(taken, tuple) else (taken,)
    return tuple(name for name in wanted if name is not None and name not in used)


def _merge(x: jax.Array, axis: int) -> jax.Array:
    """Make one axis of this one and the next."""
    merged = x.shape[axis] * x.shape[axis + 1]
    return x.reshape(*x.shape[:axis], merged, *x.shape[axis + 2 :])
