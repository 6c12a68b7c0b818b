"""Networks that come with Haiku, and those of packages on top of Haiku or Linen."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from _foreign._model import Foreign, Unavailable, normal, random_like, words


def _transformed(forward: Callable[..., Any], *inputs: jax.Array) -> Foreign:
    import haiku as hk

    pure = hk.without_apply_rng(hk.transform_with_state(forward))
    # Averages of batch normalisation exist once a network has been in training mode.
    first = pure
    if "is_training" in inspect.signature(forward).parameters:
        training = functools.partial(forward, is_training=True)
        first = hk.without_apply_rng(hk.transform_with_state(training))
    params, state = jax.eval_shape(first.init, jax.random.key(0), *inputs)

    def fn(tree: Any, *args: jax.Array) -> Any:
        return pure.apply(tree["params"], tree["state"], *args)[0]

    return Foreign(fn, random_like({"params": params, "state": state}), inputs)


def _resnet() -> Foreign:
    import haiku as hk

    def forward(x: jax.Array, is_training: bool = False) -> Any:
        network = hk.nets.ResNet(
            (1, 1, 1, 1),
            num_classes=5,
            bottleneck=False,
            channels_per_group=(8, 8, 16, 16),
            use_projection=(True, True, True, True),
        )
        return network(x, is_training=is_training)

    return _transformed(forward, normal(2, 32, 32, 3))


def _mobilenet() -> Foreign:
    import haiku as hk

    def forward(x: jax.Array, is_training: bool = False) -> Any:
        network = hk.nets.MobileNetV1(
            strides=(1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1),
            channels=(8,) * 5 + (16,) * 8,
            num_classes=5,
        )
        return network(x, is_training=is_training)

    return _transformed(forward, normal(2, 32, 32, 3))


def _quantizer() -> Foreign:
    import haiku as hk

    def forward(x: jax.Array) -> Any:
        codes = hk.nets.VectorQuantizer(8, 12, commitment_cost=0.25)
        found = codes(hk.Linear(8)(x), is_training=False)
        return hk.Linear(3)(found["quantize"])

    return _transformed(forward, normal(6, 5))._replace(shrinks=False)


def _attention() -> Foreign:
    import haiku as hk

    def forward(ids: jax.Array) -> Any:
        x = hk.Embed(50, 16)(ids)
        for _ in range(2):
            attend = hk.MultiHeadAttention(
                2, 8, w_init=hk.initializers.VarianceScaling()
            )
            normed = hk.LayerNorm(-1, True, True)(x)
            x = x + attend(normed, normed, normed)
            x = x + hk.nets.MLP([32, 16])(hk.LayerNorm(-1, True, True)(x))
        return hk.Linear(5)(x)

    return _transformed(forward, words(2, 7))


def _graph() -> Foreign:
    import haiku as hk

    try:
        import jraph
    except ImportError as error:
        raise Unavailable("pip install jraph") from error
    senders, receivers = jnp.array([0, 1, 2, 3, 1]), jnp.array([1, 2, 3, 0, 3])

    def forward(nodes: jax.Array) -> Any:
        graph = jraph.GraphsTuple(
            nodes=nodes,
            edges=None,
            senders=senders,
            receivers=receivers,
            n_node=jnp.array([4]),
            n_edge=jnp.array([5]),
            globals=None,
        )
        for width in (12, 6):
            layer = jraph.GraphConvolution(hk.nets.MLP([width]))
            graph = layer(graph)
        return graph.nodes

    return _transformed(forward, normal(4, 8))


def _policy() -> Foreign:
    try:
        from brax.training import networks
    except ImportError as error:
        raise Unavailable("pip install brax") from error
    made = networks.make_policy_network(4, 6, hidden_layer_sizes=(16, 16))
    shapes = jax.eval_shape(made.init, jax.random.key(0))

    def fn(params: Any, x: jax.Array) -> Any:
        return made.apply(None, params, x)

    return Foreign(fn, random_like(shapes), (normal(5, 6),))


HAIKU: dict[str, Callable[[], Foreign]] = {
    "ResNet": _resnet,
    "MobileNetV1": _mobilenet,
    "VectorQuantizer": _quantizer,
    "MultiHeadAttention": _attention,
    "graph convolution (jraph)": _graph,
    "policy (brax)": _policy,
}
