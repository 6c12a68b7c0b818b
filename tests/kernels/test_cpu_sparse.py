"""The compiled sparse kernels for CPUs conform; sizes at the edges of what they cut."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sparse_conformance import (
    BlockSparseMatmul,
    CodebookMatmul,
    NMSparseMatmul,
    SparseForm,
    UnstructuredSparseMatmul,
    VectorCodebookMatmul,
    normal,
)

from jcompress.kernels import Implementation, _native

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(bool(_native.missing()), reason=_native.missing()),
]

CPU = Implementation.CPU


class Compiled(SparseForm):
    """Half precision too; activations of any number of rows."""

    implementation = CPU
    dtypes = (jnp.float32, jnp.bfloat16, jnp.float16)

    def check_rows(self, weight: Any, dense: Any, inputs: int, **static: Any) -> None:
        # One, some of a vector, two tiles, many with a rest.
        for rows in (1, 7, 12, 35):
            x = normal((rows, inputs))
            self.check(x, dense, self.run(x, weight, **static))


class TestBlockSparse(Compiled, BlockSparseMatmul):
    # Wide, of whole vectors of several lengths, parts of vectors, none of these.
    blocks = ((1, 4), (1, 8), (1, 16), (1, 32), (4, 1), (8, 2), (4, 4), (16, 1), (3, 8),
              (2, 8), (12, 4), (7, 16), (32, 32), (3, 5), (2, 3), (17, 12))  # fmt: skip

    @pytest.mark.parametrize("number", range(len(blocks)))
    def test_rows_and_blocks(self, number: int) -> None:
        high, wide = self.blocks[number]
        kind = self.kinds[number % len(self.kinds)]
        weight, dense, _ = self.weight(
            block=(high, wide), shape=(5 * high, 9 * wide), kind=kind
        )
        self.check_rows(weight, dense, 9 * wide)

    @pytest.mark.parametrize("kind", SparseForm.kinds)
    def test_many_blocks_in_a_row(self, kind: Any) -> None:
        for block in ((1, 4), (2, 2), (4, 16)):
            weight, dense, _ = self.weight(
                block=block, shape=(16, 3200), kind=kind, density=0.9
            )
            for rows in (1, 20):
                x = normal((rows, 3200))
                self.check(x, dense, self.run(x, weight))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"columns": [0, 3, 0]}, "columns is none of a block column"),
            ({"columns": [0, -1, 0]}, "columns is none of a block column"),
            ({"starts": [0, 2, 1, 3]}, "starts does not rise"),
            ({"starts": [-1, 1, 2, 3]}, "starts does not rise"),
            ({"starts": [0, 1, 2, 4]}, "starts does not rise"),
        ],
    )
    def test_what_is_out_of_bounds_is_an_error(
        self, change: dict[str, list[int]], message: str
    ) -> None:
        arrays = {"columns": [0, 1, 2], "starts": [0, 1, 2, 3]} | change
        columns, starts = (jnp.asarray(a, jnp.int32) for a in arrays.values())
        weight = (jnp.ones((3, 2, 4)), columns, starts, None)
        for rows in (1, 9):
            with pytest.raises(jax.errors.JaxRuntimeError, match=message):
                self.run(jnp.ones((rows, 12)), weight).block_until_ready()

    def test_columns_of_padding_are_not_looked_at(self) -> None:
        weight = (
            jnp.ones((3, 2, 4)),
            jnp.asarray([0, 1, 99], jnp.int32),
            jnp.asarray([0, 1, 2], jnp.int32),
            None,
        )
        out = self.run(jnp.ones((2, 12)), weight)
        np.testing.assert_array_equal(out, np.full((2, 4), 4, np.float32))


class TestNMSparse(Compiled, NMSparseMatmul):
    @pytest.mark.parametrize("inputs", [1, 63, 64, 1100])
    def test_rows_and_inputs(self, inputs: int) -> None:
        pattern = self.patterns[inputs % len(self.patterns)]
        for kind in self.kinds:
            weight, dense, static = self.weight(
                pattern=pattern, shape=(19, inputs), kind=kind
            )
            self.check_rows(weight, dense, inputs, **static)

    def test_bits_beyond_the_inputs_mean_nothing(self) -> None:
        (values, mask, _), dense, static = self.weight(shape=(5, 12))
        x = normal((3, 12))
        out = self.run(
            x, (values, mask.at[:, 1].set(mask[:, 1] | 0xF0), None), **static
        )
        self.check(x, dense, out)

    @pytest.mark.parametrize("rows", [2, 20])
    def test_a_mask_of_more_than_there_is_is_an_error(self, rows: int) -> None:
        weight = (jnp.ones((5, 64)), jnp.full((5, 16), 255, jnp.uint8), None)
        with pytest.raises(jax.errors.JaxRuntimeError, match="keeps more than values"):
            self.run(jnp.ones((rows, 128)), weight, n=2, m=4).block_until_ready()


class TestUnstructuredSparse(Compiled, UnstructuredSparseMatmul):
    @pytest.mark.parametrize("inputs", [1, 63, 64, 1100])
    def test_rows_and_inputs(self, inputs: int) -> None:
        for kind, density in zip(self.kinds, 2 * (0.05, 0.3, 1.0), strict=True):
            weight, dense, _ = self.weight(
                shape=(19, inputs), kind=kind, density=density, values=None
            )
            self.check_rows(weight, dense, inputs)

    def test_bits_beyond_the_inputs_mean_nothing(self) -> None:
        (values, mask, starts, _), dense, _ = self.weight(shape=(5, 12))
        more = mask.at[:, 1].set(mask[:, 1] | 0xF0)
        for rows in (1, 5):
            x = normal((rows, 12))
            self.check(x, dense, self.run(x, (values, more, starts, None)))

    @pytest.mark.parametrize(
        ("starts", "message"),
        [
            ([0, 64, 63, 192, 256, 320], "starts does not rise"),
            ([-1, 64, 128, 192, 256, 320], "starts does not rise"),
            ([0, 64, 128, 192, 256, 321], "starts does not rise"),
            ([0, 64, 127, 192, 256, 320], "keeps more than values"),
        ],
    )
    def test_what_is_out_of_bounds_is_an_error(
        self, starts: list[int], message: str
    ) -> None:
        where = jnp.asarray(starts, jnp.int32)
        weight = (jnp.ones(320), jnp.full((5, 8), 255, jnp.uint8), where, None)
        for rows in (1, 9):
            with pytest.raises(jax.errors.JaxRuntimeError, match=message):
                self.run(jnp.ones((rows, 64)), weight).block_until_ready()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"scales": jnp.zeros((0,))}, "integers of 4 bits have scales"),
            ({"scales": jnp.ones((1, 5, 3))}, "scales"),
            ({"starts": jnp.asarray([[0, 64, 128, 192, 256, 321]])}, "does not rise"),
            ({"starts": jnp.asarray([[0, 64, 127, 192, 256, 320]])}, "keeps more"),
        ],
    )
    def test_what_is_wrong_with_integers_of_four_bits_is_an_error(
        self, change: dict[str, jax.Array], message: str
    ) -> None:
        arrays = {
            "values": jnp.full((1, 160), 0x11, jnp.uint8),
            "mask": jnp.full((1, 5, 8), 255, jnp.uint8),
            "starts": jnp.arange(6)[None] * 64,
            "scales": jnp.ones((1, 5, 4)),
        } | change
        arrays["starts"] = arrays["starts"].astype(jnp.int32)
        for rows in (1, 9):
            x, out = jnp.ones((1, rows, 64)), jax.ShapeDtypeStruct((1, rows, 5), "f4")
            call = jax.ffi.ffi_call("jcompress_unstructured_sparse", out)
            with pytest.raises(jax.errors.JaxRuntimeError, match=message):
                call(x, *arrays.values(), layout=np.int64(1)).block_until_ready()


class TestCodebook(Compiled, CodebookMatmul):
    @pytest.mark.parametrize("size", [5, 17, 256])
    def test_rows_and_inputs(self, size: int) -> None:
        for tables, inputs in ((2, 129), (18, 700)):
            weight, dense, _ = self.weight(size=size, shape=(18, inputs), tables=tables)
            if weight[1].shape[1] == size:
                self.check_rows(weight, dense, inputs)

    @pytest.mark.parametrize("size", [3, 40])
    def test_indices_beyond_the_table_mean_its_last_value(self, size: int) -> None:
        table = normal((1, size))
        indices = jnp.full((4, 32 if size > 16 else 16), 255, jnp.uint8)
        for rows in (1, 6):
            x = normal((rows, 32))
            dense = np.full((4, 32), float(table[0, -1]))
            self.check(x, dense, self.run(x, (indices, table)))


class TestVectorCodebook(Compiled, VectorCodebookMatmul):
    @pytest.mark.parametrize("number", range(len(VectorCodebookMatmul.settings)))
    def test_rows_and_inputs(self, number: int) -> None:
        setting = self.settings[number]
        for shape in ((18, 130), (1, 700)):
            weight, dense, _ = self.weight(setting=setting, shape=shape)
            self.check_rows(weight, dense, shape[1])


@pytest.mark.parametrize("name", ["jcompress_block_sparse", "jcompress_nm_sparse"])
def test_arrays_of_another_layout_are_refused(name: str) -> None:
    count = 5 if name.endswith("block_sparse") else 4
    out = jax.ShapeDtypeStruct((1, 2, 4), jnp.float32)
    arrays = {
        4: [(1, 2, 8), (1, 4, 4), (1, 4, 1), (0,)],
        5: [(1, 2, 8), (1, 4, 1, 4), (1, 4), (1, 5), (0,)],
    }[count]
    dtypes = {4: "fFBf", 5: "ffiif"}[count].replace("F", "f")
    given = [jnp.zeros(s, d) for s, d in zip(arrays, dtypes, strict=True)]
    with pytest.raises(jax.errors.JaxRuntimeError, match="another layout"):
        jax.ffi.ffi_call(name, out)(*given, layout=np.int64(99)).block_until_ready()
