"""Recipes of `jcompress compress` that train, on the digits of the package."""

import json
import pathlib
import shutil
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
from tiny_run import command, environment

import jcompress as jc
from jcompress.cli import main
from jcompress.report.counts import stored_bytes
from jcompress.tensors import UnstructuredSparse

pytestmark = pytest.mark.once

MODEL = """
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jcompress.recipes import load_digits

digits = load_digits()
loss = optax.softmax_cross_entropy_with_integer_labels


def model(params, images):
    x = images.reshape(images.shape[0], -1)
    return jax.nn.relu(x @ params["up"] + params["bias"][None]) @ params["down"]


def batch_list(part, size=64):
    starts = range(0, len(part) - size + 1, size)
    return [(part.images[n : n + size], part.labels[n : n + size]) for n in starts]


def build():  # seconds of training stand for a model of yours
    up, down = jax.random.split(jax.random.key(0))
    params = {
        "up": jax.random.normal(up, (64, 96)) / 8,
        "bias": jnp.zeros(96),
        "down": jax.random.normal(down, (96, 10)) / 10,
    }
    optimizer = optax.adam(3e-3)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, images, labels):
        value = lambda p: loss(model(p, images), labels).mean()
        updates, state = optimizer.update(jax.grad(value)(params), state)
        return optax.apply_updates(params, updates), state

    for _ in range(12):
        for batch in batch_list(digits.train):
            params, state = step(params, state, *batch)
    return model, params


def batches():
    def accuracy(run):
        return (run(digits.test.images).argmax(axis=1) == digits.test.labels).mean()

    return {
        "example": digits.test.images[:64],
        "training": batch_list(digits.train),
        "loss": loss,
        "metric": accuracy,
        "higher_is_better": True,
    }


def other(**change):
    return {**batches(), **change}


def no_loss():
    return other(loss=None)


def matrix():
    return other(loss=lambda outputs, labels: outputs.sum(axis=0))


def raises():
    return other(loss=lambda outputs, labels: outputs["logits"])


def no_pairs():
    return other(training=[1, 2])


def another_shape():
    return other(training=[(digits.train.images[:, 1:], digits.train.labels)])
"""

PRUNE = """
[[step]]
kind = "sparse"
sparsity = 0.9

[[step]]
kind = "w8"
"""
DISTIL = """
[[step]]
kind = "distil"
steps = 150
learning_rate = 5e-3
temperature = 3.0
weight = 0.8
[step.optimizer]
name = "adamw"
weight_decay = 1e-3
"""
SAME = ("steps", "metric", "losses", "loss_steps", "leaves", "output_difference")


@pytest.fixture(autouse=True, scope="module")
def as_in_a_process_of_the_users() -> Iterator[None]:
    """With JAX's own settings."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The user's files, and both results."""
    folder = tmp_path_factory.mktemp("digits")
    (folder / "model.py").write_text(MODEL)
    (folder / "prune.toml").write_text(PRUNE)
    (folder / "distil.toml").write_text(PRUNE + DISTIL)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run("prune.toml", "pruned") == 0
        assert run("distil.toml", "distilled") == 0
    return folder


