"""GGUF: blocks against their definitions, the container, and damage."""

import pathlib
import struct
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from raw_gguf import decode, gguf_bytes, tensor_info, text

from jcompress.errors import MismatchError
from jcompress.execution import compressed
from jcompress.formats import Float8, Int
from jcompress.interchange import FileFormatError, GgmlType, read_gguf, write_gguf
from jcompress.interchange.gguf_parsing import GgufContainer
from jcompress.quantization import PerChannel, PerGroup, PerTensor, Weights
from jcompress.tensors import QTensor, is_compressed
from jcompress.tensors.axes import Axes

KERNEL = Axes((), (1,), (0,))
BLOCKED = ["Q4_0", "Q4_1", "Q5_0", "Q8_0", "Q4_K", "Q6_K"]
HALVES = {"Q4_1": [0, 2], "Q4_K": [0, 2], "Q6_K": [208]}
"""Where a block has float16 numbers; else at its beginning."""


def random_blocks(kind: str, count: int) -> np.ndarray:
    rng = np.random.default_rng(len(kind))
    size = GgmlType[kind].block[1]
    raw = rng.integers(0, 256, (count, size), np.uint8)
    for place in HALVES.get(kind, [0]):
        scales = rng.uniform(-1, 1, (count, 1)).astype("<f2")
        raw[:, place : place + 2] = scales.view(np.uint8)
    return raw


def put(path: pathlib.Path, kind: str, shape: tuple[int, ...], raw: np.ndarray) -> None:
    info = tensor_info("w", list(shape[::-1]), GgmlType[kind].value, 0)
    path.write_bytes(gguf_bytes([], [info], raw.tobytes()))


@pytest.mark.parametrize("kind", BLOCKED)
def test_blocks(tmp_path: pathlib.Path, kind: str) -> None:
    path = tmp_path / "m.gguf"
    count = GgmlType[kind].block[0]
    raw = random_blocks(kind, 6)
    wanted = np.concatenate([decode(block.tobytes(), kind) for block in raw])
    put(path, kind, (3, 2 * count), raw)
    found = read_gguf(path).tensors["w"]
    assert found.shape == (2 * count, 3)
    assert is_compressed(found) == (kind not in ("Q4_1", "Q4_K"))
    dense = found.dense() if is_compressed(found) else found
    np.testing.assert_array_equal(dense, wanted.reshape(3, -1).T)
    kept = read_gguf(path, keep=["w*"]).tensors["w"]
    dense = kept.dense() if is_compressed(kept) else kept
    np.testing.assert_array_equal(dense, wanted.reshape(3, -1))
    put(path, kind, (2, 3, count), raw)
    found = read_gguf(path).tensors["w"]
    dense = found.dense() if is_compressed(found) else found
    np.testing.assert_array_equal(dense, wanted.reshape(2, 3, count).swapaxes(1, 2))
    put(path, kind, (6 * count,), raw)
    np.testing.assert_array_equal(read_gguf(path).tensors["w"], wanted)


@pytest.mark.parametrize("kind", BLOCKED)
def test_the_package_agrees_on_blocks(tmp_path: pathlib.Path, kind: str) -> None:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "m.gguf"
    raw = random_blocks(kind, 8)
    put(path, kind, (4, 2 * GgmlType[kind].block[0]), raw)
    found = read_gguf(path).tensors["w"]
    dense = found.dense() if is_compressed(found) else found
    wanted = gguf.dequantize(raw.reshape(4, -1), gguf.GGMLQuantizationType[kind])
    np.testing.assert_array_equal(dense, wanted.T)


