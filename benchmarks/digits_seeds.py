"""The main job on several seeds: bytes saved and accuracy lost, with the spread.

Run as `python benchmarks/digits_seeds.py`; five seeds take a few minutes on two cores.
Hyperparameters are to be chosen by the validation columns alone.
"""

import argparse
import pathlib
import statistics
import tempfile
import time

from jcompress.recipes import open_folder, run_main_job
from jcompress.recipes.progress import for_stream
from jcompress.report import aligned


def main() -> None:
    """Run the seeds and print a line for each, then mean and standard deviation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--recipe", type=pathlib.Path)
    arguments = parser.parse_args()
    rows = [measure(seed, arguments.recipe) for seed in arguments.seeds]
    columns = list(zip(*rows, strict=True))
    head = (
        "seed",
        "bytes fewer",
        "val. dense",
        "val. compressed",
        "test dense",
        "test compressed",
        "points",
        "seconds",
    )
    table: list[tuple[str, ...]] = [head]
    for seed, row in zip(arguments.seeds, rows, strict=True):
        table.append((str(seed), *map(shown, row)))
    table.append(("mean", *(shown(statistics.mean(column)) for column in columns)))
    if len(rows) > 1:
        spread = [shown(statistics.stdev(column)) for column in columns]
        table.append(("st. dev.", *spread))
    print(aligned(table, right=tuple(range(1, len(head)))))


def measure(seed: int, recipe: pathlib.Path | None) -> tuple[float, ...]:
    """One run: ratio of bytes, accuracies in percent, points gained, seconds."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, for_stream() as progress:
        chosen = open_folder(folder, recipe=recipe, seed=seed)
        result = run_main_job(chosen, folder, progress=progress)
    dense, compressed = result["dense"], result["compressed"]
    validation = result["validation_accuracy"]
    return (
        dense["bytes"] / compressed["bytes"],
        100 * validation["dense"],
        100 * validation["compressed"],
        100 * dense["accuracy"],
        100 * compressed["accuracy"],
        100 * (compressed["accuracy"] - dense["accuracy"]),
        time.monotonic() - began,
    )


def shown(value: float) -> str:
    """A number with two decimals."""
    return f"{value:.2f}"


if __name__ == "__main__":
    main()
