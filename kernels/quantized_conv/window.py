"""The window of a convolution, and what it says about arrays."""

import dataclasses
import math

import jax


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """Where the patches of an image lie; sizes of its spatial axes throughout.

    Attributes:
        sizes: of the image.
        channels: of the image, which come last.
        kernel: positions in a patch.
        strides: from one patch to the next.
        padding: positions before and after the image, which hold 0; negative ones cut.
        dilation: from one position of a patch to the next.
        groups: into which channels and outputs are cut; each group of outputs sees its
            channels only.
    """

    sizes: tuple[int, ...]
    channels: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1

    @property
    def out(self) -> tuple[int, ...]:
        """How many patches there are; not positive if one does not fit."""
        axes = zip(
            self.sizes,
            self.padding,
            self.kernel,
            self.dilation,
            self.strides,
            strict=True,
        )
        return tuple(
            (size + low + high - dilation * (count - 1) - 1) // stride + 1
            for size, (low, high), count, dilation, stride in axes
        )

    @property
    def inputs(self) -> int:
        """K: numbers in a patch, of the channels that an output sees."""
        return math.prod(self.kernel) * (self.channels // self.groups)

    @property
    def positions(self) -> int:
        """Patches in an image."""
        return math.prod(self.out)

    def images(self, x: jax.Array) -> jax.Array:
        """[B, X] -> [B, *sizes, channels]."""
        return x.reshape(x.shape[0], *self.sizes, self.channels)
