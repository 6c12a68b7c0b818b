"""The interpreter with a handler at every site that changes nothing."""

import collections
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import zoo
from jax.extend import core
from jax.sharding import AxisType
from zoo import running

from jcompress.tracing.interpreter import identity


def models(**flags: bool) -> Any:
    return pytest.mark.parametrize(
        "model",
        [
            model
            for model in map(zoo.build, zoo.NAMES)
            if all(getattr(model, flag) is value for flag, value in flags.items())
        ],
        ids=lambda model: model.name,
    )


def both(model: zoo.Case) -> tuple[running.Run, running.Run]:
    """The model as it is and through the interpreter."""
    plain = running.runner(model, model.fn)
    return plain, running.runner(model, identity(model.fn))


@models()
def test_jit(model: zoo.Case) -> None:
    plain, same = both(model)
    values = running.arrays(model)
    running.assert_same(jax.jit(same)(values), jax.jit(plain)(values))


@models(grad=True)
def test_gradient(model: zoo.Case) -> None:
    plain, same = (running.with_gradient(model, run) for run in both(model))
    running.assert_same_when_compiled(same, plain, running.arrays(model))


@models(vmap=True)
def test_vmap(model: zoo.Case) -> None:
    (plain, values), (same, _) = (running.batched(model, run) for run in both(model))
    running.assert_same_when_compiled(same, plain, values)


@models(mesh=True)
def test_sharded(model: zoo.Case) -> None:
    mesh = jax.make_mesh((4,), ("model",), axis_types=(AxisType.Auto,))
    plain, same = both(model)
    running.assert_same_when_compiled(same, plain, running.sharded(model, mesh))


@pytest.mark.parametrize("name", ["training_step", "loss_and_gradient", "energy"])
def test_gradient_of_a_gradient(name: str) -> None:
    """The same program as that of the function's jaxpr."""
    model = zoo.build(name)
    plain, same = both(model)
    values = running.arrays(model)
    jaxpr, shape = jax.make_jaxpr(plain, return_shape=True)(values)

    def staged(values: running.Arrays) -> Any:
        out = core.jaxpr_as_fun(jaxpr)(*values)
        return jax.tree.unflatten(jax.tree.structure(shape), out)

    plain, same = (running.with_gradient(model, run) for run in (staged, same))
    running.assert_same_when_compiled(same, plain, values)


@pytest.mark.parametrize(
    "change",
    [
        lambda y: y + 1e-7,
        lambda y: y.astype(jnp.bfloat16),
        lambda y: {"y": y},
        lambda y: jnp.where(y > 0, y, -y),
    ],
    ids=["value", "dtype", "structure", "sign"],
)
def test_the_comparison_can_fail(change: Any) -> None:
    model = zoo.build("linen_mlp")
    plain = running.runner(model, model.fn)
    values = running.arrays(model)
    with pytest.raises(AssertionError):
        running.assert_same_when_compiled(lambda v: change(plain(v)), plain, values)


SEVERAL = [
    "linen_transformer_remat",
    "linen_cnn_train",
    "nnx_lstm",
    "cond_with_weights",
    "custom_parameters",
    "equinox_mlp",
    "shard_map_dense",
]


@pytest.mark.parametrize("name", SEVERAL)
def test_gradients_on_a_mesh(name: str) -> None:
    """Everything at once, and really run: sharded, differentiated, batched."""
    mesh = jax.make_mesh((4,), ("model",), axis_types=(AxisType.Auto,))
    model = zoo.build(name)
    values = running.sharded(model, mesh)
    plain, same = (running.with_gradient(model, run) for run in both(model))
    running.assert_same(jax.jit(same)(values), jax.jit(plain)(values))


STRUCTURE = (
    "scan",
    "while",
    "cond",
    "checkpoint",
    "remat",
    "remat2",
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_linear_solve",
    "shard_map",
    "sharding_constraint",
    "debug_callback",
)
OPTIONS = ("length", "reverse", "unroll", "policy", "prevent_cse", "num_consts")
"""Parameters of these equations that a careless rebuild would lose."""


def structure(run: running.Run, values: running.Arrays) -> list[tuple[str, Any]]:
    return [
        (
            equation.primitive.name,
            {key: equation.params[key] for key in OPTIONS if key in equation.params},
        )
        for equation in running.equations(jax.make_jaxpr(run)(values).jaxpr)
        if equation.primitive.name in STRUCTURE
    ]


def counts(run: running.Run, values: running.Arrays) -> collections.Counter[str]:
    jaxpr = jax.make_jaxpr(run)(values).jaxpr
    return collections.Counter(eqn.primitive.name for eqn in running.equations(jaxpr))


@models()
def test_structure_survives(model: zoo.Case) -> None:
    """Loops, branches, remat (with its policy) and custom gradients stay."""
    plain, same = both(model)
    values = running.arrays(model)
    kept = (*OPTIONS[:-1],)
    before, after = structure(plain, values), structure(same, values)
    assert [name for name, _ in after] == [name for name, _ in before]
    for (name, old), (_, new) in zip(before, after, strict=True):
        for key in kept:
            assert new.get(key) == old.get(key), (name, key)


@models()
def test_products_are_the_same(model: zoo.Case) -> None:
    """The same products, gathers and convolutions, and no other arithmetic."""
    plain, same = both(model)
    values = running.arrays(model)
    before, after = counts(plain, values), counts(same, values)
    for call in ("jit", "pjit", "closed_call", "core_call"):
        del before[call], after[call]
    if before["cond"]:
        # `switch` clamps its index, also one that was clamped before.
        after["clamp"] -= before["cond"]
    assert +after == +before


@models(grad=True)
def test_the_gradient_keeps_structure(model: zoo.Case) -> None:
    """What is saved for the backward pass, and what is computed again, is the same."""
    plain, same = (running.with_gradient(model, run) for run in both(model))
    values = running.arrays(model)
    names = (*STRUCTURE, "dot_general", "conv_general_dilated", "gather", "ragged_dot")
    before, after = counts(plain, values), counts(same, values)
    assert [after[name] for name in names] == [before[name] for name in names]


def test_the_zoo_has_what_must_survive() -> None:
    """The tests above say nothing if no model has such an equation."""
    seen: collections.Counter[str] = collections.Counter()
    for name in zoo.NAMES:
        model = zoo.build(name)
        seen += counts(running.runner(model, model.fn), running.arrays(model))
    assert seen["checkpoint"] + seen["remat2"] + seen["remat"] >= 4
    for needed in ("scan", "while", "cond", "custom_jvp_call", "custom_vjp_call"):
        assert seen[needed] >= 3, needed


def debug_text(fn: Any, *args: Any) -> str:
    text: str = jax.jit(fn).lower(*args).as_text(debug_info=True)
    return text


@pytest.mark.parametrize(
    ("name", "scopes"),
    [
        ("nested_jit_and_scopes", ["a_name_to_find"]),
        ("linen_mlp", ["MLP/Dense_0", "MLP/Dense_1"]),
        ("linen_transformer_remat", ["layers/attention", "layers/up"]),
    ],
)
def test_scope_names_survive(name: str, scopes: list[str]) -> None:
    model = zoo.build(name)
    plain, same = both(model)
    values = running.arrays(model)
    for scope in scopes:
        assert scope in debug_text(plain, values)
        assert scope in debug_text(same, values)
