"""`measure_sensitivity`: each leaf in each form, and each width, one by one."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.conversion import find_leaves
from jcompress.errors import MismatchError
from jcompress.rules import Predicate
from jcompress.sensitivity.candidates import Candidates, Keep, name_of
from jcompress.sensitivity.counting import stored_by_candidate
from jcompress.sensitivity.making import given_back
from jcompress.sensitivity.resuming import Results, fingerprint
from jcompress.sensitivity.table import Sensitivity
from jcompress.sensitivity.trials import Measure, Trial
from jcompress.sensitivity.widths import Widths
from jcompress.shrinking import Groups
from jcompress.sites import Sites

Tell = Callable[[int, int, str], None]
"""Told after each error: how many are done, of how many, and what it was."""


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
