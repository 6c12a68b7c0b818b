"""Gradients averaged in int8 over four devices: the mean, its error, and the bytes."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jcompress.optimizers import average_in_int8, state_specs

DEVICES = 4
SHAPES = {"a": (40, 50), "b": (30,)}


@pytest.fixture(scope="module")
def mesh() -> Any:
    return jax.sharding.Mesh(np.array(jax.devices()[:DEVICES]), ("data",))


def gradients() -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    return {
        name: jnp.asarray(rng.normal(size=(DEVICES, *shape)), jnp.float32)
        for name, shape in SHAPES.items()
    }


def averaged(mesh: Any, optimizer: Any, state: Any, check: bool) -> Any:
    """A function that averages [devices, ...] gradients."""
    specs = state_specs(state, "data")

    def run(grads: Any, state: Any) -> Any:
        own = jax.tree.map(lambda g: g[0], grads)
        return optimizer.update(own, state)

    return jax.jit(
        jax.shard_map(
            run,
            mesh=mesh,
            in_specs=(P("data"), specs),
            out_specs=(P(), specs),
            check_vma=check,
        )
    )


def collective_bytes(text: str) -> dict[tuple[str, str], int]:
    """Bytes of the results of each kind of collective in a compiled program."""
    found: dict[tuple[str, str], int] = {}
    kinds = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
    for line in text.splitlines():
        match = re.search(rf"= (.*?) ({kinds})(?:-start)?\(", line)
        if match is None:
            continue
        for dtype, sizes in re.findall(r"(\w+)\[([\d,]*)\]", match[1]):
            count = math.prod(int(size) for size in sizes.split(",") if size)
            width = {"s8": 1, "f32": 4, "s32": 4, "u32": 4}[dtype]
            key = (match[2], dtype)
            found[key] = found.get(key, 0) + count * width
    return found


@pytest.mark.parametrize("check", [False, True])
def test_the_mean_arrives_in_int8(mesh: Any, check: bool) -> None:
    grads = gradients()
    optimizer = average_in_int8(
        "data", devices=DEVICES, key=jax.random.key(0), block=64
    )
    state = optimizer.init({name: g[0] for name, g in grads.items()})
    run = averaged(mesh, optimizer, state, check)
    got, after = run(grads, state)
    for name, g in grads.items():
        # Two roundings of a 127th of the largest number at most.
        step = float(jnp.abs(g).max()) / 127
        assert jnp.abs(got[name] - g.mean(0)).max() < 2 * step
        assert jnp.abs(got[name] - g.mean(0)).max() > 0
    # What was rounded away is kept: the sum of what arrived and what is left is exact.
    flat = np.concatenate(
        [np.asarray(g).reshape(DEVICES, -1) for g in grads.values()], 1
    )
    left = np.asarray(after.error).mean(0) + np.asarray(after.mean_error).ravel()
    arrived = np.concatenate([np.ravel(got[name]) for name in grads])
    np.testing.assert_allclose(arrived + left[: arrived.size], flat.mean(0), atol=2e-6)


def test_collectives_move_a_quarter_of_the_bytes(mesh: Any) -> None:
    grads = gradients()
    grads = {"a": jnp.tile(grads["a"], (1, 8, 8))}
    optimizer = average_in_int8("data", devices=DEVICES, key=jax.random.key(0))
    state = optimizer.init({"a": grads["a"][0]})
    run = averaged(mesh, optimizer, state, False)
    ours = collective_bytes(run.lower(grads, state).compile().as_text())
    mean = jax.shard_map(
        lambda g: jax.lax.pmean(g[0], "data"),
        mesh=mesh,
        in_specs=P("data"),
        out_specs=P(),
    )
    floats = collective_bytes(jax.jit(mean).lower(grads["a"]).compile().as_text())
    assert floats == {("all-reduce", "f32"): 4 * grads["a"][0].size}
    numbers = state.error.shape[1]
    assert ours["all-to-all", "s8"] == numbers
    assert ours["all-gather", "s8"] == numbers
    # A ring's all-reduce moves its operand twice, the others theirs once.
    moved = sum(n * (2 if kind == "all-reduce" else 1) for (kind, _), n in ours.items())
    assert moved < 0.27 * 2 * floats["all-reduce", "f32"]


def test_errors_fed_back_average_out(mesh: Any) -> None:
    grads = gradients()
    optimizer = average_in_int8(
        "data", devices=DEVICES, key=jax.random.key(1), block=512
    )
    state = optimizer.init({name: g[0] for name, g in grads.items()})
    run = averaged(mesh, optimizer, state, False)
    first, total = None, jax.tree.map(lambda g: jnp.zeros(g.shape[1:]), grads)
    for _ in range(32):
        got, state = jax.block_until_ready(run(grads, state))
        first = got if first is None else first
        total = jax.tree.map(jnp.add, total, got)
    once = jnp.abs(first["a"] - grads["a"].mean(0)).max()
    many = jnp.abs(total["a"] / 32 - grads["a"].mean(0)).max()
    assert many < once / 10


def test_training_with_it(mesh: Any) -> None:
    """Each device has its own data; the mean of it is what all must find."""
    optimizer = optax.chain(
        average_in_int8("data", devices=DEVICES, key=jax.random.key(0), block=16),
        optax.sgd(0.3, momentum=0.5),
    )
    x = jax.random.normal(jax.random.key(2), (DEVICES, 33))
    x = jax.device_put(x, NamedSharding(mesh, P("data")))
    params = jnp.zeros(33)
    state = optimizer.init(params)
    specs = state_specs(state, "data")

    def step(params: Any, state: Any, x: jax.Array) -> Any:
        own = jax.lax.pcast(params, "data", to="varying")
        grads = jax.grad(lambda p: jnp.sum(jnp.square(p - x[0])) / 2)(own)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    run = jax.jit(
        jax.shard_map(
            step, mesh=mesh, in_specs=(P(), specs, P("data")), out_specs=(P(), specs)
        )
    )
    for _ in range(40):
        # With 32 steps waiting, jaxlib 0.10 begins the next in a thread that a device
        # of the first still needs: on few cores neither would end.
        params, state = jax.block_until_ready(run(params, state, x))
    np.testing.assert_allclose(params, x.mean(0), atol=0.02)


def test_what_does_not_fit_raises(mesh: Any) -> None:
    with pytest.raises(ValueError, match="devices is a positive int"):
        average_in_int8("data", devices=0, key=jax.random.key(0))
    optimizer = average_in_int8("data", devices=2, key=jax.random.key(0))
    state = optimizer.init({"a": jnp.zeros(4)})
    state = state._replace(error=jnp.zeros((4, 8)), mean_error=jnp.zeros((4, 4)))
    run = averaged(mesh, optimizer, state, False)
    with pytest.raises(ValueError, match="has 4 devices, not 2"):
        run({"a": jnp.zeros((4, 4))}, state)
    optimizer = average_in_int8("data", devices=4, key=jax.random.key(0))
    state = optimizer.init({"a": jnp.zeros(4)})

    def same(grads: Any, state: Any) -> Any:
        return optimizer.update(grads, state)

    specs = state_specs(state, "data")
    with pytest.raises(ValueError, match="pcast"):
        jax.eval_shape(
            jax.shard_map(
                same, mesh=mesh, in_specs=(P(), specs), out_specs=(P(), specs)
            ),
            {"a": jnp.zeros(4)},
            state,
        )
