"""The kernels for TPUs: their numbers in interpret mode, their programs compiled.

Interpret mode executes the kernels' copies and semaphores on the CPU, looks for races
and fills memory that nothing wrote with NaN. The compilers for TPUs need no device;
they come with `libtpu`, and the tests of compiled programs skip without it.
"""

import functools
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from sparse_conformance import CodebookForm, NMSparseForm, SparseForm

from jcompress.formats import Float8, Int
from jcompress.formats.packing import pack_bits
from jcompress.kernels import _tiles
from jcompress.kernels.block_sparse_matmul import tpu as block_sparse
from jcompress.kernels.codebook_matmul import tpu as codebook
from jcompress.kernels.int8_matmul import tpu as int8
from jcompress.kernels.int8_matmul.reference import reference as int8_reference
from jcompress.kernels.nm_sparse_matmul import tpu as nm_sparse
from jcompress.kernels.weight_only_matmul import tpu as weight_only
from jcompress.kernels.weight_only_matmul.reference import dense_weight, reference
from jcompress.quantization import PerChannel, PerGroup, Weights
from jcompress.tensors.weight_matrix import quantize_matrix

INTERPRET = pltpu.InterpretParams(
    detect_races=True, uninitialized_memory="nan", out_of_bounds_reads="raise"
)


def interpreted(function: Callable[..., jax.Array], *args: Any) -> Any:
    """Run kernels on the CPU; NaN where they read what nothing wrote."""
    with pltpu.force_tpu_interpret_mode(INTERPRET):
        return np.asarray(jax.jit(function)(*args).astype(jnp.float32))


