"""Models that others wrote, through every transform: what works, what does not.

Run as `python benchmarks/foreign_models.py`; minutes on two cores. It needs
`pip install 'transformers<5' keras flowjax jraph brax dm-haiku equinox`. `--quick`
takes every third model; `--json FILE` writes the rows; exit code 1 if a row falls.

For each model, with random weights in a small configuration:

    sites       find_sites lists a weight
    simulated   fake_quant (8 bits) gives finite numbers near the model's
    smaller     quantize stores fewer bytes
    compressed  compressed equals fake_quant
    fused       attention and normalisation as one operation each give the same
                results: how many of each were found, and the difference
    groups      find_groups finds a group that can shrink
    shrunk      with half of every group's units it equals the model that masks them
    pruned      prune leaves exact zeros, half of each weight
    saved       the compressed tree survives checkpoint.save and load
"""

import argparse
import json
import pathlib
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _foreign import EQUINOX, HAIKU, KERAS, TRANSFORMERS, Foreign, Unavailable

from jcompress import checkpoint
from jcompress.execution import Fusion, How, compressed, fused, inspect
from jcompress.formats import Int
from jcompress.leaves import named_leaves
from jcompress.pruning import Prune, Unstructured, prune
from jcompress.quantization import Quantize, Weights, fake_quant, quantize
from jcompress.report import aligned, stored_bytes
from jcompress.shrinking import find_groups, shrink, shrunk, zero_units
from jcompress.sites import Sites, find_sites

LIBRARIES = {
    "Flax": TRANSFORMERS,
    "Keras": KERAS,
    "Haiku": HAIKU,
    "Equinox": EQUINOX,
}
STEPS = (
    *("sites", "simulated", "smaller", "compressed", "fused"),
    *("groups", "shrunk", "pruned", "saved"),
)
RULES = [(..., Quantize(weights=Weights(format=Int(8))))]


class Fallen(AssertionError):
    """A step gave another result than it should."""


def difference(first: Any, second: Any) -> float:
    """The largest difference over the largest number of two lists of results."""
    worst = 0.0
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        if not np.isfinite(a).all() or not np.isfinite(b).all():
            raise Fallen("numbers that are not finite")
        scale = max(np.abs(b).max(initial=0.0), 1e-9)
        worst = max(worst, np.abs(a - b).max(initial=0.0) / scale)
    return worst


def within(found: float, bound: float) -> str:
    """The difference as text; raises if it is above the bound."""
    if found > bound:
        raise Fallen(f"differs by {found:.1e}, more than {bound:.0e}")
    return f"{found:.0e}"


class Trial:
    """One model on its way through the transforms; what a step made, the next uses."""

    def __init__(self, model: Foreign) -> None:
        self.model = model
        self.sites: Sites = find_sites(model.fn, model.variables, *model.inputs)
        self.dense = self.run(model.fn, model.variables)

    def run(self, fn: Callable[..., Any], tree: Any) -> list[Any]:
        """The results of one compiled call."""
        return list(jax.tree.leaves(jax.jit(fn)(tree, *self.model.inputs)))

    def step_sites(self) -> str:
        """How many weights were found."""
        if not self.sites.weights:
            raise Fallen("no weight was found")
        return str(len(self.sites.weights))

    def step_simulated(self) -> str:
        """The error that 8 bits make."""
        self.simulated = self.run(
            fake_quant(self.model.fn, RULES), self.model.variables
        )
        return within(difference(self.simulated, self.dense), 0.3)

    def step_smaller(self) -> str:
        """How many times fewer bytes are stored."""
        self.small = quantize(self.model.variables, RULES, sites=self.sites)
        ratio = stored_bytes(self.model.variables) / stored_bytes(self.small)
        if ratio <= 1:
            raise Fallen(f"{ratio:.2f} times the bytes")
        return f"{ratio:.1f}x"

    def step_compressed(self) -> str:
        """The distance between compressed and fake_quant."""
        found = self.run(compressed(self.model.fn), self.small)
        return within(difference(found, self.simulated), 2e-4)

    def step_fused(self) -> str:
        """How many attentions and normalisations run as one, and how exactly."""
        entries = inspect(self.model.fn, self.small, *self.model.inputs)
        found = [entry.operation for entry in entries if entry.how is How.FUSED]
        if not found:
            return "none"
        counts = [
            found.count(kind.value) for kind in (Fusion.ATTENTION, Fusion.NORMALIZATION)
        ]
        got = self.run(fused(self.model.fn), self.model.variables)
        return f"{counts[0]}+{counts[1]} {within(difference(got, self.dense), 2e-5)}"

    def step_groups(self) -> str:
        """How many groups of units can shrink."""
        self.groups = find_groups(
            self.model.fn, self.model.variables, *self.model.inputs
        )
        self.keep = {
            group.name: list(range(0, group.size, 2))
            for group in self.groups
            if not group.reduced and group.size > 1
        }
        if bool(self.keep) is not self.model.shrinks:
            raise Fallen(f"{len(self.keep)} groups can shrink")
        return str(len(self.keep))

    def step_shrunk(self) -> str:
        """The distance between shrunk and masked."""
        if not self.keep:
            return "none"
        plan = self.groups.keep(self.keep)
        masked = self.run(self.model.fn, zero_units(self.model.variables, plan))
        small = shrink(self.model.variables, plan)
        found = self.run(shrunk(self.model.fn, plan), small)
        if difference(masked, self.dense) < 1e-4:
            raise Fallen("half of all units gone changed nothing")
        return within(difference(found, masked), 2e-4)

    def step_pruned(self) -> str:
        """The share of zeros."""
        params = self.model.variables
        optimizer = prune(
            optax.sgd(0.0),
            [(..., Prune(pattern=Unstructured(), sparsity=0.5))],
            sites=self.sites,
        )
        gradients = jax.tree.map(jnp.zeros_like, params)
        updates, _ = optimizer.update(gradients, optimizer.init(params), params)
        pruned = optax.apply_updates(params, updates)
        named = dict(named_leaves(pruned))
        zeros = sum(int((named[name] == 0).sum()) for name in self.sites.weights)
        share = zeros / sum(named[name].size for name in self.sites.weights)
        if not 0.4 < share < 0.6:
            raise Fallen(f"{share:.0%} zeros")
        return f"{share:.0%}"

    def step_saved(self) -> str:
        """Whether the tree comes back as it was."""
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "tree"
            checkpoint.save(path, self.small)
            loaded = checkpoint.load(path, like=self.small)
        pairs = zip(jax.tree.leaves(loaded), jax.tree.leaves(self.small), strict=True)
        if not all(np.array_equal(a, b) for a, b in pairs):
            raise Fallen("other numbers than were saved")
        return "ok"


