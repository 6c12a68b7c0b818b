"""Convolutions that follow each other, with integers between them.

A result that only the next convolution reads, and that this one rounds to integers by a
scale that is known beforehand, is stored as these integers: a quarter of the bytes, and
nothing is left to round. The numbers are the same.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from jcompress.execution.after import Finished, Stored
from jcompress.tensors.ranges import InputScale
from jcompress.tracing.deferred import opened
from jcompress.tracing.jaxprs import split
from jcompress.tracing.replacing import Replacement
from jcompress.tracing.values import Location


def chains(convolutions: Sequence[Finished]) -> Iterator[list[Finished]]:
    """Convolutions of one program, those together of which one alone reads another.

    Args:
        convolutions: with what follows them, in the order of the program.
    """
    by_data = {one.use.eqn.invars[0]: one for one in convolutions}
    following: set[Location] = set()
    rest: dict[Location, Finished] = {}
    for one in convolutions:
        user = one.graph.only_user(one.pattern.result)
        other = by_data.get(one.pattern.result)
        if other is not None and user is other.use.eqn:
            rest[one.use.location] = other
            following.add(other.use.location)
    for one in convolutions:
        if one.use.location in following:
            continue
        chain = [one]
        while chain[-1].use.location in rest:
            chain.append(rest[chain[-1].use.location])
        yield chain


def in_turn(chain: Sequence[Finished]) -> Replacement:
    """Convolutions one after the other, with integers between them where that is known.

    Args:
        chain: each but the first reads the result of the one before it.
    """
    first, *others = chain
    atoms = [first.inputs, *(one.inputs[1:] for one in others)]

    def run(values: list[Any], reads: Mapping[Location, Any]) -> Sequence[Any]:
        parts = split(values, *map(len, atoms))[:-1]
        scales = [reads.get(one.use.location) for one in chain]
        links = _links(chain, parts, scales)
        if not any(links):
            return [_evaluated(chain, parts, scales, links)]
        arrays, closed = opened(values)
        no_links = [False] * len(links)

        def by(links: Sequence[bool], arrays: Any, scales: Any) -> Any:
            given = split(closed(arrays), *map(len, atoms))[:-1]
            return _evaluated(chain, given, scales, links)

        # Integers have no gradient: it is that of the same convolutions with floats
        # between them, which rounds straight through.
        @jax.custom_vjp
        def made(arrays: Any, scales: Any) -> Any:
            return by(links, arrays, scales)

        def forward(arrays: Any, scales: Any) -> tuple[Any, Any]:
            return made(arrays, scales), (arrays, scales)

        def backward(saved: Any, cotangent: Any) -> Any:
            _, pull = jax.vjp(lambda *given: by(no_links, *given), *saved)
            return pull(cotangent)

        made.defvjp(forward, backward)
        return [made(arrays, scales)]

    inputs = tuple(itertools.chain.from_iterable(atoms))
    return Replacement(inputs, (chain[-1].pattern.result,), run)


def _links(
    chain: Sequence[Finished], parts: Sequence[Any], scales: Sequence[InputScale | None]
) -> list[bool]:
    """Whether integers can stand between each one and the next."""
    whole = []
    for one, values in zip(chain, parts, strict=True):
        later = one is not chain[0]
        operands = [None, *values] if later else values
        inputs = list(operands[: len(one.use.eqn.invars)])
        whole.append(one.handler.convolves(one.use, inputs))
    pairs = zip(itertools.pairwise(whole), chain[1:], scales[1:], strict=True)
    return [
        all(both)
        and one.handler.activation is not None
        and known is not None
        and known.scale.size == 1
        for both, one, known in pairs
    ]


def _evaluated(
    chain: Sequence[Finished],
    parts: Sequence[Any],
    scales: Sequence[InputScale | None],
    links: Sequence[bool],
) -> Any:
    """The last result; integers stand between those that are linked."""
    out: list[Any] = []
    for number, (one, values) in enumerate(zip(chain, parts, strict=True)):
        stored = None
        if number < len(links) and links[number]:
            known = scales[number + 1]
            assert known is not None
            bits = chain[number + 1].handler.activation.format.bits
            stored = Stored(bits, *known)
        rounded = number > 0 and links[number - 1]
        reads = {one.use.location: scales[number]}
        given = [*out, *values]
        out = [one.run(given, reads, stored=stored, rounded=rounded)]
    return out[0]
