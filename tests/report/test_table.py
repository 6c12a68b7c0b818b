import dataclasses
import json

from jcompress.report import Comparison, Facts, Label, Latency

DENSE = Facts(accuracy=0.99, bytes=1000, parameters=250, nonzero=250, macs=5000)


def times(ratio):
    return Latency(
        seconds={"dense": (0.001,) * 5, "compressed": (0.001 * ratio,) * 5},
        baseline="dense",
    )


def comparison(compressed, latency):
    return Comparison(dense=DENSE, compressed=compressed, latency=latency)


def labels(found):
    return {line.name: line.label for line in found.lines}


def test_a_smaller_model_with_zeros_is_labelled_line_by_line():
    small = dataclasses.replace(DENSE, accuracy=0.985, bytes=125, nonzero=100)
    found = comparison(small, {32: times(1.0), 1: times(2.0), 8: times(0.5)})
    assert labels(found) == {
        "accuracy": Label.SMALLER,
        "bytes stored": Label.SMALLER,
        "parameters": None,
        "nonzero": Label.SIMULATED,
        "multiplications": None,
        "ms at batch 1": Label.SLOWER,
        "ms at batch 8": Label.FASTER,
        "ms at batch 32": None,
    }
    assert found.labels == tuple(Label)
    text = str(found)
    assert "8.00x fewer" in text
    assert "simulated (zeros are stored as well)" in text
    assert "-0.50 points" in text
    slower = next(line for line in text.splitlines() if "batch 1 " in line)
    assert slower.endswith("slower (measured here)")


def test_masks_alone_are_simulated_and_nothing_else():
    masked = dataclasses.replace(DENSE, nonzero=25)
    found = comparison(masked, {1: times(1.0)})
    assert found.labels == (Label.SIMULATED,)
    assert labels(found)["accuracy"] is Label.SIMULATED
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


def test_the_columns_are_aligned_plain_text():
    rows = str(comparison(DENSE, {1: times(1.0)})).splitlines()
    assert set(rows[1]) == {"-"}
    assert all(line.isprintable() for line in rows)
    evidence = rows[0].index("evidence")
    assert all(row[evidence - 1] == " " and row[evidence] != " " for row in rows[2:])


def test_json_has_both_sides_and_a_label_for_each_line():
    small = dataclasses.replace(DENSE, bytes=125)
    found = json.loads(json.dumps(comparison(small, {1: times(2.0)}).to_json()))
    assert found["dense"]["labels"] == []
    assert found["compressed"]["labels"] == ["smaller", "slower"]
    for side in ("dense", "compressed"):
        keys = {"accuracy", "bytes", "parameters", "nonzero", "macs", "latency_ms"}
        assert keys < set(found[side])
    assert found["compressed"]["latency_ms"] == {"1": 2.0}
    by_name = {line["name"]: line["label"] for line in found["lines"]}
    assert by_name["bytes stored"] == "smaller"
    assert by_name["ms at batch 1"] == "slower"
