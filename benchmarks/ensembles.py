"""What ensembles gain on Fashion-MNIST, in accuracy, calibration, bytes and time.

    apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist_*.deb data
    python benchmarks/ensembles.py
    python benchmarks/ensembles.py --quick --json ensembles.json

Perceptrons of two hidden layers of 128, eight members trained side by side by
`jax.vmap`. Weights, combiners, soups, temperatures and the way in which the ensemble
teaches one network are chosen on 10,000 images of the training set that no member sees;
test images are used once, for the table. `error` is the expected calibration error with
15 bins, `scaled` the same at the temperature that was fitted on the images held out;
`ms` is the time of 256 test images, jitted.

Exit code 1 if the weighted or the stacked ensemble is worse than the mean by more than
the spread over the seeds, if the network that the ensemble has taught is no better than
the one that learned alone, or if eight members by `jax.vmap` take more than 0.8 times
the time of eight in turn.
"""

import argparse
import functools
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _ensemble_images import (
    WIDTH,
    Data,
    Trainer,
    apply,
    cross_entropy,
    init,
    load,
    steps,
    width_of,
)

from jcompress.distillation.logits import soft_targets
from jcompress.ensembles import (
    RankOne,
    calibration_error,
    diversity,
    ensemble,
    fit_stacker,
    fit_temperature,
    fit_weights,
    majority_vote,
    mean_logits,
    mean_probabilities,
    rank_one_members,
    stack,
    unstack,
    weights_by_score,
    with_factors,
)
from jcompress.execution import compressed
from jcompress.formats import Int
from jcompress.merging import align, average, average_weights, greedy_soup
from jcompress.quantization import LeastError, Quantize, Weights, quantize
from jcompress.report import stored_bytes
from jcompress.sites import find_sites

BAR = 0.8
"""Eight members by `jax.vmap`, of the time of eight in turn."""
MEMBERS = 8
PEAK = 1e-3
TEACHING = ((2.0, 0.5), (4.0, 0.5), (4.0, 0.9), (8.0, 0.9))
"""Temperatures of soft targets and their shares of the loss, to choose from."""
Row = dict[str, Any]
Run = Callable[[jax.Array], jax.Array]


def accuracy(logits: jax.Array, labels: jax.Array) -> float:
    """Per cent."""
    return 100 * float(jnp.mean(jnp.argmax(logits, axis=-1) == labels))


class Table:
    """Judges functions of images, and keeps a row for each."""

    def __init__(self, data: Data, seed: int) -> None:
        self.data, self.seed = data, seed
        self.rows: list[Row] = []

    def add(self, name: str, run: Run, params: Any) -> Row:
        """Judge `run` on the test images.

        Args:
            name: for the table.
            run: from images to logits.
            params: what it stores.
        """
        fast = jax.jit(run)
        held = fast(self.data.held[0])
        said, labels = fast(self.data.test[0]), self.data.test[1]
        heat = fit_temperature(held, self.data.held[1])
        few = self.data.test[0][:256]
        times = []
        for _ in range(15):
            begin = time.perf_counter()
            jax.block_until_ready(fast(few))
            times.append(time.perf_counter() - begin)
        row = {
            "name": name,
            "seed": self.seed,
            "accuracy": accuracy(said, labels),
            "error": 100 * float(calibration_error(said, labels)),
            "scaled": 100 * float(calibration_error(said / heat, labels)),
            "bytes": int(stored_bytes(params)),
            "ms": 1e3 * float(np.median(times)),
        }
        self.rows.append(row)
        print(
            f"#{self.seed} {name}: {row['accuracy']:.2f} %, error {row['error']:.2f}, "
            f"{row['bytes']:,} bytes",
            flush=True,
        )
        return row


