"""What may become of a leaf, or of a width: formats, sparsities, ranks, fewer units."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.errors import MismatchError
from jcompress.low_rank import Svd, factorize
from jcompress.low_rank.choice import low_rank_leaf
from jcompress.low_rank.factorizing import quantize_factors
from jcompress.pruning import NM, Unstructured, to_sparse
from jcompress.pruning.one_shot import OneShot, prune_weights
from jcompress.pruning.one_shot.weights import check as check_pruning
from jcompress.quantization import Quantize, Weights, quantize
from jcompress.quantization.convert import needs_moments
from jcompress.rounding import Nearest, Rounding
from jcompress.rules import Rules
from jcompress.sites import Site, Sites, leaf_axes
from jcompress.tensors import LowRank, NMSparse, UnstructuredSparse
from jcompress.tensors.axes import matrix_shape
from jcompress.tensors.nm_sparse import take_kept


@dataclasses.dataclass(frozen=True)
class Keep:
    """A group of coupled axes keeps this fraction of its units: a smaller width.

    Attributes:
        fraction: in (0, 1).

    Raises:
        ValueError: the fraction is not between 0 and 1.
    """

    fraction: float

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise ValueError(
                f"Keep: the fraction of units is between 0 and 1, not {self.fraction!r}"
            )


Candidate = Quantize | OneShot | Svd | tuple[Svd, Weights] | Keep | None
"""What may become of a leaf: a format; weights removed and stored without them, with
`OneShot(weights=...)` in few bits; two thin factors, by a rank or a fraction of the
parameters, in few bits as a pair `(Svd(...), Weights(...))`. `Keep` is for groups of
coupled axes. None keeps a leaf as it is."""

Candidates = Sequence[Candidate]


def name_of(candidate: Candidate) -> str:
    """A candidate in a word or two: "int4 /64", "2:4 int8", "width 0.5"."""
    if candidate is None:
        return "as it is"
    if isinstance(candidate, Keep):
        return f"width {candidate.fraction:g}"
    if isinstance(candidate, tuple):
        return f"{name_of(candidate[0])} {_format(candidate[1])}"
    if isinstance(candidate, Svd):
        if candidate.rank is not None:
            return f"rank {candidate.rank}"
        return f"svd {candidate.parameters:g}"
    if isinstance(candidate, OneShot):
        pattern = candidate.pattern
        name = f"sparse {candidate.sparsity:g}" if candidate.sparsity else ""
        if isinstance(pattern, NM):
            name = f"{pattern.n}:{pattern.m}"
        stored = candidate.weights
        return name if stored is None else f"{name} {_format(stored)}"
    data = "" if candidate.activation is None else " and data"
    weights = candidate.weights
    return f"{'as it is' if weights is None else _format(weights)}{data}"


def _format(weights: Weights) -> str:
    size = getattr(weights.granularity, "size", None)
    return str(weights.format) + (f" /{size}" if size else "")


def check_candidates(candidates: Candidates) -> None:
    """Refuse what cannot be tried.

    Raises:
        ValueError: there is no candidate, or a rank that depends on the weights.
        TypeError: one is of another kind.
    """
    if not candidates:
        raise ValueError("measure_sensitivity: candidates is empty; give Quantize(...)")
    for each in candidates:
        split = each[0] if isinstance(each, tuple) and len(each) == 2 else each
        if isinstance(each, tuple) and not (
            isinstance(split, Svd) and isinstance(each[1], Weights)
        ):
            raise TypeError(
                f"measure_sensitivity: {each!r} is no candidate; a pair is "
                "(Svd(...), Weights(...))"
            )
        if not isinstance(split, Quantize | OneShot | Svd | Keep | None):
            raise TypeError(
                f"measure_sensitivity: {each!r} is no candidate; use Quantize, "
                "OneShot, Svd, (Svd, Weights), Keep or None"
            )
        if isinstance(split, Svd) and split.rank is None and split.parameters is None:
            raise ValueError(
                f"measure_sensitivity: the bytes of {split!r} depend on the weights; "
                "give rank or parameters"
            )
        if isinstance(split, OneShot) and not isinstance(
            split.pattern, NM | Unstructured
        ):
            raise ValueError(
                f"measure_sensitivity: what {split.pattern!r} stores depends on the "
                "weights; give NM(n, m) or Unstructured()"
            )


def learns(candidate: Candidate) -> bool:
    """Whether the inputs of a leaf have a say in what becomes of it."""
    if isinstance(candidate, Quantize):
        return candidate.weights is not None and needs_moments(candidate)
    if isinstance(candidate, OneShot):
        return candidate.method.learns
    return isinstance(candidate, Svd | tuple)


def for_leaf(path: str, candidate: Candidate, sites: Sites) -> Candidate:
    """The candidate with all that it needs to know of this leaf: a rank.

    Where a leaf's inputs cannot be seen, numbers are rounded to the nearest.

    Raises:
        MismatchError: it does not suit the leaf, or nothing would become smaller.
    """
    if isinstance(candidate, Keep):
        raise MismatchError(f"{path!r} is a leaf; {candidate!r} is for groups of axes")
    if isinstance(candidate, tuple):
        split = for_leaf(path, candidate[0], sites)
        assert isinstance(split, Svd)
        return split, candidate[1]
    if isinstance(candidate, Svd):
        return Svd(rank=_rank(path, candidate, sites))
    if isinstance(candidate, OneShot):
        *_, inputs = _matrix(path, sites)
        if not sites.products(path):
            raise MismatchError(f"{path!r} is only looked up, so it is not pruned")
        if isinstance(candidate.pattern, NM) and inputs % candidate.pattern.m:
            raise MismatchError(
                f"the {inputs} inputs of {path!r} are no multiple of "
                f"{candidate.pattern.m}"
            )
        check_pruning(sites, only(path, candidate), transform="measure_sensitivity")
        if learns(candidate) and not has_moments(path, sites):
            raise MismatchError(f"the inputs of {path!r} cannot be seen")
    if isinstance(candidate, Quantize) and not has_moments(path, sites):
        return dataclasses.replace(candidate, rounding=_blind(candidate))
    return candidate


def has_moments(path: str, sites: Sites) -> bool:
    """Whether the inputs of a leaf can be seen, as those of a table cannot."""
    uses = sites.products(path)
    return bool(uses) and not any(
        use.derived or use.in_custom_gradient or use.groups > 1 for use in uses
    )


def _blind(spec: Quantize) -> Rounding:
    """How it rounds where there is nothing to learn from."""
    return Nearest() if spec.rounding.learns else spec.rounding


def _matrix(path: str, sites: Sites) -> tuple[int, int, int]:
    """Copies, outputs and inputs of a leaf."""
    uses = sites.of(path)
    stacks, outputs, inputs = matrix_shape(uses[0].shape, leaf_axes(uses))
    return math.prod(stacks), outputs, inputs


def _rank(path: str, spec: Svd, sites: Sites) -> int:
    if not sites.products(path):
        raise MismatchError(f"{path!r} is only looked up, so it is not factored")
    _, outputs, inputs = _matrix(path, sites)
    each, whole = outputs + inputs, outputs * inputs
    most = min((whole - 1) // each, outputs, inputs)
    if spec.rank is None:
        assert spec.parameters is not None
        rank = int(spec.parameters * whole + 1e-9) // each
    else:
        rank = spec.rank
    if not 1 <= rank <= most:
        raise MismatchError(
            f"the factors of {path!r}, of {outputs} outputs and {inputs} inputs, are "
            f"smaller at ranks 1 to {most}, not {rank}"
        )
    return rank


def stored_size(
    path: str, leaf: jax.ShapeDtypeStruct, candidate: Candidate, sites: Sites
) -> int:
    """The bytes of a leaf in a form, from its shape; nothing is computed.

    Of unstructured sparsity the most that it may take: weights that are zero anyway
    take none.

    Raises:
        MismatchError: the candidate does not suit the leaf, or makes it no smaller.
    """
    given = for_leaf(path, candidate, sites)
    if given is None:
        return int(leaf.size * leaf.dtype.itemsize)
    if isinstance(given, OneShot):
        return _sparse_size(path, leaf, given, sites)
    if isinstance(given, Svd | tuple):
        made = jax.eval_shape(lambda: {path: _factors(path, leaf, given, sites)})
    else:
        assert isinstance(given, Quantize)
        # How numbers are chosen changes nothing of how many bytes they take.
        plain = dataclasses.replace(given, rounding=Nearest())
        if given.weights is not None:
            plain = dataclasses.replace(plain, activation=None)
        made = jax.eval_shape(
            lambda x: quantize({path: x}, only(path, plain), sites=sites), leaf
        )
    return int(made[path].stored_bytes)


def _factors(
    path: str, leaf: jax.ShapeDtypeStruct, given: Any, sites: Sites
) -> LowRank:
    """Empty factors of the right shapes."""
    split, weights = given if isinstance(given, tuple) else (given, None)
    axes = leaf_axes(sites.of(path))
    stacks, outputs, inputs = matrix_shape(leaf.shape, axes)
    first = jnp.zeros((*stacks, split.rank, inputs), leaf.dtype)
    last = jnp.zeros((*stacks, outputs, split.rank), leaf.dtype)
    factors: Any = (first, last)
    made = low_rank_leaf(factors, (), leaf.shape, leaf.dtype, axes)
    if weights is not None:
        made = quantize_factors({path: made}, only(path, weights), sites=sites)[path]
    return made


def _sparse_size(
    path: str, leaf: jax.ShapeDtypeStruct, spec: OneShot, sites: Sites
) -> int:
    copies, outputs, inputs = _matrix(path, sites)
    # Sparse leaves hold no float16.
    each = 1 if spec.weights is not None else max(leaf.dtype.itemsize, 2)
    if leaf.dtype == jnp.float16 and spec.weights is None:
        each = 4
    size = copies * outputs * -(-inputs // 8)
    if spec.weights is not None:
        _check_stored(path, spec.weights)
        size += 4 * copies * outputs
    if isinstance(spec.pattern, NM):
        row, _ = take_kept(
            np.zeros((1, inputs), np.int8), spec.pattern.n, spec.pattern.m
        )
        size += copies * outputs * row.shape[-1] * each
    else:
        size += 4 * copies * (outputs + 1) + copies * each * _staying(
            spec, outputs, inputs
        )
    before = leaf.size * leaf.dtype.itemsize
    if spec.weights is not None:
        bits = getattr(spec.weights.format, "bits", 8)
        before = copies * outputs * (-(-inputs * bits // 8) + 4)
    if size >= before:
        raise MismatchError(f"{path!r} would not become smaller as {name_of(spec)}")
    return size


def _check_stored(path: str, weights: Weights) -> None:
    """Raise MismatchError unless a sparse leaf can hold such integers."""
    bits = getattr(weights.format, "bits", 0)
    if not 4 < bits <= 8 or getattr(weights.granularity, "size", None):
        raise MismatchError(
            f"{path!r}: sparse leaves hold integers of 5 to 8 bits with one scale a "
            f"channel, not {_format(weights)}"
        )


def _staying(spec: OneShot, outputs: int, inputs: int) -> int:
    return max(1, outputs * inputs - int(np.rint(spec.removes * outputs * inputs)))


def multiplied(path: str, candidate: Candidate, sites: Sites) -> float:
    """The fraction of a leaf's multiplications that are left in a form.

    Those with what is stored: zeros that are stored are multiplied. A leaf that is
    changed on the way to its product is dense there.
    """
    given = for_leaf(path, candidate, sites)
    if not isinstance(given, OneShot | Svd | tuple) or not has_moments(path, sites):
        return 1.0
    _, outputs, inputs = _matrix(path, sites)
    if isinstance(given, OneShot):
        if isinstance(given.pattern, NM):
            return given.pattern.n * (inputs // given.pattern.m) / inputs
        return _staying(given, outputs, inputs) / (outputs * inputs)
    split = given[0] if isinstance(given, tuple) else given
    assert split.rank is not None
    return split.rank * (outputs + inputs) / (outputs * inputs)


def share_multiplied(path: str, leaf: Any, sites: Sites) -> float:
    """The same of a leaf that is stored already, counted in what it stores."""
    if not has_moments(path, sites):
        return 1.0
    if isinstance(leaf, LowRank):
        return sum(math.prod(x.shape) for x in leaf.factors) / math.prod(leaf.shape)
    if isinstance(leaf, NMSparse | UnstructuredSparse):
        return math.prod(leaf.values.shape) / math.prod(leaf.shape)
    return 1.0


def made(
    path: str,
    leaf: jax.Array,
    candidate: Candidate,
    *,
    sites: Sites,
    moments: Mapping[str, jax.Array] | None,
) -> Any:
    """A leaf as it is stored in a form; a plain array if the form is None.

    Raises:
        MismatchError: the candidate does not suit the leaf, or lacks moments.
    """
    given = for_leaf(path, candidate, sites)
    if given is None:
        return leaf
    tree = {path: leaf}
    known = None if moments is None else {k: m for k, m in moments.items() if k == path}
    if isinstance(given, OneShot):
        pruned = prune_weights(tree, only(path, given), sites=sites, moments=known)
        return to_sparse(pruned, only(path, given.pattern), sites=sites)[path]
    if isinstance(given, Svd | tuple):
        split, weights = given if isinstance(given, tuple) else (given, None)
        small = factorize(tree, only(path, split), sites=sites, moments=known or None)
        if weights is not None:
            small = quantize_factors(small, only(path, weights), sites=sites)
        return small[path]
    assert isinstance(given, Quantize)
    return quantize(tree, only(path, given), sites=sites, moments=known)[path]


def given_back(
    path: str,
    leaf: jax.Array,
    candidate: Candidate,
    *,
    sites: Sites,
    moments: Mapping[str, jax.Array] | None,
) -> jax.Array:
    """A leaf as a form gives it back: dense, of its own shape and dtype."""
    stored = made(path, leaf, candidate, sites=sites, moments=moments)
    if candidate is None:
        return leaf
    dense: jax.Array = stored.dense()
    return dense


def only(path: str, spec: Any) -> Rules[Any]:
    """Rules for one leaf."""

    def own(site: Site) -> bool:
        return site.path == path

    return [(own, spec)]
