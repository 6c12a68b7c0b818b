"""Data, metrics and recipes that do not fit: one line, and nothing is left behind."""

import pathlib

import pytest

from jcompress.cli import main

MODEL = """
import jax
import numpy

def model(params, x):
    return jax.nn.relu(x @ params["up"]) @ params["down"]

def build():
    up, down = jax.random.normal(jax.random.key(0), (2, 64, 64))
    return model, {"up": up, "down": down}

x = numpy.asarray(jax.random.normal(jax.random.key(1), (8, 64)))

def batches():
    return {"example": x}

def not_finite():
    broken = x.copy()
    broken[3, 3] = numpy.nan
    return {"example": broken}

def lost():
    numbers = iter([1.0, numpy.nan])
    return {
        "example": x,
        "metric": lambda run: next(numbers),
        "higher_is_better": True,
    }
"""

CASES = {
    "the example": ("not_finite", "", "example holds numbers that are not finite"),
    "the metric": ("lost", "", "metric of the compressed model is nan; it must be a"),
    "a leaf": ("batches", 'kind = "w8"\nexclude = ["Dense_0/*"]', "matches no weight"),
    "a pattern": ("batches", 'kind = "nm"\nn = 2\nm = 7', "7 divides the number of"),
    "a step": ("batches", 'kind = "fp4"', "unknown kind 'fp4'; there are w8,"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_fit_is_one_line(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    data, recipe, said = CASES[case]
    (tmp_path / "model.py").write_text(MODEL)
    command = [
        "compress",
        *("--model", f"{tmp_path}/model.py:build"),
        *("--data", f"{tmp_path}/model.py:{data}"),
        *("--out", f"{tmp_path}/small"),
        "--quiet",
    ]
    if recipe:
        (tmp_path / "recipe.toml").write_text(f"[[step]]\n{recipe}\n")
        command += ["--recipe", f"{tmp_path}/recipe.toml"]
    before = sorted(entry.name for entry in tmp_path.iterdir())
    assert main(command) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("jcompress: ")
    assert said in error
    assert error.count("\n") == 1
    after = sorted(entry.name for entry in tmp_path.iterdir())
    assert [name for name in after if name != "__pycache__"] == before
