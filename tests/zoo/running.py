"""Run a model of the zoo as a function of a list of arrays, and compare results."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from zoo._case import Case

Arrays = list[Any]
Run = Callable[[Arrays], Any]


def _is_array(x: Any) -> bool:
    return hasattr(x, "dtype")


def arrays(model: Case) -> Arrays:
    """The arrays of variables and arguments; whatever else there is stays fixed."""
    inputs = (model.variables, model.args, dict(model.kwargs))
    return [x for x in jax.tree.leaves(inputs) if _is_array(x)]


def leaf_count(model: Case) -> int:
    """How many of these arrays are leaves of the variables."""
    return sum(_is_array(x) for x in jax.tree.leaves(model.variables))


def runner(model: Case, fn: Callable[..., Any]) -> Run:
    """`fn` as a function of `arrays(model)`."""
    inputs = (model.variables, model.args, dict(model.kwargs))
    leaves, tree = jax.tree.flatten(inputs)

    def run(values: Arrays) -> Any:
        given = iter(values)
        filled = [next(given) if _is_array(x) else x for x in leaves]
        variables, args, kwargs = jax.tree.unflatten(tree, filled)
        return fn(variables, *args, **kwargs)

    return run


def trained(model: Case) -> list[bool]:
    """Which of the arrays are float leaves of the variables."""
    leaves = leaf_count(model)
    return [
        i < leaves and jnp.issubdtype(x.dtype, jnp.floating)
        for i, x in enumerate(arrays(model))
    ]


def with_gradient(model: Case, run: Run) -> Run:
    """Outputs and, of half their sum of squares, the gradient to the float leaves."""
    moving = trained(model)

    def call(values: Arrays) -> Any:
        def loss(floats: Arrays) -> Any:
            given = iter(floats)
            merged = [
                next(given) if moves else x
                for x, moves in zip(values, moving, strict=True)
            ]
            out = run(merged)
            numbers = [x for x in jax.tree.leaves(out) if _is_float(x)]
            squares = [jnp.sum(jnp.square(x.astype(jnp.float32))) for x in numbers]
            return sum(squares, jnp.zeros(())) / 2, out

        floats = [x for x, moves in zip(values, moving, strict=True) if moves]
        return jax.value_and_grad(loss, has_aux=True)(floats)

    return call


def _is_float(x: Any) -> bool:
    return _is_array(x) and bool(jnp.issubdtype(x.dtype, jnp.floating))


def batched(model: Case, run: Run) -> tuple[Run, Arrays]:
    """`run` under `vmap` over two sets of inputs, and these inputs."""
    leaves = leaf_count(model)

    def pair(x: Any) -> Any:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.split(x, 2)
        other = x * jnp.asarray(0.5, x.dtype) if _is_float(x) else jnp.flip(x)
        return jnp.stack([x, other])

    values = arrays(model)
    axes = [None if i < leaves else 0 for i in range(len(values))]
    inputs = [x if i < leaves else pair(x) for i, x in enumerate(values)]
    return jax.vmap(run, in_axes=(axes,)), inputs


def sharded(model: Case, mesh: jax.sharding.Mesh) -> Arrays:
    """The arrays, each split over the mesh along the first axis that divides."""

    def put(x: Any) -> Any:
        if not hasattr(x, "shape") or jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return x
        spec: list[str | None] = [None] * x.ndim
        for axis, size in enumerate(x.shape):
            if size and size % mesh.size == 0:
                spec[axis] = mesh.axis_names[0]
                break
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
        return jax.device_put(x, sharding)

    return [put(x) for x in arrays(model)]


def assert_same(actual: Any, expected: Any) -> None:
    """Equal to the bit: structure, dtype, weak type and every value."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (a.dtype, a.weak_type) == (b.dtype, b.weak_type)
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def assert_same_when_compiled(actual: Run, expected: Run, values: Arrays) -> None:
    """`assert_same` of the jitted results, without running a program twice.

    If the two lower to the same program, to the letter, then so are their results, and
    neither is compiled: this is what makes thousands of comparisons affordable.
    """
    lowered, wanted = (jax.jit(run).lower(values) for run in (actual, expected))
    assert lowered.out_info == wanted.out_info
    if lowered.as_text() != wanted.as_text():
        results, reference = lowered.compile()(values), wanted.compile()(values)
        assert_same(results, reference)
        for a, b in zip(
            jax.tree.leaves(results), jax.tree.leaves(reference), strict=True
        ):
            assert a.sharding.is_equivalent_to(b.sharding, a.ndim)


def equations(jaxpr: core.Jaxpr) -> Iterator[Any]:
    """Every equation of a jaxpr, those of inner jaxprs too, in order."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if isinstance(inner, core.ClosedJaxpr):
                    yield from equations(inner.jaxpr)
                elif isinstance(inner, core.Jaxpr):
                    yield from equations(inner)
