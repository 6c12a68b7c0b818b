"""The contract of `shrunk`, on every model: masked equals shrunk."""

import collections
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import shrinking_models as models
from _models import Model
from shrinking_models.convolutional import WHOLE

from jcompress import checkpoint
from jcompress.leaves import named_leaves
from jcompress.shrinking._coupling import Coupling
from jcompress.shrinking._ids import Ties
from jcompress.shrinking.groups import Groups, Member, find_groups
from jcompress.shrinking.plan import Plan, shrink, shrunk, zero_units
from jcompress.sites import find_sites

FAST = {"xla_backend_optimization_level": 0}
"""Programs run once: the compiler need not try hard."""


NATIVE = ("mlp", "mobilenet", "lstm", "nnx_resnet", "equinox_gru", "haiku_transformer")
"""Models of which the small one is evaluated though no group is opt-in."""


def axis_of(member: Member) -> str:
    """As the tables of the models write it."""
    name = f"{member.path.removeprefix('params/')}:{member.axis}"
    part, whole = int((member.units >= 0).sum()), len(member.units)
    return name if part == whole else f"{name}({part}/{whole})"


@functools.cache
def groups_of(name: str) -> Groups:
    case = models.build(name)
    return find_groups(case.model.evaluate, case.variables, *case.inputs)


