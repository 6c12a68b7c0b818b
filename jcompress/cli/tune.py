"""Measures on this device what `jcompress.kernels._tiles` keeps in tables.

Two programs take turns, each with another weight every time, so that weights come from
memory as they do in a model. One is taken for faster only if it is so by a margin in
the middle of all rounds, and at all in three of four.
"""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.formats.packing import packed_size, stored_dtype
from jcompress.kernels import Implementation, _tiles
from jcompress.kernels._dispatch import Form, Forms
from jcompress.kernels.int8_matmul.api import FORMS as _INT8
from jcompress.kernels.weight_only_matmul.api import FORMS as _WEIGHT_ONLY

MARGIN = 1.1
"""How many times faster than the entry of a table its replacement must be."""
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Numbers of rows that are tried: up to which does the platform's kernel beat XLA?"""
_ROUNDS = 12
_OUTPUTS, _INPUTS, _GROUP = 1024, 2048, 64
_SET_BYTES = 128 << 20
"""Of all the weights of a program together: more than a last-level cache."""
_OWN = {
    "cpu": Implementation.CPU,
    "tpu": Implementation.TPU,
    "cuda": Implementation.GPU,
}

_BLOCKS = {
    "block_m": (8, 16, 32, 64, 128),
    "block_n": (64, 128),
    "block_k": (64, 128),
    "splits": (1, 2, 4, 8),
    "stages": (2, 3, 4, 6),
}
SIZES: Mapping[tuple[str, str], Sequence[tuple[int, str, Mapping[str, Any]]]] = {
    ("tpu", "weight_only_matmul"): (
        (8, "", {"few_block": (256, 512, 1024, 2048)}),
        (512, "", {"many_block": (128, 256, 512)}),
    ),
    ("cuda", "weight_only_matmul"): (
        (8, " decode", _BLOCKS),
        (512, " prefill", _BLOCKS),
    ),
    ("cuda", "int8_matmul"): ((8, " decode", _BLOCKS), (512, " prefill", _BLOCKS)),
}
"""What is tried of the kernels' sizes, by platform and operation: with how many rows,
what is put behind the key of the case, and the values of each parameter."""

