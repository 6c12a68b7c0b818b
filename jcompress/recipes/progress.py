"""Showing how far a long run is: bars on a terminal, plain lines elsewhere."""

import importlib
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TextIO


class Progress:
    """Told how far a run is; this one shows nothing.

    Used in a `with` block, so that a terminal is left as it was found.
    """

    def begin(self, name: str, *, total: int, done: int = 0) -> None:
        """Start a stage of `total` steps, of which `done` were done before."""

    def step(self, note: str) -> None:
        """One more step of the stage is done; `note` says how it went."""

    def say(self, text: str) -> None:
        """One line that stays."""

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        """Leave the terminal as it was."""


class Watched(Progress):
    """Hands everything on, and calls `check` at each step.

    Args:
        progress: what shows it.
        check: may raise, to end the run between two steps.
    """

    def __init__(self, progress: Progress, check: Callable[[], None]) -> None:
        self.progress = progress
        self.check = check

    def begin(self, name: str, *, total: int, done: int = 0) -> None:
        """Start a stage."""
        self.check()
        self.progress.begin(name, total=total, done=done)

    def step(self, note: str) -> None:
        """One more step."""
        self.progress.step(note)
        self.check()

    def say(self, text: str) -> None:
        """One line that stays."""
        self.progress.say(text)


class _Pace:
    """Rate and time left, from the end of the first step: that one compiles."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.first: tuple[int, float] | None = None
        self.text = ""

    def step(self, done: int) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first = done, now
            return
        steps, seconds = done - self.first[0], now - self.first[1]
        rate = steps / max(seconds, 1e-9)
        self.text = f"{rate:.1f}/s  {(self.total - done) / rate:.0f} s left"

    def __str__(self) -> str:
        return self.text


class LineProgress(Progress):
    """Plain lines without control characters, for pipes and log files.

    Args:
        stream: where they go.
        lines: about how many for each stage.
    """

    def __init__(self, stream: TextIO, *, lines: int = 5) -> None:
        self.stream = stream
        self.lines = lines

    def begin(self, name: str, *, total: int, done: int = 0) -> None:
        """Start a stage."""
        self.name, self.total, self.done = name, total, done
        self.pace = _Pace(total)

    def step(self, note: str) -> None:
        """Print every few steps, and after the last one."""
        self.done += 1
        self.pace.step(self.done)
        if self.done % max(1, self.total // self.lines) and self.done != self.total:
            return
        parts = (f"{self.name}: {self.done}/{self.total}", str(self.pace), note)
        self.say("  ".join(filter(None, parts)))

    def say(self, text: str) -> None:
        """Print a line."""
        print(text, file=self.stream, flush=True)


class BarProgress(Progress):
    """A bar for each stage, with its rate and the time left.

    Args:
        stream: a terminal.

    Raises:
        ImportError: rich is not installed.
    """

    def __init__(self, stream: TextIO) -> None:
        try:
            bars: Any = importlib.import_module("rich.progress")
            console: Any = importlib.import_module("rich.console")
        except ImportError as error:
            raise ImportError(
                "progress bars need rich: pip install 'jcompress[cli]'"
            ) from error
        self.bars = bars.Progress(
            bars.TextColumn("{task.description:<8}"),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TextColumn("{task.fields[pace]}"),
            bars.TextColumn("{task.fields[note]}"),
            console=console.Console(file=stream),
        )

    def begin(self, name: str, *, total: int, done: int = 0) -> None:
        """Add a bar."""
        self.done, self.pace = done, _Pace(total)
        self.task = self.bars.add_task(
            name, total=total, completed=done, note="compiling", pace=""
        )

    def step(self, note: str) -> None:
        """Advance the bar."""
        self.done += 1
        self.pace.step(self.done)
        self.bars.update(self.task, advance=1, note=note, pace=str(self.pace))

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self.bars.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> "Progress":
        self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        """Stop drawing; what is drawn stays."""
        self.bars.stop()


def for_stream(stream: TextIO | None = None) -> Progress:
    """Bars if the stream is a terminal, lines otherwise; by default that of errors."""
    stream = sys.stderr if stream is None else stream
    return BarProgress(stream) if stream.isatty() else LineProgress(stream)
