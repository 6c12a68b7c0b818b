"""Latency of models before and after half of their units are removed, on this CPU.

    python benchmarks/shrinking.py [--quick] [--json FILE]
    python benchmarks/shrinking.py --models resnet18 vit --batch 1 --rounds 9

Of every group that may shrink without changing what the function means (not: widths
under a layer normalization) the given part of the units is kept, evenly spread and
rounded up to a multiple of 8. ResNet-18 has two more lines, at half the
multiplications: with the same part of every group, and with more of the early stages
gone, whose large images cost time beside the multiplications, too.
Each shrunk model is first compared with the masked one; then both are timed in one run,
interleaved, in random order. A figure is the time before over that after: above 1 the
shrunk model is faster. In brackets stand its quartiles over the rounds.

Bars, exit code 1 where one falls: every shrunk model is faster than before, and
ResNet-18 at half the multiplications 1.6 times as fast.
"""

import argparse
import dataclasses
import functools
import json
import math
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import _models
import jax
import numpy as np
from _models import Model
from _timing import SETTLE, Product, Times, machine, measure, pin

from jcompress.shrinking.groups import Groups, find_groups
from jcompress.shrinking.plan import Plan, shrink, shrunk, zero_units
from jcompress.sites import find_sites

MODELS: dict[str, Callable[[], Model]] = {
    "mlp": _models.mlp,
    "vgg16": _models.vgg16,
    "resnet18": _models.resnet18,
    "resnet50": _models.resnet50,
    "mobilenet": _models.mobilenet,
    "efficientnet": _models.efficientnet,
    "densenet": _models.densenet,
    "unet": _models.unet,
    "vit": _models.vit,
    "bert": functools.partial(_models.bert, length=64, depth=6),
    "gpt": functools.partial(_models.gpt, length=32, depth=6),
    "gpt_fused": functools.partial(
        _models.gpt, length=32, depth=6, shared=12, fused=True
    ),
    "gpt_scanned": functools.partial(_models.gpt, length=32, depth=6, scanned=True),
    "lstm": _models.lstm,
    "gru": _models.gru,
    "mixer": _models.mixer,
    "tiny_mlp": functools.partial(_models.mlp, 64, 8),
    "tiny_resnet18": functools.partial(_models.resnet18, 32, 32, (1, 1, 1, 1)),
}
USUAL = [name for name in MODELS if not name.startswith("tiny_")]
TWICE = ("resnet18", "tiny_resnet18")
"""Models that are also timed at half the multiplications."""
EARLY = {64: 1 / 2, 128: 3 / 4, 256: 3 / 4, 512: 13 / 16}
"""Parts of ResNet-18's groups, by size, that leave half of the multiplications."""
TOLERANCE = 1e-3
QUICK = ("mlp", "resnet18", "lstm")
HALF, HALVED = "half the multiplications", 1.6
"""Of ResNet-18, and the least times as fast then."""


class Row(NamedTuple):
    """A shrunk model at a batch: the quartiles of the time before over that after."""

    model: str
    kept: str
    batch: int
    faster: tuple[float, float, float]

    @property
    def falls(self) -> bool:
        """Whether it misses its bar."""
        halved = (self.model, self.kept) == ("resnet18", HALF)
        return self.faster[1] < (HALVED if halved else 1)


def plan_of(groups: Groups, part: float | Mapping[int, float]) -> Plan:
    """Keeps a part of the units of each group that is not opt-in, or parts by size."""
    kept = {}
    for group in groups:
        if group.reduced:
            continue
        mine = part[group.size] if isinstance(part, Mapping) else part
        count = max(1, math.ceil(mine * group.size))
        if count > 8:
            count = min(group.size, -(-count // 8) * 8)
        spread = np.linspace(0, group.size - 1, count)
        kept[group.name] = np.unique(np.rint(spread).astype(np.int32))
    return groups.keep(kept)


def multiplications(fn: Callable[..., Any], tree: Any, inputs: Sequence[Any]) -> int:
    """Multiplications of a call; only shapes are needed."""
    found = find_sites(fn, tree, *inputs).macs
    assert found is not None
    return found


def plan_for(model: Model, groups: Groups, shapes: Any, fewer: float) -> Plan:
    """The plan, of those with one part for all groups, that comes nearest to a goal."""
    inputs = model.inputs(1)
    before = multiplications(model.evaluate, shapes, inputs)

    def missed(part: float) -> float:
        plan = plan_of(groups, part)
        run, small = shrunk(model.evaluate, plan), shrink(shapes, plan)
        return abs(math.log(before / multiplications(run, small, inputs) / fewer))

    return plan_of(groups, min(np.linspace(0.3, 0.9, 25), key=missed))


def no_weight() -> np.ndarray:
    """A network has no single weight; it is checked as a whole."""
    raise NotImplementedError


@dataclasses.dataclass
class Network(Product):
    """A model at one size, as `measure` wants it."""

    name: str
    call: Callable[..., Any]
    tree: Any
    inputs: tuple[jax.Array, ...]
    kind: str = "ours"
    bits: int = 32
    activations: int = 32
    sets: int = 1
    tolerance: float = TOLERANCE
    bytes: int = 0
    stands_for: Callable[[], np.ndarray] = no_weight

    def __post_init__(self) -> None:
        self.bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self.tree))

    def bind(self, x: np.ndarray) -> Callable[[int], Any]:
        """The call; the inputs are the model's own."""
        compiled = jax.jit(self.call)

        def run(number: int) -> Any:
            return jax.block_until_ready(compiled(self.tree, *self.inputs))

        return run

    def read(self, out: Any) -> np.ndarray:
        """What a call returned."""
        return np.asarray(out)


