"""GPTQ and AWQ of one layer: ours, and those of qwix, llm-compressor and Keras.

Each takes a `Layer`, bits and the size of groups (None for one scale a channel) and
gives the dense weight [N, K] that its stored numbers stand for.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from _peers import module
from _quantization_layers import Host, Layer
from _timing import Unavailable

from jcompress.errors import MismatchError
from jcompress.formats import Int
from jcompress.quantization import (
    FullRange,
    LeastError,
    PerChannel,
    PerGroup,
    Quantize,
    Weights,
    quantize,
)
from jcompress.rescaling import awq
from jcompress.rounding import CoordinateDescent, Gptq, Nearest, Rounding
from jcompress.sites import find_sites

GPTQ, AWQ = "gptq", "awq"
Make = Callable[[Layer, int, int | None], Host]


class Contender(NamedTuple):
    """One way to quantize a layer.

    Attributes:
        name: for the tables.
        method: `GPTQ` or `AWQ`.
        symmetric: whether there are no zero points.
        searched: whether scales are searched, rather than the full range of weights.
        ours: whether it is jcompress.
        make: how it is done.
        bits: which numbers of bits it offers.
    """

    name: str
    method: str
    symmetric: bool
    searched: bool
    ours: bool
    make: Make
    bits: tuple[int, ...] = (4, 3)


def _apply(params: Any, x: jax.Array) -> jax.Array:
    result: jax.Array = (x * params["scale"][None]) @ params["w"]
    return result


def _rules(
    bits: int, group: int | None, symmetric: bool, searched: bool, how: Rounding
) -> Any:
    weights = Weights(
        format=Int(bits, symmetric=symmetric, full=symmetric),
        granularity=PerChannel() if group is None else PerGroup(group),
        range=LeastError() if searched else FullRange(),
    )
    return [("w", Quantize(weights=weights, rounding=how))]


def _ours(symmetric: bool, searched: bool, how: Rounding, *, scaled: bool) -> Make:
    def make(layer: Layer, bits: int, group: int | None) -> Host:
        rules = _rules(bits, group, symmetric, searched, how)
        inputs = layer.weight.shape[1]
        params = {"w": jnp.asarray(layer.weight.T), "scale": jnp.ones(inputs)}
        moments = {"w": jnp.asarray(layer.moments)}
        x = jnp.ones((2, inputs), jnp.float32)
        if scaled:
            means = {"w": layer.sizes}
            try:
                moved = awq(_apply, params, rules, moments, x, means=means)
            except MismatchError:
                pass  # no scale helps: the weight stays as it is
            else:
                params, moments = moved.params, moved.moments(moments)
        sites = find_sites(_apply, params, x)
        small = quantize(params, rules, sites=sites, moments=moments)
        dense = small["w"].dense().T
        return np.asarray(dense * params["scale"][None])

    return make


def ours() -> Iterator[Contender]:
    """What jcompress offers."""
    for symmetric in (True, False):
        for searched in (False, True):
            words = ", searched" * searched
            for name, method, how in (
                ("Gptq", GPTQ, Gptq()),
                ("CoordinateDescent", GPTQ, CoordinateDescent()),
                ("awq", AWQ, Nearest()),
            ):
                if isinstance(how, CoordinateDescent) and not searched:
                    continue  # it fits scales anyway, from a worse start
                make = _ours(symmetric, searched, how, scaled=method == AWQ)
                yield Contender(
                    f"jcompress {name}{words}", method, symmetric, searched, True, make
                )


def qwix() -> Iterator[Contender]:
    """GPTQ and AWQ of qwix, as `qwix.contrib` calls them for each weight."""
    gptq, scaling = module("qwix.contrib.gptq_core"), module("qwix.contrib.awq_core")
    arrays = module("qwix._src.core.qarray")

    def how(bits: int, group: int | None, symmetric: bool) -> Any:
        return arrays.HowToQuantize(
            qtype={4: jnp.int4, 8: jnp.int8}[bits],
            channelwise_axes=(0,),
            tiled_axes={} if group is None else {1: group},
            calibration_method="absmax" if symmetric else "minmax",
        )

    def by_gptq(symmetric: bool) -> Make:
        def make(layer: Layer, bits: int, group: int | None) -> Host:
            w, h = jnp.asarray(layer.weight), jnp.asarray(layer.moments)
            made, _ = gptq.quantize_weight(w, h, how(bits, group, symmetric))
            return np.asarray(arrays.dequantize(made))

        return make

    def by_awq(symmetric: bool) -> Make:
        def make(layer: Layer, bits: int, group: int | None) -> Host:
            w, sizes = jnp.asarray(layer.weight), jnp.asarray(layer.sizes)
            made, scale = scaling.quantize_weight(w, sizes, how(bits, group, symmetric))
            return np.asarray(arrays.dequantize(made) / scale)

        return make

    for symmetric in (True, False):
        for method, make in ((GPTQ, by_gptq), (AWQ, by_awq)):
            name = f"qwix {method.upper()}"
            # Of integers it has those of JAX in GPTQ: none of 3 bits.
            yield Contender(
                name, method, symmetric, False, False, make(symmetric), (4,)
            )


def llm_compressor() -> Iterator[Contender]:
    """GPTQ of llm-compressor, in torch, with its observers of the weights' range."""
    torch = module("torch")
    run = module("llmcompressor.modifiers.gptq.gptq_quantize").quantize_weight
    observers = module("llmcompressor.observers").Observer
    arguments = module("compressed_tensors.quantization").QuantizationArgs

    def by(symmetric: bool, observer: str) -> Make:
        def make(layer: Layer, bits: int, group: int | None) -> Host:
            args = arguments(
                num_bits=bits,
                symmetric=symmetric,
                strategy="channel" if group is None else "group",
                group_size=group,
                observer=observer,
                actorder="weight",
            )
            w = torch.from_numpy(layer.weight.copy())
            h = torch.from_numpy(layer.moments / layer.rows)
            watch = observers.load_from_registry(
                observer, base_name="weight", args=args
            )
            watch(w)
            found = watch.get_qparams()
            scale, zero = found["scale"][None], found["zero_point"][None]
            made, *_ = run(w[None], h[None], scale, zero, None, args)
            return np.asarray(made[0].numpy())

        return make

    for symmetric in (True, False):
        for observer in ("memoryless_minmax", "memoryless_mse"):
            searched = observer.endswith("mse")
            name = "llm-compressor GPTQ" + ", searched" * searched
            make = by(symmetric, observer)
            yield Contender(name, GPTQ, symmetric, searched, False, make)


