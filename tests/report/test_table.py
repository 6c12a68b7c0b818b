import dataclasses
import json

import pytest

from jcompress.report import Comparison, Facts, Label, Latency, Metric, aligned

ACCURACY = Metric("accuracy", {}, higher_is_better=True, format=".2%")
DENSE = Facts(
    bytes=1000, parameters=250, nonzero=250, macs=5000, metrics={"accuracy": 0.99}
)


def times(ratio, *, ms=1.0, other="compressed"):
    seconds = {"dense": (ms / 1e3,) * 5, other: (ms * ratio / 1e3,) * 5}
    return Latency(seconds=seconds, baseline="dense")


def comparison(compressed, latency):
    return Comparison(
        facts={"dense": DENSE, "compressed": compressed},
        latency=latency,
        metrics=(ACCURACY,),
    )


def labels(found):
    return {line.name: line.label for line in found.lines}


def test_a_smaller_model_with_zeros_is_labelled_line_by_line():
    small = dataclasses.replace(
        DENSE, metrics={"accuracy": 0.985}, bytes=125, nonzero=100
    )
    found = comparison(small, {32: times(1.0), 1: times(2.0), 8: times(0.5)})
    assert labels(found) == {
        "accuracy": None,
        "bytes stored": Label.SMALLER,
        "parameters": None,
        "nonzero": Label.SIMULATED,
        "multiplications": None,
        "ms at batch 1": Label.SLOWER,
        "ms at batch 8": Label.FASTER,
        "ms at batch 32": None,
    }
    assert found.labels("compressed") == tuple(Label)
    assert found.labels("dense") == ()
    text = str(found)
    assert "8.00x fewer" in text
    rows = {line.split("  ")[0]: line for line in text.splitlines()}
    assert rows["accuracy"].split()[-3:] == ["-0.50", "points", "worse"]
    assert rows["nonzero"].endswith("simulated")
    assert rows["ms at batch 1"].endswith("2.00x (2.00-2.00)  slower")
    assert "nonzero: a zero by itself saves nothing; bytes and ms tell" in text


def test_masks_alone_are_simulated_and_nothing_else():
    masked = dataclasses.replace(DENSE, nonzero=25)
    found = comparison(masked, {1: times(1.0)})
    assert found.labels("compressed") == (Label.SIMULATED,)
    assert labels(found)["bytes stored"] is Label.SIMULATED


def test_fewer_parameters_are_smaller_whatever_their_values():
    shrunk = dataclasses.replace(DENSE, bytes=100, parameters=50, nonzero=50, macs=7)
    found = labels(comparison(shrunk, {1: times(1.0)}))
    assert found["parameters"] is found["multiplications"] is Label.SMALLER
    grown = dataclasses.replace(DENSE, parameters=10**6, macs=10**9)
    found = labels(comparison(grown, {1: times(1.0)}))
    assert found["parameters"] is found["multiplications"] is None


def test_growth_is_said():
    large = dataclasses.replace(DENSE, bytes=2000)
    found = comparison(large, {1: times(1.0)})
    line = next(line for line in found.lines if line.name == "bytes stored")
    assert line.change == "2.00x more"
    assert line.label is Label.SIMULATED


@pytest.mark.parametrize(
    ("metric", "values", "change", "verdict"),
    [
        (Metric("m", {}, higher_is_better=False), (9.0, 9.5), "+0.5", "worse"),
        (Metric("m", {}, higher_is_better=False), (9.5, 9.0), "-0.5", "better"),
        (Metric("m", {}, higher_is_better=True), (9.5, 9.0), "-0.5", "worse"),
        (Metric("m", {}, higher_is_better=True), (9.5, 9.5), "+0", "same"),
    ],
)
def test_a_metric_says_whether_it_got_better(metric, values, change, verdict):
    sides = [dataclasses.replace(DENSE, metrics={"m": value}) for value in values]
    facts = dict(zip(("dense", "other"), sides, strict=True))
    line = Comparison(facts=facts, metrics=(metric,)).lines[0]
    assert (line.change, line.evidence) == (change, verdict)


def test_the_table_of_a_large_model_fits_80_columns():
    huge = Facts(
        bytes=54_321_987_654,
        parameters=9_876_543_210,
        nonzero=9_876_543_210,
        macs=123_456_789_012_345,
        metrics={"a metric with a name that takes half a line": 12.3456},
    )
    metric = Metric(next(iter(huge.metrics)), {}, higher_is_better=True)
    name = "shrunk, sparse and of four bits"
    small = dataclasses.replace(huge, bytes=1, parameters=9_876_543_209, nonzero=7)
    found = Comparison(
        facts={"dense": huge, name: small, "third": huge},
        latency={
            4096: Latency(
                seconds={
                    "dense": (0.01, 0.02, 0.03, 0.04),
                    name: (0.13, 0.14, 0.19, 0.21),
                    "third": (1.0,) * 4,
                },
                baseline="dense",
            )
        },
        metrics=(metric,),
    )
    lines = str(found).splitlines()
    assert max(map(len, lines)) <= 80, max(lines, key=len)
    assert all(line.isprintable() for line in lines)
    assert "shrunk,…r bits" in lines[0]
    assert sum(set(line) == {"-"} for line in lines) == 2


def test_columns_are_aligned():
    rows = aligned([("", "n"), ("a", "1"), ("long", "10")], right=(1,)).splitlines()
    assert rows == ["       n", "--------", "a      1", "long  10"]


def test_json_has_every_variant_and_a_label_for_each_line():
    small = dataclasses.replace(DENSE, bytes=125)
    found = json.loads(json.dumps(comparison(small, {1: times(2.0)}).to_json()))
    assert found["baseline"] == "dense"
    variants = found["variants"]
    assert variants["dense"]["labels"] == []
    assert variants["compressed"]["labels"] == ["smaller", "slower"]
    for side in variants.values():
        keys = {"accuracy", "bytes", "parameters", "nonzero", "macs", "latency_ms"}
        assert keys < set(side)
    assert variants["compressed"]["latency_ms"] == {"1": 2.0}
    by_name = {line["name"]: line["label"] for line in found["lines"]}
    assert by_name["accuracy"] is None
    assert by_name["bytes stored"] == "smaller"
    assert by_name["ms at batch 1"] == "slower"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"facts": {"dense": DENSE}}, "another variant"),
        ({"metrics": (Metric("f1", {}, higher_is_better=True),)}, "has no 'f1'"),
        ({"latency": {1: times(1.0, other="third")}}, "'b' was not timed"),
    ],
)
def test_incomplete_comparisons_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Comparison(**{"facts": {"dense": DENSE, "b": DENSE}, **change})