def check(model: Model, tree: Any, plan: Plan, small: Any) -> None:
    """Refuse to time a shrunk model that is not the masked one.

    Raises:
        ArithmeticError: they differ by more than rounding.
    """
    inputs = model.inputs(2)
    wanted = np.asarray(jax.jit(model.evaluate)(zero_units(tree, plan), *inputs))
    found = np.asarray(jax.jit(shrunk(model.evaluate, plan))(small, *inputs))
    error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
    if not error <= TOLERANCE:
        raise ArithmeticError(
            f"the shrunk model differs from the masked one by {error:.2g}, allowed "
            f"{TOLERANCE:.2g}; what is wrong is not timed"
        )


def ratio(before: Times, after: Times) -> tuple[float, float, float]:
    """The quartiles of the time before over that after."""
    found = np.array(before.median) / np.array(after.median)
    low, middle, high = np.quantile(found, (0.25, 0.5, 0.75))
    return float(low), float(middle), float(high)


def report(
    name: str, plans: dict[str, Plan], model: Model, tree: Any, options: Any
) -> Iterator[Row]:
    """A row for each plan and batch, printed as a line."""
    small = {label: shrink(tree, plan) for label, plan in plans.items()}
    for label, plan in plans.items():
        check(model, tree, plan, small[label])
    for batch in options.batch:
        inputs = model.inputs(batch)
        networks = [Network("dense", model.evaluate, tree, inputs)]
        for label, plan in plans.items():
            run = shrunk(model.evaluate, plan)
            networks.append(Network(label, run, small[label], inputs))
        empty = np.zeros((batch, 1), np.float32)
        times = measure(
            networks, empty, rounds=options.rounds, block=options.block - SETTLE
        )
        dense = networks[0]
        full = multiplications(dense.call, tree, inputs)
        for network in networks[1:]:
            left = multiplications(network.call, network.tree, inputs)
            faster = ratio(times[dense.name], times[network.name])
            spent = [1e3 * np.median(times[n.name].median) for n in (dense, network)]
            cells = (
                f"{name}, {network.name}",
                f"{batch}",
                f"{full / 1e6:.1f} to {left / 1e6:.1f} ({full / left:.2f}x)",
                f"{dense.bytes / 1e6:.2f} to {network.bytes / 1e6:.2f}"
                f" ({dense.bytes / network.bytes:.2f}x)",
                f"{spent[0]:.2f} to {spent[1]:.2f}",
                f"{faster[1]:.2f} ({faster[0]:.2f} to {faster[2]:.2f})",
            )
            print(f"| {' | '.join(cells)} |", flush=True)
            yield Row(name, network.name, batch, faster)


def main() -> None:
    """Parse the command line and time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three models, batch 1")
    parser.add_argument("--json", type=pathlib.Path, help="write the rows there")
    parser.add_argument("--models", nargs="+", choices=list(MODELS))
    parser.add_argument("--batch", nargs="+", type=int)
    parser.add_argument("--part", type=float, default=0.5, help="of the units kept")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--block", type=float, default=0.25, help="seconds")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    options.models = options.models or (QUICK if options.quick else USUAL)
    options.batch = options.batch or ([1] if options.quick else [1, 32])
    pin(options.threads)
    print(f"{machine()}; {options.threads} threads, JAX {jax.__version__}\n")
    head = ("model, kept", "batch", "million multiplications", "MB", "ms", "faster")
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)
    rows: list[Row] = []
    for name in options.models:
        model = MODELS[name]()
        shapes = model.shapes()
        groups = find_groups(model.evaluate, shapes, *model.inputs(1))
        plans = {f"{options.part:.0%} of units": plan_of(groups, options.part)}
        if name in TWICE:
            plans[HALF] = plan_for(model, groups, shapes, 2)
        if name == "resnet18":
            plans["half of them, more of the early stages"] = plan_of(groups, EARLY)
        rows += report(name, plans, model, model.variables(), options)
    if options.json:
        options.json.write_text(json.dumps([row._asdict() for row in rows], indent=1))
    falls = [row for row in rows if row.falls]
    for row in falls:
        print(f"slower than its bar: {row}")
    sys.exit(1 if falls else 0)


if __name__ == "__main__":
    main()