def tried(build: Callable[[], Foreign]) -> dict[str, str]:
    """What each step gave, or how it fell; what stands on a fallen step is left out."""
    row: dict[str, str] = {}
    trial = Trial(build())
    for step in STEPS:
        try:
            row[step] = getattr(trial, f"step_{step}")()
        except AttributeError as error:
            if error.obj is not trial:
                row[step] = f"FELL: {error!r}"
            else:
                row[step] = "-"
        except Exception as error:
            row[step] = f"FELL: {type(error).__name__}: {error}"
    return row


def main() -> int:
    """Try the models and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="every third model")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE")
    parser.add_argument("--only", nargs="+", metavar="NAME")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="transformers|keras|flax|brax|jraph")
    models = [
        (library, name, build)
        for library, builders in LIBRARIES.items()
        for name, build in builders.items()
        if not options.only or name in options.only
    ][:: 3 if options.quick else 1]
    head = ("model", "of", *STEPS, "s")
    table: list[tuple[str, ...]] = [head]
    rows: list[dict[str, Any]] = []
    absent: list[str] = []
    reasons: list[str] = []
    for library, name, build in models:
        began = time.monotonic()
        try:
            row = tried(build)
        except Unavailable as error:
            absent.append(f"{name} ({library}): {error}")
            continue
        except Exception as error:
            row = dict.fromkeys(STEPS, "-")
            row["sites"] = f"FELL: {type(error).__name__}: {error}"
        seconds = time.monotonic() - began
        rows.append({"library": library, "model": name, "seconds": seconds, **row})
        for step, cell in row.items():
            if cell.startswith("FELL"):
                reasons.append(f"{name}, {step}: {' '.join(cell.split())[:300]}")
        shown = ["FELL" if cell.startswith("FELL") else cell for cell in row.values()]
        table.append((name, library, *shown, f"{seconds:.0f}"))
        print(f"{name}: {' '.join(shown)} ({seconds:.0f} s)", file=sys.stderr)
    print(aligned(table, right=(*range(2, len(head)),)))
    whole = sum(not any(c == "FELL" for c in line) for line in table[1:])
    print(f"\n{whole} of {len(rows)} models went through every step")
    for line in (*reasons, *(f"not tried: {entry}" for entry in absent)):
        print(line)
    if options.json is not None:
        options.json.write_text(json.dumps({"rows": rows, "absent": absent}, indent=1))
    few = not options.quick and not options.only and len(rows) < 30
    if few:
        print(f"only {len(rows)} models were tried; thirty are wanted")
    return 1 if reasons or few else 0


if __name__ == "__main__":
    sys.exit(main())
