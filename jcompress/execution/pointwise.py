"""A convolution whose window is one position, as the matrix product that it is."""

import dataclasses
from typing import Any

import jax

from jcompress.tracing.jaxprs import aval_shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pointwise:
    """A convolution of window 1 written as a `dot_general`.

    Attributes:
        eqn: the product of the data, after `picked`, with the kernel.
        steps: the positions taken along each axis of the data: every so-many-th.
        order: which axis of the product each axis of the convolution's result is.
        shape: shape of the convolution's result.
    """

    eqn: Any
    steps: tuple[int, ...]
    order: tuple[int, ...]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, eqn: Any) -> "Pointwise | str":
        """Rewrite a `conv_general_dilated`, or say why it is no plain product."""
        params = eqn.params
        numbers = params["dimension_numbers"]
        data, kernel = (atom.aval for atom in eqn.invars)
        out = eqn.outvars[0].aval
        if any(kernel.shape[d] != 1 for d in numbers.rhs_spec[2:]):
            return "there is no kernel for a convolution of more than one position"
        if params["feature_group_count"] != 1 or params["batch_group_count"] != 1:
            return "there is no kernel for a grouped convolution"
        padded = any(tuple(pad) != (0, 0) for pad in params["padding"])
        if padded or any(d != 1 for d in params["lhs_dilation"]):
            return "there is no kernel for a convolution with padding or dilated data"
        steps = [1] * len(data.shape)
        for dim, stride in zip(
            numbers.lhs_spec[2:], params["window_strides"], strict=True
        ):
            steps[dim] = stride
        contract = (((numbers.lhs_spec[1],), (numbers.rhs_spec[1],)), ((), ()))
        closed = jax.make_jaxpr(
            lambda x, w: jax.lax.dot_general(
                x, w, contract, preferred_element_type=out.dtype
            )
        )(
            jax.ShapeDtypeStruct(_picked(data.shape, steps), data.dtype),
            jax.ShapeDtypeStruct(kernel.shape, kernel.dtype),
        )
        # The product has the data's axes but the features', then the output features.
        free = [d for d in range(len(data.shape)) if d != numbers.lhs_spec[1]]
        order = [0] * len(out.shape)
        order[numbers.out_spec[1]] = len(free)
        for mine, theirs in zip(
            (numbers.out_spec[0], *numbers.out_spec[2:]),
            (numbers.lhs_spec[0], *numbers.lhs_spec[2:]),
            strict=True,
        ):
            order[mine] = free.index(theirs)
        return cls(
            eqn=closed.jaxpr.eqns[0],
            steps=tuple(steps),
            order=tuple(order),
            shape=aval_shape(eqn.outvars[0]),
        )

    def picked(self, x: jax.Array) -> jax.Array:
        """The positions of the data that the convolution looks at."""
        if all(step == 1 for step in self.steps):
            return x
        return jax.lax.slice(x, (0,) * x.ndim, x.shape, self.steps)

    def result(self, y: jax.Array) -> jax.Array:
        """Bring the product to the axes of the convolution's result."""
        sizes = [0] * len(self.order)
        for axis, place in enumerate(self.order):
            sizes[place] = self.shape[axis]
        return y.reshape(sizes).transpose(self.order)


def _picked(shape: tuple[int, ...], steps: list[int]) -> tuple[int, ...]:
    return tuple(-(-size // step) for size, step in zip(shape, steps, strict=True))
