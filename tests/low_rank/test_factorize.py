"""`factorize`: best errors, ranks by energy and budget, moments, and its errors."""

import doctest
import functools
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jcompress.conversion import describe_changes
from jcompress.errors import MismatchError
from jcompress.execution import How, compressed, inspect
from jcompress.formats import Int
from jcompress.low_rank import adapters, factorizing
from jcompress.low_rank.factorizing import (
    Spatial,
    Svd,
    Tucker,
    factorize,
    quantize_factors,
)
from jcompress.quantization import PerGroup, Quantize, Weights, quantize
from jcompress.report import Label
from jcompress.sites import find_sites
from jcompress.statistics import SecondMoments, observe
from jcompress.tensors import LowRank, QTensor

pytestmark = pytest.mark.once

TOLERANCE = 2e-5
rng = np.random.default_rng(0)


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def check_close(got: Any, wanted: Any) -> None:
    size = max(float(np.abs(np.asarray(wanted)).max()), 1.0)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=TOLERANCE * size)


def model(params: Any, x: jax.Array) -> jax.Array:
    x = jnp.tanh(x @ params["a"])
    x = jnp.einsum("bi,ihd->bhd", x, params["h"]).reshape(x.shape[0], -1)
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["s"])[0]


PARAMS = {
    "a": normal(16, 20) / 4,
    "h": normal(20, 2, 6) / 4,
    "s": normal(3, 12, 12) / 3,
}
X = normal(40, 16)
SITES = find_sites(model, PARAMS, X)


def factored(rules: Any, params: Any = PARAMS, **changes: Any) -> Any:
    return factorize(params, rules, **{"sites": SITES, **changes})


def error(leaf: Any, dense: Any) -> float:
    difference = np.asarray(dense, np.float64) - np.asarray(leaf.dense(), np.float64)
    return float(np.linalg.norm(difference))


def test_the_error_is_the_least_there_is() -> None:
    small = factored([("a", Svd(rank=5)), (..., Svd(rank=4))])
    tail = np.linalg.svd(np.asarray(PARAMS["a"], np.float64), compute_uv=False)[5:]
    np.testing.assert_allclose(
        error(small["a"], PARAMS["a"]), np.linalg.norm(tail), rtol=1e-5
    )
    values = np.linalg.svd(np.asarray(PARAMS["s"], np.float64), compute_uv=False)
    np.testing.assert_allclose(
        error(small["s"], PARAMS["s"]), np.linalg.norm(values[:, 4:]), rtol=1e-5
    )
    assert small["h"].ranks == (4,)
    assert small["h"].shape == (20, 2, 6)
    sizes = [
        np.linalg.norm(f, axis=a)
        for f, a in zip(small["a"].factors, (1, 0), strict=True)
    ]
    np.testing.assert_allclose(*sizes, rtol=1e-4)


def test_a_matrix_of_low_rank_is_stored_exactly() -> None:
    params = {"a": normal(16, 3) @ normal(3, 20), "h": PARAMS["h"], "s": PARAMS["s"]}
    small = factored([("a", Svd(energy=1.0))], params)
    assert small["a"].ranks == (3,)
    check_close(small["a"].dense(), params["a"])
    assert small["h"] is params["h"]
    check_close(compressed(model)(small, X), model(params, X))
    zero = factored([("a", Svd(energy=0.5))], {**params, "a": jnp.zeros((16, 20))})
    assert zero["a"].ranks == (1,)
    assert not np.asarray(zero["a"].dense()).any()


@pytest.mark.parametrize("energy", [0.3, 0.5, 0.65])
def test_energy_is_kept_by_the_fewest(energy: float) -> None:
    small = factored([(..., Svd(energy=energy))])
    for name, shape in (("a", (16, 20)), ("h", (20, 12))):
        matrix = np.asarray(PARAMS[name], np.float64).reshape(shape)
        values = np.linalg.svd(matrix, compute_uv=False)
        share = np.cumsum(values**2) / np.sum(values**2)
        (rank,) = small[name].ranks
        assert share[rank - 1] >= energy
        assert rank == 1 or share[rank - 2] < energy
    for copy, dense in zip(small["s"].dense(), PARAMS["s"], strict=True):
        lost = np.linalg.norm(copy - dense) ** 2 / np.linalg.norm(dense) ** 2
        assert lost <= 1 - energy + 1e-5


