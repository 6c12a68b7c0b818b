"""AWQ files against packing column by column."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from raw_files import read_raw, safetensors_bytes

from jcompress.errors import MismatchError
from jcompress.formats import Int
from jcompress.interchange import FileFormatError, read_awq, write_awq
from jcompress.quantization import PerGroup, Weights
from jcompress.tensors import QTensor
from jcompress.tensors.axes import Axes

PLACES = {0: 0, 1: 4, 2: 1, 3: 5, 4: 2, 5: 6, 6: 3, 7: 7}
"""In which four bits of a word each of eight columns is."""


def awq_words(numbers: np.ndarray) -> np.ndarray:
    words = np.zeros((len(numbers), numbers.shape[1] // 8), np.uint32)
    for row, column in np.ndindex(*numbers.shape):
        place = 4 * PLACES[column % 8]
        words[row, column // 8] += np.uint32(int(numbers[row, column]) << place)
    return words.view(np.int32)


def layer() -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(0)
    numbers, zeros = rng.integers(0, 16, (12, 16)), rng.integers(0, 16, (3, 16))
    scales = rng.uniform(0.5, 2, (3, 16)).astype(np.float16)
    dense = np.empty((12, 16), np.float32)
    for k, n in np.ndindex(12, 16):
        step = np.float32(scales[k // 4, n])
        dense[k, n] = np.float32(numbers[k, n] - zeros[k // 4, n]) * step
    arrays = {
        "up.qweight": awq_words(numbers),
        "up.qzeros": awq_words(zeros),
        "up.scales": scales,
    }
    return arrays, dense


def test_reads_what_is_there(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.safetensors"
    arrays, dense = layer()
    bias = np.ones(16, np.float16)
    path.write_bytes(safetensors_bytes({**arrays, "up.bias": bias}))
    found = read_awq(path)
    assert set(found) == {"up.weight", "up.bias"}
    assert found["up.weight"].format == Int(4, symmetric=False)
    np.testing.assert_array_equal(found["up.weight"].dense(), dense)
    np.testing.assert_array_equal(found["up.bias"], bias)


def test_a_known_word(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.safetensors"
    arrays = {
        "w.qweight": np.array([[0x75316420]], np.int32),
        "w.qzeros": np.array([[0]], np.int32),
        "w.scales": np.ones((1, 8), np.float16),
    }
    path.write_bytes(safetensors_bytes(arrays))
    found = read_awq(path, dtype=jnp.bfloat16)["w.weight"].dense()
    assert found.dtype == jnp.bfloat16
    assert found.astype(jnp.float32).tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]


@pytest.mark.parametrize("symmetric", [True, False])
def test_both_ways(tmp_path: pathlib.Path, symmetric: bool) -> None:
    path = tmp_path / "m.safetensors"
    kernel = jax.random.normal(jax.random.key(0), (12, 16)).astype(jnp.float16)
    spec = Weights(format=Int(4, symmetric=symmetric), granularity=PerGroup(4))
    axes = Axes((), (1,), (0,))
    made = QTensor.quantize(kernel, axes, spec)
    half = made.scales.astype(jnp.float16).astype(jnp.float32)
    leaf = QTensor.pack(made.numbers, half, made.zeros, spec, kernel, axes)
    write_awq(path, {"up.weight": leaf})
    raw = read_raw(path)
    np.testing.assert_array_equal(
        raw["up.qweight"], awq_words(np.asarray(leaf.numbers).T.astype(int) + 8)
    )
    found = read_awq(path, dtype=jnp.float16)["up.weight"]
    assert found.format == leaf.format
    jax.tree.map(np.testing.assert_array_equal, found, leaf)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"up.scales": None}, r"'up\.scales' is missing"),
        ({"up.qzeros": None}, r"'up\.qzeros' is missing"),
        ({"up.qweight": None}, r"ends in '\.qweight'"),
        ({"up.scales": np.ones((5, 16), np.float16)}, "G a divisor of K"),
        ({"up.scales": np.ones((3, 8), np.float16)}, "G a divisor of K"),
        ({"up.scales": np.ones(16, np.float16)}, r"scales \[16\]"),
        ({"up.qzeros": np.zeros((2, 2), np.int32)}, r"'up\.qzeros' is int32"),
        ({"up.weight": np.zeros(1, np.int8)}, "beside its quantized form"),
    ],
)
def test_files_that_contradict_themselves(
    tmp_path: pathlib.Path, changes: dict[str, Any], said: str
) -> None:
    path = tmp_path / "m.safetensors"
    arrays = {**layer()[0], **changes}
    given = {name: a for name, a in arrays.items() if a is not None}
    path.write_bytes(safetensors_bytes(given))
    with pytest.raises(FileFormatError, match=said):
        read_awq(path)


@pytest.mark.parametrize(("bits", "outputs"), [(3, 16), (4, 12)])
def test_what_cannot_be_written(
    tmp_path: pathlib.Path, bits: int, outputs: int
) -> None:
    kernel = np.ones((8, outputs), np.float32)
    spec = Weights(format=Int(bits))
    leaf = QTensor.quantize(kernel, Axes((), (1,), (0,)), spec)
    with pytest.raises(MismatchError, match=f"'w' is int{bits} with {outputs}"):
        write_awq(tmp_path / "m", {"w": leaf})
