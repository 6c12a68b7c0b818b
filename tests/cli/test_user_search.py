"""`jcompress sensitivity`, and `compress` that searches for its steps."""

import json
from typing import Any

import jax
import numpy as np
import pytest

import jcompress as jc
from jcompress.cli import main
from jcompress.cli.user_model import parse_budget
from jcompress.formats import Int
from jcompress.pruning import NM
from jcompress.pruning.one_shot import Magnitude, OneShot
from jcompress.quantization import Quantize, Weights
from jcompress.report.counts import stored_bytes
from jcompress.sensitivity import Keep

pytestmark = pytest.mark.once

FILE = """
import jax
import numpy

def model(p, x):
    return jax.nn.relu(x @ p["up"] + p["bias"][None]) @ p["down"]

rng = numpy.random.default_rng(0)
tree = {
    "up": rng.normal(size=(64, 32)).astype("float32") / 8,
    "bias": numpy.zeros(32, "float32"),
    "down": rng.normal(size=(32, 16)).astype("float32") / 6,
}
x = rng.normal(size=(96, 64)).astype("float32")

def build():
    return model, tree

wanted = numpy.asarray(model(tree, x)).argmax(axis=1)

def note(word):
    with open("seen", "a") as file:
        file.write(word + " ")

def batches():
    def accuracy(run):
        note("metric")
        return (run(x[64:]).argmax(axis=1) == wanted[64:]).mean()
    def validation(run):
        note("validation")
        return (run(x[32:64]).argmax(axis=1) == wanted[32:64]).mean()
    return {"example": x[:32], "metric": accuracy, "validation": validation,
            "higher_is_better": True}

def plain():
    return {"example": x[:32]}

def alone():
    given = batches()
    del given["validation"]
    return given

def fragile():
    given = batches()
    del given["validation"]
    def metric(run):
        same = numpy.allclose(run(x), model(tree, x), atol=1e-5)
        return 1.0 if same else numpy.nan
    return {**given, "metric": metric}
"""

FEW = (
    Quantize(weights=Weights(format=Int(8))),
    Quantize(weights=Weights(format=Int(3))),
    OneShot(method=Magnitude(), pattern=NM(2, 4)),
    Keep(0.5),
    None,
)
MODEL = ["--model", "model.py:build", "--data", "model.py:batches"]
DENSE = 4 * (64 * 32 + 32 + 32 * 16)


@pytest.fixture
def home(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "model.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jcompress.budget.search.default_candidates", lambda _: FEW)
    return tmp_path


def run(*words: str) -> int:
    return main([words[0], *MODEL, *words[1:]])


def report(folder: Any, name: str = "report.json") -> Any:
    return json.loads((folder / name).read_text())


