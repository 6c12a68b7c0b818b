"""What the writers of safetensors files share: leaves looked at, arrays passed on."""

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jcompress.errors import MismatchError
from jcompress.interchange.files import Host
from jcompress.interchange.numbers import writable, zeros_of
from jcompress.interchange.safetensors import Planned, planned
from jcompress.tensors import QTensor, is_compressed

WEIGHT = ".weight"
"""How the name of a layer's weight ends in a file that is not quantized."""

Tensors = Mapping[str, Any]
"""Weights by their name in the file: `QTensor`s, and arrays that are not quantized."""


def any_matches(name: str, globs: Sequence[str]) -> bool:
    """Whether a name matches one of the globs."""
    return any(fnmatch.fnmatchcase(name, glob) for glob in globs)


def check_globs(
    transform: str, argument: str, globs: Iterable[str], names: Iterable[str]
) -> None:
    """Refuse globs that match none of the names.

    Raises:
        MismatchError: names the transform, its argument and the glob.
    """
    present = list(names)
    for glob in globs:
        if not any(any_matches(name, [glob]) for name in present):
            raise MismatchError(
                f"{transform}: no tensor is named {glob!r}, which {argument}= says; "
                f"there are {', '.join(present[:8])}"
            )


def layer_name(name: str) -> str:
    """The name of the layer that a weight belongs to."""
    return name.removesuffix(WEIGHT)


def plan_arrays(
    transform: str,
    tensors: Tensors,
    plan: Callable[[str, QTensor], dict[str, Planned]],
) -> dict[str, Planned]:
    """All arrays of a file: those that `plan` makes of `QTensor`s, and the others.

    Raises:
        MismatchError: there is no `QTensor`, another compressed leaf, something that is
            no array, or two arrays of one name.
    """
    if not any(isinstance(leaf, QTensor) for leaf in tensors.values()):
        raise MismatchError(
            f"{transform}: none of the {len(tensors)} tensors is a QTensor; "
            "quantize() makes them"
        )
    arrays: dict[str, Planned] = {}
    for name, leaf in tensors.items():
        if isinstance(leaf, QTensor):
            made = plan(name, writable(transform, name, leaf))
        elif is_compressed(leaf):
            raise MismatchError(
                f"{transform}: {name!r} is a {type(leaf).__name__}; a QTensor or an "
                "array can be written, such as its dense()"
            )
        elif not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            raise MismatchError(
                f"{transform}: {name!r} is a {type(leaf).__name__}, not an array; give "
                "a flat dict of names and leaves"
            )
        else:
            made = {name: planned(leaf)}
        if twice := arrays.keys() & made.keys():
            raise MismatchError(
                f"{transform}: {min(twice)!r} is written for {name!r} and for another"
            )
        arrays.update(made)
    return arrays


def check_kernel(transform: str, name: str, leaf: QTensor) -> tuple[int, int]:
    """N and K of a leaf that is one matrix.

    Raises:
        MismatchError: it has stack axes.
    """
    if leaf.stack_axes:
        raise MismatchError(
            f"{transform}: {name!r} is a stack of matrices {list(leaf.shape)}; the "
            "format has one matrix a name: write each slice under its own"
        )
    outputs, inputs = leaf.matrix_shape
    return outputs, inputs


def checked_zeros(transform: str, name: str, leaf: QTensor) -> Host:
    """The zero points of a leaf, unsigned: uint8 [*S, N, G].

    Raises:
        MismatchError: one is no number of the format.
    """
    try:
        return zeros_of(leaf)
    except ValueError as error:
        raise MismatchError(f"{transform}: {name!r}: {error}") from error


def half_scales(transform: str, name: str, scales: Any) -> Host:
    """Scales as float16, rounded to the nearest.

    Raises:
        MismatchError: one becomes infinite, or 0.
    """
    wide = np.asarray(scales, np.float32)
    with np.errstate(over="ignore"):
        half = wide.astype(np.float16)
    lost = ~np.isfinite(half) | ((half == 0) & (wide != 0))
    if lost.any():
        raise MismatchError(
            f"{transform}: {name!r} has the scale {wide[lost][0]}, which float16 does "
            "not hold"
        )
    return half
