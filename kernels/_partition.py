"""Products whose arrays lie on several devices: each multiplies what it has.

Shardy learns from a sharding rule which axes belong together and carries shardings
along. The partitioner then asks for the program of one device. The answer here: stored
arrays stay as they are cut, activations and results follow, and where the inputs are
cut the parts are summed over the devices. Only a cut that does not go through every
array alike (in the middle of a group of scales, of a byte) is undone.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np
from jax.experimental.custom_partitioning import (
    ArrayMapping,
    CompoundFactor,
    SdyShardingRule,
    custom_partitioning,
)
from jax.sharding import NamedSharding, PartitionSpec

OTHER = "."
"""The letter of an axis that is never cut."""

Names = tuple[str, ...]
"""Names of mesh axes."""


def partitioned(
    alone: Callable[..., Any],
    whole: Callable[..., Any],
    of_parts: Callable[..., Any] | None,
    roles: Sequence[str],
    arrays: Sequence[jax.Array],
    results: int | None = None,
) -> Any:
    """`alone(*arrays)`, cut as the arrays are.

    Args:
        alone: computes [S, M, N], or several of them, in a program of one device.
        whole: the same on one of several devices, each of which may have other parts of
            the arrays, of which no input is missing.
        of_parts: `of_parts(axis_names, *arrays)` computes it from a part of the inputs,
            with sums over the devices along these mesh axes; None if it cannot.
        roles: one letter for each axis of each array (see
            `KernelOperation.roles`), without the stack axis `s` that leads each.
        arrays: the arrays.
        results: how many results there are, in a tuple; None for one in none.
    """
    outputs = "n" if any("n" in role for role in roles) else OTHER
    count = 1 if results is None else results
    letters = (*("s" + role for role in roles), *count * ("sm" + outputs,))

    def in_tuple(products: Any) -> Any:
        return tuple(products) if results is not None else products[0]

    def rule(mesh: Any, operands: Any, products: Any) -> SdyShardingRule:
        shapes = [tuple(one.shape) for one in (*operands, *products)]
        common = _by_whole_axes(_common(letters, shapes), mesh)
        return _rule(letters, shapes, common, count, cuts_inputs=of_parts is not None)

    def run_whole(*parts: jax.Array) -> Any:
        with _no_mesh():
            return whole(*parts)

    def partition(mesh: Any, operands: Any, products: Any) -> Any:
        products = [products] if results is None else list(products)
        known = [*operands, *products]
        if not all(isinstance(one.sharding, NamedSharding) for one in known):
            # Without a named mesh nothing says which device has what: let each do all.
            found = products[0].sharding.device_set
            devices = sorted(found, key=lambda device: device.id)
            mesh = jax.sharding.Mesh(np.array(devices), ("devices",))
            all_of_it = NamedSharding(mesh, PartitionSpec())
            whole_results = in_tuple(count * [all_of_it])
            return mesh, run_whole, whole_results, (all_of_it,) * len(operands)
        shapes = [tuple(one.shape) for one in known]
        given = list(zip(letters, map(_spec, known), shapes, strict=True))
        common = _common(letters, shapes)
        cut = _cuts(mesh, common, given, cuts_inputs=of_parts is not None)
        placed = [
            NamedSharding(mesh, PartitionSpec(*(cut.get(letter) for letter in role)))
            for role in letters
        ]

        def run(*parts: jax.Array) -> Any:
            if "k" not in cut:
                return run_whole(*parts)
            assert of_parts is not None
            with _no_mesh():
                return of_parts(cut["k"], *parts)

        operands_at = tuple(placed[: len(operands)])
        return mesh, run, in_tuple(placed[len(operands) :]), operands_at

    # The primitive takes no constants, such as tables; a jitted function keeps its own.
    # And the layers around evaluate it more than once, each time as one equation.
    call = custom_partitioning(jax.jit(alone))
    call.def_partition(partition, sharding_rule=rule)
    return call(*arrays)


def _no_mesh() -> AbstractContextManager[Any]:
    """Keep the mesh that is set out of the types of one device's arrays."""
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ()))


