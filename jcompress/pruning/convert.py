"""`to_sparse`: store pruned weights without the zeros that a pattern removed."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.conversion import convert_leaves, resolve_specs
from jcompress.errors import MismatchError
from jcompress.formats import Int
from jcompress.pruning.optimizer import PruneState
from jcompress.pruning.patterns import NM, Block, Pattern, Unstructured
from jcompress.pruning.zeros import LOST, check_removed
from jcompress.rules import Rules
from jcompress.sites import Sites, leaf_axes
from jcompress.tensors import (
    BlockSparse,
    NMSparse,
    QTensor,
    UnstructuredSparse,
    is_compressed,
)
from jcompress.tensors.axes import Axes, to_matrix
from jcompress.tensors.block_sparse import take_blocks
from jcompress.tensors.nm_sparse import take_kept
from jcompress.tensors.unstructured_sparse import pack_values, take_values

Host = np.ndarray[Any, Any]


def to_sparse(
    params: Any,
    rules: Rules[Pattern],
    *,
    sites: Sites,
    state: PruneState | None = None,
) -> Any:
    """Store the pruned weights of a tree without the zeros of their pattern.

    A leaf that a rule gives a `Block` becomes a `BlockSparse`, one with `NM` an
    `NMSparse`, one with `Unstructured` an `UnstructuredSparse`; their `dense()` is the
    leaf, bit for bit. The leaf holds the zeros
    already: make them with `make_masks` and `apply_masks`, or train with `prune`.

    For integers, quantize first: `to_sparse(quantize(tree, ...), ...)` takes the
    `QTensor`s of symmetric `Weights` of 5 to 8 bits, with a scale a channel or one for
    all and without a quantized activation; `Unstructured` those of 2 to 8 bits, up to 4
    of them in 4 bits a weight, with scales of any group or block. So it does what
    `prune_weights` made with `OneShot(weights=...)`, whatever its pattern. Symmetric
    quantization leaves zeros zero. The other order is refused by `quantize`.

    Args:
        params: the parameters, with dense or quantized leaves; not traced, since the
            number of stored blocks depends on the weights.
        rules: pairs of a predicate and a `Block`, `NM` or `Unstructured`.
        sites: the sites of the function that will use the tree, with the same names.
        state: the state of `prune`, if the tree was trained with it: what it removed
            is checked to be zero.

    Returns:
        A tree of the same structure but for the sparse leaves.

    Raises:
        TypeError: the rules are malformed, or a spec is another pattern.
        MismatchError: a rule matches no weight; a matched leaf is absent, of another
            shape than at its sites, of a dtype that is not stored, quantized in another
            format, or compressed otherwise; the blocks do not tile it; a group has
            more than n weights that are not zero; the leaf would not become
            smaller, with the count of what stays; or weights came back that `prune`
            had removed.
        ValueError: a leaf is traced.

    Example:
        >>> import jax.numpy as jnp
        >>> from jcompress.pruning import Block
        >>> from jcompress.pruning.convert import to_sparse
        >>> from jcompress.sites import find_sites
        >>> params = {"w": jnp.zeros((8, 8)).at[2:4, :4].set(1.0)}
        >>> sites = find_sites(lambda p, x: x @ p["w"], params, jnp.ones((1, 8)))
        >>> small = to_sparse(params, [("w", Block((4, 2)))], sites=sites)
        >>> small["w"].blocks.shape
        (1, 4, 2)
    """
    resolved = resolve_specs(
        rules,
        sites,
        (Block, NM, Unstructured),
        transform="to_sparse",
        usage="Block((bn, bk)), NM(n, m) or Unstructured(), which sparse leaves have",
    )
    if state is not None:
        check_removed("to_sparse", params, state)
    return convert_leaves(
        "to_sparse",
        params,
        resolved.leaves,
        lambda path, leaf, spec: _convert(path, leaf, spec, sites),
        sites=sites,
        accept=(QTensor,),
        traced="how much of it is stored depends on its values",
    )


def _convert(
    path: str, leaf: Any, spec: Pattern, sites: Sites
) -> BlockSparse | NMSparse | UnstructuredSparse:
    uses = sites.of(path)
    axes = leaf_axes(uses)
    matrix, scales = _matrix(path, leaf, axes, spec)
    fields = {
        "scales": scales,
        "shape": uses[0].shape,
        "dtype": leaf.dtype,
        "stack_axes": axes.stack,
        "output_axes": axes.output,
        "input_axes": axes.input,
    }
    before = leaf.stored_bytes if is_compressed(leaf) else leaf.nbytes
    if isinstance(spec, Block):
        try:
            spec.check(path, uses[0].shape, axes)
        except MismatchError as error:
            raise MismatchError(f"to_sparse: {error}") from None
        # Which, other than jnp.asarray, compiles no program for each shape.
        blocks, columns, starts = map(jax.device_put, take_blocks(matrix, spec.shape))
        sparse: BlockSparse | NMSparse | UnstructuredSparse = BlockSparse(
            blocks=blocks, columns=columns, starts=starts, **fields
        )
        what = _block_count(matrix, spec)
    elif isinstance(spec, Unstructured):
        taken, *places = take_values(matrix)
        if isinstance(leaf, QTensor) and _is_narrow(leaf):
            taken = pack_values(taken)
        values, mask, starts = map(jax.device_put, (taken, *places))
        sparse = UnstructuredSparse(values=values, mask=mask, starts=starts, **fields)
        kept = np.count_nonzero(matrix)
        what = f"{kept} of {matrix.size} weights are not 0 and with a bit for each"
    else:
        assert isinstance(spec, NM)
        _check_groups(path, matrix, spec)
        values, mask = map(jax.device_put, take_kept(matrix, spec.n, spec.m))
        sparse = NMSparse(values=values, mask=mask, n=spec.n, m=spec.m, **fields)
        what = f"{spec.n} of every {spec.m} weights and a bit for each"
    if sparse.stored_bytes >= before:
        raise MismatchError(
            f"to_sparse: {path!r} would not become smaller: {what} take "
            f"{sparse.stored_bytes} bytes, and it has {before}; exclude it with a rule "
            f"({path!r}, None) or prune more. If prune removed more in training, its "
            f"zeros were lost. {LOST}."
        )
    return sparse


def _matrix(
    path: str, leaf: Any, axes: Axes, spec: Pattern
) -> tuple[Host, jax.Array | None]:
    """The canonical matrix as it is to be stored, and the scales of integers."""
    if not isinstance(leaf, QTensor):
        if leaf.dtype not in (jnp.float32, jnp.bfloat16, jnp.float16):
            raise MismatchError(
                f"to_sparse: {path!r} is {leaf.dtype}; sparse leaves hold float32, "
                "bfloat16 and float16 weights, and integers after quantize"
            )
        host = np.asarray(leaf)
        if host.dtype == np.float16:
            host = host.astype(np.float32)
        return to_matrix(host, axes), None
    if not isinstance(leaf.format, Int):
        raise MismatchError(
            f"to_sparse: {path!r} is stored as {leaf.format}; sparse leaves take "
            "symmetric integers of up to 8 bits: "
            "Quantize(weights=Weights(format=Int(8)))"
        )
    outputs = leaf.matrix_shape[-2]
    rows, groups = leaf.scales.shape[-2:]
    plain = leaf.format.bits > 4 and groups == 1 and rows in (1, outputs)
    suits = leaf.format.bits <= 8 and leaf.zeros is None
    suits = suits and (plain or isinstance(spec, Unstructured))
    if not suits or leaf.activation is not None or leaf.axes != axes:
        raise MismatchError(
            f"to_sparse: {path!r} is quantized with {leaf.format.bits} bits, "
            f"{'no ' if leaf.zeros is None else ''}zero points, {groups} scales a "
            f"channel and {'no' if leaf.activation is None else 'a'} quantized "
            "activation; sparse leaves take float activations and symmetric integers "
            "of 5 to 8 bits with one scale a channel, Quantize(weights=Weights("
            "format=Int(8))), or with Unstructured() of 2 to 8 bits with any scales"
        )
    values = np.asarray(leaf.numbers)
    scales = np.repeat(np.asarray(leaf.float_scales), outputs // rows, axis=-2)
    return values, jax.device_put(scales)


def _is_narrow(leaf: QTensor) -> bool:
    """Whether 4 bits hold its integers."""
    return isinstance(leaf.format, Int) and leaf.format.bits <= 4


def _block_count(matrix: Host, spec: Block) -> str:
    high, wide = spec.shape
    *_, outputs, inputs = matrix.shape
    tiles = matrix.reshape(-1, outputs // high, high, inputs // wide, wide)
    kept = (tiles != 0).any(axis=(2, 4))
    return f"{int(kept.sum())} of {kept.size} blocks of {high} x {wide} are not 0 and"


def _check_groups(path: str, matrix: Host, spec: NM) -> None:
    inputs = matrix.shape[-1]
    pad = [(0, 0)] * (matrix.ndim - 1) + [(0, -inputs % spec.m)]
    padded = np.pad(matrix != 0, pad)
    full = padded.reshape(*matrix.shape[:-1], -1, spec.m).sum(-1) > spec.n
    if full.any():
        raise MismatchError(
            f"to_sparse: {path!r} is not {spec.n}:{spec.m} sparse: {int(full.sum())} "
            f"of {full.size} groups of {spec.m} inputs hold more than {spec.n} weights "
            f"that are not 0; prune it with Prune(pattern={spec!r}) first. If that was "
            f"done in training, its zeros were lost. {LOST}."
        )
