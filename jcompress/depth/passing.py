"""What enters and what leaves blocks, compared in one evaluation of a function."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.depth.blocks import Passage
from jcompress.low_rank.moments import Sums
from jcompress.tracing.interpreter import Program
from jcompress.tracing.jaxprs import Body, split
from jcompress.tracing.trace import Traced
from jcompress.tracing.values import Location


def unlikeness(a: Any, b: Any) -> jax.Array:
    """1 less the cosine of two arrays [..., N] along the last axis, summed over rows.

    Half the square of the distance of the unit vectors, which is exact where they are
    nearly alike. Two rows of zeros are alike, one alone is at right angles to all.

    Returns:
        float32 [2]: the sum, and the number of rows.
    """
    a, b = (jnp.atleast_1d(x).astype(jnp.float32) for x in (a, b))
    lengths = [jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (a, b)]
    a, b = (
        x / jnp.where(length > 0, length, 1)
        for x, length in zip((a, b), lengths, strict=True)
    )
    apart = jnp.sum(jnp.square(a - b), axis=-1) / 2
    zero = [jnp.squeeze(length == 0, axis=-1) for length in lengths]
    apart = jnp.where(zero[0] != zero[1], 1, apart)
    return jnp.stack([jnp.sum(apart), jnp.asarray(apart.size, jnp.float32)])


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Watching(Program):
    """A program that also compares what passes through blocks.

    Attributes:
        passages: the blocks, by the location of their statistic.
    """

    passages: Mapping[Location, Passage]

    def run(
        self,
        body: Body,
        inputs: Sequence[Any],
        at: Location,
        reads: Mapping[Location, Any],
    ) -> tuple[list[Any], dict[Location, Any]]:
        here = {key: one for key, one in self.passages.items() if one.place == at}
        if not here:
            return super().run(body, inputs, at, reads)
        results = body.jaxpr.outvars
        passing = [
            value for one in here.values() for pair in one.pairs for value in pair
        ]
        wider = body.jaxpr.replace(outvars=[*results, *passing])
        found, statistics = super().run(Body(wider, body.consts), inputs, at, reads)
        outs, values = split(found, len(results))
        for key, one in here.items():
            own, values = split(values, 2 * len(one.pairs))
            pairs = zip(own[::2], own[1::2], strict=True)
            statistics[key] = sum(
                (unlikeness(a, b) for a, b in pairs), start=jnp.zeros(2, jnp.float32)
            )
        return outs, statistics


def compare_passing(
    traced: Traced, passages: Sequence[Passage]
) -> list[np.ndarray[Any, np.dtype[np.float64]]]:
    """How unlike what enters and what leaves each block are, in one evaluation.

    Returns:
        For each block float64 [*steps, 2]: sums and numbers of rows, as of
        `unlikeness`, with an axis for each enclosing scan that takes its leaves apart.
    """
    # Below zero no equation stands, so that blocks may share a use of a leaf.
    keys = {(*one.place, -1 - n): one for n, one in enumerate(passages)}
    uses = {key: traced.uses[one.use] for key, one in keys.items()}
    program = _Watching(
        traced=dataclasses.replace(traced, uses={**traced.uses, **uses}),
        handlers={},
        statistic=Sums(),
        opened=frozenset(one.place for one in passages),
        passages=keys,
    )
    reads = dict.fromkeys(keys)
    watched = jax.jit(lambda leaves, data: program(leaves, data, reads)[1])
    statistics = jax.device_get(watched(traced.leaves, traced.data))
    return [np.asarray(statistics[key], np.float64) for key in keys]
