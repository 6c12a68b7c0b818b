"""What every implementation of `attention` must do; `test_attention.py` names them."""

import functools
import math
import re
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.kernels import Implementation, attention

ROLES = "bthd,bshd,bshe->bthe"
SHAPES = {
    "a vector": (2, 16, 16, 1, 16, 16),
    "odd": (2, 5, 7, 3, 9, 6),
    "one row": (1, 1, 70, 2, 16, 24),
    "two rows of odd features": (2, 2, 9, 1, 19, 16),
    "one key": (2, 3, 1, 2, 8, 5),
    "one of all": (1, 1, 1, 1, 1, 1),
    "some rows": (1, 7, 33, 2, 16, 8),
    "many rows": (1, 37, 150, 2, 8, 24),
    "many keys": (1, 3, 300, 1, 4, 3),
    "no rows": (2, 0, 4, 2, 8, 8),
    "no keys": (2, 3, 0, 2, 8, 4),
    "no features": (2, 3, 4, 2, 0, 4),
    "no batch": (0, 3, 4, 2, 8, 4),
}
"""b, t, s, h, d, e."""

LAYOUTS = [
    "bthd,bshd,bshe->bthe",
    "bhtd,bhsd,bhse->bhte",
    "tbhd,sbhd,sbhe->tbhe",
    "bhtd,bhds,bhes->bthe",
    "dbth,shdb,esbh->ebht",
    "bthd,bsd,bse->bthe",  # one head of keys
    "bthd,shd,shbe->bhte",
    "thd,bshd,she->bthe",
]
ADDED = {
    "b": "bhts bhts",
    "pad": "bs bs",
    "causal": "ts ts",
    "head": "h1t1 1h11",
    "turned": "sthb sthb",
    "one": "1111 1",
    "few": "1hts b11s",
}
"""Axes of bias and mask, 1 for those of size 1."""

EXTENTS = dict(zip("btshde", (2, 5, 19, 3, 8, 6), strict=True))


def normal(shape: tuple[int, ...], seed: int, dtype: Any = jnp.float32) -> jax.Array:
    x = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return jnp.asarray(x.astype(dtype))


def kept(shape: tuple[int, ...], seed: int, share: float = 0.6) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).random(shape) < share)


def expected(
    arrays: Any, axes: str, scale: float = 1.0, fill: float = -math.inf
) -> np.ndarray:
    """The formula in float64, in the notation of b, t, s, h, d, e and g only."""
    names, result = axes.split("->")
    letters = iter(names.split(","))
    axes_of = [next(letters) if a is not None else "" for a in arrays]
    sizes: dict[str, int] = {}
    for of, a in zip(axes_of, arrays, strict=True):
        for c, n in zip(of, () if a is None else a.shape, strict=True):
            if sizes.get(c, 1) == 1:
                sizes[c] = n
    order = "".join(sizes)

    def spread(number: int, dtype: Any = np.float64) -> np.ndarray:
        a, of = np.asarray(arrays[number]).astype(dtype), axes_of[number]
        a = a.transpose([of.index(c) for c in order if c in of])
        return np.expand_dims(a, [i for i, c in enumerate(order) if c not in of])

    d, s = order.index("d"), order.index("s")
    with np.errstate(all="ignore"):
        full = [1 if c == "e" else n for c, n in sizes.items()]
        products = np.broadcast_to(spread(0) * spread(1), full)
        scores = scale * products.sum(d, keepdims=True)
        if arrays[3] is not None:
            scores = scores + spread(3)
        if arrays[4] is not None:
            scores = np.where(spread(4, bool), scores, fill)
        top = scores.max(s, keepdims=True, initial=-math.inf)
        weights = np.exp(scores - top)
        weights = weights / weights.sum(s, keepdims=True)
        out = (weights * spread(2)).sum(s, keepdims=True)
    shape = [1 if c in "ds" else n for c, n in sizes.items()]
    out = np.broadcast_to(out, shape).squeeze((d, s))
    left = [c for c in order if c not in "ds"]
    return out.transpose([left.index(c) for c in result])


def drawn(of: str, extents: dict[str, int], seed: int) -> jax.Array:
    return normal(tuple(extents[c] for c in of), seed)


def operands(axes: str, extents: dict[str, int] = EXTENTS) -> list[jax.Array]:
    """q, k and v, the first three in the notation."""
    names = re.split(",|->", axes)[:3]
    return [drawn(of, extents, seed) for seed, of in enumerate(names)]


