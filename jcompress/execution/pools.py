"""Max pools, which take integers as well as floats."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.kernels import max_pool
from jcompress.tracing.jaxprs import aval_shape


@dataclasses.dataclass(frozen=True, eq=False)
class Pool:
    """An equation that takes maxima of windows of images.

    Attributes:
        number: the equation's.
        eqn: the equation.
        to_images: the axes of its data in the order [B, *spatial, C].
        window, strides, padding: of the spatial axes.
    """

    number: int
    eqn: Any
    to_images: tuple[int, ...]
    window: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, number: int, eqn: Any) -> "Pool | None":
        """What an equation is; None if it is no such pool of float32 images."""
        if eqn.primitive.name != "reduce_window_max":
            return None
        given = eqn.params
        window, strides = given["window_dimensions"], given["window_strides"]
        rank = len(aval_shape(eqn.invars[0]))
        dilated = any(n != 1 for n in given["base_dilation"]) or any(
            n != 1 for n in given["window_dilation"]
        )
        if rank < 3 or dilated or eqn.invars[0].aval.dtype != jnp.float32:
            return None
        alone = [window[d] == 1 and strides[d] == 1 for d in range(rank)]
        channel = rank - 1 if alone[-1] else 1
        if not alone[0] or not alone[channel]:
            return None
        spatial = tuple(d for d in range(1, rank) if d != channel)
        padding = tuple((int(a), int(b)) for a, b in given["padding"])
        within = all(0 <= side < window[d] for d in spatial for side in padding[d])
        if not within or any(padding[0]) or any(padding[channel]):
            return None
        return cls(
            number,
            eqn,
            (0, *spatial, channel),
            tuple(int(window[d]) for d in spatial),
            tuple(int(strides[d]) for d in spatial),
            tuple(padding[d] for d in spatial),
        )

    def run(self, x: jax.Array) -> jax.Array:
        """The maxima, of floats or int8."""
        y = max_pool(
            jnp.transpose(x, self.to_images),
            window=self.window,
            strides=self.strides,
            padding=self.padding,
        )
        back = sorted(range(len(self.to_images)), key=self.to_images.__getitem__)
        return jnp.transpose(y, tuple(back))
