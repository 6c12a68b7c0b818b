"""Trees with the `QArray`s of qwix: to and from compressed leaves."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.errors import MismatchError
from jcompress.formats import Float8
from jcompress.formats.packing import FLOAT8
from jcompress.interchange.files import Host
from jcompress.interchange.numbers import Numbers, to_qtensor, writable
from jcompress.leaves import path_name
from jcompress.sites import Sites, leaf_axes
from jcompress.tensors import QTensor, is_compressed
from jcompress.tensors.axes import Axes, from_matrix, to_matrix

_INTEGERS = re.compile(r"(u?)int([2-8])")


def from_qwix(params: Any, sites: Sites) -> Any:
    """Make compressed leaves of the weights that qwix quantized.

    The tree then runs through `jcompress.execution.compressed` of the model before it
    was quantized. Numbers and scales stay what they are. qwix is not imported: whatever
    has `qvalue`, `scale`, `zero_point` and `qtype` is taken for a `QArray`, alone or as
    the `array` of a wrapper, as in the parameters of a `PtqProvider`'s model; or a
    mapping of these, as in the state of an NNX module. Nothing is traced.

    Args:
        params: the tree, with other arrays left alone. Values are int2 to int8, uint4,
            uint8 or float8_e4m3fn; scales may be tiled along any axes.
        sites: of the model with its dense parameters, with the same names of leaves;
            they say which axes of a weight are summed over. A `QArray` that qwix
            reshaped for its product takes the shape of the leaf again.

    Returns:
        The tree with a `QTensor` in the place of every `QArray`, of the dtype of its
        scales; activations are not quantized.

    Raises:
        MismatchError: there is no `QArray`, its name is not among the sites' weights,
            its size is another, or its numbers have no form in jcompress.

    Example:
        >>> import types
        >>> import jax, jax.numpy as jnp
        >>> from jcompress.execution import compressed
        >>> from jcompress.sites import find_sites
        >>> def model(params, x):
        ...     return x @ params["w"]
        >>> w = types.SimpleNamespace(  # what qwix.quantize(w, jnp.int8, ...) returns
        ...     qvalue=jnp.full((4, 2), 3, jnp.int8),
        ...     scale=jnp.asarray([[0.5, 1.0]]),
        ...     zero_point=None,
        ...     qtype=jnp.int8,
        ... )
        >>> x = jnp.ones((1, 4))
        >>> sites = find_sites(model, {"w": jnp.zeros((4, 2))}, x)
        >>> small = from_qwix({"w": w}, sites)
        >>> compressed(model)(small, x).tolist()
        [[6.0, 12.0]]
    """
    found = 0

    def convert(path: Any, leaf: Any) -> Any:
        nonlocal found
        array = _quantized(leaf)
        if array is None:
            return leaf
        found += 1
        made = _to_leaf(path_name(path), array, sites)
        return jax.tree.unflatten(array.holder, [made])

    made = jax.tree_util.tree_map_with_path(
        convert, params, is_leaf=lambda node: _quantized(node) is not None
    )
    if not found:
        raise MismatchError(
            "from_qwix: the tree has no QArray, nothing with qvalue and scale"
        )
    return made


class _Fields(NamedTuple):
    """The fields of a QArray, and what holds its values: nothing, or a variable."""

    qvalue: Any
    scale: Any
    zero_point: Any
    qtype: Any
    holder: Any


def _quantized(node: Any) -> _Fields | None:
    """The QArray that a node is or wraps; None if it is something else."""
    # NNX takes modules apart into mappings of their fields, each a variable.
    inner = _field(node, "array")
    inner = node if inner is None else inner
    values, scale = _field(inner, "qvalue"), _field(inner, "scale")
    if values is None or scale is None:
        return None
    return _Fields(
        qvalue=_alone(values),
        scale=_alone(scale),
        zero_point=_alone(_field(inner, "zero_point")),
        qtype=_field(inner, "qtype"),
        holder=jax.tree.structure(values),
    )


def _field(node: Any, name: str) -> Any:
    """An entry of a mapping, or an attribute of anything else; None without it."""
    if isinstance(node, Mapping):
        return node.get(name)
    return getattr(node, name, None)


def _alone(field: Any) -> Any:
    """The array in a field, which may be a variable around it."""
    leaves = jax.tree.leaves(field)
    return leaves[0] if leaves else None


def _to_leaf(name: str, array: _Fields, sites: Sites) -> QTensor:
    if name not in sites.weights:
        raise MismatchError(
            f"from_qwix: {name!r} is a QArray, and no weight at the sites, which are "
            f"{', '.join(sites.weights[:8]) or 'none'}; trace the model with its dense "
            "parameters"
        )
    uses = sites.of(name)
    shape, axes = uses[0].shape, leaf_axes(uses)
    stored, scale = np.asarray(array.qvalue), np.asarray(array.scale)
    zero = None if array.zero_point is None else np.asarray(array.zero_point)
    if stored.size != math.prod(shape):
        raise MismatchError(
            f"from_qwix: {name!r} is {list(stored.shape)} in the tree and "
            f"{list(shape)} at its sites"
        )
    for part in (scale, *(() if zero is None else (zero,))):
        if part.ndim != stored.ndim or any(
            not size or whole % size
            for whole, size in zip(stored.shape, part.shape, strict=True)
        ):
            raise MismatchError(
                f"from_qwix: {name!r} is {list(stored.shape)}, which scales or zero "
                f"points {list(part.shape)} do not tile"
            )
    places = [_places(part, stored.shape, shape, axes) for part in (scale, zero)]
    run = math.gcd(*(_run(place) for place in places if place is not None))
    scales = _taken(scale, places[0], run)
    zeros = _taken(zero, places[1], run)
    assert scales is not None
    if zeros is not None:
        rows = max(scales.shape[-2], zeros.shape[-2])
        full = (*scales.shape[:-2], rows, scales.shape[-1])
        scales, zeros = np.broadcast_to(scales, full), np.broadcast_to(zeros, full)
    return _made(name, array, stored.reshape(shape), scales, zeros, axes)


def _places(
    part: Host | None,
    stored: tuple[int, ...],
    shape: tuple[int, ...],
    axes: Axes,
) -> Host | None:
    """Which entry of `part` each number uses, int32 [*S, N, K]."""
    if part is None:
        return None
    index = np.arange(part.size, dtype=np.int32).reshape(part.shape)
    for axis, whole in enumerate(stored):
        index = np.repeat(index, whole // part.shape[axis], axis=axis)
    return to_matrix(index.reshape(shape), axes)


def _run(places: Host) -> int:
    """The largest size of groups of inputs that share an entry in every row."""
    changed = (places[..., 1:] != places[..., :-1]).reshape(-1, places.shape[-1] - 1)
    return math.gcd(places.shape[-1], *map(int, np.flatnonzero(changed.any(0)) + 1))


def _taken(part: Host | None, places: Host | None, run: int) -> Host | None:
    """The entries [*S, N or 1, G]; one row if all outputs share it."""
    if part is None or places is None:
        return None
    chosen = places[..., ::run]
    if (chosen == chosen[..., :1, :]).all():
        chosen = chosen[..., :1, :]
    return part.reshape(-1)[chosen]


def _made(
    name: str,
    array: _Fields,
    stored: Host,
    scales: Host,
    zeros: Host | None,
    axes: Axes,
) -> QTensor:
    qtype = array.qvalue.dtype if array.qtype is None else array.qtype
    said = qtype if isinstance(qtype, str) else np.dtype(qtype).name
    matrix, dtype = to_matrix(stored, axes), scales.dtype
    wide = scales.astype(np.float32)
    if said == FLOAT8.name and matrix.dtype == FLOAT8 and zeros is None:
        raw = matrix.view(np.uint8)
        # A leaf has one zero.
        values = np.where(raw == 0x80, np.uint8(0), raw).view(FLOAT8)
        return QTensor(
            values=jnp.asarray(values),
            scales=jnp.asarray(wide),
            format=Float8(),
            shape=stored.shape,
            dtype=dtype,
            stack_axes=axes.stack,
            output_axes=axes.output,
            input_axes=axes.input,
        )
    kind = _INTEGERS.fullmatch(said)
    if kind is None or not jnp.issubdtype(matrix.dtype, jnp.integer):
        raise MismatchError(
            f"from_qwix: {name!r} has {said} stored as {matrix.dtype}; integers of 2 "
            "to 8 bits and float8_e4m3fn have a form here"
        )
    bits = int(kind[2])
    # From the lowest number on, so that signed and unsigned are the same.
    half = 0 if kind[1] else 2 ** (bits - 1)
    values = matrix.astype(np.int16) + np.int16(half)
    shifted = np.zeros(scales.shape, np.int16) if zeros is None else zeros
    points = shifted.astype(np.int16) + np.int16(half)
    for part in (values, points):
        if part.size and not 0 <= part.min() <= part.max() < 2**bits:
            raise MismatchError(f"from_qwix: {name!r} has numbers beyond {said}")
    numbers = Numbers(values.astype(np.uint8), wide, points.astype(np.uint8), bits)
    return to_qtensor(numbers, dtype, stored.shape, axes)


def to_qwix(params: Any, make: Callable[..., Any]) -> Any:
    """Make `QArray`s of the `QTensor`s of a tree.

    Args:
        params: the tree; its arrays stay.
        make: `qwix.QArray`, or anything that takes `qvalue`, `scale`, `zero_point` and
            `qtype`. Integers of 2 and 4 bits are given as int2 and int4, others as
            int8; scales in the dtype of the dense weight, which is how qwix knows it.

    Returns:
        The tree with a `QArray` in the place of every `QTensor`.

    Raises:
        MismatchError: there is no `QTensor`, a compressed leaf of another class, or
            groups of inputs that tile none of the axes.

    Example:
        >>> import types
        >>> import jax.numpy as jnp
        >>> from jcompress.tensors import QTensor
        >>> from jcompress.tensors.axes import Axes
        >>> from jcompress.tensors.specs import Weights
        >>> w = QTensor.quantize(jnp.ones((4, 2)), Axes((), (1,), (0,)), Weights())
        >>> array = to_qwix({"w": w}, types.SimpleNamespace)["w"]
        >>> array.qvalue.shape, array.scale.shape
        ((4, 2), (1, 2))
    """
    leaves = jax.tree.leaves(params, is_leaf=is_compressed)
    if not any(isinstance(leaf, QTensor) for leaf in leaves):
        raise MismatchError("to_qwix: the tree has no QTensor; quantize() makes them")

    def convert(path: Any, leaf: Any) -> Any:
        if isinstance(leaf, QTensor):
            return _to_array(path_name(path), leaf, make)
        if is_compressed(leaf):
            raise MismatchError(
                f"to_qwix: {path_name(path)!r} is a {type(leaf).__name__}; a QArray "
                "stands for a QTensor only"
            )
        return leaf

    return jax.tree_util.tree_map_with_path(convert, params, is_leaf=is_compressed)


def _to_array(name: str, leaf: QTensor, make: Callable[..., Any]) -> Any:
    leaf = writable("to_qwix", name, leaf)
    groups = leaf.scales.shape[-1]
    sizes = {axis: leaf.shape[axis] for axis in leaf.stack_axes}
    alone = leaf.scales.shape[-2] == 1
    sizes |= {axis: 1 if alone else leaf.shape[axis] for axis in leaf.output_axes}
    left = groups
    for axis in leaf.input_axes:
        size = math.gcd(left, leaf.shape[axis])
        sizes[axis], left = size, left // size
        if size < leaf.shape[axis]:
            # Only the last axis that is not whole may be cut.
            break
    if left > 1:
        raise MismatchError(
            f"to_qwix: {name!r} has {groups} groups of its inputs, axes "
            f"{leaf.input_axes} of {list(leaf.shape)}, which tile none of them"
        )
    shape = tuple(sizes.get(axis, 1) for axis in range(leaf.ndim))
    bits = leaf.format.bits
    small = {2: jnp.int2, 4: jnp.int4}.get(bits, jnp.int8)
    kind = FLOAT8 if isinstance(leaf.format, Float8) else np.dtype(small)
    odd = not isinstance(leaf.format, Float8) and bits not in (2, 4, 8)
    zeros = leaf.zeros
    return make(
        qvalue=from_matrix(leaf.numbers, leaf.axes, leaf.shape).astype(kind),
        scale=from_matrix(leaf.scales, leaf.axes, shape).astype(leaf.dtype),
        zero_point=(
            None if zeros is None else from_matrix(zeros, leaf.axes, shape).astype(kind)
        ),
        qtype=f"int{bits}" if odd else kind,
    )
