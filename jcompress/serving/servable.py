"""What a server needs of a model, and what it finds out before the first request."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from jcompress.serving.batching import Arrays, Batching
from jcompress.serving.layout import ArraySpec, ProgramError
from jcompress.serving.payloads import named_dtype


class Servable(Protocol):
    """What can be served: a `Program`, or the model of another library.

    Attributes:
        inputs: the arrays that it takes.
        outputs: the arrays that it gives.
        batch: the first size of all of them; a string if any number is taken, None if
            they have none in common.
    """

    @property
    def inputs(self) -> tuple[ArraySpec, ...]:
        """The arrays that it takes."""

    @property
    def outputs(self) -> tuple[ArraySpec, ...]:
        """The arrays that it gives."""

    @property
    def batch(self) -> int | str | None:
        """The first size of all inputs and outputs."""

    def check(self, arrays: Sequence[Any]) -> None:
        """Raise ProgramError for arrays that it does not take."""

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs for inputs."""

    def describe(self) -> dict[str, Any]:
        """What is known of it, for JSON."""


def check_servable(model: Servable, batching: Batching) -> Batching:
    """Refuse a model whose rows cannot be put together; how they are, else.

    Returns:
        The same batching, or that of the model's one size.

    Raises:
        ProgramError: its inputs and outputs have no first axis in common, or a size
            that is free beside it.
    """
    for spec in (*model.inputs, *model.outputs):
        if model.batch is None:
            raise ProgramError(
                f"{spec.name!r} is {spec}; a server puts requests together along the "
                "first axis, which all inputs and outputs must have in common"
            )
    for spec in model.inputs:
        if free := [size for size in spec.shape[1:] if isinstance(size, str)]:
            raise ProgramError(
                f"input {spec.name!r} is {spec}, and rows of several {free[0]} "
                "cannot be put together; export it with a fixed size"
            )
    if isinstance(model.batch, int):
        return Batching(
            sizes=(model.batch,),
            max_wait=batching.max_wait,
            max_waiting=max(batching.max_waiting, model.batch),
        )
    return batching


def warm_up(model: Servable, sizes: Sequence[int]) -> float:
    """Run each size once, so that nothing is compiled later.

    Returns:
        By how much, relative to the largest output, a row's outputs depend on the rows
        beside it; about 1e-7 of rounding, unless the model mixes rows.
    """
    row = [_sample(spec, 1) for spec in model.inputs]
    alone: Arrays | None = None
    worst = 0.0
    for size in sizes:
        filled = [_sample(spec, size, scale=8) for spec in model.inputs]
        for one, several in zip(row, filled, strict=True):
            several[0] = one[0]
        outputs = model.run(filled)
        if alone is None:  # the first size, with the row repeated
            alone = model.run([np.repeat(one, size, axis=0) for one in row])
        for first, found in zip(alone, outputs, strict=True):
            a, b = first[0].astype(np.float64), found[0].astype(np.float64)
            finite = np.isfinite(a) & np.isfinite(b)
            if finite.any():
                apart = np.abs(a - b)[finite].max()
                worst = max(worst, float(apart / (np.abs(a)[finite].max() or 1.0)))
    return worst


def check_rows(model: Servable, arrays: Arrays) -> None:
    """Refuse arrays as the model does, but not fewer rows than its one size.

    Raises:
        ProgramError: names the input, what arrived and what is taken.
    """
    rows = {array.shape[0] for array in arrays if array.ndim}
    if isinstance(model.batch, int) and len(rows) == 1 and all(x.ndim for x in arrays):
        # Fewer rows than its one size are padded.
        (count,) = rows
        if 1 <= count <= model.batch:
            filled = [np.repeat(x[:1], model.batch, axis=0) for x in arrays]
            model.check(filled)
            return
    model.check(arrays)


def _sample(spec: ArraySpec, rows: int, scale: float = 1.0) -> np.ndarray:
    """Ones for integers, which are numbers of entries or masks; else random."""
    shape = (rows, *(n for n in spec.shape[1:] if isinstance(n, int)))
    dtype = named_dtype(spec.dtype)
    if dtype.kind in "biu":
        return np.ones(shape, dtype)
    return np.random.default_rng(rows).uniform(-scale, scale, shape).astype(dtype)
