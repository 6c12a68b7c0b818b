"""`jcompress compress`: a model of the user's own, from Python files to a folder."""

import json
import pathlib
import re
import shlex
import shutil
import sys
import types

import jax
import numpy as np
import pytest

import jcompress as jc
from jcompress.cli import main
from jcompress.models import Compressed
from jcompress.recipes.publishing import published
from jcompress.recipes.user_report import drops_within
from jcompress.tensors import NMSparse

pytestmark = pytest.mark.once

COMPRESS = ["compress", "--model", "model.py:build", "--data", "model.py:batches"]


def help_of(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    return said


def commands_of(text):
    whole = text.replace("\\\n", "")
    return [shlex.split(line)[1:] for line in re.findall(r"^  \$ (.*)$", whole, re.M)]


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The file of the help, and what the command of the help makes of it."""
    folder = tmp_path_factory.mktemp("own")
    from jcompress.cli.commands import _parser

    help = _parser()._subparsers._group_actions[0].choices["compress"].format_help()
    file = help.partition("with a file model.py:\n")[2].partition("  $ ")[0]
    (folder / "model.py").write_text(re.sub("^  ", "", file, flags=re.M))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (command,) = commands_of(help)
        assert main(command) == 0
    return folder


@pytest.fixture
def home(example, tmp_path, monkeypatch):
    """A copy of it to work in."""
    shutil.copytree(example, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def snapshot(folder):
    return {
        file.relative_to(folder): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }


def model_of(folder):
    found = types.SimpleNamespace()
    exec((folder / "model.py").read_text(), vars(found))
    return found


def test_the_example_of_the_help(example):
    out = example / "small"
    assert sorted(f.name for f in out.iterdir()) == [
        "model",
        "model.jax",
        "report.html",
        "report.json",
    ]
    assert {f.name for f in example.iterdir()} <= {"model.py", "small", "__pycache__"}
    report = json.loads((out / "report.json").read_text())
    assert report["schema"] == 1
    assert report["steps"] == [{"kind": "w8a8"}]
    assert report["model"] == {"source": "model.py:build", "kind": "function"}
    assert report["accepted"] is True
    assert set(report["seconds"]) == {"load", "expect", "compress", "measure", "save"}
    assert report["versions"]["jax"] == jax.__version__
    # By hand: 64 x 64 bytes and 64 scales of 4 bytes.
    rows = {row["name"]: row for row in report["leaves"]}
    assert set(rows) == {"up", "down"}
    for row in rows.values():
        assert (row["bytes_before"], row["bytes_after"]) == (16384, 4096 + 256)
        assert row["seconds_before"] > 0
    assert report["comparison"]["variants"]["compressed"]["bytes"] == 2 * 4352

    own = model_of(example)
    data = own.batches()
    x = np.asarray(data["example"])
    small = jc.load(out / "model", own.build(), x)
    assert isinstance(small, Compressed)
    outputs = np.asarray(small(x))
    metric = report["metric"]
    assert metric["name"] == "accuracy"
    assert metric["dense"] == 1.0
    up, down = (np.asarray(own.build()[1][name]) for name in ("up", "down"))
    dense = np.maximum(x @ up, 0) @ down
    same = [dense[n].argmax() == outputs[n].argmax() for n in range(32)]
    assert metric["compressed"] == pytest.approx(sum(same) / 32)
    assert metric["drop"] == pytest.approx(1 - sum(same) / 32)
    apart = np.linalg.norm(outputs - dense) / np.linalg.norm(dense)
    assert report["output_difference"] == pytest.approx(apart, rel=1e-3)
    program = jax.export.deserialize((out / "model.jax").read_bytes())
    np.testing.assert_allclose(program.call(x), outputs, rtol=1e-5, atol=1e-4)
    assert report["program"]["any_batch"] is True
    np.testing.assert_allclose(program.call(x[:3]), outputs[:3], rtol=1e-5, atol=1e-4)


def test_the_examples_of_inspect_and_diff(home, capsys):
    jc.checkpoint.save("dense", model_of(home).build()[1])
    (inspect,) = commands_of(help_of("inspect", capsys))
    (diff,) = commands_of(help_of("diff", capsys))
    assert main(inspect) == 0
    table = capsys.readouterr().out
    assert "checkpoint: 2 leaves, 8,704 bytes" in table
    assert main(diff) == 0
    table = capsys.readouterr().out
    assert "32,768 bytes became 8,704 (smaller)" in table
    assert main([*diff, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["leaves"]
    assert [row["name"] for row in rows] == ["down", "up"]
    assert all(0 < row["error"] < 0.01 for row in rows)
    assert main([*diff[:-2], "small", "small"]) == 0
    assert capsys.readouterr().out == "no leaf differs\n"


def test_a_recipe_with_calibration_replaces_an_earlier_result(home, capsys):
    (home / "data.py").write_text(
        "import typing, numpy\n"
        "from model import batches as others\n"  # a neighbour
        "class Batches(typing.NamedTuple):\n"
        "    example: object\n"
        "    calibration: list\n"
        "print('hello')\n"
        "def batches():\n"
        "    x = numpy.asarray(others()['example'], 'float64')\n"
        "    return Batches(x, [x, x[:8]])\n"
    )
    (home / "steps.toml").write_text(
        '[[step]]\nkind = "nm"\nn = 2\nm = 4\n[[step]]\nkind = "w8"\nexclude = ["up"]\n'
    )
    command = ["compress", "--model", "model.py:build", "--data", "data.py:batches"]
    command += ["--recipe", "steps.toml", "--out", "small", "--json"]
    assert main(command) == 0
    out, said = capsys.readouterr()
    report = json.loads(out)
    assert report == json.loads((home / "small" / "report.json").read_text())
    assert "hello" in said
    assert report["metric"] is None
    assert report["steps"][0] == {"kind": "nm", "n": 2, "m": 4}
    x = np.asarray(model_of(home).batches()["example"])
    small = jc.load(home / "small" / "model", model_of(home).build(), x)
    assert isinstance(small.params["up"], NMSparse)
    for name in ("up", "down"):
        kept = np.asarray(small.params[name].dense()).reshape(16, 4, 64) != 0
        assert kept.sum(axis=1).max() == 2
    assert not list(home.glob(".small*"))
    assert "model" not in sys.modules
    assert str(home) not in sys.path


@pytest.mark.parametrize(("most", "within"), [(0.02, True), (0.0199, False)])
def test_a_limit_is_not_missed_by_rounding(most, within):
    after = float(np.float32(0.98))
    for dense, compressed in ((1.0, after), (after, 1.0)):
        drop = abs(dense - compressed)
        metric = {"dense": dense, "compressed": compressed, "drop": drop + 1e-8}
        assert drops_within(metric, most) is within


def test_a_metric_that_drops_too_far_publishes_nothing(home, capsys):
    before = snapshot(home / "small")
    (home / "half.toml").write_text('[[step]]\nkind = "half_width"\nkeep = 0.25\n')
    half = [*COMPRESS, "--recipe", "half.toml", "--max-drop", "0.1"]
    assert main([*half, "--out", "small"]) == 3
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("jcompress: accuracy went from 1 to 0.")
    assert "rejected.json" in said
    after = snapshot(home / "small")
    report = json.loads(after.pop(pathlib.Path("rejected.json")))
    assert b"Not published: accuracy" in after.pop(pathlib.Path("rejected.html"))
    assert after == before
    assert report["accepted"] is False
    assert report["metric"]["drop"] > 0.1
    assert report["program"] is None
    assert main([*half, "--out", "new/one", "--quiet"]) == 3
    out, said = capsys.readouterr()
    assert (out, said.count("\n")) == ("", 1)
    made = {f.name for f in (home / "new" / "one").iterdir()}
    assert made == {"rejected.json", "rejected.html"}
    # A later run may take the place of that.
    assert main([*COMPRESS, "--out", "new/one", "--quiet", "--max-drop", "0.9"]) == 0
    assert capsys.readouterr() == ("", "")
    assert not (home / "new" / "one" / "rejected.json").exists()


def test_units_recover_by_a_function_of_the_users(home, capsys):
    (home / "train.py").write_text(
        "import jax\n"
        "def recover(fn, params):\n"
        "    return jax.tree.map(lambda leaf: 0 * leaf, params)\n"
        "def fails(fn, params):\n"
        "    return params['absent']\n"
    )
    for name, code in (("recover", 0), ("fails", 2)):
        (home / "half.toml").write_text(
            f'[[step]]\nkind = "half_width"\nrecover = "train.py:{name}"\n'
        )
        command = [*COMPRESS, "--recipe", "half.toml", "--out", name, "--quiet"]
        assert main(command) == code
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "train.py:fails, line 5: KeyError" in said
    x = np.ones((3, 64), np.float32)
    small = jc.load(home / "recover" / "model", model_of(home).build(), x)
    assert small.params["up"].shape == (64, 32)
    assert not np.asarray(small(x)).any()
    assert not (home / "fails").exists()


BAD = {
    "no file": ("", ["--model", "absent.py:build"], "absent.py: there is no such file"),
    "no function": ("def bild(): ...", [], "has no 'build'; the nearest is 'bild'"),
    "no import": ("x = 1\n\ny = 1 / 0", [], "imported, line 3: ZeroDivisionError"),
    "no python": ("def build(:\n", [], "imported, line 1: SyntaxError"),
    "a script": ("raise SystemExit(1)", [], "ends the process; put that under if"),
    "no model": ("def build(): return 5", [], "returns something else: a model is"),
    "it raises": ("def build():\n    return {}[1]", [], "build, line 2: KeyError"),
    "no callable": ("build = 5", [], "is no function but int"),
    "no data": ("def batches(): return 5", [], "returns a int; return a dict"),
    "a typo": ("def batches(): return {'exmple': 1}", [], "nearest is 'example'"),
    "nothing": ("def batches(): return {}", [], "returns no 'example'"),
    "no direction": ("", [], "say whether a higher metric is better", "direction"),
    "shape": ("", [], "does not take the example, float32[4, 63]: TypeError", "shape"),
    "batch": ("", [], "does not take the calibration batch 1, float32[3]", "batch"),
    "nan": ("", [], "the metric of the dense model is nan", "nan"),
    "metric": ("", [], "metric of the dense model failed, line 4: KeyError", "raises"),
    "zeros": ("", [], "the example is all zeros", "zeros"),
    "no metric": ("", ["--max-drop", "0"], "returns no 'metric'", "plain"),
    "file": ("", ["--out", "model.py"], "model.py is a file, not a directory"),
    "below": ("", ["--out", "model.py/a/b"], "model.py is a file, not a directory"),
    "thesis": ("", ["--out", "thesis"], "'thesis.txt', which is no earlier result"),
    "foreign": ("", ["--out", "foreign"], "'report.json', which is no earlier result"),
    "toml": ("", ["--recipe", "thesis/thesis.txt"], "is no TOML"),
    "recipe": ("", ["--recipe", "absent.toml"], "cannot read 'absent.toml'"),
}

DATA = """
import numpy
example = numpy.ones((4, 64), numpy.float32)
def raises(run): return {}["absent"]
def plain(): return {"example": example}
def direction(): return {"example": example, "metric": len}
def shape(): return {"example": example[:, 1:]}
def batch(): return {"example": example, "calibration": [example, example[0, :3]]}
def nan(): return {"example": example, "metric": lambda run: numpy.nan, **low}
def zeros(): return {"example": 0 * example}
low = {"higher_is_better": False}
raising = raises
def raises(): return {"example": example, "metric": raising, **low}
"""


@pytest.mark.parametrize("name", BAD)
def test_mistakes_are_one_line_before_any_work(home, capsys, monkeypatch, name):
    content, more, message, *data = BAD[name]
    (home / "thesis").mkdir()
    (home / "thesis" / "thesis.txt").write_text("years of work")
    (home / "foreign").mkdir()
    (home / "foreign" / "report.json").write_text("{}")
    (home / "data.py").write_text(DATA)
    if content:
        which = "batches" if "batches" in content else "build"
        (home / "bad.py").write_text(content)
        more = [*more, "--data" if which == "batches" else "--model", f"bad.py:{which}"]
    if data:
        more = [*more, "--data", f"data.py:{data[0]}"]
    for work in ("compress", "expect"):
        monkeypatch.setattr(f"jcompress.recipes.user_job.{work}", pytest.fail)
    before = snapshot(home)
    assert main([*COMPRESS, "--out", "small", "--quiet", *more]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("jcompress: ")
    assert message in error
    assert error.count("\n") == 1
    assert snapshot(home) == before


@pytest.mark.parametrize(
    "more",
    [
        ["--max-drop", "nan"],
        ["--max-drop", "-1"],
        ["--model", "model.py"],
        ["--data", "model:batches"],
    ],
)
def test_wrong_usage_is_exit_code_2(capsys, more):
    with pytest.raises(SystemExit) as caught:
        main([*COMPRESS, "--out", "small", *more])
    assert caught.value.code == 2
    assert more[1] in capsys.readouterr().err


@pytest.mark.parametrize("where", ["compress", "write_whole"])
def test_an_interrupted_run_leaves_all_as_it_was(home, monkeypatch, capsys, where):
    before = snapshot(home)

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"jcompress.recipes.user_job.{where}", interrupted)
    monkeypatch.setattr("jcompress.recipes.user_job._expected", lambda found: None)
    assert main([*COMPRESS, "--out", "small"]) == 130
    assert "interrupted; small is as it was" in capsys.readouterr().err
    assert snapshot(home) == before
    assert not list(home.glob(".small*"))


def test_a_result_that_cannot_be_put_in_place_leaves_the_earlier_one(tmp_path):
    place = tmp_path / "out"
    for number in (1, 2):
        with published(place) as draft:
            (draft / "a").write_text(str(number))

    def fails(error):
        with published(place) as draft:
            (draft / "a").write_text("3")
            raise error

    def loses_it():
        with published(place) as draft:
            draft.rename(tmp_path / "gone")

    for error in (OSError("the disk is full"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            fails(error)
    with pytest.raises(FileNotFoundError):
        loses_it()
    assert (place / "a").read_text() == "2"
    assert {f.name for f in tmp_path.iterdir()} == {"out", "gone"}
