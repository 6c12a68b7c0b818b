"""Count the cycles of a program that was compiled for a TPU, without a TPU.

The compiler writes the final VLIW bundles of each computation. A TPU core issues one
bundle a cycle, so the bundles that run are a lower bound on its cycles: what it waits
for (copies from memory, queues) comes on top, and is bounded apart, by the bytes that
the copies move. How often a bundle runs is found by evaluating the scalar part of
the program (loop counters, predicates, branches); vectors do not matter for that. A
branch on a number that is not known (read from memory) is not taken, so that its region
counts; `Schedule.regions` says how much each such region adds.
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence, Set

GRANULE = 32
"""Bytes in one granule of a copy."""

UNITS = ("mxu", "xlu", "valu", "vpop", "eup", "vload", "fill", "vstore", "spill")
"""The units of the dumped utilization, in its order."""

_LINE = re.compile(r"^\s*(0x[0-9a-f]+|0)\s+(?:[A-Z]{2})?\s*:[\s>]*\{(.*)", re.DOTALL)
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_RESULT = re.compile(r"^%(\w+) = ")
_PREDICATE = re.compile(r"^\((!?)%(\w+)\)(?:, |\s+|$)")
_START = re.compile(r"Start(?:/End empty)? region (\d+)")
_END = re.compile(r"End region \d+")
_LIMIT = 20_000_000
_MOST_DELAY = 8
"""Bundles behind a branch that run before it is taken are fewer."""

Number = int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """What one computation executes.

    Attributes:
        name: of the computation.
        bundles: executed, one a cycle.
        regions: for each region behind a branch on an unknown number, the bundles that
            it adds if it always runs, and whether it uses the matrix units.
        copied: bytes moved between the device's memory and the core's.
        used: executed operations by unit.
    """

    name: str
    bundles: int
    regions: tuple[tuple[int, bool], ...]
    copied: int
    used: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class _Slot:
    target: str
    operation: str
    inputs: tuple[str, ...]
    predicate: str
    negated: bool
    text: str


@dataclasses.dataclass(frozen=True)
class _Program:
    """A computation as parsed.

    Attributes:
        bundles: the scalar slots of each.
        regions: the bundle at which each starts.
        delay: bundles behind a branch that run before it is taken.
    """

    bundles: list[list[_Slot]]
    regions: Mapping[int, int]
    delay: int


def read_schedules(folder: pathlib.Path) -> list[Schedule]:
    """The schedules of all computations whose final bundles lie in `folder`."""
    found = []
    for path in sorted(folder.glob("*-final_bundles.txt")):
        if "schedule-analysis" in path.name or "<late-" in path.name:
            continue
        stem = re.sub(r"-\d+-final_bundles\.txt$", "", path.name)
        used = sorted(folder.glob(f"{_quoted(stem)}-*-final_hlo-static*"))
        table = _utilization(used[0].read_text()) if used else []
        name = re.sub(r"^\d+-", "", stem)
        found.append(read_schedule(name, path.read_text(), table))
    return found


def read_schedule(
    name: str, text: str, utilization: Sequence[Sequence[int]] = ()
) -> Schedule:
    """Evaluate the scalar part of one computation's final bundles."""
    program = _parse(text)
    runs, copied, branches = _run(name, program)
    added = []
    least = sum(_run(name, program, skipped=branches)[0]) if branches else 0
    for branch in sorted(branches):
        alone = _run(name, program, skipped=branches - {branch})[0]
        behind = utilization[branch + 1 : _target(program, branch)]
        added.append((sum(alone) - least, any(row[0] for row in behind)))
    used = dict.fromkeys(UNITS, 0)
    for count, row in zip(runs, utilization, strict=False):
        for unit, number in zip(UNITS, row, strict=False):
            used[unit] += count * number
    return Schedule(
        name=name, bundles=sum(runs), regions=tuple(added), copied=copied, used=used
    )


def _quoted(stem: str) -> str:
    return re.sub(r"([\[\]*?])", r"[\1]", stem)