def one_seed(data: Data, seed: int, epochs: int) -> Iterator[Row]:
    """All rows of a seed."""
    table = Table(data, seed)
    keys = iter(jax.random.split(jax.random.key(seed), 12))
    schedule = optax.cosine_decay_schedule(PEAK, steps(data, epochs))
    many = Trainer(data, schedule, members=True)
    own = jax.random.split(next(keys), MEMBERS)
    members, _ = many.train(jax.vmap(init)(own), own, epochs)
    alone = Trainer(data, schedule)

    trees = unstack(members)
    _counts(table, members)
    for count in (4, MEMBERS):
        wide = width_of(count * sum(x.size for x in jax.tree.leaves(trees[0])))
        key = next(keys)
        big, _ = alone.train(init(key, wide), key, epochs)
        table.add(f"one network of the bytes of {count}", _of(big), big)
    _combined(table, members)
    _compressed(table, trees[:4], alone, next(keys), epochs)
    _snapshots(table, next(keys), epochs)
    _rank_one(table, next(keys), epochs)
    _soups(table, next(keys), epochs, trees)
    _distilled(table, members, next(keys), epochs)
    yield from table.rows


def _of(params: Any) -> Run:
    return functools.partial(apply, params)


def _counts(table: Table, members: Any) -> None:
    for count in (1, 2, 4, MEMBERS):
        part = jax.tree.map(lambda x, n=count: x[:n], members)
        name = "one member" if count == 1 else f"mean of {count}"
        table.add(name, functools.partial(ensemble(apply), part), part)
    outputs = ensemble(apply, None)(members, table.data.test[0])
    found = diversity(outputs)
    print(
        f"#{table.seed} members disagree on {100 * float(found.disagreement):.1f} % of "
        f"the images, {float(found.information):.4f} nats"
    )


def _combined(table: Table, members: Any) -> None:
    """Ways to combine eight members, fitted on what is held out."""
    x, y = table.data.held
    outputs = jax.jit(ensemble(apply, None))(members, x)
    scores = [accuracy(out, y) / 100 for out in outputs]
    weights = fit_weights(outputs, y)
    ways: dict[str, Callable[[jax.Array], Any]] = {
        "mean of logits": mean_logits,
        "vote": lambda outputs: jnp.log(jnp.maximum(majority_vote(outputs), 1e-3)),
        "weighted by score": functools.partial(
            mean_probabilities, weights=weights_by_score(scores, sharpness=4.0)
        ),
        "weighted, learned": functools.partial(mean_probabilities, weights=weights),
        "stacked, linear": fit_stacker(outputs, y),
        "stacked, 16 hidden": fit_stacker(
            outputs, y, hidden=16, key=jax.random.key(table.seed)
        ),
    }
    for name, combine in ways.items():
        table.add(name, functools.partial(ensemble(apply, combine), members), members)


def _compressed(
    table: Table, trees: list[Any], alone: Trainer, key: jax.Array, epochs: int
) -> None:
    """Four members in 4 bits, and one float network of their bytes."""
    x = table.data.x[:2]
    rules = [
        (
            ...,
            Quantize(weights=Weights(format=Int(4, full=True), range=LeastError())),
        )
    ]
    sites = find_sites(apply, trees[0], x)
    small = tuple(quantize(tree, rules, sites=sites) for tree in trees)
    run = functools.partial(ensemble(compressed(apply)), stack(small))
    row = table.add("mean of 4, in 4 bits", run, small)
    params, _ = alone.train(init(key, width_of(row["bytes"] / 4)), key, epochs)
    table.add("one network of their bytes", _of(params), params)


def _snapshots(table: Table, key: jax.Array, epochs: int) -> None:
    """Four cycles of a rising and falling learning rate in the time of one training."""
    data, cycles = table.data, 4
    each = max(1, epochs // cycles)
    cycle = optax.cosine_decay_schedule(2 * PEAK, steps(data, each))
    length = steps(data, each)
    trainer = Trainer(data, lambda count: cycle(count % length))
    kept: list[Any] = []

    def after(number: int, params: Any, state: Any) -> None:
        if (number + 1) % each == 0:
            kept.append(jax.tree.map(jnp.array, params))

    trainer.train(init(key), key, cycles * each, after)
    members = stack(kept)
    run = functools.partial(ensemble(apply), members)
    table.add(f"snapshots of {len(kept)} cycles", run, members)


def _rank_one(table: Table, key: jax.Array, epochs: int) -> None:
    """BatchEnsemble: four members in hardly more bytes than one."""
    data, first = table.data, init(key)
    sites = find_sites(apply, first, data.x[:2])
    rules = [("*/w", RankOne())]
    vectors = rank_one_members(first, rules, sites=sites, members=4, key=key)

    def run(params: Any, x: jax.Array) -> jax.Array:
        shared, vectors = params
        member = ensemble(lambda v, x: apply(with_factors(shared, v), x), None)
        out: jax.Array = member(vectors, x)
        return out

    def loss(params: Any, x: jax.Array, y: jax.Array, _: jax.Array) -> jax.Array:
        out = run(params, x)
        labels = jnp.broadcast_to(y, out.shape[:2])
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(out, labels))

    schedule = optax.cosine_decay_schedule(PEAK, steps(data, epochs))
    trained, _ = Trainer(data, schedule, loss=loss).train((first, vectors), key, epochs)
    table.add(
        "BatchEnsemble of 4", lambda x: mean_probabilities(run(trained, x)), trained
    )


