"""The interpreter under other transforms, inside other functions, with effects."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from zoo import running

from jcompress.tracing.interpreter import identity

pytestmark = pytest.mark.bits


def mlp(p: Any, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ p["w"] + p["b"][None]) @ p["u"]


KEYS = jax.random.split(jax.random.key(0), 4)
PARAMS = {
    "w": jax.random.normal(KEYS[0], (8, 6)),
    "b": jax.random.normal(KEYS[1], (6,)),
    "u": jax.random.normal(KEYS[2], (6, 8)),
}
X = jax.random.normal(KEYS[3], (4, 8))


def mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))


def test_eager() -> None:
    running.assert_same(identity(mlp)(PARAMS, X), mlp(PARAMS, X))


def test_twice() -> None:
    running.assert_same(identity(identity(mlp))(PARAMS, X), mlp(PARAMS, X))


def test_of_jit() -> None:
    expected = jax.jit(mlp)(PARAMS, X)
    running.assert_same(identity(jax.jit(mlp))(PARAMS, X), expected)


@pytest.mark.parametrize(
    "transform",
    [
        lambda f: jax.hessian(lambda p, x: jnp.sum(jnp.square(f(p, x)))),
        lambda f: jax.jacfwd(f),
        lambda f: jax.jacrev(f, argnums=1),
        lambda f: lambda p, x: jax.jvp(f, (p, x), (p, x)),
        lambda f: lambda p, x: jax.linearize(f, p, x)[1](p, x),
        lambda f: lambda p, x: jax.vjp(f, p, x)[1](x),
        lambda f: jax.checkpoint(f),
        lambda f: jax.vmap(jax.grad(lambda p, x: jnp.sum(f(p, x[None]))), (None, 0)),
        lambda f: lambda p, x: jax.lax.scan(lambda x, _: (f(p, x), x), x, None, 3),
        lambda f: lambda p, x: jax.lax.map(lambda x: f(p, x[None]), x),
        lambda f: lambda p, x: jax.lax.cond(x[0, 0] > 0, f, lambda p, x: x, p, x),
        lambda f: lambda p, x: jax.lax.fori_loop(0, 2, lambda _, x: f(p, x), x),
        lambda f: lambda p, x: jax.vmap(f, (None, 0), axis_name="i")(p, x[:, None]),
    ],
    ids=[
        "hessian",
        "jacfwd",
        "jacrev",
        "jvp",
        "linearize",
        "vjp",
        "checkpoint",
        "per_example_gradient",
        "scan",
        "map",
        "cond",
        "fori_loop",
        "vmap",
    ],
)
def test_transforms(transform: Any) -> None:
    expected = jax.jit(transform(mlp))(PARAMS, X)
    running.assert_same(jax.jit(transform(identity(mlp)))(PARAMS, X), expected)


def test_closed_over_tracers() -> None:
    """Gradients and batches reach values that the function only closes over."""

    def outer(wrap: Any, p: Any, x: jax.Array, scale: jax.Array) -> jax.Array:
        def inner(p: Any, x: jax.Array) -> jax.Array:
            hidden = jax.lax.cond(scale > 0, lambda: x * scale, lambda: x)
            return mlp(p, hidden) * scale

        return jnp.sum(wrap(inner)(p, x))

    scales = jnp.arange(3.0)
    for transform in (jax.grad, lambda f, _: jax.vmap(f, (None, None, 0))):
        expected, actual = (
            jax.jit(transform(functools.partial(outer, wrap), 2))(
                PARAMS, X, scales[1] if transform is jax.grad else scales
            )
            for wrap in (lambda f: f, identity)
        )
        running.assert_same(actual, expected)


def test_collectives_under_vmap() -> None:
    def normalized(p: Any, x: jax.Array) -> jax.Array:
        y = mlp(p, x)
        return y - jax.lax.pmean(y, "batch") + jax.lax.axis_index("batch")

    def run(fn: Any) -> Any:
        return jax.jit(jax.vmap(fn, (None, 0), axis_name="batch"))(PARAMS, X[:, None])

    with jax.numpy_dtype_promotion("standard"):
        running.assert_same(run(identity(normalized)), run(normalized))


@pytest.mark.parametrize("check", [True, False])
def test_inside_shard_map(check: bool) -> None:
    """The function runs on each device's part and talks to the others."""

    def local(p: Any, x: jax.Array) -> Any:
        y = mlp(p, x)
        return y, jax.lax.psum(jnp.sum(y), "data")

    def run(fn: Any) -> Any:
        mapped = jax.shard_map(
            fn,
            mesh=mesh(),
            in_specs=(P(), P("data")),
            out_specs=(P("data"), P()),
            check_vma=check,
        )
        return jax.jit(mapped)(PARAMS, X)

    running.assert_same(run(identity(local)), run(local))


