import signal
import subprocess

import pytest
from tiny_run import command, environment, jcompress, numbers, write_tiny


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    recipe = write_tiny(folder)
    done = jcompress("run", "--out", folder / "run", "--recipe", recipe)
    assert done.returncode == 0, done.stderr
    return numbers(folder / "run")


def interrupt(arguments, *, at, by):
    """Start a run, and send it a signal as soon as it says `at`."""
    process = subprocess.Popen(
        command(*arguments),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    said = []
    for line in process.stderr:
        said.append(line)
        if at in line:
            process.send_signal(by)
            break
    else:
        pytest.fail(f"the run never said {at!r}: {''.join(said)}")
    out, err = process.communicate()
    return process.returncode, out, err


@pytest.mark.slow
def test_stopped_again_and_again_a_run_ends_with_the_same_numbers(
    tmp_path, uninterrupted
):
    out = tmp_path / "run"
    start = ["run", "--out", out, "--recipe", write_tiny(tmp_path)]
    resume = ["run", "--out", out, "--resume"]
    code, *_ = interrupt(start, at="teacher: 2/3", by=signal.SIGKILL)
    assert code == -signal.SIGKILL
    refused = jcompress(*start)
    assert refused.returncode == 2
    assert "--resume" in refused.stderr

    code, *_ = interrupt(resume, at="shrink 2: 1/2", by=signal.SIGKILL)
    assert code == -signal.SIGKILL
    code, printed, said = interrupt(resume, at="student: 1/3", by=signal.SIGINT)
    assert code == 130
    assert printed == ""
    assert said.strip().splitlines()[-1] == (
        f"jcompress: interrupted; continue with: jcompress run --out {out} --resume"
    )
    assert "Traceback" not in said

    for where in ("student: 3/3", "reloading"):
        code, *_ = interrupt(resume, at=where, by=signal.SIGKILL)
        assert code == -signal.SIGKILL
    done = jcompress(*resume, "--seed", 5)
    assert done.returncode == 0, done.stderr
    assert "student: goes on after epoch 3 of 3" in done.stderr
    assert numbers(out) == uninterrupted
    assert {entry.name for entry in out.iterdir()} == {
        "compressed",
        "dense",
        "plan",
        "predictions.npz",
        "recipe.toml",
        "report.html",
        "report.json",
    }

    again = jcompress(*resume)
    assert again.returncode == 0
    assert again.stdout == done.stdout
    assert numbers(out) == uninterrupted
