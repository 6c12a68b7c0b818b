"""One small product of each kind, for the doctor to try."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.formats.packing import FLOAT8 as F8
from jcompress.formats.packing import pack_bits
from jcompress.kernels._dispatch import Forms
from jcompress.kernels.attention.api import FORMS as ATTENTION
from jcompress.kernels.attention.axes import read
from jcompress.kernels.block_sparse_matmul.api import FORMS as BLOCK_SPARSE
from jcompress.kernels.codebook_matmul.api import FORMS as CODEBOOK
from jcompress.kernels.float8_matmul.api import FORMS as FLOAT8
from jcompress.kernels.int8_matmul.api import FORMS as INT8
from jcompress.kernels.nm_sparse_matmul.api import FORMS as NM_SPARSE
from jcompress.kernels.quantized_conv.api import FORMS as CONV
from jcompress.kernels.quantized_conv.window import Window
from jcompress.kernels.unstructured_sparse_matmul.api import (
    FORMS as UNSTRUCTURED_SPARSE,
)
from jcompress.kernels.vector_codebook_matmul.api import FORMS as VECTOR_CODEBOOK
from jcompress.kernels.weight_only_matmul.api import FORMS as WEIGHT_ONLY

ROWS, OUTPUTS, INPUTS, GROUPS = 4, 128, 512, 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleProduct:
    """A product of one kind, small, with the arguments of its forms.

    Attributes:
        name: the operation and what is particular.
        forms: the operation's.
        args: arrays with a stack axis of one, or None for one left out.
        static: keyword arguments.
    """

    name: str
    forms: Forms
    args: tuple[Any, ...]
    static: dict[str, Any]


def cases() -> list[SampleProduct]:
    """One small product of each kind."""
    draw = np.random.default_rng(0)

    def floats(*shape: int, dtype: Any = jnp.float32) -> jax.Array:
        return jnp.asarray(draw.normal(size=shape), jnp.float32).astype(dtype)

    def integers(*shape: int, bits: int = 8) -> jax.Array:
        top = 2 ** (bits - 1)
        return jnp.asarray(draw.integers(-top, top, shape), jnp.int8)

    def scales(*shape: int) -> jax.Array:
        return jnp.asarray(draw.uniform(0.01, 0.02, shape), jnp.float32)

    x = floats(1, ROWS, INPUTS)
    short = floats(1, ROWS, INPUTS, dtype=jnp.bfloat16)
    weight = (1, OUTPUTS, INPUTS)
    per_channel, per_group = (1, OUTPUTS, 1), (1, OUTPUTS, GROUPS)
    found = [
        SampleProduct(
            name="int8_matmul",
            forms=INT8,
            args=(x, None, None, integers(*weight), scales(*per_channel), None, None),
            static={"x_bits": 8},
        ),
        SampleProduct(
            name="weight_only_matmul float8, bfloat16",
            forms=WEIGHT_ONLY,
            args=(short, floats(*weight, dtype=F8), scales(*per_channel), None),
            static={"bits": 8, "x_bits": None},
        ),
    ]
    for bits, activations, x_bits, shape in (
        (8, short, None, per_channel),
        (4, x, None, per_channel),
        (4, short, None, per_group),
        (4, short, 8, per_group),
        (3, x, None, per_channel),
        (2, x, None, per_group),
    ):
        groups = "" if shape[-1] == 1 else f", {GROUPS} groups"
        numbers = str(activations.dtype) if x_bits is None else f"A{x_bits}"
        stored = pack_bits(integers(*weight, bits=bits), bits)
        found.append(
            SampleProduct(
                name=f"weight_only_matmul W{bits}{groups}, {numbers}",
                forms=WEIGHT_ONLY,
                args=(activations, stored, scales(*shape), integers(*shape, bits=bits)),
                static={"bits": bits, "x_bits": x_bits},
            )
        )
    for channels, x_bits in ((8, None), (128, 8)):
        window = Window(
            sizes=(6, 6),
            channels=channels,
            kernel=(3, 3),
            strides=(1, 1),
            padding=((1, 1), (1, 1)),
            dilation=(1, 1),
        )
        stored = pack_bits(integers(1, 64, window.inputs, bits=4), 4)
        images = floats(1, 2, 36 * channels)
        numbers = str(images.dtype) if x_bits is None else f"A{x_bits}"
        found.append(
            SampleProduct(
                name=f"quantized_conv W4 of {channels} channels, {numbers}",
                forms=CONV,
                args=(images, None, None, stored, scales(1, 64, 1), None),
                static={"bits": 4, "x_bits": x_bits, "window": window, "ending": None},
            )
        )
    heads = [floats(2, tokens, 4, 16) for tokens in (24, 40, 40)]
    found.append(
        SampleProduct(
            name="attention",
            forms=ATTENTION,
            args=(*heads, None, None),
            static={
                "axes": read("bthd,bshd,bshe->bthe", (*heads, None, None)),
                "scale": 0.25,
                "fill": 0.0,
            },
        )
    )
    found.append(
        SampleProduct(
            name="float8_matmul",
            forms=FLOAT8,
            args=(x, None, floats(*weight, dtype=F8), scales(*per_channel), None),
            static={},
        )
    )
    return [*found, *_sparse_cases(x, short, floats, draw)]


def _sparse_cases(
    x: jax.Array,
    short: jax.Array,
    floats: Callable[..., jax.Array],
    draw: np.random.Generator,
) -> list[SampleProduct]:
    found = []
    for given, height, width in ((short, 128, 128), (x, 1, 4)):
        across, down = INPUTS // width, OUTPUTS // height
        kept = 2
        columns = [np.sort(draw.permutation(across)[:kept]) for _ in range(down)]
        args = (
            given,
            floats(1, down * kept, height, width, dtype=given.dtype),
            jnp.asarray(np.concatenate(columns)[None], jnp.int32),
            jnp.arange(0, down * kept + 1, kept, dtype=jnp.int32)[None],
            None,
        )
        found.append(
            SampleProduct(
                name=f"block_sparse_matmul {height} x {width}",
                forms=BLOCK_SPARSE,
                args=args,
                static={"outputs": OUTPUTS},
            )
        )
    stored = (1, OUTPUTS, INPUTS // 2)
    halves = np.argsort(draw.random((OUTPUTS, INPUTS // 4, 4)), axis=-1) < 2
    mask = np.packbits(halves.reshape(OUTPUTS, INPUTS), axis=1, bitorder="little")
    count = OUTPUTS * INPUTS // 2
    starts = jnp.arange(0, count + 1, INPUTS // 2, dtype=jnp.int32)[None]
    return [
        *found,
        SampleProduct(
            name="nm_sparse_matmul 2:4",
            forms=NM_SPARSE,
            args=(x, floats(*stored), jnp.asarray(mask[None]), None),
            static={"n": 2, "m": 4},
        ),
        SampleProduct(
            name="unstructured_sparse_matmul",
            forms=UNSTRUCTURED_SPARSE,
            args=(x, floats(1, count), jnp.asarray(mask[None]), starts, None),
            static={},
        ),
        SampleProduct(
            name="unstructured_sparse_matmul of 4 bits",
            forms=UNSTRUCTURED_SPARSE,
            args=(
                x,
                jnp.asarray(draw.integers(0, 256, (1, count // 2)), jnp.uint8),
                jnp.asarray(mask[None]),
                starts,
                jnp.abs(floats(1, OUTPUTS, INPUTS // 32)),
            ),
            static={},
        ),
        SampleProduct(
            name="codebook_matmul of 16 values",
            forms=CODEBOOK,
            args=(
                x,
                jnp.asarray(draw.integers(0, 256, stored), jnp.uint8),
                floats(1, 1, 16),
            ),
            static={},
        ),
        SampleProduct(
            name="vector_codebook_matmul of 4 weights a code",
            forms=VECTOR_CODEBOOK,
            args=(
                x,
                jnp.asarray(
                    draw.integers(0, 256, (1, OUTPUTS, 1, INPUTS // 4)), jnp.uint8
                ),
                floats(1, 1, 256, 4),
                floats(1, OUTPUTS, 1),
            ),
            static={},
        ),
    ]
