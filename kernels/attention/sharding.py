"""Attention on a mesh: every axis of the result may be cut, keys and features not."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

from jcompress.kernels import _partition
from jcompress.kernels.attention.axes import FEATURE, KEY, Axes

Names = tuple[str, ...]


def partitioned(
    run: Callable[..., jax.Array], axes: Axes, arrays: Sequence[jax.Array | None]
) -> jax.Array:
    """`run(*arrays)`, cut as the arrays are; those that are None are left out."""
    present = [a for a in arrays if a is not None]
    sizes = axes.sizes(arrays)
    letters = [
        _cuttable(letters, array.shape, sizes)
        for letters, array in zip(axes.operands, arrays, strict=True)
        if array is not None
    ]
    letters.append(_cuttable(axes.result, axes.shape(arrays), sizes))

    def rule(mesh: Any, operands: Any, results: Any) -> Any:
        shapes = [tuple(one.shape) for one in (*operands, *results)]
        common = _partition._by_whole_axes(_partition._common(letters, shapes), mesh)
        return _partition._rule(letters, shapes, common, 1, cuts_inputs=False)

    def whole(*parts: jax.Array) -> jax.Array:
        rest = iter(parts)
        return run(*(None if a is None else next(rest) for a in arrays))

    def on_one_device(*parts: jax.Array) -> jax.Array:
        with _partition._no_mesh():
            return whole(*parts)

    def partition(mesh: Any, operands: Any, result: Any) -> Any:
        known = [*operands, result]
        if not all(isinstance(one.sharding, NamedSharding) for one in known):
            # Without a named mesh nothing says which device has what: let each do all.
            devices = sorted(result.sharding.device_set, key=lambda device: device.id)
            mesh = jax.sharding.Mesh(np.array(devices), ("devices",))
            everywhere = NamedSharding(mesh, PartitionSpec())
            return mesh, on_one_device, everywhere, (everywhere,) * len(operands)
        cut = _cuts(mesh, letters, known)
        *placed, out = (
            NamedSharding(mesh, PartitionSpec(*(cut.get(letter) for letter in role)))
            for role in letters
        )
        return mesh, on_one_device, out, tuple(placed)

    # The primitive takes no constants; a jitted function keeps its own.
    call = custom_partitioning(jax.jit(whole))
    call.def_partition(partition, sharding_rule=rule)
    out: jax.Array = call(*present)
    return out


def _cuttable(letters: str, shape: Sequence[Any], sizes: dict[str, Any]) -> str:
    """The letters of axes that may be cut, `OTHER` for those that may not."""
    return "".join(
        _partition.OTHER if c in (FEATURE, KEY) or (n == 1 and n != sizes[c]) else c
        for c, n in zip(letters, shape, strict=True)
    )


def _cuts(mesh: Any, letters: Sequence[str], known: Sequence[Any]) -> dict[str, Names]:
    """The mesh axes along which each letter is cut: as the largest array has it."""
    given = [
        (role, _partition._spec(one), tuple(one.shape))
        for role, one in zip(letters, known, strict=True)
    ]
    common = _partition._common(letters, [shape for *_, shape in given])
    given.sort(key=lambda entry: -math.prod(entry[2]))
    cut: dict[str, Names] = {}
    used: set[str] = set()
    for role, spec, _ in given:
        for letter, names in zip(role, spec, strict=True):
            if letter == _partition.OTHER or letter in cut or names is None:
                continue
            wanted = names if isinstance(names, tuple) else (names,)
            free = tuple(name for name in wanted if name not in used)
            parts = math.prod(mesh.shape[name] for name in free)
            if parts > 1 and common[letter] % parts == 0:
                cut[letter] = free
                used.update(free)
    return cut


def explicit_spec(axes: Axes, arrays: Sequence[Any]) -> PartitionSpec:
    """How the result is cut where shardings are part of types."""
    names: dict[str, Any] = {}
    used: set[str] = set()
    sizes = axes.sizes(arrays)
    for letters, array in zip(axes.operands, arrays, strict=True):
        if array is None:
            continue
        for place, letter in enumerate(letters):
            own = jax.typeof(array).sharding.spec[place]
            wanted = own if isinstance(own, tuple) else (own,)
            repeats = array.shape[place] != sizes[letter]
            if own is None or letter in names or letter in (FEATURE, KEY) or repeats:
                continue
            free = tuple(name for name in wanted if name not in used)
            names[letter] = free
            used.update(free)
    return PartitionSpec(*(names.get(letter) for letter in axes.result))
