"""What every implementation of a sparse or clustered product must do.

Backends subclass these as those of `conformance`:

    class TestXla(BlockSparseMatmul):
        implementation = Implementation.XLA
"""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.kernels import Implementation
from jcompress.kernels.block_sparse_matmul import block_sparse_matmul
from jcompress.kernels.codebook_matmul import codebook_matmul
from jcompress.kernels.nm_sparse_matmul import nm_sparse_matmul
from jcompress.kernels.unstructured_sparse_matmul import unstructured_sparse_matmul
from jcompress.kernels.vector_codebook_matmul import vector_codebook_matmul
from jcompress.tensors import Codebook
from jcompress.tensors.axes import Axes
from jcompress.tensors.block_sparse import take_blocks
from jcompress.tensors.nm_sparse import take_kept
from jcompress.tensors.unstructured_sparse import pack_values, take_values
from jcompress.tensors.vector_codebook import pack_codes

Host = np.ndarray[Any, Any]

BATCHES = {
    "one_row": (1,),
    "batches": (2, 3),
    "many_rows": (70,),
    "no_batch_axis": (),
    "nothing": (3, 0),
}


def normal(shape: tuple[int, ...], dtype: Any = jnp.float32, seed: int = 0) -> Any:
    x = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(x, jnp.float32).astype(dtype)


def stored(matrix: Host, kind: Any) -> tuple[Any, Host | None, Host]:
    """A matrix in a dtype to store it in, its scales, and the matrix that it is."""
    if kind != jnp.int8:
        values = np.asarray(jnp.asarray(matrix, jnp.float32).astype(kind))
        return values, None, values.astype(np.float64)
    top = np.abs(matrix).max(1, keepdims=True)
    scales = (np.where(top == 0, 1, top) / 127).astype(np.float32)
    values = np.rint(matrix / scales).astype(np.int8)
    return values, scales, values.astype(np.float64) * scales


class Scaled(NamedTuple):
    """Integers with a scale for each of so many groups of inputs, if these divide."""

    bits: int
    groups: int

    def stored(self, matrix: Host) -> tuple[Any, Host, Host]:
        """As `stored`."""
        outputs, inputs = matrix.shape
        groups = max(g for g in range(1, self.groups + 1) if inputs % g == 0)
        parts = matrix.reshape(outputs, groups, -1)
        top = np.abs(parts).max(2, keepdims=True)
        scales = (np.where(top == 0, 1, top) / (2 ** (self.bits - 1) - 1)).astype("f4")
        values = np.rint(parts / scales).astype(np.int8)
        dense = (values.astype(np.float64) * scales).reshape(matrix.shape)
        return values.reshape(matrix.shape), scales[..., 0], dense


def arrays(*parts: Any) -> tuple[Any, ...]:
    return tuple(None if part is None else jnp.asarray(part) for part in parts)


class SparseForm:
    """What the form of an implementation computes."""

    implementation: ClassVar[Implementation | None]
    operation: ClassVar[Any]
    dtypes: ClassVar[tuple[Any, ...]] = (jnp.float32, jnp.bfloat16)
    kinds: ClassVar[tuple[Any, ...]] = (jnp.float32, jnp.bfloat16, jnp.int8)
    tolerance: ClassVar[dict[str, float]] = {
        "float32": 1e-6, "bfloat16": 2**-7, "float16": 2**-9,
    }  # fmt: skip
    inputs: ClassVar[int] = 24
    """Of the weight that `weight` makes if it is told nothing."""

    def weight(self, seed: int = 1) -> tuple[tuple[Any, ...], Host, dict[str, Any]]:
        """The stored arrays, the float64 matrix they stand for, and the keywords."""
        raise NotImplementedError

    def run(self, x: jax.Array, weight: Any, **static: Any) -> jax.Array:
        out: jax.Array = type(self).operation(
            x, *weight, implementation=self.implementation, **static
        )
        return out

    def check(self, x: jax.Array, dense: Host, out: jax.Array) -> None:
        wide = np.asarray(x).astype(np.float64)
        assert out.shape == (*x.shape[:-1], dense.shape[0])
        assert out.dtype == x.dtype
        size = np.abs(wide) @ np.abs(dense).T
        error = np.abs(np.asarray(out).astype(np.float64) - wide @ dense.T)
        allowed = self.tolerance[x.dtype.name] * size
        assert (error <= allowed).all(), error.max()

    @pytest.mark.parametrize("batch", BATCHES)
    def test_batches(self, batch: str) -> None:
        weight, dense, static = self.weight()
        for dtype in self.dtypes if batch == "batches" else self.dtypes[:1]:
            x = normal((*BATCHES[batch], self.inputs), dtype)
            self.check(x, dense, self.run(x, weight, **static))

    def test_a_number_that_is_not_finite_spoils_its_row_only(self) -> None:
        weight, dense, static = self.weight()
        x = normal((4, self.inputs)).at[1].set(jnp.nan).at[2].set(jnp.inf)
        out = self.run(x, weight, **static)
        assert not bool(jnp.isfinite(out[1]).all())
        self.check(x[:1], dense, out[:1])
        self.check(x[3:], dense, out[3:])