def _utilization(text: str) -> list[list[int]]:
    rows = text.split("== UTILIZATION:")[-1].split("\n")
    return [[int(n) for n in row.split()] for row in rows if row[:1].isdigit()]


def _parse(text: str) -> _Program:
    bundles: list[list[_Slot]] = []
    regions: dict[int, int] = {}
    ends: set[int] = set()
    lines: list[str] = []
    for line in text.splitlines():
        if _LINE.match(line):
            lines.append(line)
        elif lines:
            lines[-1] += "\n" + line
    for number, line in enumerate(lines):
        for region in _START.findall(line):
            regions.setdefault(int(region), number)
        if _END.search(line):
            ends.add(number)
        match = _LINE.match(line)
        body = _COMMENT.sub(_keep_sizes, match.group(2) if match else "")
        slots = (_slot(part.strip(" }\n")) for part in body.split(";;"))
        bundles.append([slot for slot in slots if slot is not None])
    program = _Program(bundles, regions, 0)
    return dataclasses.replace(program, delay=_delay(program, ends))


def _delay(program: _Program, ends: Set[int]) -> int:
    """Bundles that run behind a branch: a loop ends with those of its branch."""
    found = []
    for number, slots in enumerate(program.bundles):
        if any(slot.operation.startswith("sbr") for slot in slots):
            behind = ends & set(range(number + 1, number + _MOST_DELAY))
            if _target(program, number) <= number and behind:
                found.append(max(behind) - number)
    return min(found, default=0)


def _keep_sizes(comment: re.Match[str]) -> str:
    return "size=" if "size_in_granules" in comment.group() else ""


def _slot(text: str) -> _Slot | None:
    result = _RESULT.match(text)
    target = _register(result.group(1)) if result else ""
    rest = text[result.end() :] if result else text
    operation, _, rest = rest.strip().partition(" ")
    rest = rest.strip()
    if operation not in ("sst", "sld"):
        rest = re.sub(r"^\[[^\]]*\]\s*", "", rest)
    spill = operation == "sst" and "_spill]" in rest
    control = operation.startswith(("sbr", "dma."))
    matters = target[:1] in ("s", "p") or spill or control
    if not matters:
        return None
    predicate = _PREDICATE.match(rest)
    if predicate:
        rest = rest[predicate.end() :]
    inputs = tuple(part.strip() for part in rest.split(","))
    return _Slot(
        target,
        operation,
        inputs,
        _register(predicate.group(2)) if predicate else "",
        bool(predicate and predicate.group(1)),
        rest,
    )


def _register(name: str) -> str:
    """The physical register of `virtual_physical`."""
    return name.rpartition("_")[2]


def _signed(number: int) -> int:
    return (number + 2**31) % 2**32 - 2**31


_ARITHMETIC: Mapping[str, Callable[[int, int], int]] = {
    "sadd": lambda a, b: a + b,
    "ssub": lambda a, b: a - b,
    "smul": lambda a, b: a * b,
    "sand": lambda a, b: a & b,
    "sor": lambda a, b: a | b,
    "sxor": lambda a, b: a ^ b,
    "sshll": lambda a, b: a << (b % 32),
    "sshrl": lambda a, b: (a % 2**32) >> (b % 32),
    "sshra": lambda a, b: _signed(a) >> (b % 32),
    "smin": min,
    "smax": max,
}
_COMPARISONS: Mapping[str, Callable[[int, int], bool]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}


