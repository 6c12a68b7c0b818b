"""Models of Keras on its JAX backend: those of `keras.applications`, narrow."""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax

from _foreign._model import Foreign, Unavailable, normal, random_like

IMAGE = (32, 32, 3)


def _wrapped(network: Any, x: jax.Array) -> Foreign:
    trained = {v.path: v.value for v in network.trainable_variables}
    other = {v.path: v.value for v in network.non_trainable_variables}
    variables = random_like({"params": trained, "state": other})

    def fn(tree: Any, x: jax.Array) -> Any:
        outputs, _ = network.stateless_call(
            [tree["params"][v.path] for v in network.trainable_variables],
            [tree["state"][v.path] for v in network.non_trainable_variables],
            x,
            training=False,
        )
        return outputs

    return Foreign(fn, variables, (x,))


def _keras() -> Any:
    os.environ["KERAS_BACKEND"] = "jax"
    try:
        import keras
    except ImportError as error:
        raise Unavailable("pip install keras") from error
    if keras.backend.backend() != "jax":
        raise Unavailable("Keras runs on another backend here; set KERAS_BACKEND=jax")
    return keras


def _application(kind: str, options: dict[str, Any]) -> Foreign:
    make = getattr(_keras().applications, kind)
    network = make(weights=None, input_shape=IMAGE, classes=10, **options)
    return _wrapped(network, normal(2, *IMAGE))


def _recurrent() -> Foreign:
    keras = _keras()
    layers = keras.layers
    network = keras.Sequential(
        [
            keras.Input((9, 6)),
            layers.LSTM(12, return_sequences=True),
            layers.GRU(10, return_sequences=True),
            layers.LayerNormalization(),
            layers.Dense(4),
        ]
    )
    return _wrapped(network, normal(2, 9, 6))


KERAS: dict[str, Callable[[], Foreign]] = {
    "MobileNet": functools.partial(_application, "MobileNet", {"alpha": 0.25}),
    "MobileNetV2": functools.partial(_application, "MobileNetV2", {"alpha": 0.35}),
    "MobileNetV3": functools.partial(
        _application, "MobileNetV3Small", {"alpha": 0.75, "minimalistic": True}
    ),
    "LSTM, GRU": _recurrent,
}
