"""A table of errors and bytes: each leaf in each of several forms, each width."""

import abc
import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.conversion import find_leaves
from jcompress.errors import MismatchError
from jcompress.leaves import named_leaves
from jcompress.report.text import in_blocks
from jcompress.rules import Predicate, Rules, resolve
from jcompress.sensitivity.candidates import (
    Candidate,
    Candidates,
    Keep,
    check_candidates,
    given_back,
    name_of,
    stored_size,
)
from jcompress.sensitivity.resuming import Results, fingerprint
from jcompress.sensitivity.widths import Widths
from jcompress.shrinking import Groups
from jcompress.sites import Sites

Tell = Callable[[int, int, str], None]
"""Told after each error: how many are done, of how many, and what it was."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """One leaf in one form, or one group of axes with fewer units.

    Attributes:
        path: the name of the leaf or group.
        leaf: as it is; None for a group.
        small: as the form gives it back, of the leaf's shape and dtype; None for a
            group.
        changed: all the leaves that change, by name: of a group several, with zeros in
            the place of units.
    """

    path: str
    leaf: jax.Array | None
    small: jax.Array | None
    changed: Mapping[str, jax.Array]

    def single(self, measure: str) -> tuple[jax.Array, jax.Array]:
        """The leaf before and after.

        Raises:
            MismatchError: it is a group.
        """
        if self.leaf is None or self.small is None:
            raise MismatchError(
                f"{measure} tells errors of single leaves, not of widths "
                f"({self.path}); use OutputError"
            )
        return self.leaf, self.small


class Measure(abc.ABC):
    """How the error of one leaf in one form is told.

    To add one, subclass this as a frozen dataclass and write `each`.
    """

    @abc.abstractmethod
    def each(
        self, params: Any, trials: Iterator[Trial], sites: Sites
    ) -> Iterator[float]:
        """The error of each trial, in their order.

        Args:
            params: the tree of dense weights.
            trials: leaf after leaf, and for each form after form; each is made when it
                is asked for.
            sites: the sites of the function.
        """

    def together(self, params: Any, changed: Mapping[str, jax.Array]) -> float | None:
        """The error of several changed leaves at once.

        Args:
            params: the tree of dense weights.
            changed: the leaves as their forms give them back, by name.

        Returns:
            The error, or None if the measure tells that of single leaves only.
        """
        return None

    @property
    def name(self) -> str:
        """What it measures, in a few words."""
        return type(self).__name__


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """What each leaf loses in each form, and what it takes; `print` shows the table.

    Rows are leaves and, where widths were tried, groups of coupled axes.

    Attributes:
        candidates: the forms.
        errors: for each row, one number for each candidate: NaN if the outputs are no
            numbers any more, None if the candidate does not suit the row.
        stored: for each row, the bytes in each candidate, scales included; of a group
            those of all the leaves that it touches. None where there is no error.
        measure: how errors were told.
    """

    candidates: tuple[Candidate, ...]
    errors: Mapping[str, tuple[float | None, ...]]
    stored: Mapping[str, tuple[int | None, ...]]
    measure: str = ""

    def __str__(self) -> str:
        def shown(path: str, n: int) -> str:
            error = self.errors[path][n]
            return "-" if error is None else format(error, ".3g")

        sums = [self._bytes(n) for n in range(len(self.candidates))]
        last = ["-" if each is None else format(each, ",") for each in sums]
        return self._rows(shown, [("bytes", last)])

    def heat_map(self) -> str:
        """The table in five shades, one for every factor of ten in the error.

        The darkest is the largest error of all; a dot is less than a ten-thousandth of
        it.
        """
        numbers = [e for row in self.errors.values() for e in row if e is not None]
        most = max((e for e in numbers if math.isfinite(e)), default=0.0)

        def shade(path: str, n: int) -> str:
            error = self.errors[path][n]
            if error is None:
                return ""
            if not math.isfinite(error):
                return "NaN"
            if most <= 0 or error <= 0:
                return "."
            step = 4 + math.floor(math.log10(error / most) + 1e-9)
            return (".", "░", "▒", "▓", "█")[max(0, min(4, step))]

        return self._rows(shade, [])

    def to_json(self) -> dict[str, Any]:
        """The table for other programs: `candidates`, `leaves`, `bytes`, `measure`.

        `leaves` and `bytes` have for each row a number for each candidate, null where
        it does not suit the row or is no number.
        """
        return {
            "candidates": [name_of(each) for each in self.candidates],
            "leaves": {
                path: [e if e is not None and math.isfinite(e) else None for e in row]
                for path, row in self.errors.items()
            },
            "bytes": {path: list(row) for path, row in self.stored.items()},
            "measure": self.measure,
        }

    def _bytes(self, n: int) -> int | None:
        """Of all leaves in one form; those that it does not suit stay as they are."""
        if isinstance(self.candidates[n], Keep):
            return None
        leaves = [
            row
            for row in self.stored.values()
            if not all(
                stored is None or isinstance(each, Keep)
                for stored, each in zip(row, self.candidates, strict=True)
            )
        ]
        dense = self.candidates.index(None) if None in self.candidates else None
        total = 0
        for row in leaves:
            stored = row[n]
            if stored is None and dense is not None:
                stored = row[dense]
            if stored is None:
                return None
            total += stored
        return total

    def _rows(
        self, cell: Callable[[str, int], str], last: list[tuple[str, list[str]]]
    ) -> str:
        names = [name_of(each) for each in self.candidates]
        cells = [
            (path, *(cell(path, n) for n in range(len(names)))) for path in self.errors
        ]
        rows = [("leaf", *names), *cells, *((name, *told) for name, told in last)]
        return in_blocks(rows, right=range(1, len(names) + 1))


def measure_sensitivity(
    params: Any,
    candidates: Candidates,
    measure: Measure,
    *,
    sites: Sites,
    leaves: Predicate = ...,
    moments: Mapping[str, jax.Array] | None = None,
    groups: Groups | None = None,
    partial: bool = False,
    resume: str | os.PathLike[str] | None = None,
    tell: Tell | None = None,
) -> Sensitivity:
    """Find out what each leaf loses in each of several forms, and each width.

    Args:
        params: the parameters, with dense leaves.
        candidates: the forms: `Quantize`, `OneShot`, `Svd`, pairs of `Svd` and
            `Weights`; `Keep` for the groups; None among them keeps a leaf as it is.
        measure: how errors are told: `OutputError` runs the model, `LayerError` and
            `HessianError` estimate.
        sites: the sites of the function.
        leaves: which leaves; every weight unless it says otherwise.
        moments: second moments of the inputs of leaves, as for `quantize`, if a
            candidate learns from them.
        groups: coupled axes, of `jcompress.shrinking.find_groups`, whose widths `Keep`
            cuts: the units of the least magnitude, with zeros in their place, so that
            shapes stay. Groups over which an operation reduces are left out.
        partial: leave out what does not suit a leaf, in place of raising.
        resume: a file that each error is written to as it comes. Called again with the
            same file, what it holds is not measured again.
        tell: told after each error.

    Returns:
        The table.

    Raises:
        ValueError: there is no candidate; or `Keep` without groups.
        MismatchError: as `quantize` and the others, unless `partial`; a candidate that
            suits no leaf.
        ResumeError: the file is of another model, of other candidates or data.

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
    stored = stored_by_candidate(
        params, candidates, sites=sites, leaves=leaves, partial=partial
    )
    names = tuple(stored)
    found = find_leaves("measure_sensitivity", params, names, sites=sites)
    widths = _widths(params, candidates, groups)
    if widths is not None:
        stored |= widths.stored(candidates)
    if partial:
        _check_used(candidates, stored)
    results = Results(resume)
    if resume is not None:
        results.open(
            {
                "candidates": fingerprint([repr(each) for each in candidates]),
                "model": fingerprint([str(sites), params]),
                "data": fingerprint(measure),
                "measure": measure.name,
            }
        )
    wanted = [
        (path, n)
        for path, row in stored.items()
        for n, size in enumerate(row)
        if size is not None
    ]
    open_ones = [cell for cell in wanted if cell not in results]

    def trials() -> Iterator[Trial]:
        for path, n in open_ones:
            each = candidates[n]
            if isinstance(each, Keep):
                assert widths is not None
                yield Trial(path, None, None, widths.zeroed(path, each))
                continue
            leaf = jnp.asarray(found[path])
            small = given_back(path, leaf, each, sites=sites, moments=moments)
            yield Trial(path, leaf, small, {path: small})

    done = len(wanted) - len(open_ones)
    pairs = zip(open_ones, measure.each(params, trials(), sites), strict=True)
    for (path, n), error in pairs if open_ones else ():
        results.add(path, n, error)
        done += 1
        if tell is not None:
            tell(done, len(wanted), f"{path} {name_of(candidates[n])}")
    return Sensitivity(
        tuple(candidates),
        {
            path: tuple(
                None if size is None else results[path, n] for n, size in enumerate(row)
            )
            for path, row in stored.items()
        },
        stored,
        measure.name,
    )