Times = Callable[[Callable[[int], Any], Callable[[int], Any]], Sequence[float]]
"""Times of the first over those of the second, one ratio a round."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TunedProduct:
    """Products that share an entry of the table.

    Attributes:
        operation: name of the public function.
        key: the entry's.
        forms: the operation's.
        sets: how many weights there are to take turns with.
        x: makes activations float[1, rows, inputs] of a number of rows.
        weight: the other arguments, of the weight of that number.
        static: keyword arguments.
    """

    operation: str
    key: str
    forms: Forms
    sets: int
    x: Callable[[int], jax.Array]
    weight: Callable[[int], tuple[Any, ...]]
    static: Mapping[str, Any]

    def refused(self, form: Form, rows: int) -> bool:
        """Whether a form cannot compute it with this number of rows."""
        return bool(form.why_not((self.x(rows), *self.weight(0)), self.static))


def tune(
    folder: pathlib.Path,
    *,
    cases: Sequence[TunedProduct] | None = None,
    compare: Times | None = None,
    say: Callable[[str], None] = print,
) -> pathlib.Path | None:
    """Measure on the default device and write what differs from the tables.

    First the sizes of the kernels (`SIZES`), then up to how many rows each suits.

    Args:
        folder: where the table goes.
        cases: what to measure; None for all that the platform has a form for.
        compare: measures two programs; None for `ratios`.
        say: called with a line of text for each finding.

    Returns:
        The file; None if there is nothing to write.

    Raises:
        OSError: the table cannot be written.
        ValueError: a table that is there is damaged.
    """
    device = jax.devices()[0]
    platform = "cuda" if device.platform == "gpu" else device.platform
    cpu = platform == "cpu"
    kind = _tiles.device_kind(platform) if cpu else str(device.device_kind)
    own = _OWN.get(platform)
    found: dict[str, dict[str, dict[str, int | None]]] = {}
    measured = False
    for case in all_cases() if cases is None else cases:
        if own is None or own not in case.forms:
            continue
        form, xla = case.forms[own], case.forms[Implementation.XLA]
        if case.refused(form, 1):
            continue
        measured = True
        for rows, behind, values in SIZES.get((platform, case.operation), ()):
            key = case.key + behind
            best = best_sizes(case, form, rows, key, values, compare or ratios, say)
            if best:
                said = ", ".join(f"{name} {size}" for name, size in best.items())
                say(f"{case.operation} {key}, {rows} rows: {said} (changed)")
                of_case = found.setdefault(case.operation, {})
                of_case.setdefault(key, {}).update(best)
        most = last_row(case, form, xla, compare or ratios)
        now = _tiles.tiles(case.operation, kind, case.key).get("rows")
        what = "any number of rows" if most is None else f"up to {most} rows"
        change = "" if most == now else " (changed)"
        say(f"{case.operation} {case.key}: {own.value} for {what}{change}")
        if most != now:
            of_case = found.setdefault(case.operation, {})
            of_case.setdefault(case.key, {})["rows"] = most
    if not measured:
        say(
            "no kernels but XLA's run here: nothing to measure (see `jcompress doctor`)"
        )
        return None
    if not found:
        say(f"nothing differs from the table of {kind!r}; nothing is written")
        return None
    path = _tiles.write(folder, platform, kind, found)
    say(f"written: {path}")
    return path


def best_sizes(
    case: TunedProduct,
    form: Form,
    rows: int,
    key: str,
    values: Mapping[str, Sequence[int]],
    compare: Times,
    say: Callable[[str], None],
) -> dict[str, int | None]:
    """Sizes of a kernel that are clearly faster than those it takes by itself.

    One parameter after the other, each from the best of those before. What does not
    compile is reported and left out.
    """
    best: dict[str, int | None] = {}
    if case.refused(form, rows):
        return best
    fastest = program(case, form, rows)
    for name, sizes in values.items():
        for size in sizes:
            candidate = {**best, name: size}
            try:
                with _tiles.trying(case.operation, key, candidate):
                    trial = program(case, form, rows)
            # Whatever a compiler makes of sizes that nobody tried before.
            except Exception as error:
                why = " ".join(str(error).split())[:100]
                say(f"{case.operation} {key}: {name} {size} is left out: {why}")
                continue
            if slower(compare(fastest, trial)):
                best, fastest = candidate, trial
    return best


def last_row(case: TunedProduct, form: Form, xla: Form, compare: Times) -> int | None:
    """The most rows of `ROWS` for which XLA's form is not clearly the faster one.

    Looked for by halving, which takes for granted that it is so beyond a number of
    rows. None if it never is, 0 if it always is.
    """

    def loses(rows: int) -> bool:
        if case.refused(form, rows):
            return False
        both = [program(case, one, rows) for one in (form, xla)]
        return slower(compare(*both))

    if not loses(ROWS[-1]):
        return None
    low, high = -1, len(ROWS) - 1  # the last known to suit, the first that does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if loses(ROWS[middle]) else (middle, high)
    return 0 if low < 0 else ROWS[low]


def slower(ratios: Sequence[float]) -> bool:
    """Whether times over those of another show more than noise and the margin."""
    lower, middle = np.quantile(ratios, (0.25, 0.5))
    return bool(middle > MARGIN and lower > 1)


def program(case: TunedProduct, form: Form, rows: int) -> Callable[[int], Any]:
    """The compiled form; the call takes the number of a weight and waits."""
    x = case.x(rows)
    run = jax.jit(lambda *args: form.on_stack(args, case.static))

    def call(number: int) -> Any:
        return jax.block_until_ready(run(x, *case.weight(number % case.sets)))

    call(0)
    return call


def ratios(first: Callable[[int], Any], second: Callable[[int], Any]) -> list[float]:
    """Seconds of the first over those of the second, in rounds of alternating order."""
    both = (first, second)
    calls = [max(2, min(50, int(0.02 / _seconds(run, 1, 1)))) for run in both]
    found = []
    start = 0
    for turn in range(_ROUNDS):
        times = [0.0, 0.0]
        for which in (0, 1) if turn % 2 else (1, 0):
            times[which] = _seconds(both[which], start, calls[which])
        start += max(calls)
        found.append(times[0] / times[1])
    return found


def _seconds(run: Callable[[int], Any], start: int, calls: int) -> float:
    run(start)
    began = time.perf_counter()
    for number in range(start + 1, start + 1 + calls):
        run(number)
    return (time.perf_counter() - began) / calls


def all_cases() -> Iterator[TunedProduct]:
    """What there is to measure: integers of every width, with floats and integers."""
    yield TunedProduct(
        operation="int8_matmul",
        key=_tiles.weight_key(8, "int8", 1),
        forms=_INT8,
        sets=_SET_BYTES // (_OUTPUTS * _INPUTS),
        x=functools.partial(_activations, jnp.float32),
        weight=functools.cache(_int8_weight),
        static={"x_bits": 8},
    )
    kinds = ((jnp.float32, None), (jnp.bfloat16, None), (jnp.bfloat16, 8))
    for bits in (8, 4, 3, 2):
        for dtype, x_bits in kinds:
            for groups in (1, _INPUTS // _GROUP):
                x = jnp.dtype(dtype).name if x_bits is None else "int8"
                weight = functools.partial(_weight, bits, groups)
                yield TunedProduct(
                    operation="weight_only_matmul",
                    key=_tiles.weight_key(bits, x, groups),
                    forms=_WEIGHT_ONLY,
                    sets=_SET_BYTES // (_OUTPUTS * packed_size(_INPUTS, bits)),
                    x=functools.partial(_activations, dtype),
                    weight=functools.cache(weight),
                    static={"bits": bits, "x_bits": x_bits},
                )


def _activations(dtype: Any, rows: int) -> jax.Array:
    numbers = np.random.default_rng(rows).normal(size=(1, rows, _INPUTS))
    return jnp.asarray(numbers, jnp.float32).astype(dtype)


def _int8_weight(number: int) -> tuple[Any, ...]:
    values, scales, _ = _weight(8, 1, number)
    return (None, None, values, scales, None, None)


def _weight(bits: int, groups: int, number: int) -> tuple[Any, ...]:
    draw = np.random.default_rng(number)
    stored = (1, _OUTPUTS, packed_size(_INPUTS, bits))
    values = draw.integers(0, 256, stored, np.uint8).view(stored_dtype(bits))
    scales = draw.uniform(0.01, 0.02, (1, _OUTPUTS, groups))
    return (jnp.asarray(values), jnp.asarray(scales, jnp.float32), None)
