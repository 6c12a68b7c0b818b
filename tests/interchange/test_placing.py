"""Weights of files in the trees of models."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from raw_files import read_raw, safetensors_bytes

from jcompress.errors import MismatchError
from jcompress.execution import compressed
from jcompress.formats import Int, NormalFloat4, PowerOfTwoScales
from jcompress.interchange import (
    FileFormatError,
    place,
    read_gptq,
    write_awq,
    write_compressed_tensors,
    write_gguf,
    write_gptq,
)
from jcompress.quantization import PerBlock, PerGroup, Weights
from jcompress.tensors import LowRank, QTensor
from jcompress.tensors.axes import Axes

KERNEL = Axes((), (1,), (0,))


def leaf(inputs: int, outputs: int) -> QTensor:
    kernel = jax.random.normal(jax.random.key(outputs), (inputs, outputs))
    spec = Weights(format=Int(4), granularity=PerGroup(32))
    return QTensor.quantize(kernel, KERNEL, spec)


def model(p: Any, x: jax.Array) -> jax.Array:
    """Kernels as those of Flax's attention, [32, 2, 16] and [2, 16, 32]."""
    heads = jnp.einsum("bk,khd->bhd", x, p["query"]["kernel"])
    made = jnp.einsum("bhd,hdn->bn", heads, p["out"]["kernel"])
    return made + p["out"]["bias"].reshape(1, 32)


def test_a_file_runs_as_a_model(tmp_path: pathlib.Path) -> None:
    x = jax.random.normal(jax.random.key(0), (3, 32))
    params = {
        "query": {"kernel": jnp.zeros((32, 2, 16))},
        "out": {"kernel": jnp.zeros((2, 16, 32)), "bias": jnp.zeros(32)},
    }
    made = {"q_proj.weight": leaf(32, 32), "o_proj.weight": leaf(32, 32)}
    bias = np.arange(32, dtype=np.float16)
    # As large models are: cut between the arrays of a layer.
    whole = tmp_path / "whole"
    write_gptq(whole, {**made, "o_proj.bias": bias})
    folder = tmp_path / "model"
    folder.mkdir()
    arrays = read_raw(whole)
    for shard in range(2):
        some = {name: arrays[name] for name in sorted(arrays)[shard::2]}
        data = safetensors_bytes(some, {"checkpoint_format": "gptq"})
        (folder / f"model-{shard}.safetensors").write_bytes(data)
    names = {
        "q_proj.weight": "query/kernel",
        "o_proj.weight": "out/kernel",
        "o_proj.bias": "out/bias",
    }
    found = read_gptq(folder)
    small = place(params, found, names)
    kernel = small["query"]["kernel"]
    assert (kernel.shape, kernel.output_axes) == ((32, 2, 16), (1, 2))
    assert small["out"]["kernel"].input_axes == (0, 1)
    assert small["out"]["bias"].dtype == jnp.float32
    first, second = (np.asarray(found[name].dense()) for name in list(names)[:2])
    outputs = compressed(model)(small, x)
    wanted = np.asarray(x) @ first @ second + bias
    np.testing.assert_allclose(outputs, wanted, rtol=1e-4, atol=1e-3)
    (folder / "more.safetensors").write_bytes(safetensors_bytes(arrays))
    with pytest.raises(FileFormatError, match=r"'.*' is in more\.safetensors, too"):
        read_gptq(folder)
    with pytest.raises(FileFormatError, match="has no"):
        read_gptq(tmp_path)


def test_dtypes_follow_the_tree() -> None:
    params = {"a": jnp.zeros((32, 4), jnp.bfloat16), "b": jnp.ones(2)}
    placed = place(params, {"x": leaf(32, 4)}, {"x": "a"})
    assert placed["a"].dense().dtype == jnp.bfloat16
    assert placed["b"] is params["b"]


def test_what_does_not_fit() -> None:
    params = {"a": jnp.zeros((32, 4)), "b": jnp.ones(4), "c": jnp.ones((4, 3, 11))}
    low_rank = LowRank(
        factors=(jnp.ones((1, 32)), jnp.ones((4, 1))),
        shape=(32, 4),
        dtype=np.dtype(np.float32),
        output_axes=(1,),
        input_axes=(0,),
    )
    found = {"x": leaf(32, 4), "y": np.ones(3), "t": leaf(4 * 32, 32), "l": low_rank}
    found["turned"] = np.ones((4, 32))
    cases = [
        ({}, "names nothing"),
        ({"z": "a"}, "'z' was not read; there are x, y"),
        ({"x": "z"}, "'z' is not in the tree; there are a, b"),
        ({"x": "a", "t": "a"}, "two weights go to 'a'"),
        ({"t": "a"}, r"'t' is a QTensor \[128, 32\], and 'a' is \[32, 4\]"),
        ({"x": "c"}, r"and 'c' is \[4, 3, 11\]"),
        ({"y": "b"}, r"'y' is an array \[3\], and 'b' is \[4\]"),
        ({"turned": "a"}, "the other way round"),
        ({"l": "a"}, "'l' is a LowRank"),
    ]
    for names, said in cases:
        with pytest.raises(MismatchError, match=said):
            place(params, found, names)


def test_leaves_with_compact_scales_are_written_and_others_named(
    tmp_path: pathlib.Path,
) -> None:
    kernel = jax.random.normal(jax.random.key(0), (32, 8))
    blocks = PerBlock(outputs=4, inputs=16)
    compact = Weights(format=Int(4), granularity=blocks, scales=PowerOfTwoScales())
    small = QTensor.quantize(kernel, KERNEL, compact)
    write_gptq(tmp_path / "a.safetensors", {"a.weight": small})
    back = read_gptq(tmp_path / "a.safetensors")["a.weight"]
    np.testing.assert_array_equal(back.dense(), small.dense())
    odd = QTensor.quantize(kernel, KERNEL, Weights(format=NormalFloat4()))
    for write in (write_gptq, write_awq, write_compressed_tensors, write_gguf):
        with pytest.raises(MismatchError, match=r"'a.weight' is nf4; integers of 2"):
            write(tmp_path / "b", {"a.weight": odd})
    assert not (tmp_path / "b").exists()
