"""What the rows of the benchmark must show, and the tables they make."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from _bench import Row
from _methods import NEAREST
from _subjects import Subject

BETTER = ("least error, by data", "awq", "gptq", "signround")
"""Methods that must beat rounding to the nearest at 4 and 3 bits."""


class Mean(NamedTuple):
    """The rows of one method over its draws.

    Attributes:
        rows: one a draw.
        score: the mean.
        spread: the standard deviation; 0 of one draw.
        error: the mean; None if no error is told.
    """

    rows: Sequence[Row]
    score: float
    spread: float
    error: float | None


def means(rows: Sequence[Row], model: str) -> dict[tuple[str, str, str], Mean]:
    """By group, bits and method, in the order in which rows were made."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row.model == model:
            found.setdefault((row.group, row.bits, row.method), []).append(row)
    made = {}
    for key, own in found.items():
        scores = [row.score for row in own]
        errors = [row.error for row in own if row.error is not None]
        error = float(np.mean(errors)) if errors else None
        made[key] = Mean(own, float(np.mean(scores)), float(np.std(scores)), error)
    return made


def tables(rows: Sequence[Row], subject: Subject) -> Iterator[str]:
    """Lines of a table in Markdown for a model."""
    yield f"\n| group | bits | method | error | {subject.metric} | bytes | seconds |"
    yield "|---|---|---|---|---|---|---|"
    for (group, bits, method), mean in means(rows, subject.name).items():
        error = "" if mean.error is None else f"{mean.error:.4f}"
        spread = f" ± {mean.spread:.4f}" if len(mean.rows) > 1 else ""
        more = "".join(
            f", {name} {np.mean([row.extra[name] for row in mean.rows]):.3f}"
            for name in mean.rows[0].extra
        )
        # The first of the draws compiles.
        last = mean.rows[-1]
        yield (
            f"| {group} | {bits} | {method} | {error} | "
            f"{mean.score:.4f}{spread}{more} | {last.stored:,} | {last.seconds:.1f} |"
        )


def falls(rows: Sequence[Row], subject: Subject, *, outliers: bool) -> Iterator[str]:
    """The orderings that do not hold, with their figures.

    Args:
        rows: of all models.
        subject: the model whose rows are looked at.
        outliers: whether its activations have some that stand out.
    """
    found = means(rows, subject.name)

    def compare(what: str, one: Mean | None, other: Mean | None) -> Iterator[str]:
        if one is None or other is None:
            return
        if not subject.better(one.score, other.score):
            yield (
                f"{subject.name}: {what}: {one.score:.4f} against {other.score:.4f} "
                f"{subject.metric}"
            )

    for bits in ("4", "3"):
        plain = found.get(("weights", bits, NEAREST))
        for name in BETTER:
            one = found.get(("weights", bits, name))
            yield from compare(f"{name} beats nearest at {bits} bits", one, plain)
            if one and plain and one.error and plain.error and one.error >= plain.error:
                yield (
                    f"{subject.name}: {name} beats nearest at {bits} bits in error: "
                    f"{one.error:.4f} against {plain.error:.4f}"
                )
        for rounding in (NEAREST, "gptq"):
            yield from compare(
                f"mixed bits beat {bits} bits for all, {rounding}",
                found.get(("mixed", bits, f"mixed, {rounding}")),
                found.get(("weights", bits, rounding)),
            )
    coded = found.get(("weights", "2", "codebooks"))
    for name in ("gptq", "gptq, least error"):
        one = found.get(("weights", "2", name))
        yield from compare(f"codebooks beat {name} at 2 bits", coded, one)
        if one and coded and coded.rows[-1].stored > one.rows[-1].stored:
            yield (
                f"{subject.name}: codebooks take no more bytes than {name} at 2 bits: "
                f"{coded.rows[-1].stored:,} against {one.rows[-1].stored:,}"
            )
    if outliers:
        moved = [found.get(("activations", "W4A8", n)) for n in ("smooth", "rotate")]
        best = _best(subject.better, [one for one in moved if one])
        plain = found.get(("activations", "W4A8", "plain"))
        yield from compare("smoothing or rotation beats plain W4A8", best, plain)
    for bits in ("3", "2"):
        taught = [mean for key, mean in found.items() if key[:2] == ("training", bits)]
        rest = [mean for key, mean in found.items() if key[:2] == ("weights", bits)]
        yield from compare(
            f"training beats all without at {bits} bits",
            _best(subject.better, taught),
            _best(subject.better, rest),
        )


def _best(better: Callable[[float, float], bool], given: Sequence[Mean]) -> Mean | None:
    """The mean with the best score."""
    best: Mean | None = None
    for one in given:
        if best is None or better(one.score, best.score):
            best = one
    return best