class Composed(SparseForm):
    """What surrounds a form: `vmap`, `scan`, gradients, several devices."""

    def test_vmap_over_stacked_weights(self) -> None:
        made = [self.weight(seed) for seed in range(3)]
        weight = self.stack([each[0] for each in made])
        x = normal((3, 4, self.inputs))
        out = jax.vmap(lambda x, w: self.run(x, w, **made[0][2]))(x, weight)
        for i, (_, dense, _) in enumerate(made):
            self.check(x[i], dense, out[i])

    def stack(self, weights: list[Any]) -> Any:
        return jax.tree.map(lambda *parts: jnp.stack(parts), *weights)

    def test_vmap_over_activations(self) -> None:
        weight, dense, static = self.weight()
        x = normal((5, self.inputs))
        out = jax.vmap(lambda x: self.run(x, weight, **static))(x)
        self.check(x, dense, out)

    def test_in_a_scan(self) -> None:
        made = [self.weight(seed) for seed in range(3)]
        weight = self.stack([each[0] for each in made])
        x = normal((4, self.inputs))

        def step(carry: None, w: Any) -> tuple[None, jax.Array]:
            return carry, self.run(x, w, **made[0][2])

        _, out = jax.lax.scan(step, None, weight)
        for i, (_, dense, _) in enumerate(made):
            self.check(x, dense, out[i])

    def test_gradient(self) -> None:
        weight, dense, static = self.weight()
        for dtype, rows in zip(self.dtypes, (33, 3), strict=False):
            cotangent = normal((2, rows, dense.shape[0]), seed=3)
            x = normal((2, rows, self.inputs), dtype)
            given = cotangent.astype(dtype)
            (dx,) = jax.vjp(lambda x: self.run(x, weight, **static), x)[1](given)
            self.check(given, dense.T, dx)

    def test_rows_may_lie_on_several_devices(self) -> None:
        mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
        weight, dense, static = self.weight()
        by_row = jax.NamedSharding(mesh, jax.P("d"))
        by_output = jax.NamedSharding(mesh, jax.P(None, "d"))
        whole = jax.NamedSharding(mesh, jax.P())
        x = normal((4, self.inputs))
        placed = jax.device_put(weight, whole)
        for given, wanted in ((by_row, by_row), (by_output, by_output)):
            run = jax.jit(lambda x, w: self.run(x, w, **static), out_shardings=wanted)
            out = run(jax.device_put(x, given), placed)
            self.check(x, dense, out)