def _widths(
    params: Any, candidates: Candidates, groups: Groups | None
) -> Widths | None:
    if not any(isinstance(each, Keep) for each in candidates):
        return None
    if groups is None:
        raise ValueError(
            "measure_sensitivity: Keep cuts groups of coupled axes; give "
            "groups=find_groups(fn, params, ...)"
        )
    return Widths.of(params, groups)


def _check_used(
    candidates: Candidates, stored: Mapping[str, Sequence[int | None]]
) -> None:
    for n, each in enumerate(candidates):
        if all(row[n] is None for row in stored.values()):
            what = "group of axes" if isinstance(each, Keep) else "leaf"
            raise MismatchError(
                f"measure_sensitivity: {name_of(each)!r} suits no {what}; leave it out"
            )


def stored_by_candidate(
    params: Any,
    candidates: Candidates,
    *,
    sites: Sites,
    leaves: Predicate = ...,
    partial: bool = False,
) -> dict[str, tuple[int | None, ...]]:
    """The bytes of each leaf in each form, from shapes; nothing is computed.

    Args:
        params: the parameters; shapes suffice.
        candidates: the forms; None keeps a leaf as it is. `Keep` suits no leaf.
        sites: the sites of the function.
        leaves: which leaves.
        partial: None for what does not suit a leaf, in place of raising.

    Raises:
        ValueError: there is no candidate, or one whose bytes depend on the weights.
        TypeError: one is of another kind.
        MismatchError: a candidate does not suit a leaf.
    """
    check_candidates(candidates)
    rules: Rules[bool] = [(leaves, True)]
    chosen = resolve(rules, sites, transform="measure_sensitivity").leaves
    every = dict(named_leaves(params))
    stored: dict[str, tuple[int | None, ...]] = {}
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
        stored[path] = tuple(
            _size(path, shape, each, sites, partial) for each in candidates
        )
    return stored


def _size(
    path: str,
    leaf: jax.ShapeDtypeStruct,
    candidate: Candidate,
    sites: Sites,
    partial: bool,
) -> int | None:
    if isinstance(candidate, Keep):
        return None
    try:
        return stored_size(path, leaf, candidate, sites)
    except MismatchError as error:
        if partial:
            return None
        raise MismatchError(f"measure_sensitivity: {error}") from error
