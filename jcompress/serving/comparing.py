"""Exported models, timed at several batch sizes, and beside each other."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jcompress.report import (
    Label,
    Latency,
    Spread,
    aligned,
    label_by_bytes,
    label_by_time,
    latency,
)
from jcompress.serving.layout import ProgramError
from jcompress.serving.payloads import named_dtype
from jcompress.serving.program import Program

_SETS = 3
"""How many batches of inputs take turns."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgramTimes:
    """What `time_programs` measured; `str` is the table.

    Attributes:
        programs: one or two, by name; the second is compared with the first.
        seconds: by batch size and name, the seconds of a call in each round.
        difference: the length of the difference of their outputs over that of the
            first's outputs; None if there is one program.
    """

    programs: Mapping[str, Program]
    seconds: Mapping[int, Mapping[str, tuple[float, ...]]]
    difference: float | None

    def rows(self) -> list[dict[str, Any]]:
        """A row for each batch size, for JSON: ms with quartiles, and the label."""
        found = []
        for size, measured in self.seconds.items():
            row: dict[str, Any] = {"batch": size, "ms": {}, "label": None}
            for name, values in measured.items():
                spread = _thousandfold(Spread.of(values))
                row["ms"][name] = dataclasses.asdict(spread)
            if len(measured) > 1:
                both = self._pair(size)
                _, second = measured
                row["ratio"] = dataclasses.asdict(both.ratio(second))
                label = label_by_time(both, second)
                row["label"] = None if label is None else label.value
            found.append(row)
        return found

    def to_json(self) -> dict[str, Any]:
        """All of it as plain dicts, lists, numbers and strings."""
        return {
            "programs": {name: each.describe() for name, each in self.programs.items()},
            "batches": self.rows(),
            "difference": self.difference,
        }

    def __str__(self) -> str:
        first, *others = self.programs
        head = (
            "",
            *self.programs,
            *(("change", "evidence") if others else ("rows/s",)),
        )
        table = [head]
        sizes = [each.bytes for each in self.programs.values()]
        if others:
            change = f"{sizes[1] / sizes[0]:.2f}x"
            # A few bytes of names are no difference.
            label = "same" if change == "1.00x" else _by_bytes(*sizes)
            table.append(("bytes", *(f"{n:,}" for n in sizes), change, label))
        else:
            table.append(("bytes", f"{sizes[0]:,}", ""))
        for row in self.rows():
            times = [_milliseconds(row["ms"][name]) for name in self.programs]
            name = f"ms at batch {row['batch']}"
            if others:
                ratio = row["ratio"]
                change = "{median:.2f}x ({low:.2f}-{high:.2f})".format(**ratio)
                evidence = row["label"] or "no difference"
                table.append((name, *times, change, evidence))
            else:
                rate = row["batch"] / row["ms"][first]["median"] * 1e3
                table.append((name, *times, f"{rate:,.0f}"))
        right = tuple(range(1, 1 + len(self.programs))) + (() if others else (2,))
        lines = [aligned(table, right=right), ""]
        lines.append("ms: median and half the interquartile range, in alternation")
        if others:
            lines.append(f"change: over {first}, its quartiles in brackets")
            lines.append(f"outputs differ by {self.difference:.2%} on random inputs")
        return "\n".join(lines)

    def _pair(self, size: int) -> Latency:
        return Latency(seconds=self.seconds[size], baseline=next(iter(self.programs)))


def time_programs(
    programs: Mapping[str, Program],
    batches: Sequence[int],
    *,
    rounds: int = 31,
    timed: Callable[[], None] | None = None,
) -> ProgramTimes:
    """Time one program at several batch sizes, or two of them side by side.

    Floats are random, integers are ones. The calls of one round follow each other, so
    that a machine that slows down does so for all.

    Args:
        programs: one or two, by name.
        batches: sizes of batches, each once.
        rounds: rounds of timing, at least 5.
        timed: called after each part.

    Raises:
        ProgramError: they do not take a size, or not the same inputs.
        ValueError: there are fewer than five rounds.
    """
    _check(programs, batches)
    inputs = {size: _inputs(programs, size) for size in batches}
    seconds: dict[int, Mapping[str, tuple[float, ...]]] = {}
    difference = None
    if len(programs) == 2:
        first, second = programs.values()
        difference = _difference(first, second, inputs[batches[-1]][0])
        for size in batches:
            fns = {name: _call(each) for name, each in programs.items()}
            found = latency(fns, inputs[size], jit=False, rounds=rounds)
            seconds[size] = found.seconds
            if timed is not None:
                timed()
        return ProgramTimes(programs=programs, seconds=seconds, difference=difference)
    ((name, program),) = programs.items()
    calls = {size: _turning(program, inputs[size]) for size in batches}
    if (
        len(batches) == 1
    ):  # a second one of the same, for there is no alternation of one
        calls[-1] = _turning(program, inputs[batches[0]])
    found = latency(
        {str(size): call for size, call in calls.items()},
        [(n,) for n in range(_SETS)],
        jit=False,
        rounds=rounds,
    )
    if timed is not None:
        timed()
    for size in batches:
        seconds[size] = {name: found.seconds[str(size)]}
    return ProgramTimes(programs=programs, seconds=seconds, difference=None)