@pytest.fixture
def home(
    files: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> pathlib.Path:
    shutil.copytree(files, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def run(recipe: str, out: str, *more: str, data: str = "batches") -> int:
    return main(arguments(recipe, out, *more, data=data))


def arguments(recipe: str, out: str, *more: str, data: str = "batches") -> list[str]:
    return [
        *("compress", "--model", "model.py:build", "--data", f"model.py:{data}"),
        *("--recipe", recipe, "--out", out, "--quiet", *more),
    ]


def report(folder: pathlib.Path) -> Any:
    return json.loads((folder / "report.json").read_text())


def test_distilling_brings_back_what_pruning_cost(files: pathlib.Path) -> None:
    pruned, distilled = (report(files / name) for name in ("pruned", "distilled"))
    assert pruned["metric"]["dense"] == distilled["metric"]["dense"] > 0.95
    before, after = pruned["metric"]["compressed"], distilled["metric"]["compressed"]
    assert before < 0.75
    assert after > 0.85
    assert pruned["losses"] == {}
    (losses,) = distilled["losses"].values()
    steps = distilled["loss_steps"]["distil"]
    assert (len(losses), steps[0], steps[-1]) == (25, 6, 150)
    assert losses[-1] < 0.5 * losses[0]
    assert distilled["steps"][2]["optimizer"]["weight_decay"] == 1e-3

    # A bit for each place, a scale and a start for each output, a byte for the rest.
    rows = {row["name"]: row for row in distilled["leaves"]}
    up = load(files, "distilled").params["up"]
    assert isinstance(up, UnstructuredSparse)
    left = int((up.dense() != 0).sum())
    assert 600 < left <= 614
    assert rows["up"]["bytes_after"] == 64 * 96 // 8 + 96 * 4 + 97 * 4 + left

    page = (files / "distilled" / "report.html").read_text()
    assert "Training and recovery" in page
    assert "distil: 150 steps, from " in page
    assert "distil, step 150: " in page
    assert "[step.optimizer]" in page
    assert "Training and recovery" not in (files / "pruned/report.html").read_text()


def load(folder: pathlib.Path, name: str) -> Any:
    found: dict[str, Any] = {}
    exec((folder / "model.py").read_text(), found)
    return jc.load(folder / name / "model", found["build"](), np.zeros((1, 8, 8, 1)))


def killed(words: list[str]) -> None:
    """Run a command in a process of its own, and kill it in the middle of `distil`."""
    process = subprocess.Popen(
        command(*words),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=environment(),
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("distil: 10/25"):
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()


def test_killed_in_the_middle_it_goes_on_to_the_same_numbers(
    home: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = arguments("distil.toml", "again", "--resume", "kept")
    words.remove("--quiet")
    killed(words)
    assert not (home / "again").exists()
    assert main(words) == 0
    assert "distil: goes on after part 1" in capsys.readouterr().err
    again, whole = report(home / "again"), report(home / "distilled")
    for key in SAME:
        strip(again), strip(whole)
        assert again[key] == whole[key], key
    # What was trained serves no other recipe.
    (home / "other.toml").write_text(PRUNE + DISTIL.replace("150", "160"))
    assert run("other.toml", "other", "--resume", "kept") == 2
    assert "a training of another recipe" in capsys.readouterr().err


def strip(report: Any) -> None:
    """Times of products are no numbers of a training."""
    for row in report["leaves"]:
        row.pop("seconds_before", None)
        row.pop("seconds_after", None)


LEARN = DISTIL.replace("150", "100")


@pytest.mark.slow
def test_what_a_search_finds_is_trained_and_gone_on_with(
    home: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "learn.toml").write_text(LEARN)
    words = arguments("learn.toml", "fitted", "--resume", "kept", "--budget", "2kB")
    words.remove("--quiet")
    killed(words)
    chosen = (home / "kept" / "choice.json").read_bytes()
    assert main([*words, "--max-drop", "0.2"]) == 0
    assert "distil: goes on after part 1" in capsys.readouterr().err
    assert (home / "kept" / "choice.json").read_bytes() == chosen

    found = report(home / "fitted")
    assert [step["kind"] for step in found["steps"]] == ["mix", "distil"]
    assert found["search"]["cost"] == json.loads(chosen)["cost"] <= 2000
    assert stored_bytes(load(home, "fitted").params) <= 2000
    assert found["metric"]["drop"] < 0.15
    # Without the training nothing within the budget keeps to such a limit.
    alone = [*words[:5], *("--budget", "2kB", "--max-drop", "0.15", "--out", "alone")]
    assert main([*alone, "--quiet", "--resume", "kept/errors.jsonl"]) == 3

    # Another recipe's steps are for the search to choose.
    capsys.readouterr()
    assert run("distil.toml", "other", "--budget", "2kB") == 2
    said = capsys.readouterr().err
    assert "recipe: step 1, sparse: with a budget the search chooses" in said
    for damaged in ("{", "[]", chosen.decode().replace("keeps", "kept")):
        (home / "kept" / "choice.json").write_text(damaged)
        assert run("learn.toml", "other", "--budget", "2kB", "--resume", "kept") == 2
        assert "choice.json is damaged; remove it" in capsys.readouterr().err


DISTILS = 'kind = "w8"\n[[step]]\nkind = "distil"\nsteps = 3\n'
TRAINS = DISTILS.replace("distil", "train")
WRONG = {
    "no loss": (TRAINS, "no_loss", "step 2, train: there is no loss of the targets"),
    "half": (DISTILS + "weight = 0.5", "no_loss", "0.5; give 'loss', a function loss"),
    "matrix": (TRAINS, "matrix", "it must be a float, or one or more for each"),
    "raises": (TRAINS, "raises", "model.py:raises: the loss, line 71: "),
    "pairs": (TRAINS, "no_pairs", "training batch 0 is a int; give a pair"),
    "shape": (TRAINS, "another_shape", "does not take the training batch 0"),
    "rate": (TRAINS + "learning_rate = -1", "batches", "learning_rate is above 0"),
    "steps": (TRAINS.replace("3", "0"), "batches", "train: steps are at least 1"),
    "first": (TRAINS[21:], "batches", "step 1, train: no step before it makes"),
    "name": (TRAINS + 'optimizer = { name = "adm" }', "batches", "nearest is 'adam'"),
    "text": (TRAINS + 'optimizer = "adam"', "batches", "must be a table with a name"),
    "argument": (
        TRAINS + 'optimizer = { name = "sgd", momentun = 0.9 }',
        "batches",
        "arguments of optax.sgd, which has no 'momentun'; the nearest is 'momentum'",
    ),
    "kind": (DISTILS + "squares = 1", "batches", "squares must be true or false"),
    "warm": (DISTILS + "temperature = 0", "batches", "temperature is above 0"),
    "diverges": (TRAINS + "learning_rate = 1e30", "batches", "train: the loss is "),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_are_one_line_and_exit_code_2(
    home: pathlib.Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    recipe, data, message = WRONG[name]
    (home / "wrong.toml").write_text(f"[[step]]\n{recipe}\n")
    assert run("wrong.toml", "out", data=data) == 2
    out, said = capsys.readouterr()
    assert out == ""
    assert message in said
    assert said.count("\n") == 1
    assert not (home / "out").exists()


def test_there_must_be_something_to_go_on_with(
    home: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("prune.toml", "out", "--resume", "kept") == 2
    assert "no step trains" in capsys.readouterr().err
    assert run("distil.toml", "out", "--resume", "model.py") == 2
    assert "model.py is a file" in capsys.readouterr().err
    assert not (home / "out").exists()