def test_a_known_block(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.gguf"
    nibbles = bytes([0x98] + [0x88] * 14 + [0x0F])
    raw = struct.pack("<e", 0.5) + nibbles
    put(path, "Q4_0", (1, 32), np.frombuffer(raw, np.uint8))
    leaf = read_gguf(path).tensors["w"]
    assert leaf.format == Int(4, full=True)  # -8 is there
    row = np.zeros(32, np.float32)
    row[15], row[16], row[31] = 3.5, 0.5, -4
    np.testing.assert_array_equal(leaf.dense()[:, 0], row)


def test_runs_compressed_with_negative_scales(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.gguf"
    x = jax.random.normal(jax.random.key(0), (3, 256))
    for kind in ("Q4_0", "Q6_K"):
        raw = random_blocks(kind, 4 * 256 // GgmlType[kind].block[0])
        put(path, kind, (4, 256), raw)
        leaf = read_gguf(path).tensors["w"]
        assert (leaf.scales < 0).any()
        y = compressed(lambda p, x: x @ p)(leaf, x)
        scale = float(jnp.abs(leaf.dense()).max())
        np.testing.assert_allclose(y, x @ leaf.dense(), atol=1e-4 * scale, rtol=1e-4)


def test_rows_are_looked_up(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.gguf"
    put(path, "Q8_0", (5, 64), random_blocks("Q8_0", 10))
    table = read_gguf(path, keep=["w"]).tensors["w"]
    rows = compressed(lambda p, i: p[i])(table, jnp.asarray([3, 0]))
    np.testing.assert_array_equal(rows, table.dense()[jnp.asarray([3, 0])])


def test_minima_of_whole_steps_are_zero_points(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.gguf"
    raw = random_blocks("Q4_1", 4)
    halves = np.array([[0.5, -1.5], [0.25, 0], [2, -30], [0, 0]], "<f2")
    raw[:, :4] = halves.view(np.uint8)
    put(path, "Q4_1", (2, 64), raw)
    leaf = read_gguf(path).tensors["w"]
    wanted = np.concatenate([decode(block.tobytes(), "Q4_1") for block in raw])
    assert leaf.zeros.tolist() == [[3 - 8, -8], [15 - 8, -8]]
    np.testing.assert_array_equal(leaf.dense(), wanted.reshape(2, 64).T)
    for minimum in (-1.25, 0.5, -100):
        raw[1, :4] = np.array([0.5, minimum], "<f2").view(np.uint8)
        put(path, "Q4_1", (2, 64), raw)
        assert not is_compressed(read_gguf(path).tensors["w"])


def test_arrays_and_metadata_both_ways(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.gguf"
    arrays = {
        "f32": np.arange(6, dtype=np.float32).reshape(2, 3),
        "f16": np.ones((1, 2, 3, 4), np.float16),
        "bf16": np.array([1, 2, 3], ml_dtypes.bfloat16),
        "i32": np.array([-1], np.int32),
        "scalar": np.array(2, np.float64),
        "empty": np.zeros((0, 3), np.int8),
    }
    metadata: dict[str, Any] = {
        "general.architecture": "toy",
        "general.alignment": 64,
        "yes": True,
        "small": np.uint8(200),
        "number": -3,
        "long": 2**40,
        "float": 0.5,
        "words": ["a", "", "ü"],
        "ids": np.array([1, 2**31], np.uint32),
        "nested": [[1, 2], [3]],
        "none": [],
    }
    write_gguf(path, arrays, metadata)
    found = read_gguf(path)
    for name, array in arrays.items():
        assert found.tensors[name].dtype == array.dtype
        np.testing.assert_array_equal(found.tensors[name], array)
    assert found.metadata.keys() == metadata.keys()
    nested = found.metadata["nested"]
    assert [part.tolist() for part in nested] == [[1, 2], [3]]
    for key in metadata.keys() - {"nested"}:
        assert np.array_equal(found.metadata[key], metadata[key])
    assert type(found.metadata["yes"]) is bool
    assert found.metadata["small"].dtype == np.uint8
    assert found.metadata["number"].dtype == np.int32
    assert found.metadata["long"].dtype == np.int64
    assert found.metadata["float"].dtype == np.float32
    # Of what was read, all goes back.
    again = tmp_path / "again.gguf"
    write_gguf(again, found.tensors, found.metadata)
    assert again.read_bytes() == path.read_bytes()


def test_the_package_reads_what_is_written(tmp_path: pathlib.Path) -> None:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "m.gguf"
    kernel = jax.random.normal(jax.random.key(0), (512, 6))
    leaves = {
        str(format): QTensor.quantize(
            kernel, KERNEL, Weights(format=format, granularity=PerGroup(64))
        )
        for format in (Int(3), Int(4), Int(6), Int(8))
    }
    asymmetric = Weights(format=Int(4, symmetric=False), granularity=PerGroup(32))
    leaves["zeros"] = QTensor.quantize(kernel, KERNEL, asymmetric)
    metadata = {"general.architecture": "toy", "words": ["a", "b"], "n": np.uint64(3)}
    write_gguf(
        path,
        {**leaves, "k": kernel, "h": kernel},
        metadata,
        types={"k": GgmlType.Q4_K, "h": GgmlType.BF16},
    )
    reader = gguf.GGUFReader(path)
    assert reader.fields["general.architecture"].contents() == "toy"
    assert reader.fields["words"].contents() == ["a", "b"]
    assert reader.fields["n"].contents() == 3
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert types == {
        "int3": "Q4_0",
        "int4": "Q4_0",
        "int6": "Q8_0",
        "int8": "Q8_0",
        "zeros": "Q4_1",
        "k": "Q4_K",
        "h": "BF16",
    }
    ours = read_gguf(path).tensors
    for tensor in reader.tensors:
        if tensor.name == "h":
            continue
        theirs = gguf.dequantize(tensor.data, tensor.tensor_type).T
        mine = ours[tensor.name]
        mine = mine.dense() if is_compressed(mine) else mine
        np.testing.assert_array_equal(mine, theirs)
        wanted = leaves[tensor.name].dense() if tensor.name in leaves else kernel
        close = 0.3 if tensor.name == "k" else 0.005
        np.testing.assert_allclose(theirs, wanted, atol=close)


@pytest.mark.parametrize(
    ("format", "granularity", "kind"),
    [
        (Int(4), PerGroup(32), "Q4_0"),
        (Int(2), PerGroup(64), "Q4_0"),
        (Int(4), PerChannel(), "Q4_0"),
        (Int(4), PerTensor(), "Q4_0"),
        (Int(8), PerGroup(32), "Q8_0"),
        (Int(5), PerTensor(), "Q8_0"),
        (Int(3, symmetric=False), PerGroup(32), "Q4_1"),
    ],
)
def test_leaves_both_ways(
    tmp_path: pathlib.Path, format: Int, granularity: Any, kind: str
) -> None:
    path = tmp_path / "m.gguf"
    kernel = jax.random.normal(jax.random.key(0), (2, 64, 5))
    axes = Axes((0,), (2,), (1,))
    spec = Weights(format=format, granularity=granularity)
    made = QTensor.quantize(kernel, axes, spec)
    half = made.scales.astype(jnp.float16).astype(jnp.float32)
    leaf = QTensor.pack(
        made.numbers, half, made.zeros, Weights(format=format), kernel, axes
    )
    write_gguf(path, {"w": leaf})
    tensor = GgufContainer(path).tensors["w"]
    assert (tensor.type.name, tensor.shape) == (kind, (2, 5, 64))
    found = read_gguf(path).tensors["w"]
    if kind == "Q4_1":
        np.testing.assert_allclose(found, leaf.dense(), atol=2e-3)
        return
    np.testing.assert_array_equal(found.dense(), leaf.dense())
    if granularity == PerGroup(32):
        jax.tree.map(np.testing.assert_array_equal, found, leaf)


def test_q4_k_has_the_least_error(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.gguf"
    kernel = np.random.default_rng(0).standard_t(4, (512, 8)).astype(np.float32)
    kernel[:256, 0], kernel[256:, 0] = 0, 3
    kernel[:32, 1] = np.linspace(1, 2, 32)
    write_gguf(path, {"w": kernel}, types={"*": GgmlType.Q4_K})
    found = read_gguf(path).tensors["w"]
    np.testing.assert_array_equal(found[:256, 0], np.zeros(256))
    np.testing.assert_allclose(found[256:, 0], np.full(256, 3), rtol=2e-3)
    # The range of each 32, exact: what the blocks can hold at most costs no more.
    x = kernel.T.reshape(-1, 32)
    low, high = np.minimum(x.min(1), 0), np.maximum(x.max(1), 0)
    step = np.where(high > low, (high - low) / 15, 1)[:, None]
    plain = np.round((x - low[:, None]) / step) * step + low[:, None]
    error = np.square(found - kernel).mean()
    assert error < 0.9 * np.square(plain - x).mean()
    for bad in (np.inf, 1e9):
        kernel[3, 3] = bad
        with pytest.raises(MismatchError, match="'w': a number is"):
            write_gguf(path, {"w": kernel}, types={"*": GgmlType.Q4_K})


GOOD = tensor_info("w", [32, 1], 8, 0)
BLOCK = bytes(64)


def meta(key: str, kind: int, raw: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + raw


ENDLESS = struct.pack("<IQ", 8, 2**60)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "empty"),
        (b"GGML" + bytes(60), "no GGUF file"),
        (gguf_bytes([], [GOOD], BLOCK, version=1), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version 50331648; little-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "the name of tensor 0 reaches"),
        (gguf_bytes([meta("a", 13, b"")], [], b""), "metadata 'a' is of type 13"),
        (gguf_bytes([meta("a", 9, ENDLESS)], [], b""), "'a' has .* more than fit"),
        (
            gguf_bytes([meta("a", 9, struct.pack("<IQ", 10, 2**61))], [], b""),
            "'a' reaches to byte",
        ),
        (
            gguf_bytes([meta("a", 9, struct.pack("<IQ", 9, 1) * 6)], [], b""),
            "'a' is of type 9",
        ),
        (gguf_bytes([meta("a", 8, struct.pack("<Q", 2**62))], [], b""), "'a' reaches"),
        (
            gguf_bytes([meta("a", 8, struct.pack("<Q", 1) + b"\xff")], [], b""),
            "not UTF-8",
        ),
        (gguf_bytes([meta("a", 0, b"1")] * 2, [], b""), "'a' stands twice"),
        (
            gguf_bytes([meta("general.alignment", 4, bytes(4))], [], b""),
            "no multiple of 8",
        ),
        (gguf_bytes([], [GOOD, GOOD], BLOCK), "tensor 'w' stands twice"),
        (
            gguf_bytes([], [GOOD, tensor_info("v", [32], 8, 0)], BLOCK),
            "tensor 'v' overlaps",
        ),
        (gguf_bytes([], [tensor_info("w", [32], 8, 8)], BLOCK), "not aligned to 32"),
        (
            gguf_bytes([], [tensor_info("w", [33], 8, 0)], BLOCK),
            r"'w' is Q8_0 \[33\].* whole blocks of 32",
        ),
        (gguf_bytes([], [tensor_info("w", [], 8, 0)], BLOCK), "whole blocks"),
        (
            gguf_bytes([], [tensor_info("w", [32], 16, 0)], BLOCK),
            "'w' is of type 16; those that can be read",
        ),
        (gguf_bytes([], [tensor_info("w", [1] * 5, 0, 0)], BLOCK), "5 axes"),
        (gguf_bytes([], [GOOD], bytes(33)), "'w' reaches to byte"),
        (
            gguf_bytes([], [tensor_info("w", [32], 8, 2**40)], BLOCK),
            "'w' reaches to byte",
        ),
        (
            gguf_bytes([], [tensor_info("w", [32], 8, 2**64 - 32)], BLOCK),
            "'w' reaches to byte",
        ),
        (
            gguf_bytes([], [tensor_info("w", [2**40, 2**40], 0, 0)], BLOCK),
            "'w' reaches to byte",
        ),
    ],
)
def test_damaged(tmp_path: pathlib.Path, raw: bytes, said: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(raw)
    with pytest.raises(FileFormatError, match=said) as caught:
        read_gguf(path)
    assert str(path) in str(caught.value)


def test_every_cut_is_noticed(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.gguf"
    leaf = QTensor.quantize(
        np.ones((32, 1), np.float32), KERNEL, Weights(format=Int(4))
    )
    write_gguf(path, {"w": leaf}, {"words": ["a", "b"], "ids": np.arange(3)})
    whole = path.read_bytes()
    end = GgufContainer(path).tensors["w"]
    for length in range(0, end.begin + end.size, 5):
        path.write_bytes(whole[:length])
        with pytest.raises(FileFormatError):
            read_gguf(path)
    path.write_bytes(whole)
    with pytest.raises(MismatchError, match="no tensor is named 'v'"):
        read_gguf(path, keep=["v"])


def test_what_cannot_be_written(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.gguf"

    def make(spec: Weights, inputs: int = 64) -> QTensor:
        return QTensor.quantize(np.ones((inputs, 2), np.float32), KERNEL, spec)

    floats = np.ones((64, 2), np.float32)
    eight = QTensor.quantize(floats, KERNEL, Weights(format=Int(8, symmetric=False)))
    cases: list[tuple[dict[str, Any], dict[str, GgmlType], str]] = [
        ({}, {}, "there are no tensors"),
        ({"w": make(Weights(format=Float8()))}, {}, "'w' is float8"),
        ({"w": make(Weights(format=Int(4)), 48)}, {}, "groups of 48 inputs"),
        ({"w": eight}, {}, "'w' is int8 with zero points"),
        ({"w": {"x": 1}}, {}, "'w' is a dict"),
        ({"w": np.ones(2, bool)}, {}, r"'w' is bool \[2\]"),
        ({"w": floats}, {"v*": GgmlType.F16}, r"named 'v\*'"),
        ({"w": floats}, {"w": GgmlType.Q4_0}, "cannot be stored as Q4_0"),
        ({"w": floats}, {"w": GgmlType.Q4_K}, "K a multiple of 256"),
        ({"w": np.ones(2, np.int32)}, {"w": GgmlType.F16}, "cannot be stored as F16"),
        ({"w": make(Weights(format=Int(4)))}, {"w": GgmlType.F16}, "is a QTensor"),
    ]
    for tensors, types, said in cases:
        with pytest.raises(MismatchError, match=said):
            write_gguf(path, tensors, types=types)
    for value in ({}, [1, "a"], np.ones((2, 2)), None):
        with pytest.raises(ValueError, match="metadata 'a'"):
            write_gguf(path, {"w": floats}, {"a": value})
    assert not path.exists()
