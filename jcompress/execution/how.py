"""How compressed leaves run, as it is reported."""

import dataclasses
import enum

import jax

Scaling = tuple[jax.Array, jax.Array | None] | None
"""Scale and zero point of a product's input; None for an input that stays as it is."""


class How(enum.Enum):
    """How a compressed leaf is used at a site."""

    INTEGER = "integer product"
    """Integers times integers, scaled afterwards."""
    FLOAT8 = "float8 product"
    """8-bit floats times 8-bit floats, scaled afterwards."""
    WEIGHT_ONLY = "weight-only product"
    """Floats times stored small numbers; the dense weight is the kernel's business."""
    SPARSE = "sparse product"
    """Floats times the stored blocks, n of every m or single weights, not the zeros."""
    CODEBOOK = "codebook product"
    """Floats times values that stored indices pick from a table."""
    FACTORS = "products of its factors"
    """Floats times one thin factor after the other."""
    ADAPTED = "a thin product beside its base"
    """What its base does, and the products of its two thin factors added to it."""
    ROWS = "rows made dense"
    """Looked up in the stored form; only what was picked is made dense."""
    DENSE = "made dense"
    """The whole leaf is made dense, then used as before."""
    FUSED = "one operation"
    """No leaf: equations between products, such as a softmax attention, run as one."""


@dataclasses.dataclass(frozen=True)
class Execution:
    """How one compressed leaf ran at one site.

    Attributes:
        path: the leaf's name; for `How.FUSED` the named scope in the model.
        operation: what the leaf does there: a primitive's name; for `How.FUSED` the
            name of the `Fusion`.
        how: the way taken.
        why: for `How.DENSE`, what stood in the way of another; else what else there
            is to say, such as how the base of an adapted leaf ran, or what follows a
            product in the same call.
    """

    path: str
    operation: str
    how: How
    why: str = ""


def on_cpu() -> bool:
    """Whether JAX runs programs on a CPU by default here.

    Which kernel runs is settled when a program is lowered for a platform; what
    `inspect` reports is what happens on this one.
    """
    return jax.default_backend() == "cpu"
