"""`max_pool` against loops in NumPy, and its errors.

What is tested: every form gives the maxima of a NumPy loop, bit for bit; gradients,
`vmap`, and what is no number; wrong windows raise.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.kernels import Implementation, _native, max_pool

FORMS = [Implementation.REFERENCE, Implementation.XLA, None]
if not _native.missing():
    FORMS.append(Implementation.CPU)


def by_loops(x: Any, window: Any, strides: Any, padding: Any) -> np.ndarray:
    x = np.asarray(x)
    sizes = x.shape[1:-1]
    out = [
        (n + low + high - w) // s + 1
        for n, (low, high), w, s in zip(sizes, padding, window, strides, strict=True)
    ]
    y = np.empty((x.shape[0], *out, x.shape[-1]), x.dtype)
    for place in itertools.product(*map(range, out)):
        cut = tuple(
            slice(max(0, i * s - low), max(0, i * s - low + w))
            for i, s, (low, _), w in zip(place, strides, padding, window, strict=True)
        )
        y[:, *place] = x[:, *cut].max(axis=tuple(range(1, x.ndim - 1)))
    return y


CASES = [
    ((2, 9, 11, 64), (3, 3), (2, 2), ((1, 1), (1, 1))),
    ((1, 8, 8, 70), (2, 2), (2, 2), ((0, 0), (0, 0))),
    ((3, 7, 5), (3,), (1,), ((2, 0),)),
    ((2, 5, 6, 4, 17), (2, 3, 1), (1, 2, 3), ((0, 1), (2, 2), (0, 0))),
    ((5, 112, 113, 3), (3, 3), (2, 2), ((0, 1), (0, 1))),
]


@pytest.mark.parametrize("implementation", FORMS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int8])
@pytest.mark.parametrize(("shape", "window", "strides", "padding"), CASES)
def test_values(
    shape: Any, window: Any, strides: Any, padding: Any, dtype: Any, implementation: Any
) -> None:
    numbers = np.random.default_rng(0).normal(size=shape) * 50
    x = jnp.asarray(np.clip(np.round(numbers), -128, 127)).astype(dtype)
    got = jax.jit(
        lambda x: max_pool(
            x,
            window=window,
            strides=strides,
            padding=padding,
            implementation=implementation,
        )
    )(x)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, by_loops(x, window, strides, padding))


def test_what_is_no_number_is_the_largest() -> None:
    x = jnp.arange(32.0).reshape(1, 4, 4, 2).at[0, 1, 1, 0].set(jnp.nan)
    got = max_pool(x, window=(2, 2), strides=(2, 2))
    wanted = max_pool(
        x, window=(2, 2), strides=(2, 2), implementation=Implementation.XLA
    )
    assert jnp.isnan(got[0, 0, 0, 0])
    assert jnp.isfinite(got).sum() == 7
    np.testing.assert_array_equal(got, wanted)


def test_gradient_and_vmap() -> None:
    x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 2, 6, 6, 5)), jnp.float32)

    def total(x: jax.Array, form: Any) -> jax.Array:
        y = max_pool(x, window=(3, 3), strides=(2, 2), implementation=form)
        return jnp.sum(jnp.sin(y))

    got, wanted = (
        jax.vmap(jax.grad(lambda x, form=form: total(x, form)))(x)
        for form in (None, Implementation.REFERENCE)
    )
    np.testing.assert_allclose(got, wanted, atol=1e-6)
    assert jnp.abs(got).max() > 0.1


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"window": (3,)}, "window has 2 entries"),
        ({"window": (0, 3)}, "window is positive"),
        ({"window": (2, 2), "strides": (1,)}, "strides has 2 entries"),
        ({"window": (2, 2), "padding": ((2, 0), (0, 0))}, "smaller than the window"),
        ({"window": (9, 1)}, "no window"),
    ],
)
def test_wrong_windows(given: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        max_pool(jnp.zeros((1, 4, 4, 2)), **given)


def test_wrong_images() -> None:
    with pytest.raises(ValueError, match="int32"):
        max_pool(jnp.zeros((1, 4, 4, 2), jnp.int32), window=(2, 2))
    with pytest.raises(ValueError, match="x is floats"):
        max_pool(jnp.zeros((4, 4)), window=(2, 2))