@pytest.mark.parametrize("check", [True, False])
def test_inside_shard_map_with_loops_and_gradients(check: bool) -> None:
    def local(p: Any, x: jax.Array) -> Any:
        def loss(x: jax.Array) -> jax.Array:
            body = jax.checkpoint(lambda x, _: (mlp(p, x), None))
            return jnp.sum(jax.lax.scan(body, x, None, 2)[0])

        return jax.grad(loss)(x)

    def run(fn: Any) -> Any:
        mapped = jax.shard_map(
            fn,
            mesh=mesh(),
            in_specs=(P(), P("data")),
            out_specs=P("data"),
            check_vma=check,
        )
        return jax.jit(mapped)(PARAMS, X)

    running.assert_same(run(identity(local)), run(local))


def test_under_a_mesh_context() -> None:
    sharding = NamedSharding(mesh(), P("data"))
    x = jax.device_put(X, sharding)

    def fn(p: Any, x: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(mlp(p, x), P("data", None))

    with jax.set_mesh(mesh()):
        expected, actual = jax.jit(fn)(PARAMS, x), jax.jit(identity(fn))(PARAMS, x)
    running.assert_same(actual, expected)
    assert actual.sharding.is_equivalent_to(expected.sharding, 2)


def test_explicit_mesh_axes() -> None:
    """Shardings that are part of the types of arrays."""
    explicit = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(explicit):
        x = jax.device_put(X, P("data", None))
        p = jax.device_put(PARAMS, P())
        expected, actual = jax.jit(mlp)(p, x), jax.jit(identity(mlp))(p, x)
        assert jax.typeof(actual).sharding == jax.typeof(expected).sharding
    running.assert_same(actual, expected)


def test_donation() -> None:
    step = jax.jit(
        identity(lambda p, x: jax.tree.map(lambda a: a * 2.0, p)), donate_argnums=0
    )
    p = jax.tree.map(jnp.copy, PARAMS)
    running.assert_same(step(p, X), jax.tree.map(lambda a: a * 2.0, PARAMS))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(p))


def test_the_function_is_traced_once_a_compilation() -> None:
    @chex.assert_max_traces(n=1)
    def counted(p: Any, x: jax.Array) -> jax.Array:
        return mlp(p, x)

    chex.clear_trace_counter()
    step = jax.jit(identity(counted))
    step(PARAMS, X)
    step(PARAMS, X * 2.0)


def test_a_debug_callback_runs_once_a_call() -> None:
    seen: list[float] = []

    def fn(p: Any, x: jax.Array) -> jax.Array:
        y = mlp(p, x)
        jax.debug.callback(lambda s: seen.append(float(s)), jnp.sum(y), ordered=True)
        jax.lax.fori_loop(0, 2, lambda i, c: (note(i), c)[1], 0)
        return y

    def note(i: jax.Array) -> None:
        jax.debug.callback(lambda i: seen.append(float(i)), i)

    results = []
    for wrap in (lambda f: f, identity):
        seen.clear()
        jax.block_until_ready(jax.jit(wrap(fn))(PARAMS, X))
        jax.effects_barrier()
        results.append(sorted(seen))
    assert len(results[0]) == 3
    assert results[0] == results[1]


def test_a_pure_callback() -> None:
    def fn(p: Any, x: jax.Array) -> jax.Array:
        y = mlp(p, x)
        return jax.pure_callback(lambda y: np.asarray(y) * 2, y, y) + y

    running.assert_same(jax.jit(identity(fn))(PARAMS, X), jax.jit(fn)(PARAMS, X))


