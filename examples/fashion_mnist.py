"""Read Fashion-MNIST (Xiao et al. 2017, MIT licence) from its four idx files.

Debian carries them; no root is needed to unpack the package:

    apt-get download dataset-fashion-mnist
    dpkg -x dataset-fashion-mnist_*.deb data
"""

import gzip
import os
import pathlib
from collections.abc import Iterator

import numpy as np

NAMES = (
    "train-images-idx3",
    "train-labels-idx1",
    "t10k-images-idx3",
    "t10k-labels-idx1",
)


def folder() -> pathlib.Path:
    """Where the files are: `$FASHION_MNIST`, below `data/`, or where Debian puts them.

    Raises:
        SystemExit: they are in none of these places.
    """
    inside = pathlib.Path("usr/share/datasets/fashion-mnist")
    given = os.environ.get("FASHION_MNIST")
    places = [pathlib.Path(given)] if given else []
    places += [pathlib.Path("data") / inside, pathlib.Path("/") / inside]
    for place in places:
        if all((place / f"{name}-ubyte.gz").is_file() for name in NAMES):
            return place
    raise SystemExit(
        f"Fashion-MNIST is not in {' or '.join(map(str, places))}.\n{__doc__}"
        "or set FASHION_MNIST to the folder with the four files."
    )


def read_idx(path: pathlib.Path) -> np.ndarray:
    """An idx file: a 4-byte magic ending in the rank, big-endian sizes, then uint8."""
    with gzip.open(path) as file:
        rank = file.read(4)[3]
        shape = np.frombuffer(file.read(4 * rank), ">i4")
        return np.frombuffer(file.read(), np.uint8).reshape(shape)


def load(
    train: int, test: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The first `train` and `test` images, float32 [n, 28, 28, 1] in [0, 1], labels."""
    place = folder()
    x, y, x_test, y_test = (read_idx(place / f"{name}-ubyte.gz") for name in NAMES)
    x, x_test = (a[..., None].astype(np.float32) / 255 for a in (x, x_test))
    y, y_test = y.astype(np.int32), y_test.astype(np.int32)
    return x[:train], y[:train], x_test[:test], y_test[:test]


def batches(
    x: np.ndarray, y: np.ndarray, *, size: int, epochs: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Shuffled batches of `size` examples; an epoch leaves out the rest."""
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(len(x))
        for start in range(0, len(x) - size + 1, size):
            rows = order[start : start + size]
            yield x[rows], y[rows]
