"""Equinox modules, of Equinox itself and of packages on top of it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from _foreign._model import Foreign, Unavailable, normal


def _module(module: Any, call: Callable[..., Any], *inputs: jax.Array) -> Foreign:
    """The arrays of a module as the tree, everything else closed over."""
    import equinox as eqx

    arrays, rest = eqx.partition(module, eqx.is_inexact_array)

    def fn(tree: Any, *args: jax.Array) -> Any:
        return call(eqx.combine(tree, rest), *args)

    return Foreign(fn, arrays, inputs)


def _mlp() -> Foreign:
    import equinox as eqx

    network = eqx.nn.MLP(6, 3, 24, 2, key=jax.random.key(0))
    return _module(network, lambda net, x: jax.vmap(net)(x), normal(5, 6))


def _gru() -> Foreign:
    import equinox as eqx

    cell = eqx.nn.GRUCell(6, 12, key=jax.random.key(0))
    head = eqx.nn.Linear(12, 3, key=jax.random.key(1))

    def call(net: Any, x: jax.Array) -> Any:
        def step(carry: jax.Array, now: jax.Array) -> tuple[jax.Array, None]:
            return net[0](now, carry), None

        last, _ = jax.lax.scan(step, jnp.zeros(12), x)
        return net[1](last)

    def batched(net: Any, x: jax.Array) -> Any:
        return jax.vmap(lambda one: call(net, one))(x)

    return _module((cell, head), batched, normal(3, 7, 6))


def _convolutional() -> Foreign:
    import equinox as eqx

    keys = jax.random.split(jax.random.key(0), 3)
    network = eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(3, 8, 3, padding=1, key=keys[0]),
            eqx.nn.GroupNorm(2, 8),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.MaxPool2d(2, 2),
            eqx.nn.Conv2d(8, 12, 3, key=keys[1]),
            eqx.nn.AdaptiveAvgPool2d(1),
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.Linear(12, 4, key=keys[2]),
        ]
    )
    return _module(network, lambda net, x: jax.vmap(net)(x), normal(2, 3, 16, 16))


def _flow(make: Callable[[Any, Any], Any]) -> Foreign:
    try:
        from flowjax import distributions, flows
    except ImportError as error:
        raise Unavailable("pip install flowjax") from error
    base = distributions.Normal(jnp.zeros(4))
    flow = make(flows, base)
    return _module(flow, lambda net, x: net.log_prob(x), normal(6, 4))


def _coupling_flow() -> Foreign:
    return _flow(
        lambda flows, base: flows.coupling_flow(
            jax.random.key(0), base_dist=base, flow_layers=2, nn_width=12
        )
    )


def _autoregressive_flow() -> Foreign:
    return _flow(
        lambda flows, base: flows.masked_autoregressive_flow(
            jax.random.key(0), base_dist=base, flow_layers=2, nn_width=12
        )
    )


def _block_flow() -> Foreign:
    return _flow(
        lambda flows, base: flows.block_neural_autoregressive_flow(
            jax.random.key(0), base_dist=base, nn_block_dim=4, flow_layers=1
        )
    )._replace(shrinks=False)


EQUINOX: dict[str, Callable[[], Foreign]] = {
    "MLP": _mlp,
    "GRU": _gru,
    "CNN": _convolutional,
    "coupling flow (flowjax)": _coupling_flow,
    "masked flow (flowjax)": _autoregressive_flow,
    "block flow (flowjax)": _block_flow,
}
