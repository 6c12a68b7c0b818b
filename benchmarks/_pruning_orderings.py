"""What the rows of the pruning benchmark must show, and their tables."""

from collections.abc import Iterator, Sequence

from _bench import Row
from _method_orderings import Mean, means
from _pruning_one_shot import COMPARED, DENSE

METRICS = {
    "g2p-en": ("words", True),
    "language": ("bits a character", False),
    "MiniLM-L6": ("cosine", True),
    "Fashion-MNIST": ("accuracy", True),
}
"""What the scores of a model are, and whether more is better."""

ONE_SHOT = tuple(
    (better, worse, level)
    for level in COMPARED
    for better, worse in (
        ("wanda", "magnitude"),
        ("sparsegpt", "magnitude"),
        ("sparsegpt", "wanda"),
    )
)
JOINT = tuple(
    (f"{pruner}, together", worse, level)
    for level in COMPARED
    for pruner in ("sparsegpt", "least squares")
    for worse in (f"{pruner}, then rounded", "rounded, then pruned")
)
TRAINING = (
    ("gradual, magnitude", "once, magnitude", "90 %"),
    ("gradual, magnitude, erk", "gradual, magnitude", "95 %"),
    ("rigl", "random masks", "95 %"),
)
ORDERINGS = (
    *((model, "one shot", ONE_SHOT) for model in ("g2p-en", "language")),
    *((model, "4 bits", JOINT) for model in ("g2p-en", "language")),
    ("Fashion-MNIST", "training", TRAINING),
)
"""By model and group: what must be better than what, at which level."""


def falls(rows: Sequence[Row]) -> Iterator[str]:
    """The orderings that do not hold, with their figures."""
    for model, group, pairs in ORDERINGS:
        found = means(rows, model)
        metric, higher = METRICS[model]
        for better, worse, level in pairs:
            one = found.get((group, level, better))
            other = found.get((group, level, worse))
            if one is None or other is None:
                continue
            if (one.score > other.score) is not higher or one.score == other.score:
                yield (
                    f"{model}, {level}: {better} beats {worse}: {one.score:.4f} ± "
                    f"{one.spread:.4f} against {other.score:.4f} ± {other.spread:.4f} "
                    f"{metric}"
                )


def tables(rows: Sequence[Row]) -> Iterator[str]:
    """Tables in Markdown: for each model and group a line a method."""
    for model, (metric, _) in METRICS.items():
        found = means(rows, model)
        for group in dict.fromkeys(key[0] for key in found):
            own = {key[1:]: mean for key, mean in found.items() if key[0] == group}
            dense = own.pop((DENSE, DENSE), None)
            whole = "" if dense is None else f"; dense {_cell(dense)}"
            yield f"\n{model}, {group}: {metric}{whole}\n"
            levels = list(dict.fromkeys(level for level, _ in own))
            yield f"| method | {' | '.join(levels)} |"
            yield f"|---|{'---|' * len(levels)}"
            for method in dict.fromkeys(method for _, method in own):
                cells = [_cell(own.get((level, method))) for level in levels]
                yield f"| {method} | {' | '.join(cells)} |"


def _cell(mean: Mean | None) -> str:
    if mean is None:
        return ""
    spread = f" ± {mean.spread:.4f}" if len(mean.rows) > 1 else ""
    return f"{mean.score:.4f}{spread}"
