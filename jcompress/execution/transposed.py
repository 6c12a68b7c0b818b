"""Transposed convolutions: several plain ones, of which each makes every s-th output.

A convolution whose data is dilated by s multiplies mostly zeros. The output at o only
meets the positions k of the kernel with (o + k - low) divisible by s: the outputs with
the same remainder are a plain convolution with every s-th position of the kernel.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jcompress.kernels.quantized_conv.window import Window


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    """The outputs of a transposed convolution with the same remainders.

    Attributes:
        first: the remainders, of each spatial axis.
        starts: where on each spatial axis of the kernel its positions begin.
        window: where its patches lie.
    """

    first: tuple[int, ...]
    starts: tuple[int, ...]
    window: Window


class _Axis(NamedTuple):
    first: int
    start: int
    positions: int
    padding: tuple[int, int]


def phases_of(window: Window, steps: Sequence[int], out: Sequence[int]) -> list[Phase]:
    """The plain convolutions that make up a transposed one.

    Args:
        window: of the transposed one, without strides and dilation of the kernel.
        steps: by how much its data is dilated, of each spatial axis.
        out: the sizes of its result.

    Returns:
        Them; an empty list if one of them has no position of the kernel.
    """
    axes: list[list[_Axis]] = []
    every = zip(window.sizes, window.kernel, window.padding, steps, out, strict=True)
    for size, kernel, (low, _), step, whole in every:
        found = []
        for first in range(min(step, whole)):
            start = (low - first) % step
            count = -(-(kernel - start) // step)
            if count < 1:
                return []
            before = (low - first - start) // step
            outputs = -(-(whole - first) // step)
            after = outputs - 1 + count - size - before
            found.append(_Axis(first, start, count, (before, after)))
        axes.append(found)
    made = []
    for parts in itertools.product(*axes):
        own = dataclasses.replace(
            window,
            kernel=tuple(part.positions for part in parts),
            padding=tuple(part.padding for part in parts),
        )
        made.append(
            Phase(
                first=tuple(part.first for part in parts),
                starts=tuple(part.start for part in parts),
                window=own,
            )
        )
    return made


def by_phases(
    phases: Sequence[Phase],
    steps: Sequence[int],
    kernel: jax.Array,
    out: Sequence[int],
    after: Mapping[str, Any],
    convolve: Callable[..., jax.Array],
) -> jax.Array:
    """A transposed convolution: [B, *out, N].

    Args:
        phases: the plain ones.
        steps: by how much its data is dilated, of each spatial axis.
        kernel: small integers [N, *kernel, C].
        out: the sizes of its result.
        after: what follows, as the keyword arguments of `quantized_conv`.
        convolve: `convolve(window, values [N, K], **after) -> [B, *positions, N]`.
    """
    outputs = kernel.shape[0]
    found = {}
    for phase in phases:
        taken = jax.lax.slice(
            kernel,
            (0, *phase.starts, 0),
            kernel.shape,
            (1, *steps, 1),
        )
        values = taken.reshape(outputs, math.prod(taken.shape[1:]))
        own = dict(after)
        for name in ("addend", "residual"):
            if name in own:
                own[name] = _every(own[name], phase.first, steps)
        found[phase.first] = convolve(phase.window, values, **own)
    longest = [-(-whole // step) for whole, step in zip(out, steps, strict=True)]
    rank = len(out)

    def padded(y: jax.Array) -> jax.Array:
        missing = [n - m for n, m in zip(longest, y.shape[1:-1], strict=True)]
        return jnp.pad(y, ((0, 0), *((0, m) for m in missing), (0, 0)))

    if any(whole < step for whole, step in zip(out, steps, strict=True)):
        # Some remainders have no output at all.
        some = next(iter(found.values()))
        none = jnp.zeros((some.shape[0], *longest, outputs), some.dtype)
        for first in itertools.product(*map(range, steps)):
            found.setdefault(first, none)
    order = itertools.product(*map(range, steps))
    stacked = jnp.stack([padded(found[first]) for first in order])
    # [*steps, B, *longest, N] -> [B, longest, step, longest, step, ..., N]
    split = stacked.reshape(*steps, *stacked.shape[1:])
    places = [p for axis in range(rank) for p in (rank + 1 + axis, axis)]
    woven = jnp.transpose(split, (rank, *places, 2 * rank + 1))
    sizes = [n * step for n, step in zip(longest, steps, strict=True)]
    joined = woven.reshape(stacked.shape[1], *sizes, outputs)
    ends = (stacked.shape[1], *out, outputs)
    return jax.lax.slice(joined, (0,) * joined.ndim, ends)


def _every(x: jax.Array, first: Sequence[int], steps: Sequence[int]) -> jax.Array:
    """Of [B, *out, N] the positions with some remainders."""
    return jax.lax.slice(x, (0, *first, 0), x.shape, (1, *steps, 1))
