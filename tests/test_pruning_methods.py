"""The benchmark of pruning methods goes on where it stopped, and tells what falls."""

import pathlib
import sys

import jax
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "benchmarks"))
from _bench import Log, Row
from _pruning_images import check
from _pruning_network import init
from _pruning_one_shot import DENSE
from _pruning_orderings import falls, tables
from _pruning_picture import picture

pytestmark = pytest.mark.once


def row(level: str, method: str, score: float, draw: int = 0) -> Row:
    return Row(
        *("g2p-en", "one shot", level, method, draw, score, 0.1),
        stored=1,
        seconds=1.0,
        extra={},
    )


ROWS = [
    row(DENSE, DENSE, 0.7),
    row("50 %", "magnitude", 0.5),
    row("50 %", "wanda", 0.52),
    row("50 %", "wanda", 0.54, draw=1),
    row("2:4", "wanda", 0.4),
]


def test_a_log_goes_on_with_the_same_settings_only(tmp_path: pathlib.Path) -> None:
    path, settings = tmp_path / "rows", {"quick": True, "steps": 3}
    log = Log(path, settings)
    for each in ROWS:
        log.add(each)
    again = Log(path, settings)
    assert again.rows == ROWS
    assert again.has("g2p-en", "one shot", "50 %", "wanda", 1)
    assert not again.has("g2p-en", "one shot", "50 %", "wanda", 2)
    with pytest.raises(SystemExit, match="other settings"):
        Log(path, {"quick": True, "steps": 4})
    assert Log(path, settings).rows == ROWS


def test_a_log_without_settings_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "rows"
    log = Log(path, {})
    log.add(ROWS[0])
    path.write_text(path.read_text().partition("\n")[2])
    with pytest.raises(SystemExit, match="other settings"):
        Log(path, {})


def test_half_a_line_is_dropped(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "rows"
    log = Log(path, {})
    log.add(ROWS[0])
    log.add(ROWS[1])
    path.write_text(path.read_text()[:-9])
    again = Log(path, {})
    assert again.rows == ROWS[:1]
    again.add(ROWS[2])
    assert Log(path, {}).rows == [ROWS[0], ROWS[2]]


def test_what_falls_is_told_with_its_figures() -> None:
    assert not list(falls(ROWS))
    worse = [*ROWS, row("50 %", "sparsegpt", 0.51)]
    (words,) = falls(worse)
    assert "sparsegpt beats wanda: 0.5100 ± 0.0000 against 0.5300 ± 0.0100" in words


def test_a_table_has_the_dense_score_and_a_line_a_method() -> None:
    title, _, head, _, *lines = "\n".join(tables(ROWS)).strip().split("\n")
    assert title == "g2p-en, one shot: words; dense 0.7000"
    assert head == "| method | 50 % | 2:4 |"
    assert lines == [
        "| magnitude | 0.5000 |  |",
        "| wanda | 0.5300 ± 0.0100 | 0.4000 |",
    ]


def test_a_picture_is_drawn(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("matplotlib")
    picture(ROWS, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_what_is_dense_does_not_count_as_pruned() -> None:
    params = init(jax.random.key(0))
    assert check(params, 0.0) == 0
    with pytest.raises(AssertionError, match=r"0\.0000 zeros, not 0\.5"):
        check(params, 0.5)
