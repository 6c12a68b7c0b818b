"""GPTQ files against packing bit by bit, and act-order."""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_files import pack_axis, read_raw, safetensors_bytes, unpack_line

from jcompress.errors import MismatchError
from jcompress.execution import compressed
from jcompress.formats import Float8, Int
from jcompress.interchange import ActOrder, FileFormatError, read_gptq, write_gptq
from jcompress.quantization import PerGroup, Weights
from jcompress.tensors import LowRank, QTensor
from jcompress.tensors.axes import Axes

KERNEL = Axes((), (1,), (0,))


def layer(
    bits: int, version: int, index: np.ndarray, groups: int, outputs: int = 32
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The arrays of a layer, and the dense kernel [K, N] that they are."""
    rng = np.random.default_rng(bits)
    inputs = len(index)
    numbers = rng.integers(0, 2**bits, (inputs, outputs))
    zeros = rng.integers(0, 2**bits, (groups, outputs))
    scales = rng.uniform(0.5, 2, (groups, outputs)).astype(np.float16)
    stored = (zeros - 1) % 2**bits if version == 1 else zeros
    dense = np.empty((inputs, outputs), np.float32)
    for k, n in np.ndindex(inputs, outputs):
        g = index[k]
        dense[k, n] = np.float32(numbers[k, n] - zeros[g, n]) * np.float32(scales[g, n])
    arrays = {
        "up.qweight": pack_axis(numbers, bits, 0),
        "up.qzeros": pack_axis(stored, bits, 1),
        "up.scales": scales,
        "up.g_idx": np.asarray(index, np.int32),
    }
    return arrays, dense


def put(path: pathlib.Path, arrays: dict[str, np.ndarray], **said: str) -> None:
    path.write_bytes(safetensors_bytes(arrays, said))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_reads_what_is_there(tmp_path: pathlib.Path, bits: int, version: int) -> None:
    path = tmp_path / "m.safetensors"
    arrays, dense = layer(bits, version, np.arange(64) // 32, 2)
    arrays |= {"up.bias": np.ones(32, np.float16), "norm": np.ones(3, np.float32)}
    put(path, arrays)
    found = read_gptq(path, version=version)
    assert set(found) == {"up.weight", "up.bias", "norm"}
    leaf = found["up.weight"]
    assert isinstance(leaf, QTensor)
    assert (leaf.format.bits, leaf.scales.shape) == (bits, (32, 2))
    np.testing.assert_array_equal(leaf.dense(), dense)
    np.testing.assert_array_equal(found["up.bias"], arrays["up.bias"])
    del arrays["up.g_idx"]
    put(path, arrays)
    np.testing.assert_array_equal(
        read_gptq(path, version=version)["up.weight"].dense(), dense
    )


def test_three_bits_of_32_are_three_words() -> None:
    words = pack_axis(np.arange(32).reshape(32, 1) % 8, 3, 0)
    # Ten whole numbers in the first word, two bits of the eleventh, which is 2.
    assert words.shape == (3, 1)
    assert int(words[0, 0]) & 0xFFFFFFFF == int("10001000111110101100011010001000", 2)


def test_runs_compressed(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.safetensors"
    arrays, dense = layer(4, 1, np.arange(64) // 32, 2)
    put(path, arrays)
    leaf = read_gptq(path, version=1)["up.weight"]
    x = jax.random.normal(jax.random.key(0), (3, 64))
    y = compressed(lambda p, x: x @ p)(leaf, x)
    np.testing.assert_allclose(y, np.asarray(x) @ dense, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "format", [Int(4), Int(3, full=True), Int(4, symmetric=False), Int(8)]
)
def test_writes_the_bits(tmp_path: pathlib.Path, format: Int) -> None:
    path = tmp_path / "m.safetensors"
    kernel = jax.random.normal(jax.random.key(0), (64, 32))
    spec = Weights(format=format, granularity=PerGroup(32))
    leaf = QTensor.quantize(kernel, KERNEL, spec)
    half = leaf.scales.astype(jnp.float16).astype(jnp.float32)
    wanted = QTensor.pack(
        leaf.numbers, half, leaf.zeros, Weights(format=format), leaf, KERNEL
    )
    write_gptq(path, {"up.weight": leaf, "bias": jnp.ones(2, jnp.bfloat16)})
    raw = read_raw(path)
    assert raw["bias"].dtype == jnp.bfloat16
    assert raw["up.scales"].dtype == np.float16
    zeros = np.zeros((32, 2), int) if leaf.zeros is None else np.asarray(leaf.zeros)
    for n in (0, 13, 31):
        column = unpack_line(list(raw["up.qweight"][:, n]), 64, format.bits)
        assert [q - 2 ** (format.bits - 1) for q in column] == leaf.numbers[n].tolist()
    for g in range(2):
        row = unpack_line(list(raw["up.qzeros"][g]), 32, format.bits)
        assert [z + 1 - 2 ** (format.bits - 1) for z in row] == zeros[:, g].tolist()
    found = read_gptq(path)["up.weight"]
    assert found.format == format
    for name in ("values", "scales", "zeros"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))


def test_zero_point_0_in_both_versions(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.safetensors"
    leaf = QTensor.pack(
        jnp.zeros((32, 32), jnp.int8),
        jnp.ones((32, 1)),
        jnp.full((32, 1), -8, jnp.int8),
        Weights(format=Int(4, symmetric=False)),
        jax.ShapeDtypeStruct((32, 32), jnp.float32),
        KERNEL,
    )
    for version, word in ((1, -1), (2, 0)):
        write_gptq(path, {"up": leaf}, version=version)
        assert (read_raw(path)["up.qzeros"] == word).all()
        assert (read_gptq(path)["up.weight"].dense() == 8).all()


@given(st.data())
@settings(max_examples=6, deadline=None)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "round.safetensors"
    bits = data.draw(st.sampled_from([2, 3, 4, 8]))
    groups, n = data.draw(st.integers(1, 2)), 32
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    leaf = QTensor.pack(
        jnp.asarray(rng.integers(low, high, (n, 32 * groups)), jnp.int8),
        jnp.asarray(rng.uniform(-1, 1, (n, groups)).astype(np.float16), jnp.float32),
        jnp.asarray(rng.integers(low, high, (n, groups)), jnp.int8),
        Weights(format=Int(bits, symmetric=False)),
        jax.ShapeDtypeStruct((32 * groups, n), jnp.float32),
        KERNEL,
    )
    write_gptq(path, {"w": leaf}, version=data.draw(st.sampled_from([1, 2])))
    found = read_gptq(path)["w.weight"]
    jax.tree.map(np.testing.assert_array_equal, found, leaf)


def test_groups_moved_as_wholes(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.safetensors"
    for index in (
        np.repeat([2, 0, 1], 32),
        np.minimum(np.arange(96) // 64, 1),
    ):
        arrays, dense = layer(4, 2, index, int(index.max()) + 1)
        put(path, arrays)
        leaf = read_gptq(path, version=2)["up.weight"]
        assert leaf.scales.shape == (32, 3)
        np.testing.assert_array_equal(leaf.dense(), dense)


def test_scattered_groups(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.safetensors"
    index = np.random.default_rng(0).permutation(np.arange(64) // 32)
    arrays, dense = layer(4, 1, index, 2)
    put(path, arrays)
    with pytest.raises(FileFormatError, match=r"'up.g_idx' scatters .*PERMUTED"):
        read_gptq(path, version=1)
    found = read_gptq(path, version=1, act_order=ActOrder.DENSE)
    np.testing.assert_array_equal(found["up.weight"], dense)
    found = read_gptq(path, version=1, act_order=ActOrder.PERMUTED)
    order, leaf = found["up.order"], found["up.weight"]
    assert isinstance(leaf, QTensor)
    np.testing.assert_array_equal(leaf.dense(), dense[np.asarray(order)])
    x = np.arange(64, dtype=np.float32)
    np.testing.assert_allclose(
        x[np.asarray(order)] @ np.asarray(leaf.dense()), x @ dense, rtol=1e-5, atol=1e-2
    )
    index[index == 1] = np.arange(32) % 3 // 2
    put(path, {**arrays, "up.g_idx": index.astype(np.int32)})
    with pytest.raises(FileFormatError, match="different sizes"):
        read_gptq(path, version=1, act_order=ActOrder.PERMUTED)


def test_the_version_is_looked_for(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.safetensors"
    arrays, dense = layer(4, 2, np.zeros(32, int), 1)
    put(path, arrays)
    with pytest.raises(FileFormatError, match=r"checkpoint_format is None.*version=1"):
        read_gptq(path)
    config = tmp_path / "config.json"
    said = {"bits": 4, "checkpoint_format": "gptq_v2"}
    config.write_text(json.dumps({"quantization_config": said}))
    np.testing.assert_array_equal(read_gptq(path)["up.weight"].dense(), dense)
    config.write_text(json.dumps({"quantization_config": {"bits": 4}}))
    steps = np.asarray(read_gptq(path)["up.weight"].dense()) - dense
    assert (steps != 0).all()
    put(path, arrays, checkpoint_format="marlin")
    with pytest.raises(FileFormatError, match="'marlin'"):
        read_gptq(path)
    config.write_text("{")
    put(path, arrays)
    with pytest.raises(FileFormatError, match=r"config\.json: cannot be read"):
        read_gptq(path)
    with pytest.raises(ValueError, match="version is 1, 2 or None"):
        read_gptq(path, version=3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"up.scales": None}, r"'up\.scales' is missing"),
        ({"up.qzeros": None}, r"'up\.qzeros' is missing"),
        ({"up.qweight": None}, r"ends in '\.qweight'"),
        ({"up.qzeros": np.zeros((2, 5), np.int32)}, "not of 2, 3, 4 or 8 bits"),
        ({"up.qweight": np.zeros((8, 0), np.int32)}, r"'up\.qweight' is \[8, 0\]"),
        ({"up.qweight": np.zeros((8, 32), np.float32)}, "not int32 or uint32"),
        ({"up.scales": np.ones((3, 32), np.float16)}, r"not float16.*\[2, 32\]"),
        ({"up.scales": np.ones((2, 32), np.int8)}, r"'up\.scales' is int8"),
        ({"up.g_idx": np.zeros(63, np.int32)}, r"'up\.g_idx' is int32 \[63\]"),
        ({"up.g_idx": np.full(64, 2, np.int32)}, "not among the 2"),
        ({"up.g_idx": np.full(64, -1, np.int32)}, "not among the 2"),
        ({"up.weight": np.zeros(1, np.int8)}, "beside its quantized form"),
    ],
)
def test_files_that_contradict_themselves(
    tmp_path: pathlib.Path, changes: dict[str, Any], said: str
) -> None:
    path = tmp_path / "m.safetensors"
    arrays = {**layer(4, 1, np.arange(64) // 32, 2)[0], **changes}
    put(path, {name: a for name, a in arrays.items() if a is not None})
    with pytest.raises(FileFormatError, match=said) as caught:
        read_gptq(path, version=1)
    assert str(path) in str(caught.value)


def test_what_cannot_be_written(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.safetensors"

    def make(shape: tuple[int, ...], spec: Weights, axes: Axes = KERNEL) -> QTensor:
        return QTensor.quantize(np.ones(shape, np.float32), axes, spec)

    four = Weights(format=Int(4))
    good = make((32, 32), four)
    large = QTensor.pack(good.numbers, good.scales * 1e6, None, four, good, KERNEL)
    odd = QTensor.pack(
        good.numbers,
        good.scales,
        jnp.full(good.scales.shape, 8, jnp.int8),
        Weights(format=Int(4, symmetric=False)),
        good,
        KERNEL,
    )
    low_rank = LowRank(
        factors=(jnp.ones((1, 4)), jnp.ones((4, 1))),
        shape=(4, 4),
        dtype=np.dtype(np.float32),
        output_axes=(1,),
        input_axes=(0,),
    )
    cases: list[tuple[dict[str, Any], str]] = [
        ({"w": np.ones(3)}, "none of the 1 tensors"),
        ({"w": make((32, 32), Weights(format=Int(5)))}, "'w' is int5"),
        ({"w": make((32, 32), Weights(format=Float8()))}, "'w' is float8"),
        ({"w": make((36, 32), four)}, "do not fill words"),
        ({"w": make((32, 36), four)}, "do not fill words"),
        ({"w": make((2, 32, 32), four, Axes((0,), (2,), (1,)))}, "a stack"),
        ({"w": good, "w.weight": good}, "for another"),
        ({"w": good, "x": {"y": good}}, "'x' is a dict"),
        ({"w": good, "x": low_rank}, "'x' is a LowRank"),
        ({"w": large}, "float16 does not hold"),
        ({"w": odd}, "a zero point is no number of int4"),
    ]
    for tensors, said in cases:
        with pytest.raises(MismatchError, match=said):
            write_gptq(path, tensors)
    assert not path.exists()
    with pytest.raises(ValueError, match="version is 1 or 2"):
        write_gptq(path, {"w": good}, version=0)
