"""The scale of attention follows the query-key size where that is asked for."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import shrinking_models as models

from jcompress.errors import MismatchError
from jcompress.shrinking import Groups, Plan, find_groups, shrink, shrunk, zero_units

FAST = {"xla_backend_optimization_level": 0}
HEADS, SIZE, LEFT = 2, 6, 4


def normal(*shape: int, seed: int = 0) -> jax.Array:
    rng = np.random.default_rng([seed, *shape])
    return jnp.asarray(rng.normal(size=shape).astype(np.float32))


X = normal(2, 5, 7, seed=1)
TREE = {
    "query": normal(7, HEADS, SIZE),
    "key": normal(7, HEADS, SIZE),
    "value": normal(7, HEADS, 3),
    "probe": normal(4, 7),
    "out": normal(HEADS, 3, 7),
}


def heads(tree: Any, x: jax.Array, name: str) -> jax.Array:
    return jnp.einsum("...d,dhk->...hk", x, tree[name])


def weighted(tree: Any, x: jax.Array, scores: jax.Array) -> jax.Array:
    y = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), heads(tree, x, "value"))
    return jnp.einsum("bqhd,hde->bqe", y, tree["out"])


def multiplied(q: jax.Array, k: jax.Array) -> jax.Array:
    return jnp.einsum("bqhd,bkhd->bhqk", q, k)


def score_divided(tree: Any, x: jax.Array) -> jax.Array:
    q, k = heads(tree, x, "query"), heads(tree, x, "key")
    return weighted(tree, x, multiplied(q, k) / q.shape[-1] ** 0.5)


def query_multiplied(tree: Any, x: jax.Array) -> jax.Array:
    """After the product a cap and a mask."""
    q, k = heads(tree, x, "query"), heads(tree, x, "key")
    scores = 5 * jnp.tanh(multiplied(q * q.shape[-1] ** -0.5, k) / 5)
    seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))[None, None]
    return weighted(tree, x, jnp.where(seen, scores, -1e9))


def root_computed(tree: Any, x: jax.Array) -> jax.Array:
    """The root is part of the program."""
    q, k = heads(tree, x, "query"), heads(tree, x, "key")
    depth = jnp.asarray(q.shape[-1], jnp.float32)
    return weighted(tree, x, multiplied(q * jax.lax.rsqrt(depth), k))


def by_halves(tree: Any, x: jax.Array) -> jax.Array:
    q, k = heads(tree, x, "query"), heads(tree, x, "key")
    half = q.shape[-1] ** -0.25
    return weighted(tree, x, multiplied(q * half, k * half))


def fused(tree: Any, x: jax.Array) -> jax.Array:
    """One multiplication scales queries and keys, which are one array."""
    joined = jnp.stack([tree["query"], tree["key"]])
    both = jnp.einsum("bnd,sdhk->sbnhk", x, joined) * tree["key"].shape[-1] ** -0.25
    return weighted(tree, x, multiplied(both[0], both[1]))


def negated(tree: Any, x: jax.Array) -> jax.Array:
    """Biased behind the scale; softmax by hand."""
    q, k = heads(tree, x, "query"), heads(tree, x, "key")
    q = (q + jnp.float32(0.5)) / np.float32(q.shape[-1] ** 0.5)
    scores = multiplied(q, k) + jnp.arange(5, dtype=jnp.float32)[None, None, None]
    rises = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    y = jnp.einsum("bhqk,bkhd->bqhd", rises, heads(tree, x, "value"))
    y = y / jnp.sum(rises, axis=-1).mT[..., None]
    return jnp.einsum("bqhd,hde->bqe", y, tree["out"])


def of_the_library(tree: Any, x: jax.Array) -> jax.Array:
    y = jax.nn.dot_product_attention(
        *(heads(tree, x, name) for name in ("query", "key", "key"))
    )
    return jnp.einsum("bqhd,bqhd->bqh", y, y)


def probed(tree: Any, x: jax.Array) -> jax.Array:
    """The queries do not depend on the data."""
    q, k = heads(tree, tree["probe"], "query"), heads(tree, x, "key")
    scores = jnp.einsum("qhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    return weighted(tree, x, scores)


def in_pieces(tree: Any, x: jax.Array) -> jax.Array:
    """A scan over the words; queries come from outside of it."""
    q, k = heads(tree, x, "query"), heads(tree, x, "key")
    q, v = q / q.shape[-1] ** 0.5, heads(tree, x, "value")

    def piece(state: Any, one: Any) -> Any:
        most, norm, total = state
        key, value = one
        scores = jnp.einsum("bqhd,bhd->bqh", q, key)
        now = jnp.maximum(most, scores)
        old, new = jnp.exp(most - now), jnp.exp(scores - now)
        total = total * old[..., None] + new[..., None] * value[:, None]
        return (now, norm * old + new, total), None

    shape = q.shape[:3]
    start = jnp.full(shape, -1e9), jnp.zeros(shape), jnp.zeros((*shape, v.shape[-1]))
    words = jnp.moveaxis(k, 1, 0), jnp.moveaxis(v, 1, 0)
    (_, norm, total), _ = jax.lax.scan(piece, start, words)
    return jnp.einsum("bqhd,hde->bqe", total / norm[..., None], tree["out"])


def layered(tree: Any, x: jax.Array) -> jax.Array:
    """A scan over layers, which are computed again in the backward pass."""

    @jax.checkpoint
    def layer(x: jax.Array, one: Any) -> Any:
        return jnp.tanh(x + score_divided(one, x)), None

    layers = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.3 * leaf]), tree)
    return jax.lax.scan(layer, x, layers)[0]


FORMS = (
    score_divided,
    query_multiplied,
    root_computed,
    by_halves,
    fused,
    negated,
    of_the_library,
    probed,
    in_pieces,
    layered,
)


def narrow(groups: Groups) -> Plan:
    """Keeps four of the six positions over which queries and keys are multiplied."""
    return groups.keep({"key:2": [0, 2, 3, 5]})


@pytest.mark.parametrize("fn", FORMS, ids=lambda fn: fn.__name__)
def test_equals_the_function_that_reads_the_new_size(fn: Callable[..., Any]) -> None:
    plan = narrow(find_groups(fn, TREE, X))
    small = shrink(TREE, plan)
    run = shrunk(fn, plan, rescale_attention=True)

    def both(small: Any) -> Any:
        def results(fn: Callable[..., Any]) -> Any:
            total = jax.grad(lambda tree: jnp.sum(jnp.sin(fn(tree, X))))
            return fn(small, X), total(small)

        return results(run), results(fn), shrunk(fn, plan)(small, X)

    found, wanted, unscaled = jax.jit(both, compiler_options=FAST)(small)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert np.abs(unscaled - wanted[0]).max() > 1e-3


def test_linen() -> None:
    def module(size: int) -> nn.Module:
        return nn.MultiHeadDotProductAttention(2, qkv_features=size, out_features=7)

    wide = module(12)
    shapes = jax.eval_shape(wide.init, jax.random.key(0), X)
    variables = jax.tree.map(lambda x: normal(*x.shape), shapes)
    groups = find_groups(wide.apply, variables, X)
    names = [f"params/{name}/kernel:2" for name in ("key", "value")]
    plan = groups.keep({name: [0, 1, 3, 4] for name in names})
    small = shrink(variables, plan)
    found = shrunk(wide.apply, plan, rescale_attention=True)(small, X)
    np.testing.assert_allclose(found, module(8).apply(small, X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["vit", "gpt", "gpt_scanned"])
def test_models(name: str) -> None:
    """Queries of the masked model that are larger do the same as another scale.

    Rotation keeps the angles of the places that are left, so that no small model of the
    same class is the same.
    """
    case = models.build(name)
    evaluate = case.model.evaluate
    groups = find_groups(evaluate, case.variables, *case.inputs)
    axis = 3 if name == "gpt_scanned" else 2
    sizes = [g for g in groups if g.name.endswith(f"/key/kernel:{axis}")]
    plan = groups.keep({g.name: range(1, g.size) for g in sizes})
    left = {(g.size - 1) / g.size for g in sizes}
    assert len(left) == 1

    def larger(path: Any, leaf: Any) -> Any:
        is_query = "'query'" in jax.tree_util.keystr(path)
        return leaf * np.float32(left.copy().pop() ** -0.5) if is_query else leaf

    masked = jax.tree_util.tree_map_with_path(larger, zero_units(case.variables, plan))
    run = shrunk(evaluate, plan, rescale_attention=True)
    small = shrink(case.variables, plan)

    def both(small: Any, masked: Any, *args: Any) -> Any:
        return run(small, *args), evaluate(masked, *args)

    jitted = jax.jit(both, compiler_options=FAST)
    found, wanted = jitted(small, masked, *case.inputs)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["bert", "haiku_transformer"])
def test_where_no_size_shrinks_nothing_is_rescaled(name: str) -> None:
    """Heads go as a whole; and so does what a classifier sums over."""
    case = models.build(name)
    groups = find_groups(case.model.evaluate, case.variables, *case.inputs)
    plan = groups.keep({g.name: [0] for g in groups if not g.reduced})
    small = shrink(case.variables, plan)
    plain, rescaled = (
        jax.make_jaxpr(shrunk(case.model.evaluate, plan, rescale_attention=asked))(
            small, *case.inputs
        )
        for asked in (False, True)
    )
    assert str(plain) == str(rescaled)


def test_a_classifier_is_no_attention() -> None:
    """Though its constant is the root of what it sums over, here in each layer."""

    def fn(tree: Any, x: jax.Array) -> jax.Array:
        def layer(x: jax.Array, one: Any) -> tuple[jax.Array, None]:
            return jax.nn.softmax(jnp.tanh(x @ one["a"]) @ one["b"] / 6**0.5), None

        return jax.lax.scan(layer, x, tree)[0]

    tree = {"a": normal(2, 7, 6), "b": normal(2, 6, 7)}
    plan = find_groups(fn, tree, X[0]).keep({"a:2": [1, 4]})
    small = shrink(tree, plan)
    found = shrunk(fn, plan, rescale_attention=True)(small, X[0])
    np.testing.assert_allclose(found, fn(small, X[0]), rtol=1e-5)


def test_twice() -> None:
    first = narrow(find_groups(score_divided, TREE, X))
    once = shrunk(score_divided, first, rescale_attention=True)
    small = shrink(TREE, first)
    second = find_groups(once, small, X).keep({"key:2": [0, 3]})
    smaller = shrink(small, second)
    found = shrunk(once, second, rescale_attention=True)(smaller, X)
    np.testing.assert_allclose(found, score_divided(smaller, X), rtol=1e-4, atol=1e-5)


def test_half_precision() -> None:
    """The new constant is rounded once."""

    def fn(tree: Any, x: jax.Array) -> jax.Array:
        return query_multiplied(tree, x.astype(jnp.bfloat16)).astype(jnp.float32)

    tree = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), TREE)
    plan = narrow(find_groups(fn, tree, X))
    small = shrink(tree, plan)
    run = shrunk(fn, plan, rescale_attention=True)
    both = jax.jit(lambda tree: (run(tree, X), fn(tree, X)), compiler_options=FAST)
    np.testing.assert_array_equal(*both(small))


def unscaled(tree: Any, x: jax.Array) -> jax.Array:
    q, k = heads(tree, x, "query"), heads(tree, x, "key")
    return weighted(tree, x, multiplied(q, k) / q.shape[-1])


def scaled_twice(tree: Any, x: jax.Array) -> jax.Array:
    q, k = heads(tree, x, "query"), heads(tree, x, "key")
    q, k = q / q.shape[-1] ** 0.5, k / q.shape[-1] ** 0.5
    return weighted(tree, x, multiplied(q, k))


def linear(tree: Any, x: jax.Array) -> jax.Array:
    q, k = heads(tree, x, "query"), heads(tree, x, "key")
    y = jnp.einsum("bqhd,bkhd,bkhe->bqhe", q, k, heads(tree, x, "value"))
    return y / q.shape[-1] ** 0.5


@jax.custom_vjp
def sealed_scores(q: jax.Array, k: jax.Array) -> jax.Array:
    return multiplied(q, k) / SIZE**0.5


def _forward(q: jax.Array, k: jax.Array) -> Any:
    return sealed_scores(q, k), (q, k)


def _backward(kept: Any, g: jax.Array) -> Any:
    return jax.vjp(lambda q, k: multiplied(q, k) / SIZE**0.5, *kept)[1](g)


sealed_scores.defvjp(_forward, _backward)


def sealed(tree: Any, x: jax.Array) -> jax.Array:
    q, k = heads(tree, x, "query"), heads(tree, x, "key")
    return weighted(tree, x, sealed_scores(q, k))


def differentiated(tree: Any, x: jax.Array) -> jax.Array:
    return jax.grad(lambda x: jnp.sum(query_multiplied(tree, x)))(x)


@pytest.mark.parametrize(
    ("fn", "words"),
    [
        (unscaled, r"dot_general .*from 6 to 4, but there is no .* 6 \*\* -0.5"),
        (scaled_twice, r"there is not one multiplication .* are 0\.408248, 0\.408248"),
        (linear, r"dot_general .*sums over 6 positions, of which 4 .* no softmax"),
        (sealed, "in a function with a gradient rule of its own"),
        (differentiated, r"jax\.grad\(shrunk\(fn, plan, \.\.\.\)\)"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_what_cannot_be_rescaled_is_said(fn: Callable[..., Any], words: str) -> None:
    plan = narrow(find_groups(fn, TREE, X))
    small = shrink(TREE, plan)
    with pytest.raises(MismatchError, match=f"rescale_attention: .*{words}"):
        jax.eval_shape(shrunk(fn, plan, rescale_attention=True), small, X)
    assert jax.eval_shape(shrunk(fn, plan), small, X).shape[0] == 2
