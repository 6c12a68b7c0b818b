"""How much `compressed` adds to the program of a network of many small weights."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from zoo.running import equations

from jcompress.execution import compressed
from jcompress.quantization import Quantize, quantize
from jcompress.sites import find_sites


def network(depth: int) -> tuple[Any, dict[str, jax.Array], jax.Array]:
    rng = np.random.default_rng(0)
    wide = {
        f"layer{n}": jnp.asarray(rng.normal(size=(3, 3, 4 + n, 1)), jnp.float32)
        for n in range(depth)
    }

    def fn(params: Any, x: jax.Array) -> jax.Array:
        dims = ("NHWC", "HWIO", "NHWC")
        for kernel in params.values():
            y = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=dims
            )
            x = jnp.concatenate([x, jnp.tanh(y)], axis=-1)
        return x

    return fn, wide, jnp.ones((1, 5, 5, 4))


def test_a_small_weight_costs_a_few_equations() -> None:
    """All kernels have other shapes, so that nothing is traced but once."""
    depth = 10
    fn, params, x = network(depth)
    small = quantize(params, [(..., Quantize())], sites=find_sites(fn, params, x))

    def count(fn: Any, params: Any) -> int:
        return len(list(equations(jax.make_jaxpr(fn)(params, x).jaxpr)))

    plain = count(fn, params)
    assert count(compressed(fn), small) <= plain + 8 * depth + 5
