"""A Keras network of random weights on JAX: float32, ours, Keras and Intel's.

Two convolutions, a normalisation and four dense layers, of which all sides quantize
the dense ones. Keras' forms are compiled by `jax.jit` of `stateless_call`, as Keras'
guide to JAX has it: `predict` would add its own milliseconds to each call.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from _jax_peers import BOTH, FOUR, Contender, floats_and_ours, jitted
from _peers import module
from _quantization_keras_makers import function, keras

WIDTHS, CLASSES, IMAGE = (2048, 1024, 512), 100, (32, 32, 3)
SEEN = 64
"""Images from which static ranges are taken."""


def build(library: Any) -> Any:
    """The network, with the same weights each time."""
    layers = library.layers
    library.utils.set_random_seed(0)
    biases = library.initializers.RandomNormal(stddev=0.1)
    drawn = {"kernel_initializer": "he_normal", "bias_initializer": biases}
    image = x = library.Input(IMAGE)
    for number in range(2):
        make = layers.Conv2D(
            32, 3, 2, "same", activation="relu", name=f"front{number}", **drawn
        )
        x = make(x)
    x = layers.LayerNormalization(name="norm")(layers.Flatten()(x))
    for number, width in enumerate(WIDTHS):
        make = layers.Dense(width, activation="relu", name=f"dense{number}", **drawn)
        x = make(x)
    return library.Model(image, layers.Dense(CLASSES, name="dense_last", **drawn)(x))


def inputs(count: int) -> np.ndarray:
    """Normal numbers, float32 [count, 32, 32, 3]."""
    return np.random.default_rng(3).normal(size=(count, *IMAGE)).astype(np.float32)


def floats() -> Iterator[Contender]:
    """Float32 and ours.

    Raises:
        Unavailable: Keras is not installed, or runs on another backend.
    """
    fn, variables = function(build(keras()))

    def dense(site: Any) -> bool:
        return "dense" in site.path and site.path.endswith("kernel")

    yield from floats_and_ours(fn, variables, inputs(2), dense)


def own() -> Iterator[Contender]:
    """What `model.quantize` of Keras offers.

    Raises:
        Unavailable: as above.
    """
    library = keras()
    for mode, kind, words in (
        ("int8", BOTH, "W8A8"),
        ("int4", FOUR, "W4 g128"),
    ):
        network = build(library)
        network.quantize(mode)
        yield jitted(*function(network), f'Keras "{mode}" {words}', kind)


def intel() -> Iterator[Contender]:
    """Static int8 of neural-compressor-jax, its weights as arguments and as constants.

    Raises:
        Unavailable: it is not installed.
    """
    compressor, library = module("neural_compressor.jax"), keras()
    # Not those that are timed and judged.
    seen = np.random.default_rng(4).normal(size=(SEEN, *IMAGE)).astype(np.float32)

    def feed(network: Any) -> None:
        for start in range(0, SEEN, 8):
            network(seen[start : start + 8])

    stored = 0
    for constant in (False, True):
        config = compressor.StaticQuantConfig(
            weight_dtype="int8",
            activation_dtype="int8",
            weight_scale_granularity="per_channel",
            const_scale=constant,
            const_weight=constant,
            white_list=[library.layers.Dense],
        )
        network = compressor.quantize_model(build(library), config, feed)
        name = f"neural-compressor-jax static W8A8{', constants' * constant}"
        one = jitted(*function(network), name, BOTH)
        # Constants are none of its variables, but the same numbers.
        stored = stored or one.bytes
        yield one._replace(bytes=stored)
