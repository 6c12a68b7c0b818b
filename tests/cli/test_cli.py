import contextlib
import datetime
import errno
import json
import os
import shutil
import signal
import sys

import jax
import numpy as np
import pytest
from tiny_run import jcompress, write_tiny

from jcompress import checkpoint
from jcompress.cli import main
from jcompress.recipes import VerificationError

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    recipe = write_tiny(folder)
    done = jcompress("run", "--out", folder / "run", "--recipe", recipe)
    assert done.returncode == 0, done.stderr
    return folder / "run", done


@pytest.fixture
def copy(run, tmp_path):
    shutil.copytree(run[0], tmp_path / "copy")
    return tmp_path / "copy"


def test_what_is_printed_to_a_pipe_is_plain(run):
    _, done = run
    assert all(line.isprintable() for line in done.stdout.splitlines())
    assert all(line.isprintable() for line in done.stderr.splitlines())
    table = done.stdout.splitlines()
    assert table[0].split() == ["dense", "compressed", "change", "evidence"]
    for name, label in (("bytes stored", "smaller"), ("nonzero", "simulated")):
        line = next(line for line in table if line.startswith(name))
        assert label in line
    assert max(len(line) for line in table if "report, " not in line) <= 80
    assert (done.stdout + done.stderr).count("verified: ") == 1
    assert "logits bit-equal" in done.stdout
    assert "s left" in done.stderr
    assert "/s" in done.stderr


def test_the_report_is_complete(run):
    report = json.loads((run[0] / "report.json").read_text())
    for side in ("dense", "compressed"):
        found = report[side]
        assert 0 <= found["accuracy"] <= 1
        assert set(found["latency_ms"]) == {"2"}
        assert all(time > 0 for time in found["latency_ms"].values())
        assert isinstance(found["labels"], list)
        assert found["nonzero"] <= found["parameters"]
        assert found["macs"] > 0
    assert report["dense"]["bytes"] > 2 * report["compressed"]["bytes"]
    assert "smaller" in report["compressed"]["labels"]
    assert report["dense"]["labels"] == []
    assert report["schema"] == 2
    date = datetime.datetime.fromisoformat(report["date"])
    assert abs(datetime.datetime.now(datetime.UTC) - date).total_seconds() < 3600
    assert report["device"]["platform"] == "cpu"
    trained = {"teacher": 3, "shrink 1": 2, "shrink 2": 2, "student": 3}
    assert {name: len(of) for name, of in report["losses"].items()} == trained
    assert all(0 < loss < 100 for of in report["losses"].values() for loss in of)
    assert set(report["seconds"]) == {*trained, "verification", "timing"}
    assert all(seconds > 0 for seconds in report["seconds"].values())
    leaves = {row["name"]: row for row in report["leaves"]}
    assert sum(row["before"] for row in report["leaves"]) == report["dense"]["bytes"]
    after = sum(row["after"] for row in report["leaves"])
    assert after == report["compressed"]["bytes"]
    assert leaves["params/head/kernel"]["form"] == "QTensor, int8"
    assert leaves["batch_stats/stem_norm/mean"]["form"] == "removed"
    assert report["seed"] == 5
    assert report["recipe"]["model"]["widths"] == [4, 8]
    assert report["versions"]["jax"] == jax.__version__
    assert {"python", "jaxlib", "jcompress", "numpy"} < set(report["versions"])
    assert report["largest_difference_from_simulation"] < 1e-4


def test_a_finished_run_verifies(run):
    done = jcompress("verify", run[0])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("verified: 445 of 445 predictions identical")


def test_a_flipped_byte_is_noticed(copy, capsys):
    weights = max((copy / "compressed").rglob("d/*"), key=lambda f: f.stat().st_size)
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    assert main(["verify", str(copy)]) == 1
    assert "NOT verified" in capsys.readouterr().err


def test_another_weight_is_noticed_even_if_the_checkpoint_is_sound(copy, capsys):
    tree = checkpoint.load(copy / "compressed")
    kernel = tree["params"]["head"]["kernel"]
    values = np.array(kernel.values)
    values[0, 0] ^= 1
    changed = jax.tree.map(
        lambda leaf: jax.numpy.asarray(values) if leaf is kernel.values else leaf, tree
    )
    checkpoint.save(copy / "compressed", changed)
    assert main(["verify", str(copy)]) == 1
    said = capsys.readouterr().out
    assert said.startswith("NOT verified")
    assert "logits differ by up to" in said


def test_a_model_that_does_not_fit_the_recipe_is_noticed(copy, capsys):
    tree = checkpoint.load(copy / "compressed")
    del tree["params"]["head"]
    checkpoint.save(copy / "compressed", tree)
    assert main(["verify", str(copy)]) == 1
    assert "'params/head/bias' of the template is not stored" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["recipe.toml", "compressed", "predictions.npz"])
def test_verify_wants_the_directory_of_a_run(copy, capsys, part):
    (copy / part).rename(copy / "moved")
    assert main(["verify", str(copy)]) == 2
    error = capsys.readouterr().err
    assert f"has no {part}" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("part", ["recipe.toml", "predictions.npz", "report.json"])
