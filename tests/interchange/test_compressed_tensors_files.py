"""Files of compressed-tensors against packing bit by bit."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from raw_files import pack_axis, read_raw, safetensors_bytes, unpack_line

from jcompress.errors import MismatchError
from jcompress.formats import Float8, Int
from jcompress.interchange import (
    ActOrder,
    FileFormatError,
    read_compressed_tensors,
    write_compressed_tensors,
)
from jcompress.quantization import PerChannel, PerGroup, PerTensor, Weights
from jcompress.tensors import QTensor
from jcompress.tensors.axes import Axes

KERNEL = Axes((), (1,), (0,))
RNG = np.random.default_rng(0)
NUMBERS = RNG.integers(-8, 8, (12, 20))
SCALES = RNG.uniform(0.5, 2, (12, 5)).astype(ml_dtypes.bfloat16)
ZEROS = RNG.integers(-8, 8, (12, 5))


def dense(numbers: np.ndarray, scales: np.ndarray, zeros: np.ndarray) -> np.ndarray:
    """The kernel [K, N] of rows [N, K]; scales and zeros of any blocks."""
    outputs, inputs = numbers.shape
    made = np.empty((inputs, outputs), np.float32)
    for n, k in np.ndindex(outputs, inputs):
        at = n * len(scales) // outputs, k * scales.shape[1] // inputs
        made[k, n] = np.float32(numbers[n, k] - zeros[at]) * np.float32(scales[at])
    return made


def put(path: pathlib.Path, arrays: dict[str, Any]) -> None:
    given = {name: array for name, array in arrays.items() if array is not None}
    path.write_bytes(safetensors_bytes(given))


def packed(bits: int = 4) -> dict[str, Any]:
    half = 2 ** (bits - 1)
    return {
        "up.weight_packed": pack_axis(NUMBERS.clip(-half, half - 1) + half, bits, 1),
        "up.weight_scale": SCALES,
        "up.weight_shape": np.array([12, 20], np.int64),
    }


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_packed(tmp_path: pathlib.Path, bits: int) -> None:
    path = tmp_path / "m.safetensors"
    half = 2 ** (bits - 1)
    numbers, zeros = NUMBERS.clip(-half, half - 1), ZEROS.clip(-half, half - 1)
    put(path, {**packed(bits), "up.bias": np.ones(12, np.float16)})
    found = read_compressed_tensors(path)
    assert set(found) == {"up.weight", "up.bias"}
    assert found["up.weight"].format.bits == bits
    np.testing.assert_array_equal(
        found["up.weight"].dense(), dense(numbers, SCALES, np.zeros((12, 5), int))
    )
    for stored in (pack_axis(zeros + half, bits, 0), zeros.astype(np.int8)):
        put(path, {**packed(bits), "up.weight_zero_point": stored})
        leaf = read_compressed_tensors(path)["up.weight"]
        np.testing.assert_array_equal(leaf.dense(), dense(numbers, SCALES, zeros))


@pytest.mark.parametrize("scale_shape", [(), (1,), (12,), (12, 1), (12, 5), (3, 5)])
@pytest.mark.parametrize("kind", [np.int8, ml_dtypes.float8_e4m3fn])
def test_whole_bytes(
    tmp_path: pathlib.Path, kind: Any, scale_shape: tuple[int, ...]
) -> None:
    path = tmp_path / "m.safetensors"
    numbers = (NUMBERS * 15).astype(kind)
    scales = RNG.uniform(0.5, 2, scale_shape).astype(np.float32)
    put(path, {"up.weight": numbers, "up.weight_scale": np.asarray(scales)})
    leaf = read_compressed_tensors(path)["up.weight"]
    blocks = scales if scales.ndim == 2 else scales.reshape(-1, 1)
    wanted = dense(numbers.astype(np.float32), blocks, np.zeros(blocks.shape))
    np.testing.assert_array_equal(leaf.dense(), wanted)
    assert leaf.format == (Int(8) if kind is np.int8 else Float8())


def test_zero_points_of_bytes(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.safetensors"
    numbers = (NUMBERS * 16).astype(np.int8)
    zeros = (ZEROS * 16).astype(np.int8)
    arrays = {"up.weight": numbers, "up.weight_scale": SCALES}
    put(path, {**arrays, "up.weight_zero_point": zeros})
    leaf = read_compressed_tensors(path)["up.weight"]
    wanted = dense(numbers.astype(int), SCALES, zeros.astype(int))
    np.testing.assert_array_equal(leaf.dense(), wanted)
    put(path, arrays)
    leaf = read_compressed_tensors(path)["up.weight"]
    assert leaf.format == Int(8, full=True)  # -128 is there
    assert leaf.zeros is None


def test_one_zero_in_float8(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.safetensors"
    numbers = np.array([[-0.0, 1]], ml_dtypes.float8_e4m3fn)
    put(path, {"w.weight": numbers, "w.weight_scale": np.ones(1, np.float32)})
    leaf = read_compressed_tensors(path)["w.weight"]
    assert np.asarray(leaf.values).view(np.uint8).tolist() == [[0, 0x38]]


def test_scattered_groups(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.safetensors"
    index = RNG.permutation(np.arange(20) // 4).astype(np.int32)
    put(path, {**packed(), "up.weight_g_idx": index})
    with pytest.raises(FileFormatError, match="weight_g_idx' scatters"):
        read_compressed_tensors(path)
    found = read_compressed_tensors(path, act_order=ActOrder.PERMUTED)
    order = np.asarray(found["up.order"])
    wanted = np.empty((20, 12), np.float32)
    for k, n in np.ndindex(20, 12):
        wanted[k, n] = np.float32(NUMBERS[n, k]) * np.float32(SCALES[n, index[k]])
    np.testing.assert_array_equal(found["up.weight"].dense(), wanted[order])
    found = read_compressed_tensors(path, act_order=ActOrder.DENSE)
    np.testing.assert_array_equal(found["up.weight"], wanted)


@pytest.mark.parametrize(
    "spec",
    [
        Weights(format=Int(4), granularity=PerGroup(4)),
        Weights(format=Int(4, symmetric=False), granularity=PerTensor()),
        Weights(format=Int(3, symmetric=False), granularity=PerGroup(10)),
        Weights(format=Int(2), granularity=PerChannel()),
        Weights(format=Int(6, symmetric=False), granularity=PerGroup(4)),
        Weights(format=Int(8), granularity=PerTensor()),
        Weights(format=Float8(), granularity=PerGroup(4)),
    ],
    ids=str,
)
def test_both_ways(tmp_path: pathlib.Path, spec: Weights) -> None:
    path = tmp_path / "m.safetensors"
    kernel = jax.random.normal(jax.random.key(0), (20, 12))
    leaf = QTensor.quantize(kernel, KERNEL, spec)
    write_compressed_tensors(path, {"up.weight": leaf, "n": jnp.ones(3)})
    found = read_compressed_tensors(path)["up.weight"]
    np.testing.assert_array_equal(found.dense(), leaf.dense())
    np.testing.assert_array_equal(found.numbers, leaf.numbers)
    raw = read_raw(path)
    if spec.format.bits > 4:
        np.testing.assert_array_equal(raw["up.weight"], leaf.numbers)
        return
    bits = 2 if spec.format.bits == 2 else 4
    row = unpack_line(list(raw["up.weight_packed"][5]), 20, bits)
    assert [q - 2 ** (bits - 1) for q in row] == leaf.numbers[5].tolist()
    assert raw["up.weight_shape"].tolist() == [12, 20]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"up.weight_scale": None}, r"ends in '\.weight_scale'"),
        ({"up.weight_shape": None}, "weight_shape' is missing"),
        ({"up.weight_shape": np.array([12, 300])}, r"\[12, 3\].* exactly one"),
        ({"up.weight_shape": np.array([-12, 20])}, "exactly one"),
        ({"up.weight_scale": np.ones((5, 5), np.float32)}, "do not divide 12 outputs"),
        ({"up.weight_scale": np.ones((12, 3), np.float32)}, "do not divide 20 inputs"),
        ({"up.weight_scale": np.ones((1, 1, 1), np.float32)}, r"not \[N, G\]"),
        ({"up.weight_zero_point": np.full((12, 5), 8, np.int8)}, "does not fit"),
        ({"up.weight_zero_point": np.zeros((12, 1), np.int8)}, "does not fit"),
        ({"up.weight_zero_point": np.zeros((1, 5), np.int32)}, r"not int32.*\[2, 5\]"),
        ({"up.weight": np.zeros((12, 20), np.int8)}, "beside its packed form"),
    ],
)
def test_files_that_contradict_themselves(
    tmp_path: pathlib.Path, changes: dict[str, Any], said: str
) -> None:
    path = tmp_path / "m.safetensors"
    put(path, {**packed(), **changes})
    with pytest.raises(FileFormatError, match=said):
        read_compressed_tensors(path)


def test_too_few_inputs_to_tell_the_bits(tmp_path: pathlib.Path) -> None:
    kernel = np.ones((4, 8), np.float32)
    leaf = QTensor.quantize(kernel, KERNEL, Weights(format=Int(4)))
    with pytest.raises(MismatchError, match="'w' has 4 inputs, too few"):
        write_compressed_tensors(tmp_path / "m", {"w": leaf})
