import io
import sys

import pytest

from jcompress.recipes.progress import BarProgress, LineProgress, Progress, for_stream


def test_lines_have_no_control_characters_and_end_with_the_last_step():
    stream = io.StringIO()
    progress = for_stream(stream)
    assert isinstance(progress, LineProgress)
    with progress:
        progress.begin("teacher", total=10)
        for step in range(10):
            progress.step(f"loss {step}")
        progress.say("done")
    lines = stream.getvalue().splitlines()
    assert all(line.isprintable() for line in lines)
    assert lines[0].startswith("teacher: 2/10  ")
    assert "s left" in lines[0]
    assert lines[-2].startswith("teacher: 10/10  ")
    assert lines[-2].endswith("loss 9")
    assert lines[-1] == "done"
    assert len(lines) == 6


def test_the_rate_leaves_the_first_step_out(monkeypatch):
    clock = iter([100.0, 102.0, 104.0])
    monkeypatch.setattr(
        "jcompress.recipes.progress.time.monotonic", lambda: next(clock)
    )
    stream = io.StringIO()
    progress = LineProgress(stream)
    progress.begin("student", total=4, done=1)
    for _ in range(3):
        progress.step("")
    assert stream.getvalue().splitlines() == [
        "student: 2/4",
        "student: 3/4  0.5/s  2 s left",
        "student: 4/4  0.5/s  0 s left",
    ]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_bars():
    stream = Terminal()
    progress = for_stream(stream)
    assert isinstance(progress, BarProgress)
    with progress:
        progress.begin("teacher", total=2)
        progress.step("loss 1")
        progress.step("loss 0")
        progress.say("[verified]")
    shown = stream.getvalue()
    assert "2/2" in shown
    assert "loss 0" in shown
    assert "[verified]" in shown


def test_the_extra_is_named_when_rich_is_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    with pytest.raises(ImportError, match=r"jcompress\[cli\]"):
        for_stream(Terminal())


def test_silence_is_the_default(capsys):
    with Progress() as progress:
        progress.begin("teacher", total=1)
        progress.step("loss 1")
        progress.say("done")
    assert capsys.readouterr() == ("", "")
