"""Numbers of a training, by step, as CSV files or for TensorBoard.

A writer is used in any loop: your own, or the one of a `recover` that `half_width`,
`shrink_in_rounds` or `search_widths` call.
"""

import importlib
import os
import pathlib
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol

import numpy as np

BINS = 64
"""Of a histogram in a CSV file."""

_SCALARS = ("step", "name", "value")
_HISTOGRAMS = ("step", "name", "low", "high", "count")


class Writer(Protocol):
    """What takes the numbers of a training."""

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Take named numbers of a step; arrays of one element are numbers, too."""

    def histogram(self, step: int, name: str, values: Any) -> None:
        """Take the distribution of the numbers of an array."""

    def close(self) -> None:
        """Finish; what was taken is on disk."""


class _Closing:
    """Closes at the end of a `with` block."""

    def close(self) -> None:
        """Finish."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.close()


class CsvWriter(_Closing):
    """Writes `scalars.csv` and `histograms.csv`, a line for each number or bin.

    Lines are whole and on disk when a call returns. Files of an earlier run with the
    same columns are continued.

    Args:
        folder: made if absent.

    Raises:
        ValueError: a file there has other columns.
        OSError: it cannot be written.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with CsvWriter(folder) as writer:
        ...         for step in range(2):
        ...             writer.scalars(step, {"loss": 0.5**step})
        ...     print((pathlib.Path(folder) / "scalars.csv").read_text())
        step,name,value
        0,loss,1
        1,loss,0.5
        <BLANKLINE>
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = pathlib.Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        for name, head in (("scalars", _SCALARS), ("histograms", _HISTOGRAMS)):
            self._check(name, head)

    def __enter__(self) -> "CsvWriter":
        return self

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """A line for each number.

        Raises:
            ValueError: a value is no number; it is named.
        """
        lines = [
            (step, name, f"{number_of(name, value):.9g}")
            for name, value in values.items()
        ]
        self._write("scalars", _SCALARS, lines)

    def histogram(self, step: int, name: str, values: Any) -> None:
        """A line for each of 64 equal parts of the range that has numbers in it.

        Raises:
            ValueError: there are no numbers, or some are not finite.
        """
        numbers = numbers_of(name, values)
        counts, edges = np.histogram(numbers, BINS)
        lines = [
            (step, name, f"{low:.9g}", f"{high:.9g}", count)
            for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
            if count
        ]
        self._write("histograms", _HISTOGRAMS, lines)

    def _check(self, name: str, head: tuple[str, ...]) -> None:
        path = self._folder / f"{name}.csv"
        if not path.exists():
            return
        with path.open(encoding="utf-8", errors="replace") as file:
            found = file.readline().rstrip("\r\n")
        if found != ",".join(head):
            raise ValueError(
                f"CsvWriter: {path} has other columns than {','.join(head)}: "
                f"{found[:60]!r}; give another folder"
            )

    def _write(self, name: str, head: tuple[str, ...], lines: list[Any]) -> None:
        path = self._folder / f"{name}.csv"
        rows = lines if path.exists() else [head, *lines]
        text = "".join(",".join(map(_cell, row)) + "\n" for row in rows)
        # One call of the system: a line is there as a whole, or not at all.
        with path.open("ab", buffering=0) as file:
            file.write(text.encode())


class TensorBoardWriter(_Closing):
    """Writes a file of events, which TensorBoard shows.

    Args:
        folder: made if absent.

    Raises:
        ImportError: the extra `tensorboard` is not installed.
        OSError: it cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            module: Any = importlib.import_module("tensorboardX")
        except ImportError as error:
            raise ImportError(
                "TensorBoardWriter needs tensorboardX: "
                "pip install 'jcompress[tensorboard]'"
            ) from error
        self._writer = module.SummaryWriter(os.fspath(folder))

    def __enter__(self) -> "TensorBoardWriter":
        return self

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """A point of each curve.

        Raises:
            ValueError: a value is no number; it is named.
        """
        for name, value in values.items():
            self._writer.add_scalar(name, number_of(name, value), step)

    def histogram(self, step: int, name: str, values: Any) -> None:
        """A distribution.

        Raises:
            ValueError: there are no numbers, or some are not finite.
        """
        self._writer.add_histogram(name, numbers_of(name, values), step)

    def image(self, step: int, name: str, pixels: np.ndarray[Any, Any]) -> None:
        """A picture in shades of grey: uint8[height, width]."""
        self._writer.add_image(name, pixels, step, dataformats="HW")

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


def number_of(name: str, value: Any) -> float:
    """A number, or an array of one element, as a float."""
    try:
        found = np.asarray(value)
        if found.size != 1:
            raise ValueError(f"an array of shape {list(found.shape)}")
        return float(found.reshape(()))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"scalars: {name!r} is no number but {_kind(value)}; give its mean, or "
            "histogram(...) the whole"
        ) from error


def numbers_of(name: str, values: Any) -> np.ndarray[Any, Any]:
    """The numbers of an array in a row, as float64."""
    found = np.asarray(values).astype(np.float64).ravel()
    if not found.size:
        raise ValueError(f"histogram: {name!r} has no numbers")
    if not np.isfinite(found).all():
        raise ValueError(
            f"histogram: {np.count_nonzero(~np.isfinite(found))} of {found.size} "
            f"numbers of {name!r} are not finite"
        )
    return found


def _kind(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return type(value).__name__ + ("" if shape is None else f" of shape {list(shape)}")


def _cell(value: Any) -> str:
    text = str(value)
    if any(mark in text for mark in ',"\r\n'):
        return '"' + text.replace('"', '""') + '"'
    return text
