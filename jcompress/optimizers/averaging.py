"""Gradients averaged over the devices of a mesh axis, sent as 8-bit integers."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import PartitionSpec

from jcompress.tracing.meshes import varying

_TOP = np.float32(127)


class AverageState(NamedTuple):
    """State of `average_in_int8`.

    Attributes:
        key: makes the next random numbers; the same on all devices.
        error: float32 [devices, numbers], what rounding each device's gradients left,
            to be sent at the next step.
        mean_error: float32 [devices, numbers / devices], the same of the averages,
            each with the device that makes it.
    """

    key: jax.Array
    error: jax.Array
    mean_error: jax.Array


def average_in_int8(
    axis: str, *, devices: int, key: jax.Array, block: int = 1024
) -> optax.GradientTransformation:
    """Average gradients over a mesh axis inside `shard_map`, in a quarter of the bytes.

    In place of the all-reduce of floats (`jax.lax.pmean`):

    1. For each block of numbers the devices agree on a scale, that of the largest.
    2. Each rounds its numbers to int8, up or down by chance, so that they are right on
       average, and keeps what that leaves for the next step (error feedback).
    3. Each gets its part of the numbers of all others (an all-to-all of int8), adds
       them in int32, and rounds the averages to int8 in the same way.
    4. The parts are gathered (an all-gather of int8).

    A ring's all-reduce sends as many numbers, of four bytes. The scales add
    `4 / block` bytes a number to each half.

    Put it first in a chain, inside of `jax.shard_map`. There gradients must be those
    of each device's own data: with `check_vma=True` JAX itself adds up gradients of
    parameters that are the same everywhere, in floats, so differentiate with respect
    to `jax.lax.pcast(params, axis, to="varying")`. `state_specs` says how a state that
    holds this one is spread over the mesh.

    Args:
        axis: the name of the mesh axis.
        devices: how many there are along it, `mesh.shape[axis]`.
        key: a key of `jax.random`.
        block: how many numbers share a scale.

    Returns:
        The transformation; its state is an `AverageState`. `init` is called outside of
        `shard_map`. All devices get the same float averages, bit for bit.

    Raises:
        ValueError: `devices` or `block` is below 1; or, in `update`, the axis has
            another size, or JAX has added up the gradients already.

    References:
        Seide et al. 2014, "1-Bit Stochastic Gradient Descent and its Application to
        Data-Parallel Distributed Training of Speech DNNs", section 3 (error
        feedback); Alistarh et al. 2017, "QSGD: Communication-Efficient SGD via
        Gradient Quantization and Encoding", section 3 (stochastic rounding).

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from jax.sharding import PartitionSpec as P
        >>> from jcompress.optimizers import average_in_int8, state_specs
        >>> mesh = jax.sharding.Mesh(jax.devices()[:1], ("data",))
        >>> optimizer = optax.chain(
        ...     average_in_int8("data", devices=1, key=jax.random.key(0)),
        ...     optax.sgd(1.0),
        ... )
        >>> params = jnp.zeros(4)
        >>> state = optimizer.init(params)
        >>> specs = state_specs(state, "data")
        >>> def step(params, state, x):
        ...     grads = jax.grad(lambda p: ((p - x[0]) ** 2).sum())(params)
        ...     updates, state = optimizer.update(grads, state, params)
        ...     return optax.apply_updates(params, updates), state
        >>> step = jax.jit(jax.shard_map(
        ...     step, mesh=mesh, in_specs=(P(), specs, P("data")),
        ...     out_specs=(P(), specs), check_vma=False))
        >>> params, state = step(params, state, jnp.ones((1, 4)))
        >>> params
        Array([2., 2., 2., 2.], dtype=float32)
    """
    for name, value in (("devices", devices), ("block", block)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(
                f"average_in_int8: {name} is a positive int, not {value!r}"
            )

    def init(params: Any) -> AverageState:
        numbers = sum(leaf.size for leaf in jax.tree.leaves(params))
        part = -(-numbers // (devices * block)) * block
        return AverageState(
            key=key,
            error=jnp.zeros((devices, devices * part), jnp.float32),
            mean_error=jnp.zeros((devices, part), jnp.float32),
        )

    def update(
        updates: Any, state: AverageState, params: Any = None
    ) -> tuple[Any, AverageState]:
        del params
        if jax.lax.axis_size(axis) != devices:
            raise ValueError(
                f"average_in_int8: the axis {axis!r} has {jax.lax.axis_size(axis)} "
                f"devices, not {devices}"
            )
        _check_own(axis, updates)
        floats = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), updates)
        flat, unravel = ravel_pytree(floats)
        key, now = jax.random.split(state.key)
        first, second = jax.random.split(
            jax.random.fold_in(now, jax.lax.axis_index(axis))
        )
        wide = state.error.shape[-1]
        own = jnp.pad(flat, (0, wide - flat.size)) + state.error[0]
        own = own.reshape(devices, -1, block)
        sizes = jax.lax.pmax(jnp.max(jnp.abs(own), axis=2, keepdims=True), axis)
        codes, scales, error = _rounded(own, sizes, first)
        received = jax.lax.all_to_all(codes, axis, split_axis=0, concat_axis=0)
        total = jnp.sum(received, axis=0, dtype=jnp.int32).astype(jnp.float32)
        mine = jax.lax.dynamic_index_in_dim(
            scales, jax.lax.axis_index(axis), keepdims=False
        )
        mean = total * (mine * np.float32(1 / devices))
        mean = mean + state.mean_error.reshape(mean.shape)
        sizes = jnp.max(jnp.abs(mean), axis=1, keepdims=True)
        codes, scales, mean_error = _rounded(mean, sizes, second)
        gather = functools.partial(
            jax.lax.all_gather, axis_name=axis, tiled=True, to="invarying"
        )
        result = gather(codes).astype(jnp.float32) * gather(scales)
        averages = unravel(result.reshape(-1)[: flat.size])
        averages = jax.tree.map(lambda a, u: a.astype(u.dtype), averages, updates)
        return averages, AverageState(
            key=key,
            error=error.reshape(1, -1),
            mean_error=mean_error.reshape(1, -1),
        )

    return optax.GradientTransformation(init, update)


def _check_own(axis: str, updates: Any) -> None:
    """Raise ValueError if JAX knows that all devices have the same gradients."""
    if axis in varying(jax.lax.axis_index(axis)) - varying(updates):
        raise ValueError(
            f"average_in_int8: the gradients are the same on all devices along "
            f"{axis!r}, because JAX has added them up, in floats; differentiate by "
            f'jax.lax.pcast(params, {axis!r}, to="varying")'
        )


def _rounded(
    x: jax.Array, sizes: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Numbers in int8, rounded by chance; their scales, and what is left."""
    scales = jnp.where(sizes > 0, sizes, _TOP) / _TOP
    chance = jax.random.uniform(key, x.shape, jnp.float32)
    numbers = jnp.clip(jnp.floor(x / scales + chance), -_TOP, _TOP)
    return numbers.astype(jnp.int8), scales, x - numbers * scales


def state_specs(state: Any, axis: str) -> Any:
    """How a state with an `AverageState` in it is spread: specs for `jax.shard_map`.

    Args:
        state: the state of any optimizer that holds one.
        axis: the name of the mesh axis.

    Returns:
        A tree of `PartitionSpec`s: the errors are each device's own, everything else
        is the same on all.
    """
    same: Any = PartitionSpec()
    own: Any = PartitionSpec(axis)

    def spec(leaf: Any) -> Any:
        if isinstance(leaf, AverageState):
            return AverageState(key=same, error=own, mean_error=own)
        return same

    return jax.tree.map(
        spec, state, is_leaf=lambda leaf: isinstance(leaf, AverageState)
    )