def keras() -> Iterator[Contender]:
    """GPTQ and AWQ of Keras, as `model.quantize` calls them for each layer."""
    os.environ["KERAS_BACKEND"] = "jax"
    if module("keras").backend.backend() != "jax":
        raise Unavailable("Keras runs on another backend; set KERAS_BACKEND=jax")
    library = module("keras")
    gptq, scaling = (module(f"keras.src.quantizers.{name}") for name in ("gptq", "awq"))
    quantizers = module("keras.src.quantizers.quantizers")

    def by_gptq(layer: Layer, bits: int, group: int | None) -> Host:
        config = library.quantizers.GPTQConfig(
            None,
            None,
            weight_bits=bits,
            group_size=group or -1,
            activation_order=True,
        )
        outputs, inputs = layer.weight.shape
        dense = library.layers.Dense(outputs, use_bias=False)
        dense.build((None, inputs))
        dense.kernel.assign(layer.weight.T)
        dense.quantize("gptq", config=config)
        helper = gptq.GPTQ(dense, config)
        helper.hessian = jnp.asarray(layer.moments) * np.float32(2 / layer.rows)
        helper.quantize_and_correct_layer()
        return np.asarray(dense(np.eye(inputs, dtype=np.float32))).T

    def by_awq(layer: Layer, bits: int, group: int | None) -> Host:
        numbers, scales, zeros, factors, places = scaling.awq_quantize_matrix(
            jnp.asarray(layer.weight),
            jnp.asarray(layer.largest),
            group_size=group or -1,
        )
        if group is None:
            made = quantizers.dequantize_with_zero_point(numbers, scales, zeros)
        else:
            made = quantizers.dequantize_with_sz_map(
                numbers, scales, zeros, places.astype(jnp.int32)
            )
        return np.asarray(made / factors)

    # Its default, with zero points; a layer takes it many seconds.
    yield Contender("Keras GPTQ", GPTQ, False, False, False, by_gptq)
    yield Contender("Keras AWQ", AWQ, False, False, False, by_awq, (4,))


PEERS: dict[str, Callable[[], Iterator[Contender]]] = {
    "qwix": qwix,
    "llm-compressor": llm_compressor,
    "Keras": keras,
}
