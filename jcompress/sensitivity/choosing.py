"""The formats that make the least error within a budget, as plain rules."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.allocation import Options, allocate
from jcompress.conversion import find_leaves
from jcompress.errors import MismatchError
from jcompress.quantization import Quantize
from jcompress.rules import Predicate
from jcompress.sensitivity.candidates import name_of
from jcompress.sensitivity.counting import stored_by_candidate
from jcompress.sensitivity.making import given_back
from jcompress.sensitivity.table import Sensitivity
from jcompress.sensitivity.trials import Measure
from jcompress.sensitivity.trying import measure_sensitivity
from jcompress.sites import Site, Sites

_APART = 2.0
"""By what factor a sum of errors and the error of all may differ without a note."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """What `choose_formats` chose; `print` shows a line for each leaf.

    Attributes:
        rules: a rule for each leaf, for `quantize`, `fake_quant` and the others.
        table: what it was chosen from.
        chosen: the number of the candidate, by leaf.
        costs: what each leaf costs in each candidate: bytes, or what was given.
        cost: the sum of what was chosen.
        error: the sum of their errors.
        together: the error of all of them at once, if the measure tells it.
        notes: what else is to be known, a sentence each.
    """

    rules: tuple[tuple[Predicate, Quantize | None], ...]
    table: Sensitivity
    chosen: Mapping[str, int]
    costs: Mapping[str, Sequence[float]]
    cost: float
    error: float
    together: float | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        wide = max(len("leaf"), *map(len, self.chosen))
        names = [name_of(each) for each in self.table.candidates]
        column = max(6, *map(len, names))
        head = f"{'leaf'.ljust(wide)}  {'format'.ljust(column)}  {'cost':>12}"
        lines = [f"{head}  {'error':>9}"]
        for path, n in self.chosen.items():
            cost, error = self.costs[path][n], self.table.errors[path][n] or 0.0
            lines.append(
                f"{path.ljust(wide)}  {names[n].ljust(column)}  {cost:>12,.6g}  "
                f"{error:>9.3g}"
            )
        lines.append(
            f"{'sum'.ljust(wide)}  {' ' * column}  {self.cost:>12,.6g}  "
            f"{self.error:>9.3g}"
        )
        if self.together is not None:
            lines.append(f"together, as measured: {self.together:.3g}")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def choose_formats(
    params: Any,
    candidates: Sequence[Quantize | None],
    measure: Measure,
    budget: float,
    *,
    sites: Sites,
    leaves: Predicate = ...,
    costs: Mapping[str, Sequence[float]] | None = None,
    moments: Mapping[str, jax.Array] | None = None,
) -> Choice:
    """Give each leaf one of several formats: the least error within a budget.

    Errors of leaves are taken to add up, and `jcompress.allocation.allocate` shares out
    the budget. With `OutputError` the choice is then measured as a whole, and so is
    each format for all leaves that the budget allows: the least of them is returned,
    so that by the measure no choice is worse than one format. Where single errors do
    not add up, a note says so.

    Args:
        params: the parameters, with dense leaves.
        candidates: the formats, in any order; None among them keeps a leaf.
        measure: how errors are told: `OutputError`, `LayerError`, `HessianError`.
        budget: the costs of all chosen leaves together may not exceed it. By default
            they are the bytes stored, scales included.
        sites: the sites of the function.
        leaves: which leaves; every weight unless it says otherwise. Others are neither
            touched nor counted.
        costs: other costs, such as the seconds of `measure_seconds`, which make the
            budget one of time: for each leaf a number for each candidate.
        moments: as for `quantize`, if a candidate's rounding learns from them.

    Returns:
        The rules, and the table that they come from.

    Raises:
        ValueError: there is no candidate.
        MismatchError: even the cheapest formats cost more than the budget, which is
            told before anything is measured; costs are missing; or as `quantize`.

    References:
        Dong et al. 2020, "HAWQ-V2: Hessian Aware trace-Weighted Quantization of Neural
        Networks": a budget shared out by sensitivity.

    Example:
        >>> import jax
        >>> from jcompress.formats import Int
        >>> from jcompress.quantization import Quantize, Weights, quantize
        >>> from jcompress.sensitivity import OutputError, choose_formats
        >>> from jcompress.sites import find_sites
        >>> model = lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"]
        >>> a, b, x = (jax.random.normal(jax.random.key(n), (64, 64)) for n in range(3))
        >>> formats = [Quantize(weights=Weights(format=Int(b))) for b in (3, 4, 8)]
        >>> params = {"a": a, "b": b}
        >>> sites = find_sites(model, params, x)
        >>> choice = choose_formats(
        ...     params, formats, OutputError(model, [(x,)]), 6600, sites=sites)
        >>> small = quantize(params, choice.rules, sites=sites)
        >>> small["a"].stored_bytes + small["b"].stored_bytes <= 6600
        True
    """
    stored = stored_by_candidate(params, candidates, sites=sites, leaves=leaves)
    taken = {path: _numbers(row) for path, row in stored.items()}
    costs = taken if costs is None else _checked(costs, stored, len(candidates))
    least = sum(min(each) for each in costs.values())
    if least > budget:
        raise MismatchError(
            f"choose_formats: the cheapest formats of {len(stored)} leaves cost "
            f"{least:,.6g} together, more than the budget of {budget:,.6g}; raise it, "
            "or add smaller formats"
        )
    table = measure_sensitivity(
        params, candidates, measure, sites=sites, leaves=leaves, moments=moments
    )
    errors = {path: _numbers(row) for path, row in table.errors.items()}
    options = {path: Options(costs=costs[path], errors=errors[path]) for path in stored}
    given: Any = {"sites": sites, "moments": moments}
    every = find_leaves("choose_formats", params, tuple(stored), sites=sites)

    def together(chosen: Mapping[str, int]) -> float | None:
        changed = {
            path: given_back(path, jnp.asarray(every[path]), candidates[n], **given)
            for path, n in chosen.items()
        }
        return measure.together(params, changed)

    chosen = allocate(options, budget).chosen
    error, notes = together(chosen), []
    if error is not None:
        summed = _sum(errors, chosen)
        if not summed / _APART <= error <= summed * _APART:
            notes.append(
                f"the errors of single leaves add up to {summed:.3g}, and together "
                f"they make {error:.3g}: this measure says little of a choice. A model "
                "that reads its own outputs is to read those of the float model"
            )
        for n, each in enumerate(candidates):
            uniform = dict.fromkeys(stored, n)
            if uniform == chosen or _sum(costs, uniform) > budget:
                continue
            other = together(uniform)
            if other is not None and other < error:
                chosen, error = uniform, other
                word = name_of(each)
                notes = [*notes[:1], f"{word} for all leaves errs less than a mix"]
    return Choice(
        rules=tuple((_predicate(path), candidates[n]) for path, n in chosen.items()),
        table=table,
        chosen=chosen,
        costs=costs,
        cost=_sum(costs, chosen),
        error=_sum(errors, chosen),
        together=error,
        notes=tuple(notes),
    )


def _numbers(row: Sequence[float | None]) -> list[float]:
    """A row of a table in which every candidate suits."""
    return [each for each in row if each is not None]


def _sum(numbers: Mapping[str, Sequence[float]], chosen: Mapping[str, int]) -> float:
    return float(sum(numbers[path][n] for path, n in chosen.items()))


def _checked(
    costs: Mapping[str, Sequence[float]], wanted: Mapping[str, Any], count: int
) -> dict[str, Sequence[float]]:
    for path in wanted:
        if len(costs.get(path, ())) != count:
            raise MismatchError(
                f"choose_formats: costs has {len(costs.get(path, ()))} numbers for "
                f"{path!r}, and there are {count} candidates"
            )
    return {path: costs[path] for path in wanted}


def _predicate(path: str) -> Predicate:
    """The path itself, or a function where a glob would read something else into it."""
    if not set("*?") & set(path):
        return path
    own: Callable[[Site], bool] = lambda site: site.path == path  # noqa: E731
    return own
