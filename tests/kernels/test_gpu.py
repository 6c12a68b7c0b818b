"""The kernels for NVIDIA GPUs: numbers in interpret mode, programs compiled.

Interpret mode executes the kernels' copies and barriers on the CPU, looks for races,
fills memory that nothing wrote with NaN, and raises where a read is out of bounds. It
has `tcgen05`, and no `wgmma` from registers and no `mma`. So for `wgmma` the converted
weight passes through shared memory there, and `mma` is a plain product of the same
operands; all else is the compiled kernel's. The compiler needs no device; it comes with
JAX's CUDA plugin, and the tests of compiled programs skip without it.
"""

import dataclasses
import functools
import importlib.util
import itertools
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu

from jcompress.formats import Int
from jcompress.formats.packing import pack_bits
from jcompress.kernels import _gpu, _gpu_tiles, _tiles
from jcompress.kernels.block_sparse_matmul import gpu as block_sparse
from jcompress.kernels.block_sparse_matmul.reference import (
    reference as block_sparse_reference,
)
from jcompress.kernels.int8_matmul import gpu as int8
from jcompress.kernels.int8_matmul.reference import reference as int8_reference
from jcompress.kernels.weight_only_matmul import gpu as weight_only
from jcompress.kernels.weight_only_matmul.reference import reference
from jcompress.kernels.weight_only_matmul.shapes import ROWS, SHAPES
from jcompress.quantization import PerChannel, PerGroup, Weights
from jcompress.tensors.weight_matrix import quantize_matrix

interprets = pytest.mark.skipif(
    not hasattr(mosaic_gpu, "InterpretGPUParams"),
    reason="this JAX has no public interpreter of Mosaic GPU kernels",
)
compiles = pytest.mark.skipif(
    not any(
        importlib.util.find_spec(f"jax_cuda{n}_plugin") is not None for n in (12, 13)
    ),
    reason="JAX's CUDA plugin, which has the compiler, is not installed",
)


def interpreter() -> Any:
    return mosaic_gpu.InterpretGPUParams(
        detect_races=True, uninitialized_memory="nan", out_of_bounds_reads="raise"
    )


