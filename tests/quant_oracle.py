"""Fake quantization written again in NumPy, one group of weights at a time.

Shares no code with the library: it never transposes or reshapes a leaf, but visits
each group of weights through an index, so that a mistake in the layout shows too.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np


class Leaf(NamedTuple):
    """A kind of parameter leaf and the roles of its axes."""

    shape: tuple[int, ...]
    stack: tuple[int, ...]
    output: tuple[int, ...]
    input: tuple[int, ...]


LEAVES = {
    "dense": Leaf((12, 5), (), (1,), (0,)),
    "tied_embedding": Leaf((7, 12), (), (0,), (1,)),
    "conv": Leaf((3, 2, 4, 5), (), (3,), (0, 1, 2)),
    "heads": Leaf((12, 2, 3), (), (1, 2), (0,)),
    "scan": Leaf((3, 12, 5), (0,), (2,), (1,)),
    "experts": Leaf((2, 12, 3), (0,), (2,), (1,)),
}
"""Every kind of leaf has a number of inputs that groups of 4 divide."""


class Format(NamedTuple):
    """The oracle's own words for a weight format; `group` is None or a size."""

    bits: int
    symmetric: bool
    per: str
    group: int | None = None


class Quantized(NamedTuple):
    """What the oracle says of a leaf, element by element."""

    dense: np.ndarray
    integers: np.ndarray
    kept: np.ndarray


def _slots(leaf: Leaf, per: str) -> Iterator[tuple[int | slice, ...]]:
    """Indices that each cut out what may share a scale."""
    fixed = leaf.stack if per == "tensor" else leaf.stack + leaf.output
    for place in itertools.product(*(range(leaf.shape[axis]) for axis in fixed)):
        index: list[int | slice] = [slice(None)] * len(leaf.shape)
        for axis, position in zip(fixed, place, strict=True):
            index[axis] = position
        yield tuple(index)


def limits(bits: int, symmetric: bool) -> tuple[int, int]:
    if symmetric:
        return 1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def invertible(scale: np.float32) -> np.float32:
    """The scale, or 1 for one that float32 cannot invert."""
    return scale if scale >= np.finfo(np.float32).tiny else np.float32(1)


def scale_zero(
    low: np.float32, high: np.float32, bits: int, symmetric: bool
) -> tuple[np.float32, np.float32]:
    first, last = limits(bits, symmetric)
    if symmetric:
        scale = max(abs(low), abs(high)) * np.float32(1 / last)
        return invertible(scale), np.float32(0)
    low, high = min(low, np.float32(0)), max(high, np.float32(0))
    scale = (high - low) * np.float32(1 / (2**bits - 1))
    scale = invertible(scale)
    zero = np.rint(np.float32(first) - low * (np.float32(1) / scale))
    return scale, np.clip(zero, np.float32(first), np.float32(last))


def quantize_vector(x: np.ndarray, form: Format) -> Quantized:
    """Quantize numbers that share one scale; float32 throughout."""
    x = x.astype(np.float32)
    scale, zero = scale_zero(x.min(), x.max(), form.bits, form.symmetric)
    return with_scale(x, scale, zero, form.bits, form.symmetric)


def with_scale(
    x: np.ndarray, scale: np.float32, zero: np.float32, bits: int, symmetric: bool
) -> Quantized:
    first, last = limits(bits, symmetric)
    free = np.rint(x * (np.float32(1) / scale)) + zero
    integers = np.clip(free, np.float32(first), np.float32(last))
    dense = (integers - zero) * scale
    return Quantized(dense, integers, (free >= first) & (free <= last))


def fake_quantize(x: np.ndarray, leaf: Leaf, form: Format) -> Quantized:
    """Quantize a leaf; `dense` has its dtype."""
    out = Quantized(
        np.empty(x.shape, np.float32),
        np.empty(x.shape, np.float32),
        np.empty(x.shape, bool),
    )
    for index in _slots(leaf, form.per):
        part = x[index]
        size = form.group or part.size
        runs = part.reshape(-1, size)
        answers = [quantize_vector(run, form) for run in runs]
        for field, whole in enumerate(out):
            pieces = np.stack([answer[field] for answer in answers])
            whole[index] = pieces.reshape(part.shape)
    return out._replace(dense=out.dense.astype(x.dtype))


def normal(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=shape)
    return x.astype(np.float32).astype(jnp.dtype(dtype))
