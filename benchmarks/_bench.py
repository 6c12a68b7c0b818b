"""A bench on which methods of quantization are timed and judged; rows are kept."""

import functools
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from _subjects import Batch, Run, Subject

from jcompress.errors import MismatchError
from jcompress.leaves import named_leaves
from jcompress.quantization import Quantize, quantize
from jcompress.report import stored_bytes
from jcompress.rules import Rules
from jcompress.sites import Sites, leaf_axes
from jcompress.statistics import SecondMoments, Statistic, observe
from jcompress.tensors import is_compressed
from jcompress.tensors.axes import to_matrix


class Row(NamedTuple):
    """One method on one model, with one draw of calibration data.

    Attributes:
        model: its name.
        group: of methods that are compared with each other.
        bits: of weights, or of weights and data.
        method: its name.
        draw: the number of the draw.
        score: on test data.
        error: the mean over products of the relative error of their outputs on data
            that no method saw; None if not only weights changed.
        stored: the bytes of the tree.
        seconds: to quantize, moments of the float model not counted.
        extra: other figures.
    """

    model: str
    group: str
    bits: str
    method: str
    draw: int
    score: float
    error: float | None
    stored: int
    seconds: float
    extra: dict[str, float]


class Log:
    """Rows, each kept in a file of JSON lines as soon as it is known.

    The first line has the settings that rows must share to be compared.

    Raises:
        SystemExit: the file has rows of other settings, or none of its own.
    """

    def __init__(self, path: pathlib.Path, settings: Mapping[str, Any]) -> None:
        self._path = path
        text = path.read_text() if path.is_file() else ""
        # A run that was stopped while it wrote leaves a part of a line.
        whole = text[: text.rfind("\n") + 1]
        first, *lines = whole.splitlines() or [""]
        own = json.dumps({"settings": dict(settings)})
        if not first:
            path.write_text(own + "\n")
        elif first != own:
            raise SystemExit(
                f"{path} has rows of other settings:\n{first[:500]}\nnot\n{own}\n"
                "give another file as --log"
            )
        elif whole != text:
            path.write_text(whole)
        self.rows = [Row(**json.loads(line)) for line in lines]

    def has(self, *key: Any) -> bool:
        """Whether the row of a model, group, bits, method and draw is there."""
        return any(row[: len(key)] == key for row in self.rows)

    def add(self, row: Row) -> None:
        """Keep one more."""
        self.rows.append(row)
        with self._path.open("a") as file:
            file.write(json.dumps(row._asdict()) + "\n")
        error = "" if row.error is None else f" error {row.error:.4f}"
        print(
            f"{row.model}, {row.group}, {row.bits}, {row.method} #{row.draw}: "
            f"{row.score:.4f}{error} {row.stored:,} bytes {row.seconds:.1f} s",
            flush=True,
        )


class Made(NamedTuple):
    """What a method made.

    Attributes:
        small: the tree with compressed leaves.
        base: the float tree that it stands for: of the same function as the first.
        judges: second moments of the base's inputs on unseen data; None to tell no
            error of layers.
    """

    small: Any
    base: Any
    judges: Mapping[str, Any] | None


class Bench:
    """A model with what methods need to know of it.

    Attributes:
        subject: the model.
        log: where rows go.
        draws: of calibration data so far.
    """

    def __init__(
        self,
        subject: Subject,
        log: Log,
        wanted: Callable[[str, str], bool] = lambda bits, method: True,
    ) -> None:
        self.subject, self.log, self.draws, self._wanted = subject, log, 1, wanted
        self._told: set[tuple[Any, ...]] = set()
        self._observers: dict[Any, Callable[..., Any]] = {}
        self.run: Run = jax.jit(subject.apply)
        self.moments = functools.cache(
            lambda draw: self.collected(SecondMoments(), subject.params, draw)
        )

    @functools.cached_property
    def judges(self) -> dict[str, Any]:
        """Second moments of the float model's inputs on unseen data."""
        return self.unseen(self.subject.params)

    def unseen(self, params: Any) -> dict[str, Any]:
        """Second moments on unseen data."""
        return self._sum(SecondMoments(), params, [self.subject.unseen])

    def collected(self, statistic: Statistic, params: Any, draw: int) -> dict[str, Any]:
        """A statistic of a draw of calibration data, by weight."""
        return self._sum(statistic, params, self.subject.calibration(draw))

    def _sum(
        self, statistic: Statistic, params: Any, batches: Sequence[Batch]
    ) -> dict[str, Any]:
        run = self._observers.get(statistic)
        if run is None:
            rules: Rules[bool] = [(path, True) for path in self.subject.weights]
            observed = observe(self.subject.apply, rules, statistic)
            run = jax.jit(lambda params, *batch: observed(params, *batch)[1])
            self._observers[statistic] = run
        total = run(params, *batches[0])
        for batch in batches[1:]:
            total = total + run(params, *batch)
        return dict(total)

    def quantized(self, params: Any, rules: Rules[Quantize], moments: Any) -> Any:
        """`quantize` with the moments of those weights that the rules take."""
        sites = self.subject.sites
        return quantize(params, rules, sites=sites, moments=moments)

    def judge(
        self,
        group: str,
        bits: str,
        method: str,
        draw: int,
        make: Callable[[], Made],
        run: Run | None = None,
    ) -> None:
        """Make a row, unless it is there; a method that does not apply has none."""
        key = (self.subject.name, group, bits, method, draw)
        known = self.log.has(*key) or key[:4] in self._told
        if known or not self._wanted(bits, method):
            return
        begin = time.perf_counter()
        try:
            made = jax.block_until_ready(make())
        except MismatchError as why:
            self._told.add(key[:4])
            print(f"{', '.join(key[:4])}: not here. {str(why)[:300]}", flush=True)
            return
        seconds = time.perf_counter() - begin
        tree = dense(made.small)
        error = None
        if made.judges is not None:
            error = layer_error(made.base, tree, made.judges, self.subject.sites)
        runs = run or self.run
        score, extra = self.subject.score(runs, tree)
        stored = stored_bytes(made.small)
        self.log.add(Row(*key, score, error, stored, seconds, extra))


def dense(small: Any) -> Any:
    """The floats that a tree stands for, so that one program runs all trees."""
    return jax.tree.map(
        lambda leaf: leaf.dense() if is_compressed(leaf) else leaf,
        small,
        is_leaf=is_compressed,
    )


def layer_error(
    params: Any, small: Any, moments: Mapping[str, Any], sites: Sites
) -> float:
    """The mean over products of the relative error of their outputs."""
    first, second = dict(named_leaves(params)), dict(named_leaves(small))
    errors = []
    for name, h in moments.items():
        axes = leaf_axes(sites.of(name))
        whole, after = (
            np.asarray(to_matrix(tree[name], axes), np.float64)
            for tree in (first, second)
        )
        h = np.asarray(h, np.float64)
        lost, all_ = (np.sum(w @ h * w) for w in (after - whole, whole))
        errors.append(float(lost / all_) ** 0.5)
    return float(np.mean(errors))