class BlockSparseForm(SparseForm):
    """What a form of `block_sparse_matmul` computes."""

    operation = staticmethod(block_sparse_matmul)
    blocks: ClassVar[tuple[tuple[int, int], ...]] = ((1, 4), (4, 1), (4, 8), (16, 24))

    def weight(
        self,
        seed: int = 1,
        block: tuple[int, int] = (4, 8),
        shape: tuple[int, int] = (16, 24),
        kind: Any = jnp.float32,
        density: float = 0.4,
    ) -> tuple[tuple[Any, ...], Host, dict[str, Any]]:
        rng = np.random.default_rng(seed)
        keep = rng.random((shape[0] // block[0], shape[1] // block[1])) < density
        mask = np.repeat(np.repeat(keep, block[0], 0), block[1], 1)
        values, scales, dense = stored(rng.normal(size=shape) * mask, kind)
        return arrays(*take_blocks(values, block), scales), dense, {}

    def test_blocks(self) -> None:
        for number, block in enumerate(self.blocks):
            kind = self.kinds[number % len(self.kinds)]
            shape = (block[0] * 3, block[1] * 6)
            weight, dense, _ = self.weight(block=block, shape=shape, kind=kind)
            x = normal((3, shape[1]))
            self.check(x, dense, self.run(x, weight))

    def test_dtypes(self) -> None:
        for kind in self.kinds:
            weight, dense, _ = self.weight(kind=kind)
            for dtype in self.dtypes:
                x = normal((3, 24), dtype)
                self.check(x, dense, self.run(x, weight))

    @pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
    @pytest.mark.parametrize("rows", [3, 40])
    def test_densities(self, rows: int, density: float) -> None:
        weight, dense, _ = self.weight(block=(2, 3), density=density)
        x = normal((rows, 24))
        self.check(x, dense, self.run(x, weight))

    @pytest.mark.parametrize("rows", [3, 40])
    def test_padding_adds_nothing(self, rows: int) -> None:
        (blocks, columns, starts, _), dense, _ = self.weight()
        blocks = jnp.pad(blocks, ((0, 3), (0, 0), (0, 0)))
        weight = (blocks, jnp.pad(columns, (0, 3)), starts, None)
        x = normal((rows, 24))
        self.check(x, dense, self.run(x, weight))

    def test_the_last_rows_of_blocks_may_be_empty(self) -> None:
        matrix = np.zeros((12, 24), np.float32)
        matrix[4:8, 8:16] = 1.5
        x = normal((3, 24))
        out = self.run(x, arrays(*take_blocks(matrix, (4, 8)), None))
        self.check(x, matrix.astype(np.float64), out)


class BlockSparseMatmul(BlockSparseForm, Composed):
    """Conformance of an implementation of `block_sparse_matmul`."""

    def stack(self, weights: list[Any]) -> Any:
        """Padded to one number of blocks."""
        most = max(weight[0].shape[0] for weight in weights)

        def padded(weight: Any) -> Any:
            blocks, columns, starts, scales = weight
            more = most - blocks.shape[0]
            blocks = jnp.pad(blocks, ((0, more), (0, 0), (0, 0)))
            return blocks, jnp.pad(columns, (0, more)), starts, scales

        return super().stack([padded(weight) for weight in weights])


class NMSparseForm(SparseForm):
    """What a form of `nm_sparse_matmul` computes."""

    operation = staticmethod(nm_sparse_matmul)
    patterns: ClassVar[tuple[tuple[int, int], ...]] = (
        *((2, 4), (1, 4), (4, 8), (2, 8), (1, 2), (3, 5)),
    )

    def weight(
        self,
        seed: int = 1,
        pattern: tuple[int, int] = (2, 4),
        shape: tuple[int, int] = (16, 24),
        kind: Any = jnp.float32,
    ) -> tuple[tuple[Any, ...], Host, dict[str, Any]]:
        n, m = pattern
        rng = np.random.default_rng(seed)
        groups = -(-shape[1] // m)
        # At most n of m; a few groups have fewer, which zeros fill up.
        rank = rng.random((shape[0], groups, m)).argsort(-1)
        keep = (rank < n) & (rng.random(rank.shape) < 0.9)
        mask = keep.reshape(shape[0], -1)[:, : shape[1]]
        values, scales, dense = stored(rng.normal(size=shape) * mask, kind)
        return arrays(*take_kept(values, n, m), scales), dense, {"n": n, "m": m}

    @pytest.mark.parametrize("inputs", [33, 3])
    def test_patterns(self, inputs: int) -> None:
        for number, pattern in enumerate(self.patterns):
            kind = self.kinds[number % len(self.kinds)]
            weight, dense, static = self.weight(
                pattern=pattern, shape=(5, inputs), kind=kind
            )
            x = normal((3, inputs))
            self.check(x, dense, self.run(x, weight, **static))

    def test_dtypes(self) -> None:
        for kind in self.kinds:
            weight, dense, static = self.weight(kind=kind)
            for dtype in self.dtypes:
                x = normal((3, 24), dtype)
                self.check(x, dense, self.run(x, weight, **static))


class NMSparseMatmul(NMSparseForm, Composed):
    """Conformance of an implementation of `nm_sparse_matmul`."""

    def test_inputs_on_several_devices(self) -> None:
        """The parts of the weight stay where they are; only results are summed."""
        mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
        weight, dense, static = self.weight(shape=(16, 32))
        by_input = jax.NamedSharding(mesh, jax.P(None, "d"))
        whole = jax.NamedSharding(mesh, jax.P())
        x = jax.device_put(normal((4, 32)), by_input)
        placed = jax.device_put(weight[:2], by_input)
        run = jax.jit(lambda x, w: self.run(x, w, **static), out_shardings=whole)
        self.check(x, dense, run(x, placed))
        text = run.lower(x, placed).compile().as_text()
        assert "all-reduce" in text
        assert "all-gather" not in text


class UnstructuredSparseForm(SparseForm):
    """What a form of `unstructured_sparse_matmul` computes."""

    operation = staticmethod(unstructured_sparse_matmul)
    kinds: ClassVar[tuple[Any, ...]] = (
        *SparseForm.kinds,
        *(Scaled(4, 1), Scaled(4, 4), Scaled(8, 4)),
    )

    def weight(
        self,
        seed: int = 1,
        shape: tuple[int, int] = (16, 24),
        kind: Any = jnp.float32,
        density: float = 0.3,
        values: int | None = 160,
    ) -> tuple[tuple[Any, ...], Host, dict[str, Any]]:
        """As many values in each, so that weights stack; None for those there are."""
        rng = np.random.default_rng(seed)
        # Some outputs keep nothing, some all.
        share = rng.permutation(np.linspace(0, 2 * density, shape[0]))[:, None]
        keep = rng.random(shape) < share
        matrix = rng.normal(size=shape) * keep
        if isinstance(kind, Scaled):
            kept, scales, dense = kind.stored(matrix)
        else:
            kept, scales, dense = stored(matrix, kind)
        packed, mask, starts = take_values(kept)
        if isinstance(kind, Scaled) and kind.bits == 4:
            packed = pack_values(packed)
        if values is not None:
            packed = np.pad(packed, (0, values - len(packed)))
        return arrays(packed, mask, starts, scales), dense, {}

    def test_dtypes_and_densities(self) -> None:
        for kind, density in zip(self.kinds, 2 * (0.1, 0.5, 0.9), strict=True):
            weight, dense, _ = self.weight(kind=kind, density=density, values=None)
            for dtype in self.dtypes:
                x = normal((3, 24), dtype)
                self.check(x, dense, self.run(x, weight))

    def test_a_weight_of_zeros(self) -> None:
        for kind in self.kinds:
            weight, dense, _ = self.weight(density=0.0, kind=kind, values=None)
            x = normal((3, 24))
            np.testing.assert_array_equal(self.run(x, weight), np.zeros((3, 16)))
            assert not dense.any()


class UnstructuredSparseMatmul(UnstructuredSparseForm, Composed):
    """Conformance of an implementation of `unstructured_sparse_matmul`."""


class CodebookForm(SparseForm):
    """What a form of `codebook_matmul` computes."""

    operation = staticmethod(codebook_matmul)

    def weight(
        self,
        seed: int = 1,
        size: int = 16,
        shape: tuple[int, int] = (16, 24),
        tables: int = 1,
    ) -> tuple[tuple[Any, ...], Host, dict[str, Any]]:
        rng = np.random.default_rng(seed)
        parts = []
        for _ in range(tables):
            values = rng.normal(size=size).astype(np.float32)
            rows = (shape[0] // tables, shape[1])
            index = rng.integers(size, size=rows).reshape(-1)
            # Every value occurs where there is room, so that the tables are as long.
            index[: min(size, index.size)] = np.arange(min(size, index.size))
            dense = values[index].reshape(rows)
            leaf = Codebook.of(jnp.asarray(dense), Axes((), (0,), (1,)))
            parts.append((dense, leaf.indices, leaf.codebook))
        dense, indices, codebook = (
            np.concatenate(part) for part in zip(*parts, strict=True)
        )
        return arrays(indices, codebook), dense.astype(np.float64), {}

    @pytest.mark.parametrize("size", [1, 16, 200])
    def test_tables(self, size: int) -> None:
        for tables, inputs in ((1, 33), (2, 64)):
            weight, dense, _ = self.weight(size=size, shape=(16, inputs), tables=tables)
            x = normal((3, inputs))
            self.check(x, dense, self.run(x, weight))


class CodebookMatmul(CodebookForm, Composed):
    """Conformance of an implementation of `codebook_matmul`."""


class VectorCodebookForm(SparseForm):
    """What a form of `vector_codebook_matmul` computes."""

    operation = staticmethod(vector_codebook_matmul)
    settings: ClassVar[tuple[tuple[int, int, int], ...]] = (
        *((4, 1, 8), (2, 1, 5), (3, 2, 7), (8, 2, 4), (1, 3, 1), (7, 4, 6)),
    )
    """Weights a code, codes, and bits of each."""

    def weight(
        self,
        seed: int = 1,
        setting: tuple[int, int, int] = (4, 2, 5),
        shape: tuple[int, int] = (16, 24),
    ) -> tuple[tuple[Any, ...], Host, dict[str, Any]]:
        length, count, bits = setting
        outputs, inputs = shape
        rng = np.random.default_rng(seed)
        codes = rng.integers(2**bits, size=(outputs, count, -(-inputs // length)))
        # Of one sign at each place, so that sums of entries do not cancel.
        signs = rng.choice([-1, 1], size=length)
        tables = signs * np.abs(rng.normal(size=(count, 2**bits, length)))
        tables = tables.astype(np.float32)
        scales = rng.normal(size=(outputs, 1)).astype(np.float32)
        entries = [tables[m].astype(np.float64)[codes[:, m]] for m in range(count)]
        dense = sum(entries).reshape(outputs, -1)[:, :inputs] * scales
        packed = pack_codes(jnp.asarray(codes, jnp.uint8), bits)
        return arrays(packed, tables, scales), dense, {}

    def test_settings(self) -> None:
        for setting, inputs in zip(self.settings, (33, 64, 7, 64, 9, 1), strict=True):
            weight, dense, _ = self.weight(setting=setting, shape=(5, inputs))
            x = normal((3, inputs))
            self.check(x, dense, self.run(x, weight))


class VectorCodebookMatmul(VectorCodebookForm, Composed):
    """Conformance of an implementation of `vector_codebook_matmul`."""

    def test_gradients_of_tables_and_scales(self) -> None:
        (codes, tables, scales), *_ = self.weight()
        x, cotangent = normal((3, 24)), normal((3, 16), seed=3)

        def moved(by: float, in_tables: Any, in_scales: Any) -> float:
            weight = (codes, tables + by * in_tables, scales + by * in_scales)
            out = np.asarray(self.run(x, weight), np.float64)
            return float(np.sum(out * np.asarray(cotangent)))

        found = jax.vjp(lambda t, s: self.run(x, (codes, t, s)), tables, scales)[1](
            cotangent
        )
        for number, gradient in enumerate(found):
            way = [jnp.zeros_like(tables), jnp.zeros_like(scales)]
            way[number] = normal(gradient.shape, seed=4)
            slope = (moved(0.5, *way) - moved(-0.5, *way)) / 1.0
            assert abs(float(jnp.vdot(gradient, way[number])) - slope) < 1e-3 * 16
