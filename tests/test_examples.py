"""The examples run, on a little real data, and end with a model that is smaller."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.once

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"
DATA = pathlib.Path(
    os.environ.get("FASHION_MNIST", "/usr/share/datasets/fashion-mnist")
)
# Most of the time is that of the compiler.
ENVIRONMENT = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
NAMES = ("linen_perceptron", "nnx_cnn")


@pytest.mark.parametrize("name", NAMES)
def test_example(name: str) -> None:
    if not (DATA / "train-images-idx3-ubyte.gz").is_file():
        pytest.skip(f"Fashion-MNIST is not in {DATA}; set FASHION_MNIST to its folder")
    small = ["--train", "2000", "--test", "1000", "--epochs", "1"]
    done = subprocess.run(
        [sys.executable, "-W", "error", f"{name}.py", *small],
        cwd=EXAMPLES,
        env={**ENVIRONMENT, "FASHION_MNIST": str(DATA)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    table = {line.split("  ")[0]: line for line in done.stdout.splitlines()}
    accuracy = [float(x) for x in re.findall(r"([\d.]+)%", table["accuracy"])]
    assert min(accuracy) > 50, table["accuracy"]
    fewer = re.search(r"([\d.]+)x fewer +smaller", table["bytes stored"])
    assert fewer, table["bytes stored"]
    assert float(fewer[1]) > 7
    assert "simulated" in table["nonzero"]


SMALL = ("--train", "2000", "--test", "1000", "--epochs", "2")


def run_small(name: str) -> str:
    if not (DATA / "train-images-idx3-ubyte.gz").is_file():
        pytest.skip(f"Fashion-MNIST is not in {DATA}; set FASHION_MNIST to its folder")
    done = subprocess.run(
        [sys.executable, "-W", "error", f"{name}.py", *SMALL],
        cwd=EXAMPLES,
        env={**ENVIRONMENT, "FASHION_MNIST": str(DATA)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_student_of_half_the_width() -> None:
    table = {
        line.split("  ")[0]: line for line in run_small("nnx_student").splitlines()
    }
    accuracy = [float(x) for x in re.findall(r"([\d.]+)%", table["accuracy"])]
    assert min(accuracy) > 50, table["accuracy"]
    fewer = re.search(r"([\d.]+)x fewer +smaller", table["bytes stored"])
    assert fewer, table["bytes stored"]
    assert float(fewer[1]) > 3


def test_an_ensemble_of_four_in_4_bits() -> None:
    rows = [re.split(r" {2,}", x) for x in run_small("ensemble_of_four").splitlines()]
    found = {name: cells for name, *cells in rows[1:]}
    right = {name: float(cells[0].rstrip("%")) for name, cells in found.items()}
    assert min(right.values()) > 60, right
    assert abs(right["four, 4 bits, served"] - right["four, float32"]) < 5
    stored = {name: int(cells[2].replace(",", "")) for name, cells in found.items()}
    assert stored["four, 4 bits, served"] < 0.7 * stored["one, float32"]


@pytest.mark.parametrize("name", [*NAMES, "nnx_student", "ensemble_of_four"])
def test_example_is_short(name: str) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 120


def test_without_data_it_says_where_to_get_it(tmp_path: pathlib.Path) -> None:
    env = {**os.environ, "FASHION_MNIST": str(tmp_path)}
    script = f"import sys; sys.path.insert(0, {str(EXAMPLES)!r}); import fashion_mnist"
    done = subprocess.run(
        [sys.executable, "-c", f"{script}; fashion_mnist.load(1, 1)"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    in_debian = (pathlib.Path("/usr/share/datasets/fashion-mnist")).exists()
    assert (done.returncode == 0) is in_debian
    assert in_debian or "apt-get download dataset-fashion-mnist" in done.stderr


@pytest.mark.slow
def test_whole_chain() -> None:
    if not (DATA / "train-images-idx3-ubyte.gz").is_file():
        pytest.skip(f"Fashion-MNIST is not in {DATA}; set FASHION_MNIST to its folder")
    small = ["--train", "2000", "--test", "1000", "--epochs", "1"]
    done = subprocess.run(
        [sys.executable, "-W", "error", "whole_chain.py", *small],
        cwd=EXAMPLES,
        env={**ENVIRONMENT, "FASHION_MNIST": str(DATA)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = [re.split(r" {2,}", line) for line in done.stdout.splitlines()[2:]]
    assert [row[0] for row in rows] == ["dense", "shrunk", "blocks", "blocks, 8 bits"]
    stored = [int(row[1].replace(",", "")) for row in rows]
    assert stored[1] < 0.42 * stored[0]
    assert stored[2] < 0.55 * stored[1]
    assert stored[3] < 0.35 * stored[2]
    assert min(float(row[2].rstrip("%")) for row in rows) > 50


@pytest.mark.slow
def test_shrink_resnet_and_its_log(tmp_path: pathlib.Path) -> None:
    if not (DATA / "train-images-idx3-ubyte.gz").is_file():
        pytest.skip(f"Fashion-MNIST is not in {DATA}; set FASHION_MNIST to its folder")
    log = tmp_path / "log.jsonl"
    command = [sys.executable, "-W", "error", "shrink_resnet.py", "--log", str(log)]
    command += ["--train", "2560", "--test", "500", "--epochs", "2", "--recovery", "1"]
    command += ["--seeds", "1", "--parts", "1/4", "--ways", "taylor", "scratch"]
    said = []
    for _ in range(2):
        done = subprocess.run(
            command,
            cwd=EXAMPLES,
            env={**ENVIRONMENT, "FASHION_MNIST": str(DATA)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    # The second run finds everything in the log and trains nothing.
    assert len(log.read_text().splitlines()) == 4
    assert said[0] == said[1]
    row = re.split(r" {2,}", said[0].splitlines()[-1])
    left = re.fullmatch(r"1/4 \(([\d.]+)\)", row[0])
    assert left, row
    assert 0.15 < float(left[1]) <= 0.25
    assert min(float(cell) for cell in row[1:]) > 40
