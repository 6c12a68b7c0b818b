"""Tables and names that fit a terminal."""

import numpy as np
import pytest

from jcompress.conversion import describe_changes
from jcompress.models import Expectation
from jcompress.models.expecting import Expected
from jcompress.recipes.stored import StoredLeaf, StoredModel, Values
from jcompress.report.text import (
    aligned,
    fitted,
    in_blocks,
    in_the_middle,
    leaf_table,
    shortened,
)

LONG = "params/encoder/layers_{}/self_attention/query_key_value_projection/kernel_{}"
SHORTER = [
    f"params/layers_{n}/attention/{part}/kernel"
    for n in (1, 23)
    for part in ("query", "key", "value", "output")
]
NAMES = [LONG.format(n, m) for n in (1, 23) for m in "ab"]


@pytest.mark.parametrize("most", [1, 2, 3, 7, 10])
def test_a_text_is_cut_in_the_middle(most):
    text = "abcdefghij"
    cut = in_the_middle(text, most)
    assert len(cut) == most
    if most < 10:
        head, tail = cut.split("…")
        assert text.startswith(head)
        assert text.endswith(tail)


def test_names_are_cut_where_they_can_be_told_apart():
    names = [f"layers/{n}/a/long/way/to/go/kernel" for n in range(30)]
    assert len(set(shortened(names, 20))) == 30
    ends = [f"a/long/way/to/go/from/here/layers/{n:02}/b" for n in range(30)]
    assert len(set(shortened(ends, 12))) == 30
    assert shortened(["short"], 12) == ["short"]


def test_columns_give_way_in_turn():
    rows = [("leaf", "form", "n"), ("x" * 60, "float32 " + "9" * 40, "1")]
    table = fitted(rows, give=((0, 20), (1, 10)))
    assert [len(cell) for cell in table[1]] == [27, 48, 1]
    assert table[1][0] == "x" * 13 + "…" + "x" * 13
    table = fitted(rows, give=((0, 20), (1, 10)), width=60)
    assert [len(cell) for cell in table[1]] == [20, 35, 1]
    assert table[1][1].endswith("9…")
    assert fitted(rows[:1]) == rows[:1]


def test_names_that_would_look_alike_stand_above_their_rows():
    rows = [("leaf", "n"), *((name, "1234567890" * 6) for name in NAMES)]
    lines = leaf_table(rows, right=(1,)).splitlines()
    assert lines[:2] == ["leaf", " " * 61 + "n"]
    assert set(lines[2]) == {"-"}
    assert lines[3::2] == NAMES
    assert lines[4::2] == ["  " + "1234567890" * 6] * len(NAMES)
    short = [("leaf", "n"), ("a" * 70 + "b", "1" * 10), ("a" * 70 + "c", "2")]
    beside = leaf_table(short).splitlines()
    assert [line[-12:-10] for line in beside[2:3]] == ["  "]
    assert len(beside) == 4


def test_a_wide_table_becomes_blocks():
    rows = [("leaf", *map(str, range(20)))]
    rows += [(name, *["1.23e-05"] * 20) for name in SHORTER]
    text = in_blocks(rows, right=range(1, 21))
    assert max(map(len, text.splitlines())) <= 80
    blocks = [block.splitlines() for block in text.split("\n\n")]
    heads = [block[0].split() for block in blocks]
    assert [name for head in heads for name in head[1:]] == list(map(str, range(20)))
    for block in blocks:
        assert len(block) == 2 + len(SHORTER)
        assert len({line.split()[0] for line in block[2:]}) == len(SHORTER)
    small = [("leaf", "a"), ("w", "1")]
    assert in_blocks(small, right=(1,)) == aligned(small, right=(1,))


@pytest.mark.parametrize("names", [["w", "b"], SHORTER, NAMES, ["x" * 200, "y" * 200]])
def test_tables_of_leaves_fit_80_columns_and_tell_names_apart(names):
    leaves = tuple(Expected(name=name, dense=12.3456, small=0.5) for name in names)
    stored = tuple(
        StoredLeaf(
            name=name,
            form="int4, blocks of 32, bfloat16 scales",
            shape=(12345, 1024, 128),
            bytes=12_345_678_901,
            values=Values(-1.2e-10, 3.4e-10, (1,) * 12),
        )
        for name in names
    )
    before = {name: np.ones((512, 2048), np.float32) for name in names}
    after = {name: leaf * (np.arange(2048) % 2) for name, leaf in before.items()}
    for table in (
        Expectation(leaves),
        StoredModel(path="p", kind="checkpoint", leaves=stored),
        describe_changes(before, after),
    ):
        lines = str(table).splitlines()
        assert max(map(len, lines)) <= 80, max(lines, key=len)
        shown = {line.split()[0] for line in lines if line[0] not in " -"}
        starts = {name[:3] for name in names} | {name[:1] + "…" for name in names}
        found = {word for word in shown if any(map(word.startswith, starts))}
        assert len(found) >= len(names)