def numbers(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_budgets_are_respected_and_shared() -> None:
    total = numbers(PARAMS)
    spread = {**PARAMS, "s": PARAMS["s"].at[:, 3:].set(0)}
    for fraction in (0.2, 0.4, 0.7):
        small = factored([(..., Svd(parameters=fraction))], spread)
        assert numbers(small) <= fraction * total
        assert numbers(small) > fraction * total - 3 * 24 - 36
    # The leaf of rank 3 is not given more than it can use before others starve.
    assert factored([(..., Svd(parameters=0.4))], spread)["s"].ranks <= (3,)
    macs = [(..., Svd(macs=0.4))]
    small = factored(macs)
    sites = {name: SITES.of(name)[0] for name in PARAMS}
    taken = sum(
        sites[n].total_macs * numbers({n: small[n]}) / PARAMS[n].size for n in PARAMS
    )
    assert 0.25 * SITES.macs < taken <= 0.4 * SITES.macs


def lopsided(count: int) -> jax.Array:
    """Inputs most of whose variance lies in a few directions."""
    scales = jnp.asarray(np.geomspace(10, 0.01, 16)[None], jnp.float32)
    turn = jnp.linalg.qr(normal(16, 16))[0]
    return (normal(count, 16) * scales) @ turn


@pytest.mark.parametrize("rank", [1, 4, 7])
def test_weighted_by_inputs_is_best_on_these_inputs(rank: int) -> None:
    def layer(params: Any, x: jax.Array) -> jax.Array:
        return x @ params["a"]

    params, x = {"a": PARAMS["a"]}, lopsided(100)
    rules = [("a", Svd(rank=rank))]
    sites = find_sites(layer, params, x)
    outs, moments = jax.jit(observe(layer, rules, SecondMoments()))(params, x)
    check_close(outs, layer(params, x))
    np.testing.assert_allclose(moments["a"], x.T @ x, rtol=1e-4, atol=1e-2)
    plain = factorize(params, rules, sites=sites)
    weighted = factorize(params, rules, sites=sites, moments=moments)

    def lost(tree: Any) -> float:
        return float(np.linalg.norm(x @ (params["a"] - tree["a"].dense())))

    exact = np.asarray(x, np.float64) @ np.asarray(params["a"], np.float64)
    least = np.linalg.norm(np.linalg.svd(exact, compute_uv=False)[rank:])
    assert lost(weighted) < 0.8 * lost(plain)
    np.testing.assert_allclose(lost(weighted), least, rtol=1e-2)
    assert error(weighted["a"], params["a"]) > error(plain["a"], params["a"])


def convolutional(params: Any, x: jax.Array) -> jax.Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(
        x, params["k"], (2, 1), "SAME", rhs_dilation=(1, 2), dimension_numbers=numbers
    )
    z = jax.lax.conv_general_dilated(
        jnp.transpose(y, (0, 3, 1, 2)),
        params["o"],
        (1, 1),
        [(1, 0), (0, 2)],
        dimension_numbers=("NCHW", "OIHW", "NHWC"),
    )
    return jnp.tanh(z)


KERNELS = {"k": normal(3, 3, 8, 12) / 6, "o": normal(16, 12, 3, 2) / 6}
IMAGES = normal(5, 7, 6, 8)
CONV_SITES = find_sites(convolutional, KERNELS, IMAGES)


def test_weighted_copies_of_a_stack() -> None:
    rules = [(..., Svd(rank=2))]
    _, moments = observe(model, rules, SecondMoments())(PARAMS, X)
    weighted = factored(rules, moments=moments)
    assert weighted["s"].ranks == (2,)
    for copy, dense, moment in zip(
        weighted["s"].dense(), PARAMS["s"], moments["s"], strict=True
    ):
        root = np.linalg.cholesky(np.asarray(moment, np.float64))
        exact = root.T @ np.asarray(dense, np.float64)
        least = np.linalg.norm(np.linalg.svd(exact, compute_uv=False)[2:])
        lost = np.linalg.norm(root.T @ np.asarray(dense - copy, np.float64))
        np.testing.assert_allclose(lost, least, rtol=1e-3)


CONV_SPECS = {
    "svd": Svd(rank=5),
    "spatial": Spatial(rank=6),
    "tucker": Tucker(ranks=(4, 6)),
    "spatial by energy": Spatial(energy=0.5),
    "tucker by energy": Tucker(energy=0.5),
    "spatial by budget": Spatial(parameters=0.5),
}


@pytest.mark.parametrize("name", CONV_SPECS)
def test_convolutions(name: str) -> None:
    rules = [(..., CONV_SPECS[name])]
    small = factorize(KERNELS, rules, sites=CONV_SITES)
    entries = inspect(convolutional, small, IMAGES)
    assert [entry.how for entry in entries] == [How.FACTORS] * 2
    whole = {n: leaf.dense() for n, leaf in small.items()}
    wanted = convolutional(whole, IMAGES)
    check_close(jax.jit(compressed(convolutional))(small, IMAGES), wanted)
    if "energy" in name:
        for path, leaf in small.items():
            lost = error(leaf, KERNELS[path]) ** 2
            assert lost <= 0.5 * np.linalg.norm(KERNELS[path]) ** 2
    if "budget" in name:
        assert numbers(small) <= numbers(KERNELS) / 2


def test_splits_of_kernels_are_optimal() -> None:
    kernel = np.asarray(KERNELS["k"], np.float64)
    small = factorize(KERNELS, [("k", Spatial(rank=6))], sites=CONV_SITES)
    matrix = kernel.transpose(3, 1, 0, 2).reshape(36, 24)
    tail = np.linalg.norm(np.linalg.svd(matrix, compute_uv=False)[6:])
    np.testing.assert_allclose(error(small["k"], kernel), tail, rtol=1e-5)
    assert small["k"].windows == ((0,), (1,))
    errors = []
    for sweeps in (0, 1, 4):
        rules = [("k", Tucker(ranks=(3, 4), sweeps=sweeps))]
        small = factorize(KERNELS, rules, sites=CONV_SITES)
        errors.append(error(small["k"], kernel))
    assert errors[0] > errors[1] >= errors[2]
    tails = [
        np.linalg.svd(kernel.transpose(2, 0, 1, 3).reshape(8, -1), compute_uv=False)[
            3:
        ],
        np.linalg.svd(kernel.transpose(3, 0, 1, 2).reshape(12, -1), compute_uv=False)[
            4:
        ],
    ]
    bounds = [float(np.linalg.norm(tail)) for tail in tails]
    assert max(bounds) <= errors[2] <= errors[0] <= np.hypot(*bounds)


def test_tucker_of_full_rank_gives_the_kernel_back() -> None:
    def single(params: Any, x: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x, params["k"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    core = normal(3, 3, 2, 3)
    kernel = jnp.einsum("hwpq,pi,qo->hwio", core, normal(2, 9), normal(3, 10))
    params, x = {"k": kernel}, normal(1, 4, 4, 9)
    sites = find_sites(single, params, x)
    small = factorize(params, [("k", Tucker(energy=1.0))], sites=sites)
    assert small["k"].ranks == (2, 3)
    check_close(small["k"].dense(), kernel)


def test_factors_are_trained_inside_compressed() -> None:
    small = factored([(..., Svd(rank=3))])
    target = model(PARAMS, X)

    def loss(tree: Any) -> jax.Array:
        return jnp.mean((compressed(model)(tree, X) - target) ** 2)

    optimizer = optax.adam(0.01)

    @jax.jit
    def step(tree: Any, state: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(tree)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(tree, updates), state, value

    state = optimizer.init(small)
    losses = []
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        for _ in range(40):
            small, state, value = step(small, state)
            losses.append(float(value))
    assert losses[-1] < 0.5 * losses[0]
    assert isinstance(small["a"], LowRank)


def test_quantized_factors() -> None:
    def layer(params: Any, x: jax.Array) -> jax.Array:
        return x @ params["a"]

    small = factored([("a", Svd(rank=4))], {"a": PARAMS["a"]})
    four = quantize_factors(small, [("a", Weights(format=Int(4)))], sites=SITES)
    assert all(isinstance(factor, QTensor) for factor in four["a"].factors)
    assert 4 * four["a"].stored_bytes < 2 * small["a"].stored_bytes
    assert inspect(layer, four, X)[0].how is How.FACTORS
    check_close(compressed(layer)(four, X), X @ four["a"].dense())
    with pytest.raises(MismatchError, match="factor 0 of 'a' is already a QTensor"):
        quantize_factors(four, [("a", Weights())], sites=SITES)
    with pytest.raises(MismatchError, match=r"'a' is a Array.*not a LowRank"):
        quantize_factors(PARAMS, [("a", Weights())], sites=SITES)
    sixteen = [("a", Weights(granularity=PerGroup(16)))]
    with pytest.raises(
        MismatchError, match="factor 1 of 'a': groups of 16 do not divide"
    ):
        quantize_factors(small, sixteen, sites=SITES)
    with pytest.raises(TypeError, match="the spec of rule 0 is Svd"):
        quantize_factors(small, [("a", Svd(rank=1))], sites=SITES)


def test_a_linen_model_and_its_summary() -> None:
    net = nn.Sequential([nn.Dense(32), nn.relu, nn.Dense(16), nn.relu, nn.Dense(2)])
    x = normal(3, 24)
    variables = net.init(jax.random.key(0), x)
    sites = find_sites(net.apply, variables, x)
    rules = [("**/layers_4/kernel", None), ("**/kernel", Svd(energy=0.5))]
    small = factorize(variables, rules, sites=sites)
    assert len(jax.tree.leaves(small)) == len(jax.tree.leaves(variables)) + 2
    changes = describe_changes(variables, small, rules, sites=sites)
    (skipped,) = changes.skipped
    assert skipped.name == "params/layers_4/kernel"
    assert "excluded by rule 0" in skipped.reason
    first = changes["params/layers_0/kernel"]
    leaf = small["params"]["layers_0"]["kernel"]
    assert (first.bytes_before, first.after) == (24 * 32 * 4, f"rank {leaf.ranks[0]}")
    assert first.bytes_after == leaf.stored_bytes
    assert first.error is not None
    assert 0 < first.error <= np.sqrt(0.5)
    assert changes.label is Label.SMALLER
    assert re.search(
        r"rank \d+ .* 3,072 .*bytes became .* \(smaller\)", str(changes), re.S
    )


def test_bfloat16_leaves_have_bfloat16_factors() -> None:
    params = {"a": PARAMS["a"].astype(jnp.bfloat16)}
    sites = find_sites(lambda p, x: x @ p["a"], params, jnp.ones((1, 16), jnp.bfloat16))
    leaf = factorize(params, [("a", Svd(rank=4))], sites=sites)["a"]
    assert {leaf.dtype, *(factor.dtype for factor in leaf.factors)} == {
        np.dtype(jnp.bfloat16)
    }
    assert leaf.dense().dtype == jnp.bfloat16


MOMENTS = {"a": jnp.eye(16)}
WRONG: dict[str, tuple[Any, str]] = {
    "too large a rank": (
        lambda: factored([("a", Svd(rank=9))]),
        r"'a' \[16, 20\] would not become smaller: rank 9 is asked for and 324 numbers "
        r"instead of 320; the largest rank that is smaller is 8, which keeps 0\.\d+",
    ),
    "too much energy": (
        lambda: factored([("s", Svd(energy=1.0))]),
        "'s' .* 1.0 of the energy takes rank 12 .* the largest .* is 5",
    ),
    "tucker": (
        lambda: factorize(KERNELS, [("k", Tucker(ranks=(8, 12)))], sites=CONV_SITES),
        r"'k' .* would not become smaller .* that are smaller are \(\d, \d+\)",
    ),
    "tucker channels": (
        lambda: factorize(KERNELS, [("k", Tucker(ranks=(9, 2)))], sites=CONV_SITES),
        r"ranks \(9, 2\) of 'k' exceed its 8 input",
    ),
    "budget": (
        lambda: factored([(..., Svd(parameters=0.05))]),
        r"0.05 is less than rank 1 of each of 'a', 'h', 's' takes; it is 0\.\d+",
    ),
    "not a convolution": (
        lambda: factored([("a", Tucker(energy=0.5))]),
        "gives 'a' a Tucker, .* the leaf's uses are dot",
    ),
    "spec": (lambda: factored([("a", 3)]), "the spec of rule 0 is 3"),
    "absent": (
        lambda: factored([("a", Svd(rank=1))], {"h": PARAMS["h"]}),
        "'a', which is not in the tree: h",
    ),
    "shape": (
        lambda: factored([("a", Svd(rank=1))], {"a": normal(3, 3)}),
        r"'a' is \[3, 3\] in the tree and \[16, 20\]",
    ),
    "dtype": (
        lambda: factored([("a", Svd(rank=1))], {"a": jnp.ones((16, 20), jnp.int32)}),
        "'a' is int32 .*, and only floats",
    ),
    "not finite": (
        lambda: factored([("a", Svd(rank=1))], {"a": jnp.full((16, 20), jnp.nan)}),
        "'a' holds numbers that are not finite",
    ),
    "compressed": (
        lambda: factored(
            [("a", Svd(rank=1))], quantize(PARAMS, [("a", Quantize())], sites=SITES)
        ),
        "'a' is already a QTensor; factorize the dense weights first",
    ),
    "traced": (
        lambda: jax.jit(lambda p: factored([("a", Svd(rank=1))], p))(PARAMS),
        "'a' is traced, and the ranks depend on its values",
    ),
    "moments of another": (
        lambda: factored([("h", Svd(rank=1))], moments=MOMENTS),
        "moments has none of 'h'",
    ),
    "moments shape": (
        lambda: factored([("a", Svd(rank=1))], moments={"a": jnp.eye(20)}),
        r"the moments of 'a' are \[20, 20\], not \[16, 16\]",
    ),
    "two choices": (lambda: Svd(rank=1, energy=0.5), "exactly one .* rank and energy"),
    "no choice": (lambda: Spatial(), "exactly one of rank, energy, .* got none"),
    "rank": (lambda: Svd(rank=0), "a rank is a number of at least 1, not 0"),
    "fraction": (lambda: Svd(macs=1.5), r"macs is in \(0, 1\], not 1.5"),
    "tucker choice": (lambda: Tucker(), "either ranks=.* or energy"),
    "tucker pair": (lambda: Tucker(ranks=3), "ranks are those before and after"),
    "sweeps": (lambda: Tucker(energy=0.5, sweeps=-1), "sweeps is a number of at least"),
}


@pytest.mark.parametrize("what", WRONG)
def test_errors(what: str) -> None:
    call, message = WRONG[what]
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_the_channels_are_found() -> None:
    def single(params: Any, x: jax.Array, groups: int = 1) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x,
            params["k"],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    # As many channels as the window is long.
    params, x = {"k": normal(3, 3, 3, 32)}, normal(1, 8, 8, 3)
    small = factorize(
        params, [("k", Spatial(rank=2))], sites=find_sites(single, params, x)
    )
    assert small["k"].windows == ((0,), (1,))
    two = functools.partial(single, groups=2)
    sites = find_sites(two, params, normal(1, 8, 8, 6))
    for spec in (Spatial(rank=2), Tucker(energy=0.5)):
        with pytest.raises(MismatchError, match=r"of 'k' .* has 2 groups, and"):
            factorize(params, [("k", spec)], sites=sites)
    wide = {"k": normal(3, 3, 3, 3, 4)}
    sites = find_sites(
        lambda p, x: jax.lax.conv_general_dilated(
            x,
            p["k"],
            (1, 1, 1),
            "SAME",
            dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        ),
        wide,
        normal(1, 4, 4, 4, 3),
    )
    with pytest.raises(
        MismatchError, match="a window of two axes, and that of 'k' has 3"
    ):
        factorize(wide, [("k", Spatial(rank=1))], sites=sites)


def test_lookups() -> None:
    def looked(params: Any, ids: jax.Array) -> jax.Array:
        return params["t"][ids]

    params, ids = {"t": normal(30, 2) @ normal(2, 10)}, jnp.asarray([4, 29])
    sites = find_sites(looked, params, ids)
    small = factorize(params, [("t", Svd(energy=1.0))], sites=sites)
    assert small["t"].ranks == (2,)
    assert inspect(looked, small, ids)[0].how is How.ROWS
    check_close(compressed(looked)(small, ids), looked(params, ids))
    with pytest.raises(MismatchError, match="'t' takes part in no multiplication"):
        factorize(params, [("t", Svd(macs=0.5))], sites=sites)


@pytest.mark.parametrize("module", [factorizing, adapters])
def test_the_examples_run(module: Any) -> None:
    failed, attempted = doctest.testmod(module)
    assert attempted
    assert not failed
