"""A teacher's likeliest classes on disk, so that it need not run in training.

Of each position the k largest probabilities are stored, as logarithms in float16, with
their class numbers and the logarithm of what is left in float32.
"""

import functools
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.distillation._checks import divergence
from jcompress.distillation.stored.probabilities import TopProbabilities, keep_top

_INFO = "info.json"
_VERSION = 1


class TopFile(NamedTuple):
    """What was written for a teacher, and what that lost.

    Attributes:
        path: the folder.
        positions: how many.
        k: stored classes of each.
        classes: how many there are.
        temperature: by which the logits were divided.
        stored_bytes: of the arrays on disk.
        dense_bytes: of the logits in float32.
        kept: the mean probability of what is stored, in [0, 1].
        mean_error: the mean of KL(teacher || what is stored), the rest shared out
            evenly over the other classes, in nats.
        largest_error: the largest of these.
    """

    path: pathlib.Path
    positions: int
    k: int
    classes: int
    temperature: float
    stored_bytes: int
    dense_bytes: int
    kept: float
    mean_error: float
    largest_error: float


def write_top(
    path: pathlib.Path | str,
    batches: Iterable[Any],
    *,
    k: int,
    temperature: float = 1.0,
) -> TopFile:
    """Run through a teacher's logits once, and store the k likeliest of each position.

    Args:
        path: a folder that is made; it must not hold stored logits.
        batches: logits, each `[..., C]`, with one shape but for the first axis; such as
            a generator that runs the teacher. All leading axes are positions.
        k: as of `keep_top`.
        temperature: as of `keep_top`.

    Returns:
        What was written, with its bytes and errors. A run that was interrupted leaves a
        folder that `read_top` refuses.

    Raises:
        TypeError, ValueError: as `keep_top`; or no batch, or batches of different
            shapes.
        FileExistsError: the folder holds stored logits.
    """
    folder = pathlib.Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / _INFO).exists():
        raise FileExistsError(f"write_top: {folder} holds stored logits already")
    names = ("indices", "logs", "rest")
    size, kept, errors, largest = 0, 0.0, 0.0, 0.0
    inner: tuple[int, ...] | None = None
    dtypes: list[str] = []
    examples = 0
    files = [(folder / f"{name}.bin").open("wb") for name in names]
    try:
        for batch in batches:
            logits = jnp.asarray(batch)
            top, mass, error = _kept(logits, k, temperature)
            if inner is None:
                inner = logits.shape[1:]
                dtypes = [np.asarray(x).dtype.name for x in jax.tree.leaves(top)]
            if logits.ndim < 2 or logits.shape[1:] != inner:
                raise ValueError(
                    f"write_top: a batch of shape {logits.shape}; all must be "
                    f"[batch, {', '.join(map(str, inner))}]"
                )
            for file, array in zip(files, jax.tree.leaves(top), strict=True):
                file.write(np.asarray(array).tobytes())
            examples += len(logits)
            size += error.size
            kept += float(np.sum(np.asarray(mass, np.float64)))
            errors += float(np.sum(np.asarray(error, np.float64)))
            largest = max(largest, float(np.max(np.asarray(error), initial=0)))
    finally:
        for file in files:
            file.close()
    if inner is None or not size:
        raise ValueError("write_top: there are no logits")
    stored = sum((folder / f"{name}.bin").stat().st_size for name in names)
    report = TopFile(
        path=folder,
        positions=size,
        k=k,
        classes=inner[-1],
        temperature=float(temperature),
        stored_bytes=stored,
        dense_bytes=4 * size * inner[-1],
        kept=kept / size,
        mean_error=errors / size,
        largest_error=largest,
    )
    info = {
        "version": _VERSION,
        "shape": [examples, *inner[:-1]],
        "dtypes": dtypes,
        **{key: value for key, value in report._asdict().items() if key != "path"},
    }
    # The last word: a folder without it was not finished.
    (folder / _INFO).write_text(json.dumps(info, indent=1) + "\n")
    return report


@functools.partial(jax.jit, static_argnums=(1, 2))
def _kept(
    logits: jax.Array, k: int, temperature: float
) -> tuple[TopProbabilities, jax.Array, jax.Array]:
    """What is kept of a batch, its probability, and the error by position."""
    top = keep_top(logits, k, temperature=temperature)
    log = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature, axis=-1)
    return top, -jnp.expm1(top.rest), divergence(log, top.dense_log())


def read_top(path: pathlib.Path | str) -> tuple[TopProbabilities, TopFile]:
    """Open what `write_top` wrote, mapped into memory: rows are read when indexed.

    Args:
        path: the folder.

    Returns:
        NumPy arrays `[N, ...]` of all positions, so that `stored[rows]` is a batch for
        `top_targets`; and the report of when it was written.

    Raises:
        ValueError: no such folder, one that was not finished, or files that are not of
            the length that they must have.
    """
    folder = pathlib.Path(path)
    if not (folder / _INFO).is_file():
        raise ValueError(f"read_top: {folder} holds no finished stored logits")
    info = json.loads((folder / _INFO).read_text())
    if info.pop("version") != _VERSION:
        raise ValueError(f"read_top: {folder} was written by a newer version")
    shape, dtypes = info.pop("shape"), info.pop("dtypes")
    report = TopFile(path=folder, **info)
    shapes: Sequence[Sequence[int]] = ([*shape, report.k], [*shape, report.k], shape)
    arrays = []
    for name, dtype, wanted in zip(
        ("indices", "logs", "rest"), dtypes, shapes, strict=True
    ):
        file = folder / f"{name}.bin"
        size = np.dtype(dtype).itemsize * int(np.prod(wanted))
        if not file.is_file() or file.stat().st_size != size:
            raise ValueError(f"read_top: {file} must have {size} bytes")
        arrays.append(np.memmap(file, dtype, "r", shape=tuple(wanted)))
    stored = TopProbabilities(
        indices=arrays[0],
        logs=arrays[1],
        rest=arrays[2],
        classes=report.classes,
        temperature=report.temperature,
    )
    return stored, report
