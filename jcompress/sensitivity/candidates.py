"""What may become of a leaf, or of a width: formats, sparsities, ranks, fewer units."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from jcompress.errors import MismatchError
from jcompress.low_rank import Svd
from jcompress.pruning import NM, Unstructured
from jcompress.pruning.one_shot import OneShot
from jcompress.pruning.one_shot.weights import check as check_pruning
from jcompress.quantization import Quantize, Weights
from jcompress.quantization.convert import needs_moments
from jcompress.rounding import Nearest, Rounding
from jcompress.rules import Rules
from jcompress.sites import Site, Sites, leaf_axes
from jcompress.statistics.moments import groups_of, shared_by_groups
from jcompress.tensors.axes import matrix_shape


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
        return f"{name_of(candidate[0])} {format_name(candidate[1])}"
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
        return name if stored is None else f"{name} {format_name(stored)}"
    data = "" if candidate.activation is None else " and data"
    weights = candidate.weights
    return f"{'as it is' if weights is None else format_name(weights)}{data}"


def format_name(weights: Weights) -> str:
    """A format in a word: "int4", or "int4 /64" with a scale for 64 inputs."""
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

    Where a leaf's inputs cannot be seen, or have no say (see `takes_moments`), numbers
    are rounded to the nearest.

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
        *_, inputs = matrix_of(path, sites)
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
    if isinstance(candidate, Quantize) and not _sees(path, candidate, sites):
        return dataclasses.replace(candidate, rounding=_blind(candidate))
    return candidate


def has_moments(path: str, sites: Sites) -> bool:
    """Whether the inputs of a leaf can be seen, as those of a table cannot.

    Those of convolutions can if all have as many groups.
    """
    uses = sites.products(path)
    if any(use.derived or use.in_custom_gradient for use in uses):
        return False
    return len({use.groups for use in uses}) == 1


def learns_here(path: str, candidate: Candidate, sites: Sites) -> bool:
    """Whether the inputs of a leaf have a say in what becomes of it in a form."""
    return learns(candidate) and _sees(path, candidate, sites)


def _sees(path: str, candidate: Candidate, sites: Sites) -> bool:
    return has_moments(path, sites) and takes_moments(path, candidate, sites)


def takes_moments(path: str, candidate: Candidate, sites: Sites) -> bool:
    """Whether a form has a use for the moments of a leaf.

    Each group of a convolution has moments of its own: factors that all groups share
    have no use for them, nor have scales that they share.
    """
    groups = {use.groups for use in sites.products(path)}
    if groups <= {1}:
        return True
    if len(groups) > 1:
        return False
    if isinstance(candidate, Quantize):
        return shared_by_groups(sites, path, candidate.weights) is None
    return not isinstance(candidate, Svd | tuple)


def runs_small(path: str, sites: Sites) -> bool:
    """Whether a leaf with fewer numbers is multiplied in fewer steps.

    A leaf that is changed on the way to its product is dense there, and so are the
    kernels of convolutions in groups.
    """
    return has_moments(path, sites) and groups_of(sites, path) == 1


def _blind(spec: Quantize) -> Rounding:
    """How it rounds where there is nothing to learn from."""
    return Nearest() if spec.rounding.learns else spec.rounding


def matrix_of(path: str, sites: Sites) -> tuple[int, int, int]:
    """Copies, outputs and inputs of a leaf."""
    uses = sites.of(path)
    stacks, outputs, inputs = matrix_shape(uses[0].shape, leaf_axes(uses))
    return math.prod(stacks), outputs, inputs


def _rank(path: str, spec: Svd, sites: Sites) -> int:
    if not sites.products(path):
        raise MismatchError(f"{path!r} is only looked up, so it is not factored")
    _, outputs, inputs = matrix_of(path, sites)
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


def only(path: str, spec: Any) -> Rules[Any]:
    """Rules for one leaf."""

    def own(site: Site) -> bool:
        return site.path == path

    return [(own, spec)]