def _soups(table: Table, key: jax.Array, epochs: int, trees: list[Any]) -> None:
    """Weights that are averaged: tuned from one start, over training, aligned."""
    data = table.data
    x, y = data.held
    half = max(1, epochs // 2)
    schedule = optax.cosine_decay_schedule(PEAK, steps(data, epochs))
    start, _ = Trainer(data, schedule).train(init(key), key, half)
    peaks = jnp.array([PEAK / 2, PEAK, PEAK, 2 * PEAK])
    keys = jax.random.split(key, len(peaks))
    tuned = []
    for peak, own in zip(peaks.tolist(), keys, strict=True):
        rate = optax.cosine_decay_schedule(peak, steps(data, half))
        tuned.append(Trainer(data, rate).train(start, own, half)[0])
    held = jax.jit(lambda tree: jnp.mean(jnp.argmax(apply(tree, x), axis=-1) == y))
    best = max(tuned, key=lambda tree: float(held(tree)))
    table.add("best of 4 tuned", _of(best), best)
    table.add(
        "mean of 4 tuned", functools.partial(ensemble(apply), stack(tuned)), tuned
    )
    soup = average(tuned)
    table.add("uniform soup", _of(soup), soup)
    greedy = greedy_soup(tuned, lambda tree: float(held(tree))).params
    table.add("greedy soup", _of(greedy), greedy)
    link = average_weights(start=steps(data, half), every=10)
    flat = optax.join_schedules(
        [schedule, optax.constant_schedule(PEAK / 2)], [steps(data, half)]
    )
    _, state = Trainer(data, flat, link=link).train(init(key), key, epochs)
    mean = optax.tree.get(state, "average")
    table.add("average over training", _of(mean), mean)
    first, second = trees[:2]
    pair = average([first, second])
    table.add("two members averaged", _of(pair), pair)
    like = align(apply, second, first, x[:8], key=key)
    pair = average([first, like])
    table.add("two members aligned and averaged", _of(pair), pair)


def _distilled(table: Table, members: Any, key: jax.Array, epochs: int) -> None:
    """The ensemble of eight into one network, beside that network alone."""
    data = table.data
    teacher = jax.jit(ensemble(apply))
    parts = [teacher(members, part) for part in jnp.array_split(data.x, 20)]
    told = jnp.concatenate(parts)

    def loss(
        temperature: float,
        share: float,
        params: Any,
        x: jax.Array,
        y: jax.Array,
        numbers: jax.Array,
    ) -> jax.Array:
        taught = soft_targets(apply(params, x), told[numbers], temperature=temperature)
        labels = cross_entropy(params, x, y, numbers)
        return share * jnp.mean(taught) + (1 - share) * labels

    def held(params: Any) -> float:
        images, labels = data.held
        return float(jnp.mean(jnp.argmax(apply(params, images), axis=-1) == labels))

    schedule = optax.cosine_decay_schedule(PEAK, steps(data, epochs))
    first = init(key)
    alone, _ = Trainer(data, schedule).train(first, key, epochs)
    taught = [
        Trainer(data, schedule, loss=functools.partial(loss, *how)).train(
            first, key, epochs
        )[0]
        for how in TEACHING
    ]
    table.add("one network alone", _of(alone), alone)
    best = max(taught, key=held)
    table.add("the same, taught by the 8", _of(best), best)


def vmap_time(data: Data, rounds: int) -> Row:
    """An epoch of eight members side by side, and of eight in turn."""
    part = data._replace(x=data.x[:2560], y=data.y[:2560])
    rate = optax.constant_schedule(PEAK)
    many, one = Trainer(part, rate, members=True), Trainer(part, rate)
    keys = jax.random.split(jax.random.key(0), MEMBERS)
    start = jax.vmap(init)(keys)

    def together() -> None:
        jax.block_until_ready(many.train(start, keys, 1)[0])

    singles = unstack(start)

    def in_turn() -> None:
        for tree, key in zip(singles, keys, strict=True):
            jax.block_until_ready(one.train(tree, key, 1)[0])

    times: dict[str, list[float]] = {"together": [], "in turn": []}
    runs = {"together": together, "in turn": in_turn}
    order = np.random.default_rng(0)
    for number in range(rounds + 1):
        for name in order.permutation(list(runs)):
            begin = time.perf_counter()
            runs[name]()
            if number:
                times[name].append(time.perf_counter() - begin)
    ratios = np.divide(times["together"], times["in turn"])
    low, middle, high = np.percentile(ratios, (25, 50, 75))
    return {"vmap": float(middle), "quartiles": [float(low), float(high)]}


def missed(rows: list[Row], timed: Row) -> list[str]:
    """The bars that fail, in words."""
    by: dict[str, list[float]] = {}
    for row in rows:
        by.setdefault(row["name"], []).append(row["accuracy"])
    found = []
    mean = np.array(by[f"mean of {MEMBERS}"])
    spread = float(mean.std(ddof=1)) if len(mean) > 1 else 0.3
    for name in ("weighted, learned", "stacked, linear"):
        lost = float((mean - np.array(by[name])).mean())
        if lost > spread:
            found.append(
                f"{name}: {lost:.2f} points below the mean, spread {spread:.2f}"
            )
    pair = by["the same, taught by the 8"], by["one network alone"]
    gain = float(np.mean(pair[0]) - np.mean(pair[1]))
    if gain <= 0:
        found.append(f"taught by the ensemble: {gain:+.2f} points against alone")
    if timed["vmap"] > BAR:
        low, high = timed["quartiles"]
        found.append(
            f"eight by vmap take {timed['vmap']:.2f} ({low:.2f} to {high:.2f}) of the "
            f"time in turn, bar {BAR}"
        )
    return found


def show(rows: list[Row]) -> None:
    """The table of all seeds."""
    names = list(dict.fromkeys(row["name"] for row in rows))
    wide = max(map(len, names))
    print(f"\n{'':{wide}}  accuracy        error  scaled      bytes     ms")
    for name in names:
        own = [row for row in rows if row["name"] == name]
        right = [row["accuracy"] for row in own]
        spread = np.std(right, ddof=1) if len(right) > 1 else 0.0
        middle = {
            key: float(np.mean([row[key] for row in own]))
            for key in ("error", "scaled", "bytes", "ms")
        }
        print(
            f"{name:{wide}}  {np.mean(right):5.2f} +- {spread:4.2f}  "
            f"{middle['error']:6.2f}  {middle['scaled']:6.2f}  {middle['bytes']:9,.0f}"
            f"  {middle['ms']:5.2f}"
        )


def main() -> int:
    """Train, judge, print, and tell whether a bar was missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="one seed, few images")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE")
    options = parser.parse_args()
    data = load(options.quick)
    epochs = options.epochs or (4 if options.quick else 12)
    begin = time.perf_counter()
    timed = vmap_time(data, 3 if options.quick else 9)
    low, high = timed["quartiles"]
    print(
        f"eight members of width {WIDTH} by vmap: {timed['vmap']:.2f} ({low:.2f} to "
        f"{high:.2f}) of the time in turn",
        flush=True,
    )
    rows: list[Row] = []
    for seed in range(options.seeds or (1 if options.quick else 3)):
        rows.extend(one_seed(data, seed, epochs))
    show(rows)
    faults = missed(rows, timed)
    print("\n".join(f"missed: {fault}" for fault in faults) or "every bar is met")
    print(f"{time.perf_counter() - begin:.0f} s")
    if options.json is not None:
        report = {"rows": rows, "vmap": timed, "missed": faults}
        options.json.write_text(json.dumps(report, indent=1))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
