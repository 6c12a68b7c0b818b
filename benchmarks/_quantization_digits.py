"""Two small models of the digits that the package ships, trained for some seconds."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jcompress

Params = dict[str, Any]
Host = np.ndarray[Any, Any]


class Model(NamedTuple):
    """A model in JAX, and its layers as onnx names them.

    Attributes:
        shape: of one image.
        layers: by weight the onnx operator and its attributes; rectified between.
    """

    name: str
    shape: tuple[int, ...]
    layers: dict[str, tuple[str, dict[str, Any]]]
    apply: Callable[[Params, jax.Array], jax.Array]
    start: Callable[[np.random.Generator], Params]


def _perceptron(params: Params, x: jax.Array) -> jax.Array:
    x = jax.nn.relu(x @ params["first"] + params["first_bias"][None])
    x = jax.nn.relu(x @ params["second"] + params["second_bias"][None])
    logits: jax.Array = x @ params["last"] + params["last_bias"][None]
    return logits


def _convolve(params: Params, name: str, x: jax.Array, stride: int) -> jax.Array:
    x = jax.lax.conv_general_dilated(
        x, params[name], (stride, stride), [(1, 1), (1, 1)]
    )
    return jax.nn.relu(x + params[f"{name}_bias"][None, :, None, None])


def _convolutional(params: Params, x: jax.Array) -> jax.Array:
    x = _convolve(params, "first", x, 1)
    x = _convolve(params, "second", x, 2)
    x = _convolve(params, "third", x, 2)
    flat = x.reshape(x.shape[0], -1)
    logits: jax.Array = flat @ params["last"] + params["last_bias"][None]
    return logits


def _starts(**shapes: tuple[int, ...]) -> Callable[[np.random.Generator], Params]:
    def start(rng: np.random.Generator) -> Params:
        params: Params = {}
        for name, shape in shapes.items():
            dense = len(shape) == 2
            inputs = shape[0] if dense else int(np.prod(shape[1:]))
            values = rng.normal(size=shape) * (2 / inputs) ** 0.5
            params[name] = jnp.asarray(values, jnp.float32)
            params[f"{name}_bias"] = jnp.zeros(shape[-1 if dense else 0])
        return params

    return start


def _conv(stride: int) -> tuple[str, dict[str, Any]]:
    return "Conv", {"strides": [stride, stride], "pads": [1, 1, 1, 1]}


MODELS = (
    Model(
        "perceptron",
        (64,),
        dict.fromkeys(("first", "second", "last"), ("Gemm", {})),
        _perceptron,
        _starts(first=(64, 128), second=(128, 128), last=(128, 10)),
    ),
    Model(
        "convolutional",
        (1, 8, 8),
        {
            "first": _conv(1),
            "second": _conv(2),
            "third": _conv(2),
            "last": ("Gemm", {}),
        },
        _convolutional,
        _starts(
            first=(16, 1, 3, 3),
            second=(32, 16, 3, 3),
            third=(64, 32, 3, 3),
            last=(256, 10),
        ),
    ),
)


def digits() -> tuple[Host, Host]:
    """Images from 0 to 1, float32 [1797, 8, 8], and their labels, in random order."""
    folder = pathlib.Path(jcompress.__file__).parent / "recipes"
    with np.load(folder / "digits.npz") as stored:
        images, labels = stored["images"], stored["labels"]
    order = np.random.default_rng(0).permutation(len(labels))
    return images[order].astype(np.float32) / 16, labels[order].astype(np.int32)


def trained(model: Model, x: Host, labels: Host, steps: int = 300) -> Params:
    """The parameters after some steps of Adam."""
    optimizer = optax.adam(2e-3)

    @jax.jit
    def step(params: Params, state: Any, x: Any, y: Any) -> tuple[Params, Any]:
        def loss(params: Params) -> jax.Array:
            logits = model.apply(params, x)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
            return jnp.mean(losses)

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    rng = np.random.default_rng(0)
    params = model.start(rng)
    state = optimizer.init(params)
    for _ in range(steps):
        rows = rng.integers(0, len(x), 64)
        params, state = step(params, state, x[rows], labels[rows])
    return params