def test_sensitivity_prints_writes_and_goes_on(
    home: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("sensitivity", "--json", "s.json", "--resume", "s.jsonl") == 0
    out, err = capsys.readouterr()
    assert "width 0.5" in out
    assert "errors: 9/9" in err
    table = report(home, "s.json")
    assert set(table) == {"candidates", "leaves", "bytes", "measure"}
    assert set(table["leaves"]) == {"up", "down", "up:1"}
    lines = (home / "s.jsonl").read_text().splitlines()
    (home / "s.jsonl").write_text("\n".join(lines[:4]) + "\n")
    assert run("sensitivity", "--json", "t.json", "--resume", "s.jsonl") == 0
    assert "errors: 9/9" in capsys.readouterr().err
    assert report(home, "t.json") == table
    assert (home / "s.jsonl").read_text().splitlines() == lines
    changed = FILE.replace("default_rng(0)", "default_rng(1)")
    (home / "model.py").write_text(changed)
    assert run("sensitivity", "--quiet", "--resume", "s.jsonl") == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "s.jsonl holds errors of another model" in said.err
    assert said.err.count("\n") == 1
    assert run("sensitivity", "--json", "absent/s.json") == 2
    assert "there is no folder" in capsys.readouterr().err


def test_a_budget_of_bytes_looks_at_the_metric_once(
    home: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("compress", "--budget", "2.5kB", "--out", "small") == 0
    out = capsys.readouterr().out
    assert "chosen" in out
    assert f"bytes; as it is {DENSE:,}" in out
    found = report(home / "small")
    (step,) = found["steps"]
    assert step["kind"] == "mix"
    assert found["search"]["budget"] == {"kind": "bytes", "amount": 2500}
    assert found["front"]["metric"] == "error"
    assert found["sensitivity"]["candidates"][0] == "int8"
    assert "search" in found["seconds"]
    space: dict[str, Any] = {}
    exec(FILE, space)
    x = np.asarray(space["x"][:32])
    small = jc.load(home / "small" / "model", space["build"](), x)
    after = found["comparison"]["variants"]["compressed"]["bytes"]
    assert stored_bytes(small.params) == after == found["search"]["cost"] <= 2500
    outputs = np.asarray(small(x))
    program = jax.export.deserialize((home / "small" / "model.jax").read_bytes())
    np.testing.assert_allclose(program.call(x), outputs, rtol=1e-5, atol=1e-5)
    # Dense and compressed, for the report; the search looks at neither.
    assert (home / "seen").read_text().split() == ["metric", "metric"]


def test_a_limit_alone_finds_the_fewest_bytes(
    home: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", "model.py:alone", "--max-drop", "0.2", "--out", "small"]
    assert run("compress", *words, "--json") == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert "budgets: " in err
    front = found["front"]
    assert (front["metric"], front["higher_is_better"]) == ("accuracy", True)
    tried = [p for p in front["points"] if p["metric"] is not None]
    good = [p for p in tried if p["metric"] >= 0.8 - 1e-6]
    (chosen,) = (p for p in front["points"] if p["chosen"])
    assert chosen["cost"] == min(p["cost"] for p in good) == found["search"]["cost"]
    assert [p for p in tried if p["metric"] < 0.8], "something smaller was tried"
    assert found["search"]["budget"] is None


def test_a_limit_that_nothing_keeps_is_exit_code_3(
    home: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    budget = ["--budget", "1.5kB", "--max-drop", "0"]
    assert run("compress", *budget, "--out", "small", "--quiet") == 3
    said = capsys.readouterr().err
    assert "accuracy went from 1 to" in said
    assert said.count("\n") == 1
    written = {f.name for f in (home / "small").iterdir()}
    assert written == {"rejected.html", "rejected.json"}
    found = report(home / "small", "rejected.json")
    assert found["accepted"] is found["search"]["within"] is False
    assert found["front"]["points"]


def test_a_metric_of_no_number_is_worse_than_any(
    home: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", "model.py:fragile", "--max-drop", "0.5"]
    assert run("compress", *data, "--out", "small", "--quiet") == 2
    assert "the metric of the compressed model is nan" in capsys.readouterr().err
    assert not (home / "small").exists()


def test_multiplications(home: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compress", "--budget", "1.6k-mults", "--out", "small", "--quiet") == 0
    found = report(home / "small")
    assert found["search"]["dense"] == 64 * 32 + 32 * 16
    assert found["search"]["cost"] <= 1600


WRONG = {
    "no unit": ["--budget", "2"],
    "a space": ["--budget", "2 MB"],
    "another unit": ["--budget", "2mb"],
    "nothing": ["--budget", "0ms"],
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_usage_is_exit_code_2(
    home: Any, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        run("compress", "--out", "small", *WRONG[name])
    assert caught.value.code == 2
    assert "--budget" in capsys.readouterr().err


def test_what_cannot_be_met_is_said_before_any_work(
    home: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jcompress.budget.search.measure_sensitivity", pytest.fail)
    assert run("compress", "--budget", "10B", "--out", "small", "--quiet") == 2
    said = capsys.readouterr().err
    assert "the least possible is" in said
    assert run("compress", "--resume", "s.jsonl", "--out", "small") == 2
    assert "--resume goes on with a search" in capsys.readouterr().err
    no_metric = ["--data", "model.py:plain", "--max-drop", "0.1"]
    assert run("compress", *no_metric, "--out", "small", "--quiet") == 2
    assert "returns no 'metric'" in capsys.readouterr().err
    files = ["model.py", "seen"]  # the metric was tried on the model as it is
    assert sorted(f.name for f in home.iterdir() if f.is_file()) == files


def test_units() -> None:
    assert parse_budget("2MB") == ("bytes", 2e6)
    assert parse_budget("1GiB") == ("bytes", 2.0**30)
    assert parse_budget("1.5M-mults") == ("multiplications", 1.5e6)
    assert parse_budget("3ms") == ("seconds", pytest.approx(3e-3))