def _run(
    name: str,
    program: _Program,
    *,
    skipped: Set[int] = frozenset(),
) -> tuple[list[int], int, set[int]]:
    """How often each bundle runs, the bytes copied, and the unknown branches.

    Such branches are not taken but where `skipped` has them.
    """
    bundles = program.bundles
    registers: dict[str, Number] = {}
    runs = [0] * len(bundles)
    copied = 0
    unknown: set[int] = set()
    at = total = 0
    # Where a branch that was taken goes, and behind how many bundles.
    goal, left = 0, 0
    while at < len(bundles):
        runs[at] += 1
        total += 1
        if total > _LIMIT:
            raise RuntimeError(f"{name}: more than {_LIMIT} bundles; an endless loop?")
        writes: list[tuple[str, Number]] = []
        following = at + 1
        for slot in bundles[at]:
            holds = _holds(slot, registers)
            if slot.operation.startswith("sbr"):
                target = _target(program, at)
                if holds is None and target > at:
                    unknown.add(at)
                if holds or (holds is None and at in skipped):
                    goal, left = target, program.delay + 1
            elif slot.operation.startswith("dma.") and "wait" not in slot.operation:
                size = re.search(r"size=\s*([%\w]+)", slot.text)
                granules = _value(size.group(1), registers) if size else None
                if holds is not False and granules and "hbm" in slot.operation:
                    copied += granules * GRANULE
            elif slot.operation == "sst" and holds and len(slot.inputs) == 1:
                place, _, stored = slot.text.partition("] ")
                writes.append((place, _value(stored, registers)))
            elif slot.operation == "sld":
                number = registers.get(slot.text.rstrip().removesuffix("]"))
                writes.append((slot.target, number if holds else None))
            elif slot.target and slot.operation != "sphi":
                number = _evaluate(slot, registers)
                if holds is None:
                    writes.append((slot.target, None))
                elif holds:
                    writes.append((slot.target, number))
        registers.update(writes)
        left -= 1
        at = goal if left == 0 else following
    return runs, copied, unknown


def _target(program: _Program, branch: int) -> int:
    """The bundle that the branch in a bundle goes to."""
    found = (
        re.search(r"\$region(\d+)", slot.text)
        for slot in program.bundles[branch]
        if slot.operation.startswith("sbr")
    )
    return max(
        (program.regions[int(match.group(1))] for match in found if match),
        default=branch + 1,
    )


def _holds(slot: _Slot, registers: Mapping[str, Number]) -> bool | None:
    if not slot.predicate:
        return True
    value = registers.get(slot.predicate)
    return None if value is None else bool(value) != slot.negated


def _value(text: str, registers: Mapping[str, Number]) -> Number:
    text = text.strip()
    if text.startswith("!"):
        inner = _value(text[1:], registers)
        return None if inner is None else int(not inner)
    if text.startswith("%"):
        return registers.get(_register(text[1:]))
    try:
        return _signed(int(text, 0))
    except ValueError:
        return None


def _evaluate(slot: _Slot, registers: Mapping[str, Number]) -> Number:
    values = [_value(text, registers) for text in slot.inputs]
    kind, _, rest = slot.operation.partition(".")
    if kind in ("smov", "pmov"):
        if slot.inputs[0].startswith("("):
            return _selected(slot, registers)
        return values[0]
    if kind == "scalar_select" and len(values) == 3:
        return None if values[0] is None else values[1 if values[0] else 2]
    if kind == "pneg":
        return None if values[0] is None else int(not values[0])
    if len(values) < 2:
        return None
    a, b = values[:2]
    if kind in ("pnand", "por", "pand"):
        return _logical(kind, a, b)
    if a is None or b is None:
        return None
    if kind == "scmp":
        order, _, width = rest.partition(".")
        if width.startswith("u"):
            a, b = a % 2**32, b % 2**32
        return int(_COMPARISONS[order](a, b))
    if kind in _ARITHMETIC:
        return _signed(_ARITHMETIC[kind](a, b))
    return None


def _selected(slot: _Slot, registers: Mapping[str, Number]) -> Number:
    """`smov (%p, a), b`: b where the predicate holds, else a."""
    match = re.match(r"\((!?)%(\w+), (\S+?)\), (\S+)", slot.text)
    if match is None:
        return None
    value = registers.get(_register(match.group(2)))
    if value is None:
        return None
    moves = bool(value) != bool(match.group(1))
    return _value(match.group(4 if moves else 3), registers)


def _logical(kind: str, a: Number, b: Number) -> Number:
    """Logic of three values: false and anything is false."""
    if kind == "por":
        if a or b:
            return 1
        return None if a is None or b is None else 0
    if a == 0 or b == 0:
        both: Number = 0
    else:
        both = None if a is None or b is None else 1
    if kind == "pand" or both is None:
        return both
    return int(not both)
