"""Convolutions in groups, whose groups learn from inputs of their own."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jcompress as jc
from jcompress.errors import MismatchError
from jcompress.formats import Int
from jcompress.pruning import NM, Channels, Unstructured
from jcompress.pruning.one_shot import (
    OneShot,
    SparseGpt,
    prune_by_layers,
    prune_weights,
    wanda,
)
from jcompress.pruning.scores import score_by_wanda
from jcompress.quantization import (
    LeastError,
    PerBlock,
    PerGroup,
    PerTensor,
    Quantize,
    Weights,
    quantize,
    quantize_by_layers,
)
from jcompress.rounding import AdaRound, Gptq, Nearest, Rounding
from jcompress.sensitivity import LayerError, measure_sensitivity
from jcompress.sharing import ClusterVectors, cluster_vectors
from jcompress.sites import Sites, find_sites
from jcompress.statistics import DiagonalMoments, SecondMoments, observe

SHAPES = {"depthwise": (24, 24, 24), "multiplied": (12, 12, 24), "grouped": (24, 3, 24)}
"""Channels, groups and outputs."""


def convolution(groups: int) -> Callable[..., jax.Array]:
    """A convolution in groups."""

    def fn(p: Any, x: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x,
            p["k"],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    return fn


def data(channels: int) -> jax.Array:
    """Images whose neighbours, and channels, are alike."""
    x = jax.random.normal(jax.random.key(5), (2, 12, 12, channels))
    for axis in (1, 2, 3):
        x = x + jnp.roll(x, 1, axis) + jnp.roll(x, 2, axis)
    return x / 3


Case = tuple[Callable[..., jax.Array], Any, jax.Array, Sites, Any]


def case(name: str) -> Case:
    """The function, its kernel, its data, its sites and the moments of its inputs."""
    channels, groups, outputs = SHAPES[name]
    fn = convolution(groups)
    shape = (3, 3, channels // groups, outputs)
    p = {"k": jax.random.normal(jax.random.key(7), shape)}
    x = data(channels)
    _, moments = observe(fn, [("k", True)], SecondMoments())(p, x)
    return fn, p, x, find_sites(fn, p, x), moments


def parts(name: str) -> list[tuple[Any, jax.Array]]:
    """The kernel and the channels of each group, as convolutions of their own."""
    groups = SHAPES[name][1]
    _, p, x, _, _ = case(name)
    kernels = np.split(np.asarray(p["k"]), groups, axis=3)
    runs = np.split(np.asarray(x), groups, axis=3)
    return [
        ({"k": jnp.asarray(k)}, jnp.asarray(part))
        for k, part in zip(kernels, runs, strict=True)
    ]


def error(fn: Any, p: Any, x: jax.Array, small: Any) -> float:
    """The squared error of the outputs."""
    made = {"k": small["k"].dense() if hasattr(small["k"], "dense") else small["k"]}
    return float(jnp.sum(jnp.square(fn(made, x) - fn(p, x))))


@pytest.mark.parametrize("name", SHAPES)
def test_moments_are_those_of_each_group(name: str) -> None:
    moments = case(name)[-1]["k"]
    one = convolution(1)
    apart = [
        observe(one, [("k", True)], SecondMoments())(p, x)[1]["k"]
        for p, x in parts(name)
    ]
    np.testing.assert_allclose(moments, np.stack(apart), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(
    "spec",
    [
        Quantize(weights=Weights(format=Int(3)), rounding=Gptq()),
        Quantize(
            weights=Weights(format=Int(4, symmetric=False), granularity=PerGroup(3)),
            rounding=Gptq(),
        ),
        Quantize(weights=Weights(format=Int(3), range=LeastError())),
    ],
    ids=["gptq", "gptq in groups", "least error"],
)
def test_groups_are_quantized_as_if_apart(name: str, spec: Quantize) -> None:
    _, p, _, sites, moments = case(name)
    rules = [("k", spec)]
    small = quantize(p, rules, sites=sites, moments=moments)["k"].dense()
    one, apart = convolution(1), []
    for kernel, x in parts(name):
        _, own = observe(one, rules, SecondMoments())(kernel, x)
        own_sites = find_sites(one, kernel, x)
        made = quantize(kernel, rules, sites=own_sites, moments=own)
        apart.append(made["k"].dense())
    whole = np.concatenate(apart, axis=3)
    # Sums in another order round a few weights on the edge the other way.
    assert np.mean(~np.isclose(small, whole, rtol=1e-4, atol=1e-4)) < 0.02


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("rounding", [Gptq(), AdaRound(steps=200)], ids=["gptq", "ada"])
def test_what_learns_errs_less_than_nearest(name: str, rounding: Rounding) -> None:
    fn, p, x, sites, moments = case(name)
    weights = Weights(format=Int(3))
    errors = [
        error(
            fn,
            p,
            x,
            quantize(
                p,
                [("k", Quantize(weights=weights, rounding=one))],
                sites=sites,
                moments=moments,
            ),
        )
        for one in (rounding, Nearest())
    ]
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("weights", [None, Weights(format=Int(4))])
@pytest.mark.parametrize("pattern", [NM(1, 3), Unstructured()])
def test_sparse_gpt_errs_less_than_wanda(
    name: str, pattern: Any, weights: Weights | None
) -> None:
    fn, p, x, sites, moments = case(name)
    sparsity = None if isinstance(pattern, NM) else 1 / 3
    learned = OneShot(
        method=SparseGpt(), pattern=pattern, sparsity=sparsity, weights=weights
    )
    made, other = (
        prune_weights(p, [("k", spec)], sites=sites, moments=moments)
        for spec in (learned, wanda(pattern, sparsity))
    )
    dense = made["k"] if weights is None else made["k"].dense()
    gone = 2 / 3 if isinstance(pattern, NM) else 1 / 3
    least = gone if weights is None else gone - 1e-6
    assert least - 1e-6 <= float((dense == 0).mean()) < gone + 0.1
    if isinstance(pattern, NM):
        groups = np.asarray(dense).transpose(3, 0, 1, 2).reshape(-1, 3)
        assert ((groups != 0).sum(1) <= 1).all()
    assert error(fn, p, x, made) < error(fn, p, x, other)


@pytest.mark.parametrize("statistic", [DiagonalMoments(), SecondMoments()])
@pytest.mark.parametrize("name", SHAPES)
def test_scores_count_the_inputs_of_each_group(name: str, statistic: Any) -> None:
    fn, p, x, sites, _ = case(name)
    _, moments = observe(fn, [("k", True)], statistic)(p, x)
    scores = score_by_wanda(p, moments, sites=sites)["k"]
    one, apart = convolution(1), []
    for kernel, run in parts(name):
        _, own = observe(one, [("k", True)], statistic)(kernel, run)
        made = score_by_wanda(kernel, own, sites=find_sites(one, kernel, run))
        apart.append(made["k"])
    np.testing.assert_allclose(scores, np.concatenate(apart, axis=3), rtol=1e-4)


def test_layers_of_a_scan_have_groups_each() -> None:
    inner = convolution(6)

    def fn(p: Any, x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, k: (inner({"k": k}, x), None), x, p["k"])[0]

    p = {"k": jax.random.normal(jax.random.key(1), (2, 3, 3, 2, 12)) / 4}
    x = data(12)
    rules = [("k", Quantize(weights=Weights(format=Int(4)), rounding=Gptq()))]
    _, moments = observe(fn, rules, SecondMoments())(p, x)
    assert moments["k"].shape == (2, 6, 18, 18)
    small = quantize(p, rules, sites=find_sites(fn, p, x), moments=moments)
    first = {"k": p["k"][0]}
    own = quantize(
        first,
        rules,
        sites=find_sites(inner, first, x),
        moments={"k": moments["k"][0]},
    )
    np.testing.assert_array_equal(small["k"].dense()[0], own["k"].dense())


def network() -> tuple[Callable[..., jax.Array], Any, jax.Array]:
    """A depthwise and a pointwise convolution, a grouped one and a product."""
    depthwise, grouped = convolution(64), convolution(4)

    def fn(p: Any, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(depthwise({"k": p["depthwise"]}, x))
        x = jax.nn.relu(convolution(1)({"k": p["pointwise"]}, x))
        x = jax.nn.relu(grouped({"k": p["grouped"]}, x))
        return jnp.mean(x, axis=(1, 2)) @ p["head"]

    shapes = {
        "depthwise": (3, 3, 1, 64),
        "pointwise": (1, 1, 64, 64),
        "grouped": (3, 3, 16, 64),
        "head": (64, 64),
    }
    keys = jax.random.split(jax.random.key(2), len(shapes))
    p = {
        name: jax.random.normal(key, shape) / np.sqrt(np.prod(shape[:-1]))
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    return fn, p, data(64)[:1, :8, :8]


@pytest.mark.parametrize("step", [jc.w4(), jc.nm(2, 4), jc.sparse(0.5)])
@pytest.mark.parametrize("learns", [True, False])
def test_a_network_is_compressed(step: Any, learns: bool) -> None:
    fn, p, x = network()
    data = [x] if learns else []
    small = jc.compress((fn, p), x, step, data=data, measure=False)
    wanted = fn(p, x)
    assert float(jnp.linalg.norm(small(x) - wanted) / jnp.linalg.norm(wanted)) < 0.9


def test_layer_by_layer() -> None:
    fn, p, x = network()
    spec = Quantize(weights=Weights(format=Int(4)), rounding=Gptq())
    small = quantize_by_layers(fn, p, [(..., spec)], [(x,)], propagate=0.5)
    assert small["depthwise"].form == small["grouped"].form == "int4"
    pruned = prune_by_layers(fn, p, [(..., wanda(sparsity=0.5))], [(x,)])
    assert float((pruned["grouped"] == 0).mean()) == 0.5


def test_the_error_of_a_layer_is_that_of_its_outputs() -> None:
    fn, p, x, sites, moments = case("grouped")
    spec = Quantize(weights=Weights(format=Int(3)))
    small = quantize(p, [("k", spec)], sites=sites)
    table = measure_sensitivity(p, [spec], LayerError(moments), sites=sites)
    wanted = error(fn, p, x, small) / float(jnp.sum(jnp.square(fn(p, x))))
    np.testing.assert_allclose(table.errors["k"][0], wanted, rtol=1e-3)


def test_what_goes_across_groups_is_refused() -> None:
    _, p, _, sites, moments = case("grouped")
    known = {"sites": sites, "moments": moments}
    whole = Weights(format=Int(4), granularity=PerTensor())
    with pytest.raises(MismatchError, match="would share a scale; use PerChannel"):
        quantize(p, [("k", Quantize(weights=whole, rounding=Gptq()))], **known)
    with pytest.raises(MismatchError, match=r"Channels\(\) goes across them"):
        prune_weights(p, [("k", wanda(Channels(), 0.5))], **known)
    stored = OneShot(pattern=NM(1, 3), weights=whole)
    with pytest.raises(MismatchError, match="they would share a scale; use PerChannel"):
        prune_weights(p, [("k", stored)], **known)
    tall = Weights(format=Int(4), granularity=PerBlock(outputs=6, inputs=9))
    with pytest.raises(MismatchError, match="groups would share a scale"):
        quantize(p, [("k", Quantize(weights=tall, rounding=Gptq()))], **known)
    low = Weights(format=Int(4), granularity=PerBlock(outputs=4, inputs=9))
    made = quantize(p, [("k", Quantize(weights=low, rounding=Gptq()))], **known)
    assert made["k"].scales.shape == (6, 8)
    spec = ClusterVectors()
    with pytest.raises(MismatchError, match="in 3 groups, each of which has moments"):
        cluster_vectors(p, [("k", spec)], key=jax.random.key(0), **known)
    one = {"k": moments["k"][0]}
    rules = [("k", Quantize(weights=Weights(format=Int(4)), rounding=Gptq()))]
    with pytest.raises(MismatchError, match=r"are \[72, 72\], not \[3, 72, 72\]"):
        quantize(p, rules, sites=sites, moments=one)


def test_kernels_with_several_numbers_of_groups_are_refused() -> None:
    def fn(p: Any, x: jax.Array) -> Any:
        return convolution(1)(p, x[..., :4]), convolution(3)(p, x)

    p = {"k": jnp.ones((3, 3, 4, 6))}
    with pytest.raises(MismatchError, match=r"convolutions with \[1, 3\] groups"):
        observe(fn, [("k", True)], SecondMoments())(p, data(12))
