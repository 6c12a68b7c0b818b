"""A Keras model on JAX, and what each library makes of it.

Tokens, an embedding, blocks of two dense layers with a residual, and a last dense
layer, with the weights that Keras draws; all start from the same ones.
"""

import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from _peers import module
from _timing import Unavailable

from jcompress.execution import compressed
from jcompress.formats import Int
from jcompress.quantization import (
    Activation,
    LeastError,
    MovingAverage,
    PerGroup,
    PerTensor,
    Quantize,
    Weights,
    calibrate,
    init_ranges,
    quantize,
    quantize_by_layers,
)
from jcompress.report import stored_bytes
from jcompress.rounding import CoordinateDescent, Gptq
from jcompress.sites import find_sites

WORDS, LENGTH, WIDTH, BLOCKS, GROUP = 512, 32, 128, 2, 128
Host = np.ndarray[Any, Any]
Run = Callable[[Any], Any]


class Made(NamedTuple):
    """A model to judge.

    Attributes:
        run: compiled, of tokens int32 [B, LENGTH].
        bytes: of all that it stores.
        seconds: of making it.
    """

    run: Run
    bytes: int
    seconds: float


def keras() -> Any:
    """Keras on JAX.

    Raises:
        Unavailable: it is not installed, or runs on another backend.
    """
    os.environ["KERAS_BACKEND"] = "jax"
    library = module("keras")
    if library.backend.backend() != "jax":
        raise Unavailable("Keras runs on another backend; set KERAS_BACKEND=jax")
    return library


def build(library: Any) -> Any:
    """The model, with the same weights each time."""
    layers = library.layers
    library.utils.set_random_seed(0)
    tokens = library.Input((LENGTH,), dtype="int32")
    embedding = layers.Embedding(WORDS, WIDTH, name="embedding")
    blocks = []
    for number in range(BLOCKS):
        given = library.Input((LENGTH, WIDTH))
        x = layers.LayerNormalization(name=f"norm_{number}")(given)
        x = layers.Dense(WIDTH, activation="gelu", name=f"up_{number}")(x)
        x = layers.Dense(WIDTH, name=f"down_{number}")(x)
        blocks.append(library.Model(given, layers.add([given, x]), name=f"b{number}"))
    x = embedding(tokens)
    for block in blocks:
        x = block(x)
    x = layers.GlobalAveragePooling1D()(x)
    network = library.Model(tokens, layers.Dense(64, name="last")(x))
    # Words of unlike sizes, as embeddings of common and rare words have.
    table = np.asarray(embedding.embeddings.value)
    sizes = np.geomspace(0.3, 3, WORDS)[:, None] * 20
    embedding.embeddings.assign((table * sizes).astype(np.float32))
    network.plan = {"pre_block_layers": [embedding], "sequential_blocks": blocks}
    return network


def function(network: Any) -> tuple[Callable[..., Any], Any]:
    """`fn(variables, tokens)` and its variables."""
    trained = [(v.path, v.value) for v in network.trainable_variables]
    other = [(v.path, v.value) for v in network.non_trainable_variables]
    variables = {"params": dict(trained), "state": dict(other)}

    def fn(tree: Any, tokens: Any) -> Any:
        outputs, _ = network.stateless_call(
            [tree["params"][path] for path, _ in trained],
            [tree["state"][path] for path, _ in other],
            tokens,
            training=False,
        )
        return outputs

    return fn, variables


def _compiled(network: Any) -> tuple[Run, int]:
    """A Keras model as a compiled function of tokens, and its bytes."""
    trained = [v.value for v in network.trainable_variables]
    other = [v.value for v in network.non_trainable_variables]

    @jax.jit
    def call(trained: Any, other: Any, tokens: Any) -> Any:
        return network.stateless_call(trained, other, tokens, training=False)[0]

    return lambda tokens: call(trained, other, tokens), stored_bytes([trained, other])


