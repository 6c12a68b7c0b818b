"""Groups of, and shrunk, functions of a batch whose size is left open."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from jcompress.shrinking import find_groups, shrink, shrunk, zero_units


class Net(nn.Module):
    """A convolution, attention over the rows of the image, and a mean."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        x = nn.MultiHeadDotProductAttention(num_heads=4, qkv_features=16)(x)
        first = jnp.concatenate([x[:, :1], x[:, 2:4]], axis=1).mean(1)
        return nn.Dense(3)(nn.gelu(nn.Dense(12)(first)))


def scanned(params: Any, x: jax.Array) -> jax.Array:
    def step(h: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
        return jnp.tanh(h @ w @ params["back"]), None

    return jax.lax.scan(step, x, params["layers"])[0].reshape(-1)


def scanned_case() -> Any:
    rng = np.random.default_rng(0)
    params = {
        "layers": jnp.asarray(rng.normal(size=(3, 6, 10)), jnp.float32),
        "back": jnp.asarray(rng.normal(size=(10, 6)), jnp.float32),
    }
    return scanned, params, jnp.asarray(rng.normal(size=(4, 6)), jnp.float32)


def net_case() -> Any:
    model = Net()
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    return model.apply, model.init(jax.random.key(1), x), x


@pytest.mark.parametrize("made", [net_case, scanned_case])
def test_export_of_any_batch(made: Any) -> None:
    fn, params, x = made()
    (batch,) = export.symbolic_shape("batch")
    open_x = jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype)
    groups = find_groups(fn, params, open_x)
    closed = find_groups(fn, params, x)
    assert {g.name: g.size for g in groups} == {g.name: g.size for g in closed}
    assert groups.fixed == closed.fixed
    free = [g for g in groups if not g.reduced]
    plan = groups.keep({g.name: np.arange(g.size)[::2] for g in free})
    small, run = shrink(params, plan), shrunk(fn, plan)
    exported = export.export(jax.jit(run))(small, open_x)
    again = export.deserialize(exported.serialize())
    for count in (1, 3, 4):
        masked = fn(zero_units(params, plan), x[:count])
        np.testing.assert_allclose(again.call(small, x[:count]), masked, atol=1e-5)


def test_sizes_made_of_open_sizes() -> None:
    def fn(p: Any, x: jax.Array) -> jax.Array:
        pairs = x.reshape(x.shape[0] // 2, 2 * x.shape[1])
        tail = jnp.tanh(pairs @ p["a"])[1:]
        return jnp.pad(tail, ((1, 0), (0, 0))) @ p["b"]

    params = {"a": jnp.ones((6, 8)), "b": jnp.ones((8, 2))}
    batch, _ = export.symbolic_shape("2*n, n")
    x = jax.ShapeDtypeStruct((batch, 3), jnp.float32)
    groups = find_groups(fn, params, x)
    assert [(g.name, g.size) for g in groups] == [("a:1", 8)]
    plan = groups.keep({"a:1": [1, 2, 5]})
    exported = export.export(jax.jit(shrunk(fn, plan)))(shrink(params, plan), x)
    given = jnp.arange(18.0).reshape(6, 3) / 18
    np.testing.assert_allclose(
        exported.call(shrink(params, plan), given),
        fn(zero_units(params, plan), given),
        rtol=1e-6,
    )