def _check(programs: Mapping[str, Program], batches: Sequence[int]) -> None:
    if len(programs) not in (1, 2):
        raise ProgramError(f"one or two programs can be timed, not {len(programs)}")
    if not batches or min(batches) < 1 or len({*batches}) != len(batches):
        raise ProgramError(f"batch sizes are numbers of at least 1, not {batches}")
    for name, program in programs.items():
        for spec in program.inputs:
            if any(isinstance(size, str) for size in spec.shape[1:]):
                raise ProgramError(
                    f"{name}: input {spec.name!r} is {spec}; only the first size may "
                    "be open here"
                )
            size = spec.shape[0] if spec.shape else None
            if isinstance(size, int) and {*batches} != {size}:
                raise ProgramError(
                    f"{name}: input {spec.name!r} is {spec}, of a fixed size; time it "
                    f"at batch {size}"
                )
    if len(programs) == 2:
        (one, first), (two, second) = programs.items()
        for a, b in zip(first.inputs, second.inputs, strict=False):
            if a.shape[1:] != b.shape[1:] or a.dtype != b.dtype:
                raise ProgramError(
                    f"{one} takes {a.name!r} {a}, and {two} takes {b.name!r} {b}; they "
                    "cannot be timed on the same inputs"
                )
        if len(first.inputs) != len(second.inputs):
            raise ProgramError(
                f"{one} takes {len(first.inputs)} inputs, {two} {len(second.inputs)}"
            )


def _inputs(programs: Mapping[str, Program], size: int) -> list[tuple[Any, ...]]:
    """Some sets of inputs, as JAX arrays."""
    program = next(iter(programs.values()))
    sets = []
    for seed in range(_SETS):
        random = np.random.default_rng(seed)
        made = []
        for spec in program.inputs:
            shape = tuple(n if isinstance(n, int) else size for n in spec.shape)
            dtype = named_dtype(spec.dtype)
            array = np.ones(shape) if dtype.kind in "biu" else random.random(shape)
            made.append(jax.device_put(array.astype(dtype)))
        sets.append(tuple(made))
    return sets


def _call(program: Program) -> Callable[..., Any]:
    return lambda *arrays: program.call_flat(arrays)


def _turning(program: Program, sets: Sequence[tuple[Any, ...]]) -> Callable[[int], Any]:
    return lambda number: program.call_flat(sets[number])


def _difference(first: Program, second: Program, given: tuple[Any, ...]) -> float:
    apart = whole = 0.0
    outputs = [each.run(given) for each in (first, second)]
    for a, b in zip(*outputs, strict=True):
        if a.shape != b.shape:
            raise ProgramError(
                f"an output of {first.path} is {list(a.shape)}, of {second.path} "
                f"{list(b.shape)}"
            )
        one, two = a.astype(np.float64), b.astype(np.float64)
        apart += float(np.sum((one - two) ** 2))
        whole += float(np.sum(one**2))
    return (apart / whole) ** 0.5 if whole else 0.0


def _by_bytes(first: int, second: int) -> str:
    smaller = label_by_bytes(first, second) is Label.SMALLER
    return Label.SMALLER.value if smaller else "larger"


def _thousandfold(spread: Spread) -> Spread:
    return Spread(
        low=spread.low * 1e3, median=spread.median * 1e3, high=spread.high * 1e3
    )


def _milliseconds(spread: Mapping[str, float]) -> str:
    half = (spread["high"] - spread["low"]) / 2
    places = next((n for n, top in ((3, 1), (2, 10)) if spread["median"] < top), 1)
    return f"{spread['median']:.{places}f} ±{half:.{places}f}"