def normal(seed: int, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    drawn = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(drawn, jnp.float32).astype(dtype)


def quantized(
    outputs: int, inputs: int, bits: int, size: int, *, symmetric: bool = True
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    kind = PerGroup(size) if size else PerChannel()
    spec = Weights(format=Int(bits, symmetric=symmetric), granularity=kind)
    matrix = normal(1, (outputs, inputs)) + np.float32(0.25)
    values, scales, zeros = quantize_matrix(matrix, spec)
    return pack_bits(values, bits) if bits < 5 else values, scales, zeros


WEIGHT_ONLY = {
    # rows, outputs, inputs, bits, group, symmetric, dtype, x_bits, int8 or bfloat16
    "nibbles": (3, 130, 512, 4, 128, False, jnp.bfloat16, None, True),
    "nibbles_bfloat16": (3, 32, 256, 4, 128, False, jnp.bfloat16, None, False),
    "small_groups": (1, 64, 256, 4, 32, True, jnp.float32, None, True),
    "bytes": (9, 40, 256, 8, 64, False, jnp.float32, None, True),
    "bytes_bfloat16": (9, 40, 256, 8, 128, True, jnp.float32, None, False),
    "w8a8": (8, 128, 256, 8, 128, False, jnp.bfloat16, 8, True),
    "w4a8_by_channel": (8, 32, 256, 4, 0, False, jnp.float32, 8, True),
    "w4a8_bfloat16": (2, 32, 256, 4, 64, False, jnp.float32, 8, False),
    "w6a4_bfloat16": (2, 32, 128, 6, 128, True, jnp.float32, 4, False),
    "two_bits": (2, 36, 512, 2, 64, True, jnp.bfloat16, None, True),
    "many_rows": (40, 140, 256, 4, 128, False, jnp.bfloat16, None, True),
    "large_groups": (3, 40, 512, 4, 512, False, jnp.bfloat16, None, True),
    "many_rows_in_parts": (40, 140, 2048, 4, 128, False, jnp.bfloat16, None, True),
    "many_rows_of_bytes": (300, 20, 128, 8, 32, True, jnp.bfloat16, None, True),
}


@pytest.mark.parametrize("name", WEIGHT_ONLY)
def test_weight_only_numbers(name: str) -> None:
    rows, outputs, inputs, bits, size, symmetric, dtype, x_bits, ints = WEIGHT_ONLY[
        name
    ]
    x = normal(0, (rows, inputs), dtype)
    stored = quantized(outputs, inputs, bits, size, symmetric=symmetric)
    run = functools.partial(
        weight_only.tpu, bits=bits, x_bits=x_bits, integers=ints, block=128
    )
    out = interpreted(run, x, *stored)
    wide = x.astype(jnp.float32)
    expected = reference(wide, *stored, bits=bits, x_bits=x_bits)
    dense = np.asarray(dense_weight(*stored, bits=bits, inputs=inputs))
    top = np.abs(np.asarray(wide)).max(1, keepdims=True)
    size_of = top * np.abs(dense).sum(1)
    tolerance = 1e-6 if dtype == jnp.float32 else 2**-8
    # Not weaker than the rounding of the result and of the weights allows:
    if dtype == jnp.bfloat16:
        tolerance = 2**-10
    error = np.abs(out - np.asarray(expected))
    assert (error <= tolerance * size_of).all(), (error / size_of).max()


@pytest.mark.parametrize(
    ("rows", "size", "dtype"),
    [(2, 128, jnp.float32), (40, 0, jnp.bfloat16)],
)
def test_weights_of_float8(rows: int, size: int, dtype: Any) -> None:
    kind = PerGroup(size) if size else PerChannel()
    spec = Weights(format=Float8(), granularity=kind)
    values, scales, _ = quantize_matrix(normal(1, (140, 256)), spec)
    x = normal(0, (rows, 256), dtype)
    run = functools.partial(weight_only.tpu, bits=8, x_bits=None, integers=True)
    out = interpreted(run, x, values, scales, None)
    wide = x.astype(jnp.float32)
    expected = reference(wide, values, scales, None, bits=8, x_bits=None)
    dense = dense_weight(values, scales, None, bits=8, inputs=256)
    tolerance = 2e-6 if dtype == jnp.float32 else 2**-8
    size_of = np.abs(np.asarray(wide)) @ np.abs(np.asarray(dense)).T
    assert (np.abs(out - np.asarray(expected)) <= tolerance * size_of).all()


def test_where_xla_is_left_to_convert_float8() -> None:
    values = jax.ShapeDtypeStruct((128, 256), jnp.float8_e4m3fn)
    for rows, groups, ours in ((3, 1, True), (40, 1, False), (40, 2, True)):
        x = jax.ShapeDtypeStruct((rows, 256), jnp.bfloat16)
        scales = jax.ShapeDtypeStruct((128, groups), jnp.float32)
        found = weight_only.prefers(x, values, scales, None, bits=8, x_bits=None)
        assert found == ours


def test_a_row_that_is_not_finite_spoils_itself_only() -> None:
    x = normal(0, (4, 256)).at[1, 2].set(jnp.nan).at[2, 0].set(jnp.inf)
    stored = quantized(32, 256, 8, 0)
    run = functools.partial(weight_only.tpu, bits=8, x_bits=None, integers=True)
    out = interpreted(run, x, *stored)
    assert not np.isfinite(out[1:3]).any()
    clean = interpreted(run, x[::3], *stored)
    np.testing.assert_array_equal(out[::3], clean)


def test_stacks_of_weights() -> None:
    values, scales, _ = quantized(32, 256, 4, 128)
    both = jnp.stack([values, values ^ np.uint8(0x11)])
    x = normal(0, (2, 3, 256))
    run = functools.partial(weight_only.tpu, bits=4, x_bits=None, integers=True)
    out = interpreted(jax.vmap(lambda x, v: run(x, v, scales, None)), x, both)
    for one, values_of_one, result in zip(x, both, out, strict=True):
        expected = reference(one, values_of_one, scales, None, bits=4, x_bits=None)
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "bits", "groups", "dtype", "word"),
    [
        ((4, 384), 4, 3, jnp.float32, "multiple of 256"),
        ((4, 384), 3, 3, jnp.float32, "3-bit"),
        ((4, 512), 4, 32, jnp.float32, "16 inputs"),
        ((4, 768), 8, 4, jnp.float32, "groups of 192"),
        ((0, 512), 8, 4, jnp.float32, "no rows"),
        ((64, 512), 8, 4, jnp.float32, "bfloat16"),
        ((4, 512), 8, 4, jnp.float16, "float16"),
    ],
)
def test_what_weight_only_refuses(
    shape: tuple[int, int], bits: int, groups: int, dtype: Any, word: str
) -> None:
    inputs = shape[1]
    x = jax.ShapeDtypeStruct(shape, dtype)
    values = jax.ShapeDtypeStruct((8, inputs * bits // 8), jnp.uint8)
    scales = jax.ShapeDtypeStruct((8, groups), jnp.float32)
    given = {"bits": bits, "x_bits": None}
    assert word in weight_only.refuses(x, values, scales, None, **given)
    with pytest.raises(ValueError, match=word):
        weight_only.tpu(x, values, scales, None, **given)


BLOCK_SPARSE = {
    # rows, kept blocks, block, dtypes of x and blocks, padding
    "float32": (9, ("101", "000", "010", "000"), (128, 128), "float32", "float32", 2),
    "bfloat16": (300, ("00", "11"), (128, 256), "bfloat16", "bfloat16", 0),
    "int8": (5, ("101", "000", "010"), (128, 128), "bfloat16", "int8", 3),
}


@pytest.mark.parametrize("name", BLOCK_SPARSE)
def test_block_sparse_numbers(name: str) -> None:
    rows, kept, (height, width), dtype, stored, padding = BLOCK_SPARSE[name]
    keep = np.array([[c == "1" for c in row] for row in kept])
    count = keep.sum() + padding
    drawn = np.random.default_rng(1).normal(size=(count, height, width))
    drawn = np.rint(drawn * 40) if stored == "int8" else drawn
    # What padding holds must not matter, nor where it points to.
    drawn[count - padding :] = 99 if stored == "int8" else np.nan
    columns = np.concatenate([np.nonzero(keep)[1], np.zeros(padding, int)])
    starts = np.concatenate([[0], np.cumsum(keep.sum(1))])
    blocks = jnp.asarray(drawn, jnp.float32).astype(stored)
    outputs = keep.shape[0] * height
    scales = None
    if stored == "int8":
        scales = jnp.asarray(np.linspace(0.5, 2, outputs)[:, None], jnp.float32)
    x = normal(0, (rows, keep.shape[1] * width), dtype)
    out = interpreted(
        functools.partial(block_sparse.tpu, outputs=outputs),
        x,
        blocks,
        jnp.asarray(columns, jnp.int32),
        jnp.asarray(starts, jnp.int32),
        scales,
    )
    dense = np.zeros((outputs, x.shape[1]))
    places = zip(*np.nonzero(keep), strict=True)
    for block, (row, column) in zip(blocks, places, strict=False):
        part = np.s_[
            row * height : (row + 1) * height, column * width : (column + 1) * width
        ]
        dense[part] = np.asarray(block.astype(jnp.float32))
    if scales is not None:
        dense *= np.asarray(scales)
    expected = np.asarray(x.astype(jnp.float32)).astype(np.float64) @ dense.T
    tolerance = 1e-5 if dtype == "float32" else 2**-8
    np.testing.assert_allclose(
        out, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max()
    )
    empty = ~keep.any(1).repeat(height)
    assert (out[:, empty] == 0).all()


def test_what_block_sparse_refuses() -> None:
    x = jax.ShapeDtypeStruct((4, 256), jnp.float32)
    starts = jax.ShapeDtypeStruct((3,), jnp.int32)
    for shape, word in (((2, 64, 128), "128"), ((0, 128, 128), "no blocks")):
        blocks = jax.ShapeDtypeStruct(shape, jnp.float32)
        columns = jax.ShapeDtypeStruct(shape[:1], jnp.int32)
        why = block_sparse.refuses(x, blocks, columns, starts, None, outputs=256)
        assert word in why


@pytest.mark.parametrize("rows", [3, 40])
@pytest.mark.parametrize("static", [True, False])
def test_integers_as_bfloat16_are_exact(rows: int, static: bool) -> None:
    values, scales, zeros = quantized(40, 256, 8, 0, symmetric=not static)
    x, bias = normal(3, (rows, 256)), normal(4, (40,))
    scale, zero = (
        (jnp.full((rows, 1), 0.02), jnp.full((rows, 1), -30.0))
        if static
        else (None, None)
    )
    args = (x, scale, zero, values, scales, zeros, bias)
    out = interpreted(functools.partial(int8.tpu, x_bits=8), *args)
    expected = np.asarray(int8_reference(*args, x_bits=8))
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6)


class Interpreted(SparseForm):
    """The form itself: interpret mode does not go with what surrounds it."""

    dtypes = (jnp.bfloat16,)
    form: ClassVar[Callable[..., jax.Array]]

    def run(self, x: jax.Array, weight: Any, **static: Any) -> jax.Array:
        run = functools.partial(type(self).form, **static)
        out = interpreted(run, x.reshape(-1, x.shape[-1]), *weight)
        return jnp.asarray(out).astype(x.dtype).reshape(*x.shape[:-1], -1)

    @pytest.mark.parametrize("batch", ["many_rows"])
    def test_batches(self, batch: str) -> None:
        super().test_batches(batch)


class TestNMSparse(Interpreted, NMSparseForm):
    inputs = 512
    dtypes = (jnp.float32,)
    kinds = (jnp.bfloat16, jnp.int8)
    patterns = ((2, 4), (1, 4), (4, 8), (2, 8))
    form = staticmethod(nm_sparse.tpu)

    def weight(
        self,
        seed: int = 1,
        pattern: tuple[int, int] = (2, 4),
        shape: tuple[int, int] = (16, 512),
        kind: Any = jnp.bfloat16,
    ) -> Any:
        return super().weight(seed, pattern, shape, kind)

    # In three steps of the loop:
    @pytest.mark.parametrize("inputs", [1536])
    def test_patterns(self, inputs: int) -> None:
        super().test_patterns(inputs)

    def test_dtypes(self) -> None:
        (values, *rest), dense, static = self.weight(kind=jnp.int8)
        x = normal(0, (3, 512), jnp.bfloat16)
        self.check(x, dense, self.run(x, (values, *rest), **static))


class TestCodebook(Interpreted, CodebookForm):
    inputs = 256
    form = staticmethod(codebook.tpu)

    def weight(
        self,
        seed: int = 1,
        size: int = 16,
        shape: tuple[int, int] = (16, 24),
        tables: int = 1,
    ) -> Any:
        return super().weight(seed, size, (256, 256), tables)

    @pytest.mark.parametrize("size", [16, 200])
    def test_tables(self, size: int) -> None:
        for tables in (1, 2):
            weight, dense, _ = self.weight(size=size, tables=tables)
            x = normal(0, (3, 256), jnp.bfloat16)
            self.check(x, dense, self.run(x, weight))

    def test_a_number_that_is_not_finite_spoils_its_row_only(self) -> None:
        """A row's product is one of floats; `TestNMSparse` looks."""


def test_what_the_sparse_kernels_refuse() -> None:
    x = jax.ShapeDtypeStruct((4, 256), jnp.bfloat16)
    mask = jax.ShapeDtypeStruct((8, 32), jnp.uint8)
    for (n, m), kind, word in (
        ((3, 4), jnp.bfloat16, "3:4"),
        ((2, 4), jnp.float32, "float32"),
        ((4, 8), jnp.bfloat16, "multiple of 512"),
    ):
        values = jax.ShapeDtypeStruct((8, 256 * n // m), kind)
        assert word in nm_sparse.refuses(x, values, mask, None, n=n, m=m)
    indices = jax.ShapeDtypeStruct((64, 256), jnp.uint8)
    tables = jax.ShapeDtypeStruct((2, 200), jnp.float32)
    assert "share a table" in codebook.refuses(x, indices, tables)


def test_blocks_by_the_tables(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(_tiles.VARIABLE, str(tmp_path))
    values, scales, _ = quantized(300, 256, 4, 128)
    x = normal(0, (2, 256))

    def grid() -> Any:
        run = functools.partial(weight_only.tpu, bits=4, x_bits=None, integers=True)
        equations = jax.make_jaxpr(run)(x, values, scales, None).eqns
        (call,) = (e for e in equations if "grid_mapping" in e.params)
        return call.params["grid_mapping"].grid

    assert grid() == (1,)
    for number in (128, 100):
        choice = {"W4 float32 grouped": {"few_block": number}}
        _tiles.write(tmp_path, "tpu", "TPU v5 lite", {"weight_only_matmul": choice})
        if number == 128:
            assert grid() == (3,)
    with pytest.raises(ValueError, match="few_block = 100"):
        grid()


COMPILED = """
import json
import sys

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from jcompress.kernels.block_sparse_matmul import tpu as block_sparse
from jcompress.kernels.codebook_matmul import tpu as codebook
from jcompress.kernels.float8_matmul.xla import xla as float8
from jcompress.kernels.int8_matmul import tpu as int8
from jcompress.kernels.int8_matmul.reference import reference as int8_reference
from jcompress.kernels.nm_sparse_matmul import tpu as nm_sparse
from jcompress.kernels.weight_only_matmul import tpu as weight_only

topology = topologies.get_topology_desc(platform="tpu", topology_name=sys.argv[1])
place = SingleDeviceSharding(topology.devices[0])


def temporary(function, *arrays, ours=True):
    arguments = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=place) for shape, dtype in arrays
    ]
    traced = jax.jit(function).trace(*arguments)
    compiled = traced.lower(lowering_platforms=("tpu",)).compile()
    assert ours == ("custom-call" in compiled.as_text())
    return compiled.memory_analysis().temp_size_in_bytes


def weights(rows, bits, x_bits=None, kind=jnp.int8):
    kind = jnp.uint8 if bits == 4 else kind
    return temporary(
        lambda x, v, s: weight_only.tpu(
            x, v, s, None, bits=bits, x_bits=x_bits, integers="7x" not in sys.argv[1]
        ),
        ((rows, 512), jnp.bfloat16),
        ((384, 512 * bits // 8), kind),
        ((384, 4), jnp.float32),
    )


def nm(n, m):
    return temporary(
        lambda *arrays: nm_sparse.tpu(*arrays, None, n=n, m=m),
        ((3, 512), jnp.bfloat16),
        ((384, 512 * n // m), jnp.bfloat16),
        ((384, 64), jnp.uint8),
    )


print(json.dumps({
    "2:4": nm(2, 4),
    "4:8": nm(4, 8),
    "codebook": temporary(
        codebook.tpu,
        ((3, 512), jnp.bfloat16),
        ((384, 256), jnp.uint8),
        ((1, 16), jnp.float32),
    ),
    "w4a16": weights(3, 4),
    "w8a16": weights(3, 8),
    "w8a16 float8": weights(3, 8, kind=jnp.float8_e4m3fn),
    "many of float8": weights(64, 8, kind=jnp.float8_e4m3fn),
    "w8a8 float8": temporary(
        lambda x, v, s: float8(x, None, v, s, None),
        ((1, 512), jnp.bfloat16),
        ((384, 512), jnp.float8_e4m3fn),
        ((384, 1), jnp.float32),
        ours=False,
    ),
    "w4a8": weights(3, 4, 8),
    "many": weights(64, 4),
    "block_sparse": temporary(
        lambda *arrays: block_sparse.tpu(*arrays, None, outputs=384),
        ((24, 512), jnp.bfloat16),
        ((4, 128, 128), jnp.bfloat16),
        ((4,), jnp.int32),
        ((4,), jnp.int32),
    ),
}))
"""


SHARDED = """
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax import P
from jax.experimental import topologies
from jax.sharding import NamedSharding

from jcompress.kernels import Implementation, weight_only_matmul
from jcompress.kernels.block_sparse_matmul import block_sparse_matmul

topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
mesh = jax.sharding.Mesh(np.array(topology.devices).reshape(2, 2), ("a", "b"))
COLLECTIVE = "(all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter)"


def sharded(form, cuts, out, shapes, over=()):
    def part(*arrays):
        product = form(*arrays)
        return jax.lax.psum(product, over) if over else product

    run = jax.jit(jax.shard_map(part, mesh=mesh, in_specs=cuts, out_specs=out))
    arguments = [
        jax.ShapeDtypeStruct(*given, sharding=NamedSharding(mesh, cut))
        for given, cut in zip(shapes, cuts)
    ]
    compiled = run.trace(*arguments).lower(lowering_platforms=("tpu",)).compile()
    text = compiled.as_text()
    assert "tpu_custom_call" in text
    found = re.findall(f" {COLLECTIVE}(?:-start)?[(]", text)
    return sorted(set(found)), compiled.memory_analysis().temp_size_in_bytes


def w4(x, values, scales):
    return weight_only_matmul(x, values, scales, bits=4)


def sparse(x, blocks, columns, starts):
    tpu = Implementation.TPU
    return block_sparse_matmul(x, blocks, columns, starts[0], implementation=tpu)


dense = [
    ((8, 2048), jnp.bfloat16), ((1024, 1024), jnp.uint8), ((1024, 16), jnp.float32)
]
stored = [
    ((512, 1024), jnp.bfloat16),
    ((8, 128, 128), jnp.bfloat16),
    ((8,), jnp.int32),
    ((2, 5), jnp.int32),
]
both = ("a", "b")
print(json.dumps({
    "outputs": sharded(w4, (P(), P(both), P(both)), P(None, both), dense),
    "inputs": sharded(
        w4, (P(None, "b"), P("a", "b"), P("a", "b")), P(None, "a"), dense, over="b"
    ),
    "blocks": sharded(sparse, (P("b"), P("a"), P("a"), P("a")), P("b", "a"), stored),
}))
"""

ABSENT = importlib.util.find_spec("libtpu") is None


def in_a_process(program: str, *arguments: str) -> Any:
    """What a program prints; libtpu takes hold of its environment."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    }
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(ABSENT, reason="the compiler, libtpu, is absent")
@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2", "tpu7x:2x2x1"])
def test_programs_compile_and_write_no_weight(topology: str) -> None:
    temporary = in_a_process(COMPILED, topology)
    assert len(temporary) == 11
    assert max(temporary.values()) < 384 * 512 // 4, temporary


@pytest.mark.skipif(ABSENT, reason="the compiler, libtpu, is absent")
def test_compiled_for_a_mesh_no_weight_moves() -> None:
    """Weights cut along outputs, inputs or both, on four devices."""
    found = in_a_process(SHARDED)
    collectives = {name: moved for name, (moved, _) in found.items()}
    assert collectives == {"outputs": [], "inputs": ["all-reduce"], "blocks": []}
    # The smallest part of a weight has 128 KiB.
    assert max(size for _, size in found.values()) < 2**16, found
