"""A table of errors and bytes: each leaf in each of several formats."""

import abc
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.conversion import find_leaves
from jcompress.errors import MismatchError
from jcompress.leaves import named_leaves
from jcompress.quantization import Quantize, quantize
from jcompress.rounding import Nearest
from jcompress.rules import Predicate, Rules, resolve
from jcompress.sites import Site, Sites

Candidates = Sequence[Quantize | None]
"""What may become of a leaf; None keeps it as it is."""


class Measure(abc.ABC):
    """How the error of one leaf in one format is told.

    To add one, subclass this as a frozen dataclass and write `errors`.
    """

    @abc.abstractmethod
    def errors(
        self, params: Any, trials: "Iterator[Trial]", sites: Sites
    ) -> dict[str, list[float]]:
        """The errors of each leaf, one for each of its trials, in their order.

        Args:
            params: the tree of dense weights.
            trials: leaf after leaf, and for each format after format; each is made
                when it is asked for.
            sites: the sites of the function.
        """

    def together(self, params: Any, changed: Mapping[str, jax.Array]) -> float | None:
        """The error of several changed leaves at once.

        Args:
            params: the tree of dense weights.
            changed: the leaves as their formats give them back, by name.

        Returns:
            The error, or None if the measure tells that of single leaves only.
        """
        return None


@dataclasses.dataclass(frozen=True)
class Trial:
    """One leaf in one format.

    Attributes:
        path: the leaf's name.
        leaf: as it is.
        small: as the format gives it back, of the leaf's shape and dtype.
    """

    path: str
    leaf: jax.Array
    small: jax.Array


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """What each leaf loses in each format, and what it takes; `print` shows the table.

    Attributes:
        candidates: the formats.
        errors: for each leaf, one number for each candidate.
        stored: for each leaf, the bytes in each candidate, scales included.
    """

    candidates: tuple[Quantize | None, ...]
    errors: Mapping[str, tuple[float, ...]]
    stored: Mapping[str, tuple[int, ...]]

    def __str__(self) -> str:
        names = [name_of(each) for each in self.candidates]
        wide = max(len("leaf"), *map(len, self.errors))
        columns = [max(len(name), 9) for name in names]
        pairs = list(zip(names, columns, strict=True))
        lines = ["leaf".ljust(wide) + "".join(f"  {n.rjust(c)}" for n, c in pairs)]
        for path, errors in self.errors.items():
            cells = zip(errors, columns, strict=True)
            told = "".join(f"  {format(e, '.3g').rjust(c)}" for e, c in cells)
            lines.append(path.ljust(wide) + told)
        sums = map(sum, zip(*self.stored.values(), strict=True))
        stored = zip((format(each, ",") for each in sums), columns, strict=True)
        told = "".join(f"  {each.rjust(column)}" for each, column in stored)
        lines.append("bytes".ljust(wide) + told)
        return "\n".join(lines)


def name_of(candidate: Quantize | None) -> str:
    """A candidate in a word or two: "int4 /64"."""
    if candidate is None:
        return "as it is"
    assert candidate.weights is not None
    size = getattr(candidate.weights.granularity, "size", None)
    return str(candidate.weights.format) + (f" /{size}" if size else "")


