"""The one place that chooses which implementation of an operation runs."""

import dataclasses
import enum
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from jcompress.kernels._epilogue import After, finish
from jcompress.kernels._integers import result_dtype
from jcompress.kernels._partition import vary, varying


class Implementation(enum.Enum):
    """A way to compute an operation."""

    REFERENCE = "reference"
    """Plain float32 JAX that defines the operation; correct everywhere, not fast."""
    XLA = "xla"
    """The fastest form found that XLA compiles, by platform and shape."""
    CPU = "cpu"
    """The library's own C++ code."""
    TPU = "tpu"
    """A Pallas kernel for TPUs."""
    GPU = "gpu"
    """A Pallas kernel for NVIDIA's GPUs."""

    def __repr__(self) -> str:
        return f"Implementation.{self.name}"


_PLATFORMS = {
    Implementation.CPU: "cpu",
    Implementation.TPU: "tpu",
    Implementation.GPU: "cuda",
}


def _never(*args: Any, **static: Any) -> str:
    return ""


def _always(*args: Any, **static: Any) -> bool:
    return True


@dataclasses.dataclass(frozen=True)
class Form:
    """One implementation of an operation on matrices.

    Attributes:
        run: the function: arrays (None for one left out), static keyword arguments ->
            the product [M, N], or several in a tuple.
        refuses: why it cannot compute arguments of these shapes and dtypes; "" if it
            can. It and `prefers` get the arguments of `run` as `ShapeDtypeStruct`s.
        prefers: whether it is a better choice than `xla` on its platform.
        stacked: whether `run` takes each array, and gives its result, with a leading
            stack axis; if not, stacks reach it through `jax.vmap`.
        sized: whether every size must be known when the program is traced, as those of
            Pallas kernels must; the others take the symbolic sizes of `jax.export`.
        unnamed: what runs in the place of `run` if no implementation was named; of XLA,
            which is portable if it was, a form that compiled kernels may help.
        finishes: whether `run` takes what follows the product, `after`. The others must
            take `out_dtype` where something may follow; XLA then finishes what they
            give in float32.
        keeps: whether `run` takes `fixed`: whether the stored arrays are constants of
            the program, so that what is made of them may be kept from call to call.
    """

    run: Callable[..., Any]
    refuses: Callable[..., str] = _never
    prefers: Callable[..., bool] = _always
    stacked: bool = False
    sized: bool = False
    unnamed: Callable[..., Any] | None = None
    finishes: bool = False
    keeps: bool = False

    def why_not(self, args: tuple[Any, ...], static: Mapping[str, Any]) -> str:
        """Why it cannot compute stacked arguments; "" if it can."""
        seen = self._seen(args)
        sizes = (size for a in seen if a is not None for size in a.shape)
        if self.sized and any(map(export.is_symbolic_dim, sizes)):
            return f"takes no symbolic sizes, as those of x {list(seen[0].shape)}"
        return self.refuses(*seen, **static)

    def chosen(self, args: tuple[Any, ...], static: Mapping[str, Any]) -> bool:
        """Whether it takes stacked arguments when nothing is named."""
        if self.why_not(args, static):
            return False
        return self.prefers(*self._seen(args), **static)

    def _seen(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        first = 0 if self.stacked else 1
        return tuple(
            None if a is None else jax.ShapeDtypeStruct(a.shape[first:], a.dtype)
            for a in args
        )

    def on_stack(
        self,
        args: tuple[Any, ...],
        static: Mapping[str, Any],
        after: After | None = None,
        *,
        fixed: bool = False,
    ) -> Any:
        """The products [S, M, N] of stacked arguments, and what follows them."""
        static = {**static, "fixed": fixed} if self.keeps else static
        if after is None:
            product = self._stacks(args, static)
        elif self.finishes:
            product = self.run(*args, after=after, **static)
        else:
            wide = self._stacks(args, {**static, "out_dtype": jnp.float32})
            product = finish(wide, after).astype(result_dtype(args[0]))
        # A call to foreign code may not say over which axes its result varies.
        seen = args if after is None else (*args, *after[1:])
        names = varying(seen)
        return jax.tree.map(lambda y: vary(y, names), product)

    def _stacks(self, args: tuple[Any, ...], static: Mapping[str, Any]) -> Any:
        if self.stacked:
            return self.run(*args, **static)

        def one(*matrices: Any) -> Any:
            return self.run(*matrices, **static)

        if args[0].shape[0] == 1:
            product = one(*(None if a is None else a[0] for a in args))
            return jax.tree.map(lambda y: y[None], product)
        axes = tuple(None if a is None else 0 for a in args)
        return jax.vmap(one, axes)(*args)


Forms = Mapping[Implementation, Form]
"""What an operation has."""


def check_named(
    operation: str,
    forms: Forms,
    implementation: Implementation | None,
    args: tuple[Any, ...],
    static: Mapping[str, Any],
) -> None:
    """Raise unless an implementation is None or can compute the stacked arguments.

    Raises:
        TypeError: `implementation` is of another kind.
        NotImplementedError: the operation has no such implementation, or that one
            refuses these shapes and dtypes; with its reason.
    """
    if implementation is None:
        return
    if not isinstance(implementation, Implementation):
        raise TypeError(
            f"{operation}: implementation is None or one of "
            f"{list(Implementation)}, not {implementation!r}"
        )
    if implementation not in forms:
        raise NotImplementedError(
            f"{operation} has no {implementation!r}; it has {list(forms)}"
        )
    reason = forms[implementation].why_not(args, static)
    if reason:
        raise NotImplementedError(f"{operation}: {implementation!r} {reason}")


def dispatch(
    operation: str,
    forms: Forms,
    implementation: Implementation | None,
    args: tuple[Any, ...],
    static: Mapping[str, Any],
    after: After | None = None,
    *,
    fixed: bool = False,
) -> Any:
    """Compute an operation on stacked arguments.

    A named implementation runs. None takes, on each platform, that platform's own
    kernel, unless it refuses the shapes or knows another implementation to be faster
    for them; then `XLA`. The choice is made when the program is lowered for a platform,
    so every implementation is traced everywhere and none may ask for a device.

    Args:
        operation: its name, for the errors.
        forms: what the operation has.
        implementation: a name or None.
        args: arrays with a leading stack axis, or None for one left out.
        static: the keyword arguments.
        after: what follows, its arrays with a leading stack axis.
        fixed: whether the stored arrays are constants of the program.

    Returns:
        [S, M, N], or several in a tuple.

    Raises:
        TypeError, NotImplementedError: as `check_named`.
    """
    check_named(operation, forms, implementation, args, static)
    if implementation is not None:
        return forms[implementation].on_stack(args, static, after, fixed=fixed)
    own = args if after is None else (*args, *after[1:])

    def branch(form: Form) -> Callable[..., Any]:
        def run(*arrays: Any) -> Any:
            follows = None if after is None else After(after.then, *arrays[len(args) :])
            return form.on_stack(arrays[: len(args)], static, follows, fixed=fixed)

        return run

    branches = {
        platform: branch(forms[kind])
        for kind, platform in _PLATFORMS.items()
        if kind in forms and forms[kind].chosen(args, static)
    }
    xla = forms[Implementation.XLA]
    default = branch(dataclasses.replace(xla, run=xla.unnamed or xla.run))
    if not branches:
        return default(*own)
    return jax.lax.platform_dependent(*own, **branches, default=default)