def normal(seed: int, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    drawn = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(drawn, jnp.float32).astype(dtype)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def quantized(
    outputs: int, inputs: int, bits: int, size: int, symmetric: bool
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    kind = PerGroup(size) if size else PerChannel()
    spec = Weights(format=Int(bits, symmetric=symmetric), granularity=kind)
    matrix = normal(1, (outputs, inputs)) + np.float32(0.25)
    values, scales, zeros = quantize_matrix(matrix, spec)
    return pack_bits(values, bits), scales, zeros


def check(out: Any, expected: Any, rtol: float) -> None:
    """Rounding errors relative to the largest result, which sums do not exceed."""
    out, expected = (np.asarray(a).astype(np.float64) for a in (out, expected))
    assert out.shape == expected.shape
    assert np.abs(out - expected).max() <= rtol * np.abs(expected).max()


CONVERSION = {
    # rows, outputs, inputs, bits, group, symmetric, dtype, x_bits, splits
    "nibbles": (3, 64, 256, 4, 64, True, jnp.bfloat16, None, 2),
    "small_groups": (1, 128, 128, 4, 32, False, jnp.bfloat16, None, 1),
    "bytes_by_channel": (20, 128, 256, 8, 0, False, jnp.float16, None, 1),
    "tall": (130, 64, 128, 6, 128, True, jnp.bfloat16, None, 1),
    "w4a8": (20, 128, 256, 4, 64, False, jnp.float32, 8, 1),
    "w8a8": (5, 64, 256, 8, 128, False, jnp.bfloat16, 8, 2),
    "many_rows": (70, 128, 128, 4, 64, False, jnp.bfloat16, None, 1),
    "steps_of_64": (3, 64, 192, 4, 64, True, jnp.bfloat16, None, 1),
}


MMA = pytest.mark.skipif(not _gpu.HAS_MMA, reason="this JAX has no mma")
BY_CONVERSION = [
    *(("wgmma", case) for case in CONVERSION if case != "many_rows"),
    *(
        pytest.param("mma", case, marks=MMA)
        for case in ("small_groups", "bytes_by_channel", "w4a8", "steps_of_64")
    ),
    *(
        pytest.param("tcgen05", case, marks=MMA)
        for case in ("small_groups", "bytes_by_channel", "many_rows")
    ),
]


@interprets
@pytest.mark.parametrize(("how", "case"), BY_CONVERSION)
def test_by_conversion(how: str, case: str) -> None:
    rows, outputs, inputs, bits, size, symmetric, dtype, x_bits, splits = CONVERSION[
        case
    ]
    weight = quantized(outputs, inputs, bits, size, symmetric)
    x = normal(2, (rows, inputs), dtype)
    shape = _gpu_tiles.ProductSize(
        rows=rows,
        outputs=outputs,
        inputs=inputs,
        groups=weight[1].shape[1],
        x_bits=8 if x_bits else 16,
        bits=4 if bits == 4 else 8,
    )
    tiles = _gpu_tiles.choose_tiles(shape, how)
    assert tiles.specialized == (how == "wgmma" and rows > _gpu.DECODE_ROWS)
    assert tiles.scaled == (how == "tcgen05" and case == "many_rows")
    tiles = dataclasses.replace(tiles, splits=splits)
    assert _gpu_tiles.fits(tiles, shape, how)
    given = {"bits": bits, "x_bits": x_bits}
    out = jax.jit(
        functools.partial(
            weight_only.by_conversion,
            how=how,
            tiles=tiles,
            interpret=interpreter(),
            **given,
        )
    )(x, *weight)
    assert out.dtype == dtype
    expected = reference(x.astype(jnp.float32), *weight, **given)
    # Weights that are scaled before the product are rounded, too.
    rounding = 2**-7 if tiles.scaled else 2**-8
    check(out, expected, {2: rounding, 4: 1e-6}[jnp.dtype(dtype).itemsize])


DIGITS = {
    # rows, outputs, inputs, bits, group, symmetric, dtype
    "nibbles": (1, 64, 256, 4, 64, True, jnp.bfloat16),
    "small_groups_in_steps_of_64": (5, 128, 192, 4, 32, False, jnp.float32),
    "bytes_by_channel": (3, 64, 256, 8, 0, False, jnp.float32),
}


@interprets
@MMA
@pytest.mark.parametrize("case", DIGITS)
def test_by_digits(case: str) -> None:
    rows, outputs, inputs, bits, size, symmetric, dtype = DIGITS[case]
    weight = quantized(outputs, inputs, bits, size, symmetric)
    x = normal(2, (rows, inputs), dtype)
    out = jax.jit(
        functools.partial(weight_only.by_digits, interpret=interpreter(), bits=bits)
    )(x, *weight)
    assert out.dtype == dtype
    expected = reference(x.astype(jnp.float32), *weight, bits=bits, x_bits=None)
    check(out, expected, {2: 2**-8, 4: 1e-6}[jnp.dtype(dtype).itemsize])


@interprets
def test_stacked_weights() -> None:
    stack = jax.tree.map(
        lambda *parts: jnp.stack(parts),
        quantized(64, 128, 4, 64, False),
        quantized(64, 128, 4, 64, False),
    )
    stack = (stack[0].at[1].add(np.uint8(3)), *stack[1:])
    x = normal(2, (2, 3, 128), jnp.bfloat16)
    given = {"bits": 4, "x_bits": None}
    kernel = functools.partial(
        weight_only.by_conversion, how="wgmma", interpret=interpreter(), **given
    )
    out = jax.jit(jax.vmap(kernel))(x, *stack)
    expected = [
        reference(x[i].astype(jnp.float32), *(a[i] for a in stack), **given)
        for i in range(2)
    ]
    check(out, jnp.stack(expected), 2**-8)


@interprets
@pytest.mark.parametrize(
    ("how", "rows", "outputs", "symmetric", "with_bias", "integers"),
    [
        ("wgmma", 3, 64, False, True, False),
        ("wgmma", 20, 128, False, True, True),
        ("wgmma", 130, 64, True, False, False),
        pytest.param("mma", 20, 128, False, True, True, marks=MMA),
        pytest.param("tcgen05", 20, 128, False, True, True, marks=MMA),
    ],
)
def test_int8(
    how: str, rows: int, outputs: int, symmetric: bool, with_bias: bool, integers: bool
) -> None:
    values, scales, zeros = quantized(outputs, 256, 8, 0, symmetric)
    bias = normal(3, (outputs,)) if with_bias else None
    x = normal(2, (rows, 256))
    x_scale = None
    if integers:
        x = jnp.round(x * np.float32(40)).astype(jnp.int8)
        x_scale = jnp.full((rows, 1), 0.025)
    args = (x, x_scale, None, values, scales, zeros, bias)
    run = functools.partial(int8.gpu, x_bits=8, how=how, interpret=interpreter())
    out = jax.jit(run)(*args)
    check(out, int8_reference(*args, x_bits=8), 1e-6)


@interprets
@pytest.mark.parametrize(
    ("how", "rows", "high", "wide", "kind"),
    [
        ("wgmma", 3, 64, 64, jnp.bfloat16),
        ("wgmma", 20, 128, 64, jnp.int8),
        ("wgmma", 130, 64, 128, jnp.bfloat16),
        pytest.param("mma", 3, 64, 64, jnp.bfloat16, marks=MMA),
        pytest.param("mma", 70, 128, 64, jnp.int8, marks=MMA),
    ],
)
def test_block_sparse(how: str, rows: int, high: int, wide: int, kind: Any) -> None:
    stored = [[0, 2], [], [1, 2, 3]]
    columns = jnp.asarray([*itertools.chain(*stored), 0], jnp.int32)
    starts = jnp.asarray(np.cumsum([0, *map(len, stored)]), jnp.int32)
    blocks = (normal(1, (6, high, wide)) * np.float32(20)).astype(kind).at[5].set(0)
    scales = None
    if kind == jnp.int8:
        scales = jnp.abs(normal(3, (3 * high, 1))) + np.float32(0.5)
    x = normal(2, (rows, 4 * wide), jnp.bfloat16)
    args = (x, blocks, columns, starts, scales)
    run = functools.partial(
        block_sparse.gpu, outputs=3 * high, how=how, interpret=interpreter()
    )
    out = jax.jit(run)(*args)
    assert not np.asarray(out[:, high : 2 * high]).any()
    check(out, block_sparse_reference(*args, outputs=3 * high), 2**-8)


def shaped(
    rows: int, outputs: int, inputs: int, bits: int = 4, size: int = 64, x: Any = None
) -> tuple[Any, ...]:
    stored = (outputs, inputs // 2) if bits == 4 else (outputs, inputs)
    return (
        jax.ShapeDtypeStruct((rows, inputs), x or jnp.bfloat16),
        jax.ShapeDtypeStruct(stored, jnp.uint8 if bits == 4 else jnp.int8),
        jax.ShapeDtypeStruct((outputs, inputs // size), jnp.float32),
        None,
    )


@pytest.mark.parametrize(
    ("args", "bits", "said"),
    [
        (shaped(0, 64, 128), 4, "nothing"),
        (shaped(9, 60, 128), 4, "N = 60"),
        (shaped(9, 64, 96, size=96), 4, "K = 96"),
        (shaped(9, 64, 160, size=80), 4, "K = 160"),
        (shaped(9, 64, 128, size=16), 4, "8 groups"),
        (shaped(9, 64, 128), 3, "3-bit"),
        (shaped(9, 64, 128, x=jnp.float32), 4, "float32"),
    ],
)
def test_refusals_say_why(args: Any, bits: int, said: str) -> None:
    assert said in weight_only.refuses(*args, bits=bits, x_bits=None)
    if args[0].shape[0]:
        assert not weight_only.refuses(*shaped(9, 64, 128), bits=4, x_bits=None)
    with pytest.raises(ValueError, match="weight_only_matmul on GPUs"):
        weight_only.gpu(*args, bits=bits, x_bits=None)


def device(kind: str) -> Any:
    named = jax.sharding.AbstractDevice(
        device_kind=kind, num_cores=None, platform="gpu"
    )
    return jax.sharding.AbstractMesh((1,), ("device",), abstract_device=named)


FROM_AMPERE = "mma" if _gpu.HAS_MMA else ""


@pytest.mark.parametrize(
    ("kind", "instruction", "preferred"),
    [
        ("NVIDIA H100 80GB HBM3", "wgmma", True),
        ("NVIDIA GH200 480GB", "wgmma", True),
        ("NVIDIA A100-SXM4-80GB", FROM_AMPERE, _gpu.HAS_MMA),
        ("NVIDIA B200", "tcgen05" if _gpu.HAS_MMA else "", _gpu.HAS_MMA),
        ("NVIDIA GeForce RTX 5090", FROM_AMPERE or "wgmma", False),
        ("Tesla T4", "", False),
    ],
)
def test_the_mesh_tells_what_the_device_has(
    kind: str, instruction: str, preferred: bool
) -> None:
    args, given = shaped(200, 128, 128), {"bits": 4, "x_bits": None}
    assert not weight_only.prefers(*args, **given)
    with jax.sharding.use_abstract_mesh(device(kind)):
        assert _gpu.instruction(128) == instruction
        assert _gpu.instruction() != "tcgen05"
        refused = weight_only.refuses(*args, **given)
        assert bool(refused) == (not instruction)
        assert preferred == (not refused and weight_only.prefers(*args, **given))


@pytest.mark.parametrize("how", ["mma", "wgmma", "tcgen05"])
@pytest.mark.parametrize("name", SHAPES)
def test_tiles_cover_the_product_and_fit(name: str, how: str) -> None:
    layer = SHAPES[name]
    for rows in ROWS:
        for size, x_bits, bits in ((128, 16, 4), (layer.inputs, 8, 8), (32, 8, 4)):
            shape = _gpu_tiles.ProductSize(
                rows=rows,
                outputs=layer.outputs,
                inputs=layer.inputs,
                groups=layer.inputs // size,
                x_bits=x_bits,
                bits=bits,
            )
            tiles = _gpu_tiles.choose_tiles(shape, how)
            assert _gpu_tiles.fits(tiles, shape, how)
            assert layer.outputs % tiles.outputs == 0
            assert tiles.rows % 8 == 0
            assert layer.inputs % (tiles.inputs * tiles.splits) == 0
            assert tiles.inputs % size == 0 or size % tiles.inputs == 0


def test_a_table_goes_before_the_rule_where_it_suits(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(_tiles.VARIABLE, str(tmp_path))
    kind, operation = "NVIDIA H100 80GB HBM3", "weight_only_matmul"
    shape = _gpu_tiles.ProductSize(
        rows=512, outputs=128, inputs=256, groups=2, x_bits=16, bits=4
    )
    narrow = dataclasses.replace(shape, outputs=64)
    key = _gpu_tiles.table_key(4, "bfloat16", shape)
    said = {"block_m": 64, "block_n": 128, "block_k": 64, "splits": 2, "stages": 3}
    with jax.sharding.use_abstract_mesh(device(kind)):
        ruled = _gpu_tiles.choose_tiles(narrow, "wgmma", operation, key)
        _tiles.write(tmp_path, "cuda", kind, {operation: {key: said}})
        tiles = _gpu_tiles.choose_tiles(shape, "wgmma", operation, key)
        assert _gpu_tiles.choose_tiles(narrow, "wgmma", operation, key) == ruled
    assert (tiles.rows, tiles.outputs, tiles.inputs) == (64, 128, 64)
    assert (tiles.splits, tiles.stages) == (2, 3)


def test_nothing_of_ours_asks_for_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **given: Any) -> Any:
        raise AssertionError("asked for a device")

    for name in ("devices", "local_devices", "default_backend", "device_count"):
        monkeypatch.setattr(jax, name, refuse)
    run = functools.partial(weight_only.gpu, bits=4, x_bits=None)
    for rows in (1, 200):
        out = jax.eval_shape(run, *shaped(rows, 64, 128))
        assert out.shape == (rows, 64)


@compiles
@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "instruction", "cases"),
    [
        ("h100", "wgmma", ["w4a16 g128 M=8", "w4a16 g64 M=512", "w8a8 channel M=1"]),
        pytest.param(
            *("a100", "mma.sync", ["w4a16 g64 M=512", "w8a8 channel M=512"]), marks=MMA
        ),
        pytest.param(
            *("b200", "tcgen05", ["w4a16 g64 M=512", "w8a8 channel M=512"]), marks=MMA
        ),
    ],
)
def test_compiled_programs(
    target: str, instruction: str, cases: list[str], tmp_path: pathlib.Path
) -> None:
    """Tensor cores, no spills, and no weight written to memory."""
    root = pathlib.Path(__file__).parents[2]
    report = tmp_path / "report.json"
    command = [sys.executable, str(root / "benchmarks" / "gpu_compiled.py")]
    subprocess.run(
        [*command, "--targets", target, "--json", str(report), "--cases", *cases],
        check=True,
        env={**os.environ, "XLA_FLAGS": ""},
        stdout=subprocess.DEVNULL,
    )
    found = {(n, f): seen for _, n, f, seen in json.loads(report.read_text())}
    ours = {name: seen for (name, form), seen in found.items() if form == "gpu"}
    assert len(ours) >= len(cases)
    for name, seen in ours.items():
        assert seen["instructions"], (name, seen)
        assert all(instruction in word for word in seen["instructions"]), (name, seen)
        assert seen["spilled"] == seen["local"] == 0, (name, seen)
        assert 0 < seen["registers"] <= 255, (name, seen)
        assert seen["temp"] < 2**22, (name, seen)