class Attention:
    """Conformance of an implementation."""

    implementation: ClassVar[Implementation | None]
    dtypes: ClassVar[tuple[Any, ...]] = (jnp.float32, jnp.bfloat16)

    def check(
        self,
        arrays: Any,
        axes: str,
        scale: float = 1.0,
        fill: float = -math.inf,
        tolerance: float = 1e-6,
    ) -> None:
        given = (*arrays, *[None] * (5 - len(arrays)))
        run = functools.partial(
            attention,
            axes=axes,
            scale=scale,
            fill=fill,
            implementation=self.implementation,
        )
        out = jax.jit(run)(*given)
        want = expected(given, axes, scale, fill)
        assert out.dtype == given[0].dtype
        assert out.shape == want.shape
        got = np.asarray(out).astype(np.float64)
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
        if want.size:
            top = np.nanmax(np.abs(want), initial=0)
            assert np.nanmax(np.abs(got - want), initial=0) <= tolerance * top

    @pytest.mark.parametrize("shape", SHAPES)
    def test_shapes(self, shape: str) -> None:
        b, t, s, h, d, e = SHAPES[shape]
        for dtype in self.dtypes:
            q, k, v = (
                normal(of, seed, dtype)
                for seed, of in enumerate(((b, t, h, d), (b, s, h, d), (b, s, h, e)))
            )
            near = 1e-6 if dtype == jnp.float32 else 2**-6
            self.check((q, k, v), ROLES, 0.3, tolerance=near)

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_layouts(self, layout: str) -> None:
        self.check(operands(layout), layout, 0.5)
        ends = layout.split("->")
        bias = drawn("bhts", EXTENTS, 5)
        mask = kept((5, 19), 6).at[:, 3].set(True)
        noted = f"{ends[0]},bhts,ts->{ends[1]}"
        self.check((*operands(layout), bias, mask), noted, 0.5)

    @pytest.mark.parametrize("fill", [-math.inf, -1e9, -2.0])
    @pytest.mark.parametrize("added", ADDED)
    def test_bias_and_mask(self, added: str, fill: float) -> None:
        of_bias, of_mask = ADDED[added].split()

        def letters(of: str) -> str:
            places = iter("bhts")
            return "".join(
                next(p for p in places if p not in of) if c == "1" else c for c in of
            )

        for these in ({"bias"}, {"mask"}, {"bias", "mask"}):
            bias = mask = None
            noted = ROLES.split("->")[0]
            if "bias" in these:
                shape = tuple(1 if c == "1" else EXTENTS[c] for c in of_bias)
                bias = normal(shape, 5)
                noted += "," + letters(of_bias)
            if "mask" in these:
                shape = tuple(1 if c == "1" else EXTENTS[c] for c in of_mask)
                # With rows that have nothing left, and such as have all.
                mask = kept(shape, 6).at[..., 0].set(False).at[0].set(True)
                noted += "," + letters(of_mask)
            arrays = (*operands(ROLES), bias, mask)
            self.check(arrays, f"{noted}->bthe", 0.5, fill)

    @pytest.mark.parametrize("fill", [-math.inf, -1e9])
    def test_causal(self, fill: float) -> None:
        extents = {**EXTENTS, "t": 150, "s": 150, "h": 1}
        mask = jnp.tril(jnp.ones((150, 150), bool))
        noted = "bthd,bshd,bshe,ts->bthe"
        self.check((*operands(ROLES, extents), None, mask), noted, 0.4, fill)

    @pytest.mark.parametrize("rows", [1, 3, 20])
    @pytest.mark.parametrize("fill", [-math.inf, -1e9, -5.0])
    def test_rows_without_keys(self, rows: int, fill: float) -> None:
        """NaN as in `jax.nn.softmax`, or the mean of all values."""
        extents = {**EXTENTS, "t": rows, "s": 300, "d": 16, "e": 16}
        mask = kept((rows, 300), 3, 0.1).at[:, :130].set(False).at[-1].set(False)
        noted = "bthd,bshd,bshe,ts->bthe"
        self.check((*operands(ROLES, extents), None, mask), noted, 0.3, fill)

    def test_two_letters_of_rows(self) -> None:
        """Query heads g that share a key head h."""
        extents = {**EXTENTS, "g": 4}
        axes = "bthgd,bshd,bshe,hgts,bs->bthge"
        bias = drawn("hgts", extents, 5)
        mask = kept((2, 19), 6).at[:, 0].set(True)
        self.check((*operands(axes, extents), bias, mask), axes, 0.5)

    @pytest.mark.parametrize("rows", [1, 5])
    @pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 1e30, -1e30])
    def test_odd_numbers(self, number: float, rows: int) -> None:
        extents = {**EXTENTS, "t": rows, "d": 16, "e": 8}
        q, k, v = operands(ROLES, extents)
        bias = drawn("bhts", extents, 5).at[0, 1, 0, 7].set(number)
        noted = "bthd,bshd,bshe,bhts->bthe"
        self.check((q, k, v, bias), noted)
        self.check((q.at[0, 0, 1, 2].set(number), k, v), ROLES)
        masked = (q, k.at[0, 4, 1, 2].set(number), v, None, jnp.arange(19) != 4)
        self.check(masked, "bthd,bshd,bshe,s->bthe", fill=-1e9)

    def test_axes_of_size_1(self) -> None:
        q, k, v = operands(ROLES)
        self.check((q, k[:1], v[:1]), ROLES)
        self.check((q[:1], k, v), ROLES)
        self.check((q, k[:, :, :1], v[..., :1, :]), ROLES)
        self.check((q, k[:, :1], v), ROLES)
        self.check((q, k, v[:, :1]), ROLES)
        self.check((q[..., :1], k, v), ROLES)
        bias = drawn("bhts", EXTENTS, 5)
        self.check((q[:, :1], k, v, bias), "bthd,bshd,bshe,bhts->bthe")