def half(groups: Groups, seed: int = 0) -> Plan:
    """Keeps half of the units of each group that is not opt-in, at random."""
    rng = np.random.default_rng(seed)
    return groups.keep(
        {
            group.name: rng.permutation(group.size)[: max(1, group.size // 2)]
            for group in groups
            if not group.reduced
        }
    )


def close(wanted: Any, found: Any, tolerance: float) -> None:
    """Trees are equal to a tolerance relative to the largest number of a leaf.

    Leaves that are zero but for rounding (the gradient of a key's bias) are compared
    with the rest of the tree.
    """
    assert jax.tree.structure(wanted) == jax.tree.structure(found)
    most = max(float(np.max(np.abs(x), initial=0)) for x in jax.tree.leaves(wanted))

    def one(path: Any, a: Any, b: Any) -> None:
        name = jax.tree_util.keystr(path)
        assert a.shape == b.shape, name
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        scale = np.abs(a).max(initial=0) + 1e-2 * most
        np.testing.assert_allclose(b / scale, a / scale, atol=tolerance, err_msg=name)

    jax.tree_util.tree_map_with_path(one, wanted, found)


def everything(evaluate: Callable[..., Any], train: Callable[..., Any]) -> Any:
    """Evaluation, training mode, gradients and a step of SGD, in one program."""

    def run(tree: Any, *args: Any) -> Any:
        def loss(tree: Any) -> Any:
            out, state = train(tree, *args)
            return jnp.mean(jnp.square(out - 1)), (out, state)

        (_, (out, state)), grads = jax.value_and_grad(loss, has_aux=True)(tree)
        optimizer = optax.sgd(0.1, momentum=0.9)
        updates, _ = optimizer.update(grads, optimizer.init(tree), tree)
        stepped = optax.apply_updates(tree, updates)
        # Without statistics of a batch and dropout, training mode is evaluation.
        same = not jax.tree.leaves(state)
        return out if same else evaluate(tree, *args), out, state, grads, stepped

    return jax.jit(run, compiler_options=FAST)


@pytest.mark.parametrize("name", models.NAMES)
def test_groups(name: str) -> None:
    case, groups = models.build(name), groups_of(name)
    assert {group.name: group.size for group in groups} == case.groups
    assert {group.name for group in groups if group.reduced} == case.opt_in
    for table_name, wanted in case.members.items():
        prefix = "" if table_name in case.groups else "params/"
        found = groups[f"{prefix}{table_name}"].members
        assert {axis_of(member) for member in found} == wanted


@pytest.mark.parametrize(("model", "wanted"), WHOLE, ids=("resnet18", "resnet50"))
def test_groups_of_all_layers(model: Model, wanted: dict[str, int]) -> None:
    groups = find_groups(model.evaluate, model.shapes(), *model.inputs(1))
    assert {group.name: group.size for group in groups} == wanted


@pytest.mark.parametrize("name", models.NAMES)
def test_masked_equals_shrunk(name: str) -> None:
    case = models.build(name)
    plan = half(groups_of(name))
    model, variables = case.model, case.variables
    small = shrink(variables, plan)
    masked = zero_units(variables, plan)
    wanted = everything(model.evaluate, model.train)(masked, *case.inputs)
    found = everything(shrunk(model.evaluate, plan), shrunk(model.train, plan))(
        small, *case.inputs
    )
    wanted, found = jax.device_get((wanted, found))
    evaluated, trained, state, grads, stepped = wanted
    if jax.tree.leaves(state):
        # The statistics of a batch, beside the parameters that they belong to.
        state = _with_rest(variables, state)
        found_state = _with_rest(small, found[2])
        close(shrink(state, plan), found_state, 3e-4)
    close(evaluated, found[0], 2e-5)
    # Normalising a batch of four by its own variance magnifies rounding.
    close(trained, found[1], 3e-4)
    close(shrink(grads, plan), found[3], 1e-3)
    close(shrink(stepped, plan), found[4], 1e-3)
    moved = [
        bool(np.any(a != b))
        for a, b in zip(jax.tree.leaves(small), jax.tree.leaves(found[4]), strict=True)
    ]
    assert sum(moved) > len(moved) / 2


def _with_rest(tree: Any, state: Any) -> Any:
    return {**tree, **state} if isinstance(state, dict) else state


@pytest.mark.parametrize("name", models.NAMES)
def test_shrunk_equals_the_small_model_of_the_same_class(name: str) -> None:
    """Also in the widths that a normalisation or a scan runs over."""
    case = models.build(name)
    assert case.native is not None
    groups = groups_of(name)
    rng = np.random.default_rng(1)
    plan = groups.keep(
        {
            group.name: np.sort(rng.permutation(group.size)[: group.size // 2])
            for group in groups
            if group.name not in case.uncut
        }
    )
    small = shrink(case.variables, plan)
    native = case.native.shapes()
    assert [x.shape for x in jax.tree.leaves(small)] == [
        x.shape for x in jax.tree.leaves(native)
    ]
    sizes = {path: leaf.shape for path, leaf in named_leaves(native)}
    for axis, width in plan.widths.items():
        path, _, number = axis.rpartition(":")
        assert sizes[path][int(number)] == width

    loaded = jax.tree.unflatten(jax.tree.structure(native), jax.tree.leaves(small))
    run = shrunk(case.model.evaluate, plan)
    if case.opt_in or name in NATIVE:

        def both(small: Any, loaded: Any, *args: Any) -> Any:
            return run(small, *args), case.native.evaluate(loaded, *args)

        compiled = jax.jit(both, compiler_options=FAST)
        found, wanted = compiled(small, loaded, *case.inputs)
        close(wanted, found, 2e-5)

    before = find_sites(case.model.evaluate, case.variables, *case.inputs).macs
    after = find_sites(run, small, *case.inputs).macs
    assert after == find_sites(case.native.evaluate, loaded, *case.inputs).macs
    assert before is not None
    assert after is not None
    assert after < 0.6 * before


def test_multiplications_by_hand() -> None:
    """4 examples, 48 inputs, 12 and 6 hidden units, 10 outputs; then half as many."""
    case = models.build("mlp")
    plan = half(groups_of("mlp"))
    small = shrink(case.variables, plan)
    before = find_sites(case.model.evaluate, case.variables, *case.inputs)
    after = find_sites(shrunk(case.model.evaluate, plan), small, *case.inputs)
    assert before.macs == 4 * (48 * 12 + 12 * 6 + 6 * 10)
    assert after.macs == 4 * (48 * 6 + 6 * 3 + 3 * 10)


def test_dropout_in_distribution() -> None:
    """It draws for fewer units, so other numbers, of the same mean and variance."""
    from _models import plain

    module = plain.MLP((12, 6), dropout=0.3)
    case = models.build("mlp")
    plan = half(groups_of("mlp"))

    def train(variables: Any, x: jax.Array, key: jax.Array) -> jax.Array:
        return module.apply(variables, x, train=True, rngs={"dropout": key})

    def moments(fn: Callable[..., Any], tree: Any) -> tuple[np.ndarray, np.ndarray]:
        keys = jax.random.split(jax.random.key(0), 1000)
        outs = jax.jit(jax.vmap(fn, (None, None, 0)), compiler_options=FAST)(
            tree, *case.inputs, keys
        )
        return np.mean(outs, 0), np.std(outs, 0)

    mean, deviation = moments(train, zero_units(case.variables, plan))
    small = shrink(case.variables, plan)
    small_mean, small_deviation = moments(shrunk(train, plan), small)
    error = np.abs(small_mean - mean) / deviation
    assert error.max() < 6 / 1000**0.5
    np.testing.assert_allclose(small_deviation, deviation, rtol=0.1)
    assert deviation.min() > 0


def test_exports() -> None:
    case = models.build("gpt")
    plan = half(groups_of("gpt"))
    small = shrink(case.variables, plan)
    run = jax.jit(shrunk(case.model.evaluate, plan))
    written = jax.export.export(run)(small, *case.inputs).serialize()
    again = jax.export.deserialize(written)
    close(run(small, *case.inputs), again.call(small, *case.inputs), 1e-6)


def test_maps_over_examples() -> None:
    case = models.build("vit")
    plan = half(groups_of("vit"))
    small = shrink(case.variables, plan)
    run = shrunk(case.model.evaluate, plan)

    def both(small: Any, x: jax.Array) -> Any:
        return run(small, x), jax.vmap(lambda x: run(small, x[None])[0])(x)

    close(*jax.jit(both, compiler_options=FAST)(small, *case.inputs), 1e-5)


def test_plan_goes_through_a_checkpoint(tmp_path: pathlib.Path) -> None:
    case = models.build("densenet")
    plan = half(groups_of("densenet"))
    checkpoint.save(tmp_path / "plan", plan)
    loaded = Plan.from_tree(checkpoint.load(tmp_path / "plan"))
    assert loaded.widths == plan.widths
    close(dict(plan.kept), dict(loaded.kept), 0)
    close(shrink(case.variables, plan), shrink(case.variables, loaded), 0)


def test_two_plans_are_one() -> None:
    """Shrunk twice, the second time from the groups of what the first one left."""
    case = models.build("vit")
    first = half(groups_of("vit"))
    small = shrink(case.variables, first)
    once = shrunk(case.model.evaluate, first)
    groups = find_groups(once, small, *case.inputs)
    assert {g.name: g.size for g in groups} == {
        g.name: len(first.kept.get(g.name, range(g.size))) for g in groups_of("vit")
    }
    second = half(groups, seed=1)
    whole = first.then(second)
    smaller = shrink(small, second)
    close(shrink(case.variables, whole), smaller, 0)
    twice = jax.jit(shrunk(once, second), compiler_options=FAST)
    close(
        jax.jit(shrunk(case.model.evaluate, whole), compiler_options=FAST)(
            smaller, *case.inputs
        ),
        twice(smaller, *case.inputs),
        1e-5,
    )
    again = groups_of("vit").keep(whole.kept)
    assert again.widths == whole.widths
    for path, masks in again.masks.items():
        for axis, mask in masks.items():
            np.testing.assert_array_equal(mask, whole.masks[path][axis])


def test_work_grows_with_the_program_and_not_its_square(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """BERT of 3 and 6 layers, abstract: each equation is visited once."""
    from _models import bert

    def counted(depth: int) -> collections.Counter[str]:
        counter: collections.Counter[str] = collections.Counter()
        for cls, name in ((Coupling, "equation"), (Ties, "tie"), (Ties, "fresh")):
            method = getattr(cls, name)

            def count(self: Any, *args: Any, _of: Any = method, **more: Any) -> Any:
                counter[_of.__name__] += 1
                counter[f"positions to {_of.__name__}"] += np.size(args[0])
                return _of(self, *args, **more)

            monkeypatch.setattr(cls, name, count)
        model = bert(width=768, length=16, depth=depth)
        groups = find_groups(model.evaluate, model.shapes(), *model.inputs(1))
        assert len(groups) == 2 + 2 * depth
        monkeypatch.undo()
        return counter

    few, many = counted(3), counted(6)
    for name in few:
        assert many[name] < 2.1 * few[name]