def partly_manual() -> bool:
    """Whether this is inside a `shard_map` over some axes of the mesh only.

    There the partitioner does not say by which axes of the mesh an array is cut.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return bool(mesh.manual_axes) and len(mesh.manual_axes) < len(mesh.axis_names)


def varying(arrays: Iterable[Any]) -> frozenset[str]:
    """The mesh axes of a `shard_map` over which any of some arrays varies."""
    present = (jax.typeof(a) for a in arrays if a is not None)
    return frozenset[str]().union(*(one.manual_axis_type.varying for one in present))


def vary(array: Any, names: frozenset[str]) -> Any:
    """Count an array, if it is not None, as one that varies over mesh axes."""
    if array is None:
        return None
    missing = names - varying([array])
    return jax.lax.pcast(array, tuple(sorted(missing)), to="varying")


def _common(
    letters: Sequence[str], shapes: Sequence[tuple[int, ...]]
) -> dict[str, int]:
    """Into how many equal parts the axes of a letter can be cut, at most."""
    common: dict[str, int] = {}
    for role, shape in zip(letters, shapes, strict=True):
        for letter, size in zip(role, shape, strict=True):
            if letter != OTHER:
                common[letter] = math.gcd(common.get(letter, 0), size)
    return common


def _by_whole_axes(common: dict[str, int], mesh: Any) -> dict[str, int]:
    """The same with as many parts as no axis of the mesh has to be split for.

    Shardy would cut 2 parts by half of an axis of 4 devices, which JAX cannot read.
    """
    sizes = [size for size in mesh.shape.values() if size > 1]

    def fits(parts: int) -> bool:
        return all(math.gcd(parts, size) in (1, size) for size in sizes)

    return {
        letter: max(n for n in range(1, parts + 1) if parts % n == 0 and fits(n))
        for letter, parts in common.items()
    }


def _rule(
    letters: Sequence[str],
    shapes: Sequence[tuple[int, ...]],
    common: dict[str, int],
    results: int,
    *,
    cuts_inputs: bool,
) -> SdyShardingRule:
    """The axes of the arguments and the results that belong together, for Shardy.

    An axis with more elements than the common number of parts is a part number and,
    under a name of its own, a number within the part.
    """
    sizes: dict[str, int] = {}
    whole_axes: set[str] = set()
    fixed: list[str] = []

    def mapping(number: int, role: str, shape: tuple[int, ...]) -> ArrayMapping:
        dims: list[Any] = []
        for axis, (letter, size) in enumerate(zip(role, shape, strict=True)):
            own = f"i{number}x{axis}"
            if letter == OTHER or common[letter] == 1 < size:
                fixed.append(own)
                dims.append(own)
            elif size == common[letter]:
                whole_axes.add(letter)
                dims.append(letter)
            else:
                sizes[letter] = common[letter]
                sizes[own] = size // common[letter]
                dims.append(CompoundFactor(letter, own))
        return ArrayMapping(*dims)

    mappings = [
        mapping(number, role, shape)
        for number, (role, shape) in enumerate(zip(letters, shapes, strict=True))
    ]
    inputs_are_cut = common.get("k", 1) > 1
    if inputs_are_cut and not cuts_inputs:
        fixed.append("k")
    in_part: dict[str, Any] = {
        name: size for name, size in sizes.items() if name not in whole_axes
    }
    return SdyShardingRule(
        tuple(mappings[:-results]),
        tuple(mappings[-results:]),
        reduction_factors=("k",) if inputs_are_cut and cuts_inputs else (),
        need_replication_factors=tuple(fixed),
        **in_part,
    )


def _spec(array: Any) -> tuple[Any, ...]:
    spec = tuple(array.sharding.spec)
    return spec + (None,) * (len(array.shape) - len(spec))


def _cuts(
    mesh: Any, common: dict[str, int], given: Sequence[Any], *, cuts_inputs: bool
) -> dict[str, Names]:
    """The mesh axes along which the axes of each letter are cut.

    Stored arrays have the first word, the largest first, then activations, then the
    result. Inputs are cut only if a stored array is cut there. No mesh axis is used
    twice.
    """
    stored = [entry for entry in given if "m" not in entry[0]]
    stored.sort(key=lambda entry: -math.prod(entry[2]))
    ordered = [*stored, *(entry for entry in given if "m" in entry[0])]
    cut: dict[str, Names] = {}
    used: set[str] = set()
    for letter in (letter for letter in "nksm" if letter in common):
        for role, spec, _ in stored if letter == "k" else ordered:
            place = role.find(letter)
            if place < 0 or spec[place] is None:
                continue
            names = spec[place] if isinstance(spec[place], tuple) else (spec[place],)
            names = tuple(name for name in names if name not in used)
            parts = math.prod(mesh.shape[name] for name in names)
            if parts > 1 and common[letter] % parts == 0:
                cut[letter] = names
                used.update(names)
                break
    if not cuts_inputs:
        cut.pop("k", None)
    return cut
