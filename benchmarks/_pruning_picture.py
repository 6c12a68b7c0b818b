"""Curves of the pruning benchmark: the score that each method leaves, by sparsity."""

import importlib
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from _bench import Row
from _method_orderings import Mean, means
from _pruning_one_shot import DENSE

PANELS = {
    ("g2p-en", "one shot"): ("words said exactly", True),
    ("language", "one shot"): ("bits a character", False),
    ("MiniLM-L6", "one shot"): ("cosine to the float vectors", True),
    ("Fashion-MNIST", "training"): ("accuracy", True),
}
"""What is drawn, and whether more is better."""

NM = "2:4"
_MARKS = "osD^v<>P"
_FAR = 3
"""A panel ends so much further from the middle score than the best one is."""


def picture(rows: Sequence[Row], path: pathlib.Path) -> None:
    """Draw a panel a model, in a format that the name of the file says."""
    figures: Any = importlib.import_module("matplotlib.figure")
    shown = [panel for panel in PANELS if _found(rows, *panel)]
    wide = min(2, len(shown))
    figure = figures.Figure(
        figsize=(7.5 * wide, 5 * math.ceil(len(shown) / 2)),
        facecolor="white",
        layout="constrained",
    )
    axes = figure.subplots(math.ceil(len(shown) / 2), wide, squeeze=False).flat
    for axis, (model, group) in zip(axes, shown, strict=False):
        methods = list(dict.fromkeys(row.method for row in rows if row.group == group))
        _panel(axis, _found(rows, model, group), methods, model, group)
    for axis in list(axes)[len(shown) :]:
        axis.set_visible(False)
    figure.savefig(path, dpi=80)


def _found(rows: Sequence[Row], model: str, group: str) -> dict[str, dict[str, Mean]]:
    """The means of a panel, by method and level."""
    found: dict[str, dict[str, Mean]] = {}
    for (own, level, method), mean in means(rows, model).items():
        if own == group:
            found.setdefault(method, {})[level] = mean
    return found


def _place(level: str) -> float:
    """Where a level stands: what stays halves with each step to the right."""
    return 0.0 if level == NM else -math.log2(1 - int(level.split()[0]) / 100)


def _panel(
    axis: Any,
    found: Mapping[str, Mapping[str, Mean]],
    methods: Sequence[str],
    model: str,
    group: str,
) -> None:
    metric, higher = PANELS[model, group]
    colors: Any = importlib.import_module("matplotlib").colormaps["tab10"]
    dense = found.get(DENSE, {}).get(DENSE)
    if dense is not None:
        axis.axhline(dense.score, color="0.5", linestyle="--", label=DENSE, zorder=0)
    levels = {level for own in found.values() for level in own} - {DENSE}

    def rank(method: str) -> float:
        """The mean over the levels, the best first."""
        scores = [mean.score for level, mean in found[method].items() if level != NM]
        mean = sum(scores) / max(1, len(scores))
        return -mean if higher else mean

    # A method looks the same in all panels.
    every = [name for name in methods if name != DENSE]
    for method in sorted((name for name in found if name != DENSE), key=rank):
        number = every.index(method)
        style = {
            "color": colors(number % 10),
            "marker": _MARKS[number % len(_MARKS)],
            "markersize": 5,
            "capsize": 2,
        }
        curve = sorted((_place(level), mean) for level, mean in found[method].items())
        line = [(x, mean.score, mean.spread) for x, mean in curve if x]
        if line:
            dash = "-" if number < 10 else ":"
            x, y, spread = zip(*line, strict=True)
            axis.errorbar(x, y, spread, label=method, linestyle=dash, **style)
        if NM in found[method]:
            mean = found[method][NM]
            label = None if line else method
            axis.errorbar([0], [mean.score], [mean.spread], label=label, ls="", **style)
    shown = sorted(levels, key=_place)
    axis.set_xticks([_place(level) for level in shown], shown)
    axis.set_ylim(*_limits(found, higher))
    axis.set_title(f"{model}, {group}")
    axis.set_xlabel("weights removed")
    axis.set_ylabel(f"{metric}, {'more' if higher else 'less'} is better")
    axis.grid(color="0.9")
    axis.legend(fontsize=7.5, loc="center left", bbox_to_anchor=(1.01, 0.5))


def _limits(
    found: Mapping[str, Mapping[str, Mean]], higher: bool
) -> tuple[float, float]:
    """What of the scores is drawn: what failed is not, so that the others differ."""
    scores = sorted(mean.score for own in found.values() for mean in own.values())
    best, middle = scores[-1 if higher else 0], scores[len(scores) // 2]
    far = abs(best - middle) * (1 + _FAR)
    near = [score for score in scores if abs(score - best) <= far]
    room = 0.04 * (near[-1] - near[0])
    return near[0] - room, near[-1] + room