def _made(fn: Any, small: Any, begin: float) -> Made:
    jax.block_until_ready(jax.tree.leaves(small))
    seconds = time.perf_counter() - begin
    call = jax.jit(compressed(fn))
    return Made(lambda tokens: call(small, tokens), stored_bytes(small), seconds)


def ours(library: Any, seen: Host) -> dict[tuple[str, str], Callable[[], Made]]:
    """What jcompress offers, by kind and name."""
    fn, variables = function(build(library))
    paths = [f"params/{path}" for path in variables["params"]]
    kernels = [path for path in paths if "kernel" in path]
    inner = [path for path in kernels if "last" not in path]
    table = [path for path in paths if "embeddings" in path]
    sites = find_sites(fn, variables, seen[:2])

    def eight() -> Made:
        begin = time.perf_counter()
        weights = Weights(format=Int(8))
        spec = Quantize(weights=weights, activation=Activation())
        rules = [(path, spec) for path in kernels]
        rules += [(path, Quantize(weights=weights)) for path in table]
        return _made(fn, quantize(variables, rules, sites=sites), begin)

    def static() -> Made:
        begin = time.perf_counter()
        spec = Quantize(
            weights=Weights(format=Int(8), granularity=PerTensor()),
            activation=Activation(range=MovingAverage()),
        )
        rules = [(path, spec) for path in kernels]
        ranges = init_ranges(fn, rules, variables, seen[:8])
        observed = jax.jit(calibrate(fn, rules))
        for start in range(0, len(seen), 8):
            _, ranges = observed(variables, ranges, seen[start : start + 8])
        small = quantize(variables, rules, sites=sites, ranges=ranges)
        return _made(fn, small, begin)

    def four(rounding: Any) -> Made:
        begin = time.perf_counter()
        weights = Weights(
            format=Int(4, symmetric=False),
            granularity=PerGroup(GROUP),
            range=LeastError(),
        )
        rules = [(path, Quantize(weights=weights, rounding=rounding)) for path in inner]
        return _made(fn, quantize_by_layers(fn, variables, rules, [(seen,)]), begin)

    return {
        ("int8", "jcompress"): eight,
        ("static int8", "jcompress, MovingAverage"): static,
        ("gptq, 4 bits", "jcompress Gptq"): lambda: four(Gptq()),
        ("gptq, 4 bits", "jcompress CoordinateDescent"): lambda: four(
            CoordinateDescent()
        ),
    }


def own(library: Any, seen: Host) -> dict[tuple[str, str], Callable[[], Made]]:
    """What Keras offers."""

    def eight() -> Made:
        network = build(library)
        begin = time.perf_counter()
        network.quantize("int8")
        seconds = time.perf_counter() - begin
        return Made(*_compiled(network), seconds)

    def four() -> Made:
        network = build(library)
        config = library.quantizers.GPTQConfig(
            [row[None] for row in seen],
            lambda text: text,
            weight_bits=4,
            num_samples=len(seen),
            sequence_length=LENGTH,
            group_size=GROUP,
            activation_order=True,
            quantization_layer_structure=network.plan,
        )
        begin = time.perf_counter()
        network.quantize("gptq", config=config)
        seconds = time.perf_counter() - begin
        return Made(*_compiled(network), seconds)

    return {("int8", "Keras"): eight, ("gptq, 4 bits", "Keras"): four}


def intel(library: Any, seen: Host) -> dict[tuple[str, str], Callable[[], Made]]:
    """What neural-compressor-jax offers."""
    compressor = module("neural_compressor.jax")

    def static() -> Made:
        network = build(library)
        config = compressor.StaticQuantConfig(
            weight_dtype="int8", activation_dtype="int8"
        )

        def feed(model: Any) -> None:
            for start in range(0, len(seen), 8):
                model(seen[start : start + 8])

        begin = time.perf_counter()
        network = compressor.quantize_model(network, config, feed)
        seconds = time.perf_counter() - begin
        return Made(*_compiled(network), seconds)

    return {("static int8", "neural-compressor-jax"): static}
