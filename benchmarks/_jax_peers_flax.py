"""A Flax transformer encoder of random weights: float32, ours, and qwix."""

from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from _jax_peers import ALONE, BOTH, FOUR, Contender, floats_and_ours, jitted
from _peers import module

LAYERS, WIDTH, HEADS, HIDDEN, LENGTH = 4, 384, 6, 1536, 64
PARTS = ("query", "key", "value", "out", "wide", "narrow")
"""The layers whose weights are quantized; attention itself stays in floats."""


class Encoder(nn.Module):
    """Vectors float32 [B, T, C] to the last hidden states [B, T, C]."""

    layers: int = LAYERS

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Layers that normalise what they read, and a last normalisation."""
        width = x.shape[-1]
        for number in range(self.layers):
            seen = nn.LayerNorm(name=f"before{number}")(x)
            x = x + nn.MultiHeadDotProductAttention(HEADS, name=f"mix{number}")(seen)
            seen = nn.LayerNorm(name=f"between{number}")(x)
            wide = nn.gelu(nn.Dense(HIDDEN, name=f"wide{number}")(seen))
            x = x + nn.Dense(width, name=f"narrow{number}")(wide)
        last: jax.Array = nn.LayerNorm(name="last")(x)
        return last


def variables(model: nn.Module, example: Any) -> Any:
    """Flax's weights, with scales and biases that are not those of the beginning."""
    drawn = jax.jit(model.init)(jax.random.key(0), example)
    rng = np.random.default_rng(1)

    def moved(path: Any, leaf: jax.Array) -> jax.Array:
        name = path[-1].key
        if name == "scale":
            factors = rng.lognormal(0, 0.3, leaf.shape)
            return leaf * jnp.asarray(factors, jnp.float32)
        if name == "bias":
            return leaf + jnp.asarray(rng.normal(0, 0.1, leaf.shape), jnp.float32)
        return leaf

    return jax.tree_util.tree_map_with_path(moved, drawn)


def inputs(count: int, length: int = LENGTH) -> np.ndarray:
    """Normal numbers, float32 [count, length, WIDTH]."""
    drawn = np.random.default_rng(2).normal(size=(count, length, WIDTH))
    return drawn.astype(np.float32)


def floats() -> Iterator[Contender]:
    """Float32 and ours."""
    model, example = Encoder(), inputs(2)

    def kernel(site: Any) -> bool:
        return bool(site.path.endswith("kernel"))

    tree = variables(model, example)
    yield from floats_and_ours(model.apply, tree, example, kernel)


def qwix() -> Iterator[Contender]:
    """`qwix.quantize_model` and `quantize_params`, as its README has them.

    Raises:
        Unavailable: it is not installed.
    """
    library = module("qwix")
    model, example = Encoder(), inputs(2)
    params = variables(model, example)["params"]
    for name, kind, given in (
        ("qwix W8", ALONE, {"weight_qtype": "int8"}),
        ("qwix W8A8", BOTH, {"weight_qtype": "int8", "act_qtype": "int8"}),
        (
            "qwix W4A8 g32",
            FOUR,
            {"weight_qtype": "int4", "act_qtype": "int8", "tile_size": 32},
        ),
    ):
        path = rf".*({'|'.join(PARTS)})\d*"
        rule = library.QuantizationRule(module_path=path, **given)
        quantized = library.quantize_model(model, library.PtqProvider([rule]))
        drawn = jax.eval_shape(quantized.init, jax.random.key(0), example)
        small = library.quantize_params(params, drawn["params"])
        yield jitted(quantized.apply, {"params": small}, name, kind)