@pytest.mark.parametrize("damage", ["other", "empty", "cut", "folder"])
def test_damaged_companions_are_noticed(copy, capsys, part, damage):
    file = copy / part
    whole = file.read_bytes()
    file.unlink()
    if damage == "folder":
        file.mkdir()
    else:
        left = {"other": b"\x00\x01", "empty": b"", "cut": whole[: len(whole) // 2]}
        file.write_bytes(left[damage])
    assert main(["verify", str(copy)]) == 2
    error = capsys.readouterr().err
    assert f"{part} is damaged" in error
    assert error.count("\n") == 1


def test_a_damaged_report_is_not_taken_for_a_result(copy, capsys):
    (copy / "report.json").write_text("{}")
    assert main(["run", "--out", str(copy), "--resume"]) == 2
    assert "report.json has schema None" in capsys.readouterr().err
    (copy / "report.json").write_text('{"schema": 2, "dense": {}}')
    assert main(["verify", str(copy)]) == 2
    assert "dense has no 'accuracy'" in capsys.readouterr().err


def test_a_damaged_dense_model_is_noticed(copy, capsys):
    for file in (copy / "dense").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(b"")
    assert main(["verify", str(copy)]) == 1
    error = capsys.readouterr().err
    assert "NOT verified" in error
    assert f"{copy / 'dense'}" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--resume"], "--resume needs --out"),
        (["run", "--out", "{full}"], "is not empty and stays untouched"),
        (["run", "--out", "{full}", "--resume"], "not the directory of a run"),
        (["run", "--out", "{full}/thesis.txt"], "is a file"),
        (["run", "--out", "{full}/thesis.txt/sub"], "Not a directory"),
        (["run", "--recipe", "{full}/absent.toml"], "cannot read"),
        (["run", "--recipe", "{full}/thesis.txt"], "is no TOML"),
        (["run", "--recipe", "{full}/bits.toml"], "weight_bits must be from 2 to 8"),
        (["run", "--seed", "-1"], "seed must be from 0"),
        (["verify", "{full}"], "has no recipe.toml"),
        (["verify", "{full}/absent"], "has no recipe.toml"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys, arguments, message):
    (tmp_path / "thesis.txt").write_text("years of work")
    (tmp_path / "bits.toml").write_text("[quantization]\nweight_bits = 9\n")
    before = sorted(tmp_path.iterdir())
    filled = [argument.replace("{full}", str(tmp_path)) for argument in arguments]
    assert main(filled) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("jcompress: ")
    assert message in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "arguments", [[], ["compress"], ["run", "--seed", "one"], ["verify"]]
)
def test_wrong_usage_is_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: jcompress" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("jcompress 0.")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--out", "somewhere"], "jcompress run --out somewhere --resume"),
        (["run"], "with --out DIR a run can be continued"),
        (["verify", "somewhere"], "interrupted"),
    ],
)
def test_an_interrupt_is_exit_code_130(monkeypatch, capsys, arguments, said):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("jcompress.recipes.open_folder", interrupted)
    monkeypatch.setattr("jcompress.recipes.verify", interrupted)
    assert main(arguments) == 130
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_without_a_directory_nothing_is_left_behind(monkeypatch, capsys):
    seen = []

    def run(recipe, folder, *, progress):
        assert (folder / "recipe.toml").exists()
        seen.append(folder)
        return {"table": "the table", "verification": "verified"}

    monkeypatch.setattr("jcompress.recipes.run_main_job", run)
    assert main(["run"]) == 0
    assert capsys.readouterr().out == "the table\nverified\n"
    assert not seen[0].exists()


def test_a_missing_extra_is_named_before_any_work(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    assert main(["run", "--out", str(tmp_path / "run")]) == 2
    assert "jcompress[checkpoint]" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_model_that_reloads_as_another_is_exit_code_1(monkeypatch, capsys):
    def run(recipe, folder, *, progress):
        raise VerificationError("NOT verified: 3 of 445 predictions identical")

    monkeypatch.setattr("jcompress.recipes.run_main_job", run)
    assert main(["run"]) == 1
    assert "NOT verified" in capsys.readouterr().err


def test_a_full_disk_is_one_line_and_exit_code_1(monkeypatch, capsys, tmp_path):
    def run(recipe, folder, *, progress):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))

    monkeypatch.setattr("jcompress.recipes.run_main_job", run)
    out = str(tmp_path / "run")
    assert main(["run", "--out", out]) == 1
    printed, error = capsys.readouterr()
    assert printed == ""
    assert error.count("\n") == 1
    assert f"No space left on device: '{out}'" in error
    assert f"continue with: jcompress run --out {out} --resume" in error


@pytest.mark.parametrize("where", ["step", "begin"])
def test_an_interrupt_that_python_drops_still_ends_the_run(
    monkeypatch, capsys, tmp_path, where
):
    before = signal.getsignal(signal.SIGINT)

    def run(recipe, folder, *, progress):
        progress.begin("teacher", total=1)
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        if where == "step":
            progress.step("done")
        else:
            progress.begin("student", total=1)
        pytest.fail("the run went on")

    monkeypatch.setattr("jcompress.recipes.run_main_job", run)
    assert main(["run", "--out", str(tmp_path / "run")]) == 130
    assert "--resume" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before