def measure_sensitivity(
    params: Any,
    candidates: Candidates,
    measure: Measure,
    *,
    sites: Sites,
    leaves: Predicate = ...,
    moments: Mapping[str, jax.Array] | None = None,
) -> Sensitivity:
    """Find out what each leaf loses in each of several formats.

    Args:
        params: the parameters, with dense leaves.
        candidates: the formats; None among them keeps a leaf as it is.
        measure: how errors are told: `OutputError` runs the model, `LayerError` and
            `HessianError` estimate.
        sites: the sites of the function.
        leaves: which leaves; every weight unless it says otherwise.
        moments: as for `quantize`, if a candidate's rounding learns from them.

    Returns:
        The table.

    Raises:
        ValueError: there is no candidate.
        MismatchError: as `quantize`; a candidate that has no weights.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jcompress.formats import Int
        >>> from jcompress.quantization import Quantize, Weights
        >>> from jcompress.sensitivity import OutputError, measure_sensitivity
        >>> from jcompress.sites import find_sites
        >>> model = lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"]
        >>> a, b, x = (jax.random.normal(jax.random.key(n), (8, 8)) for n in range(3))
        >>> formats = [Quantize(weights=Weights(format=Int(b))) for b in (4, 8)]
        >>> params = {"a": a, "b": b}
        >>> table = measure_sensitivity(params, formats, OutputError(model, [(x,)]),
        ...     sites=find_sites(model, params, x))
        >>> table.errors["a"][0] > table.errors["a"][1], table.stored["a"]
        (True, (64, 96))
    """
    stored = stored_by_candidate(params, candidates, sites=sites, leaves=leaves)
    names = tuple(stored)
    found = find_leaves("measure_sensitivity", params, names, sites=sites)

    def trials() -> Iterator[Trial]:
        for path in names:
            for each in candidates:
                leaf = jnp.asarray(found[path])
                small = given_back(path, leaf, each, sites=sites, moments=moments)
                yield Trial(path, leaf, small)

    errors = measure.errors(params, trials(), sites)
    return Sensitivity(
        tuple(candidates), {path: tuple(errors[path]) for path in names}, stored
    )


def given_back(
    path: str,
    leaf: jax.Array,
    candidate: Quantize | None,
    *,
    sites: Sites,
    moments: Mapping[str, jax.Array] | None,
) -> jax.Array:
    """A leaf as a format gives it back."""
    if candidate is None:
        return leaf
    rules = _only(path, candidate)
    made = quantize({path: leaf}, rules, sites=sites, moments=moments)
    dense: jax.Array = made[path].dense()
    return dense


def stored_by_candidate(
    params: Any, candidates: Candidates, *, sites: Sites, leaves: Predicate = ...
) -> dict[str, tuple[int, ...]]:
    """The bytes of each leaf in each format, from shapes; nothing is computed.

    Args:
        params: the parameters; shapes suffice.
        candidates: the formats; None keeps a leaf as it is.
        sites: the sites of the function.
        leaves: which leaves.

    Raises:
        ValueError: there is no candidate.
        MismatchError: a candidate does not suit a leaf.
    """
    if not candidates:
        raise ValueError("measure_sensitivity: candidates is empty; give Quantize(...)")
    rules: Rules[bool] = [(leaves, True)]
    chosen = resolve(rules, sites, transform="measure_sensitivity").leaves
    every = dict(named_leaves(params))
    stored: dict[str, tuple[int, ...]] = {}
    for path in chosen:
        site = sites.of(path)[0]
        if not jnp.issubdtype(site.dtype, jnp.floating):
            continue
        if path not in every:
            raise MismatchError(
                f"measure_sensitivity: {path!r} is not in the tree; trace the sites "
                "with this tree"
            )
        shape = jax.ShapeDtypeStruct(site.shape, site.dtype)
        stored[path] = tuple(_bytes(path, shape, each, sites) for each in candidates)
    return stored


def _bytes(
    path: str, leaf: jax.ShapeDtypeStruct, candidate: Quantize | None, sites: Sites
) -> int:
    if candidate is None:
        return int(leaf.size * leaf.dtype.itemsize)
    # How numbers are chosen changes nothing of how many bytes they take.
    plain = dataclasses.replace(candidate, rounding=Nearest())
    if candidate.weights is not None:
        plain = dataclasses.replace(plain, activation=None)
    made = jax.eval_shape(
        lambda x: quantize({path: x}, _only(path, plain), sites=sites), leaf
    )
    return int(made[path].stored_bytes)


def _only(path: str, spec: Quantize) -> Rules[Quantize]:
    def own(site: Site) -> bool:
        return site.path == path

    return [(own, spec)]