def test_mutable_references() -> None:
    """A function with state of its own (`jax.new_ref`)."""

    def fn(p: Any, x: jax.Array) -> jax.Array:
        total = jax.new_ref(jnp.zeros((4, 8)))
        total[...] += mlp(p, x)
        total[0] = total[1] * 2.0
        return total[...]

    running.assert_same(jax.jit(identity(fn))(PARAMS, X), jax.jit(fn)(PARAMS, X))


def test_results_that_are_no_arrays() -> None:
    def fn(p: Any, x: jax.Array) -> Any:
        return {"y": mlp(p, x), "none": None, "n": 3, "f": 0.5, "np": np.arange(2)}

    running.assert_same(jax.jit(identity(fn))(PARAMS, X), jax.jit(fn)(PARAMS, X))


def test_the_same_leaf_twice_in_the_tree() -> None:
    p = {**PARAMS, "u": PARAMS["w"].T}
    tied = {"a": p, "b": p}

    def fn(q: Any, x: jax.Array) -> jax.Array:
        return mlp(q["a"], x) - mlp(q["b"], x * 2.0)

    running.assert_same(jax.jit(identity(fn))(tied, X), jax.jit(fn)(tied, X))


def test_empty_batches() -> None:
    empty = jnp.zeros((0, 8))
    expected = jax.jit(mlp)(PARAMS, empty)
    running.assert_same(jax.jit(identity(mlp))(PARAMS, empty), expected)


def test_signature() -> None:
    """Positional, keyword and default arguments reach the function as they are."""

    def fn(p: Any, x: jax.Array, *rest: Any, scale: float = 2.0, **more: Any) -> Any:
        """Its own words."""
        assert type(scale) is float
        assert rest == ("a", None)
        assert more == {"flag": True}
        return mlp(p, x) * scale

    same = identity(fn)
    actual = same(PARAMS, X, "a", None, scale=3.0, flag=True)
    running.assert_same(actual, fn(PARAMS, X, "a", None, scale=3.0, flag=True))
    assert same.__name__ == "fn"
    assert same.__doc__ == "Its own words."
    jitted = jax.jit(same, static_argnums=(2, 3), static_argnames=("scale", "flag"))
    jitted(PARAMS, X, "a", None, scale=3.0, flag=True)


def test_errors_of_the_function_come_through() -> None:
    with pytest.raises(TypeError, match="dot_general"):
        identity(mlp)(PARAMS, X[:, :5])


def test_another_default_precision() -> None:
    """A context at the time of the call counts, as it does for the function."""

    def text(fn: Any) -> str:
        with jax.default_matmul_precision("float32"):
            return jax.jit(fn).lower(PARAMS, X).as_text()

    assert text(identity(mlp)).count("HIGHEST") == text(mlp).count("HIGHEST") > 0


@pytest.mark.parametrize(
    "name", ["linen_transformer_remat", "nnx_lstm", "linen_resnet"]
)
def test_compiled_cost_is_the_same(name: str) -> None:
    """A jitted step pays nothing for the interpreter."""
    model = zoo.build(name)
    values = running.arrays(model)
    costs = []
    for fn in (model.fn, identity(model.fn)):
        run = running.with_gradient(model, running.runner(model, fn))
        compiled = jax.jit(run).lower(values).compile()
        cost: Any = compiled.cost_analysis()
        costs.append((cost["flops"], cost["bytes accessed"]))
    assert costs[0] == costs[1]


def test_shardings_and_options_of_a_jitted_function_stay() -> None:
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
    columns = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "d"))

    def product(params: Any, x: jax.Array) -> jax.Array:
        return x @ params["w"]

    fn = jax.jit(product, in_shardings=({"w": columns}, rows), out_shardings=columns)
    params, x = {"w": jnp.ones((8, 4))}, jnp.arange(32.0).reshape(4, 8)
    out = jax.jit(identity(fn))(params, x)
    assert out.sharding.is_equivalent_to(columns, 2)
    np.testing.assert_array_equal(out, fn(params, x))
