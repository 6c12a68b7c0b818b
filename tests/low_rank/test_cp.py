"""`Cp`: kernels as sums of outer products, found again, run, trained and stored."""

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jcompress import checkpoint
from jcompress.conversion import describe_changes
from jcompress.errors import MismatchError
from jcompress.execution import How, compressed, inspect
from jcompress.formats import Int
from jcompress.low_rank.factorizing import (
    Cp,
    factorize,
    quantize_factors,
)
from jcompress.low_rank.terms import rank_bounds, sum_of_terms
from jcompress.quantization import Weights
from jcompress.report.sizes import sizes
from jcompress.sites import find_sites
from jcompress.tensors import LowRank, QTensor

pytestmark = pytest.mark.once

SETTINGS: Any = {"sweeps": 500, "tolerance": 1e-6, "damping": 1e-5, "seed": 0}
rng = np.random.default_rng(0)

Layer = Callable[[Any, jax.Array], jax.Array]


def rng_of(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def layer(
    numbers: tuple[str, str, str] = ("NHWC", "HWIO", "NHWC"),
    *,
    strides: tuple[int, ...] = (1, 1),
    padding: Any = "SAME",
    dilation: tuple[int, ...] | None = None,
    groups: int = 1,
) -> Layer:
    def run(params: Any, x: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x,
            params["k"],
            strides,
            padding,
            rhs_dilation=dilation,
            dimension_numbers=numbers,
            feature_group_count=groups,
        )

    return run


def summed(vectors: Any) -> Any:
    """The sum of outer products, by its definition."""
    letters = "abcde"[: len(vectors)]
    terms = ",".join(f"{letter}r" for letter in letters)
    return np.einsum(f"{terms}->{letters}", *vectors)


def relative(leaf: Any, dense: Any) -> float:
    exact = np.asarray(dense, np.float64)
    difference = exact - np.asarray(leaf, np.float64)
    return float(np.linalg.norm(difference) / np.linalg.norm(exact))


PLAIN = layer()
PARAMS = {"k": normal(3, 3, 8, 12) / 6}
IMAGES = normal(5, 7, 6, 8)
SITES = find_sites(PLAIN, PARAMS, IMAGES)


def split(spec: Cp, kernel: Any = None) -> LowRank:
    tree = PARAMS if kernel is None else {"k": kernel}
    leaf = factorize(tree, [("k", spec)], sites=SITES)["k"]
    assert isinstance(leaf, LowRank)
    return leaf


@pytest.mark.parametrize("shape", [(12, 5, 9), (12, 3, 3, 8), (8, 3, 2, 3, 6)])
def test_a_sum_of_outer_products_is_found_again(shape: tuple[int, ...]) -> None:
    random = rng_of(3)
    vectors = [random.normal(size=(length, 4)) for length in shape]
    kernel = summed(vectors)
    terms = sum_of_terms(kernel, 4, **SETTINGS)
    assert relative(summed(terms.vectors), kernel) < 1e-4
    lengths = [np.linalg.norm(part, axis=0) for part in terms.vectors]
    for other in lengths[1:]:
        np.testing.assert_allclose(other, lengths[0], rtol=1e-9)
    norms = np.prod(lengths, axis=0)
    exact = np.prod([np.linalg.norm(part, axis=0) for part in vectors], axis=0)
    assert (np.diff(norms) <= 0).all()
    # The sum determines its terms, so they are the same ones.
    np.testing.assert_allclose(norms, np.sort(exact)[::-1], rtol=1e-2)


def test_errors_fall_with_the_rank_and_lie_between_their_bounds() -> None:
    kernel = np.asarray(PARAMS["k"], np.float64).transpose(3, 0, 1, 2)
    first = np.linalg.svd(kernel.reshape(12, -1), compute_uv=False)
    last = np.linalg.svd(kernel.transpose(3, 0, 1, 2).reshape(8, -1), compute_uv=False)
    places = np.linalg.svd(np.moveaxis(kernel.reshape(12, 9, 8), 1, 0))[1]
    errors = []
    for rank in (1, 4, 9, 18):
        terms = sum_of_terms(kernel, rank, **SETTINGS)
        error = relative(summed(terms.vectors), kernel)
        np.testing.assert_allclose(error**2, terms.lost, rtol=1e-6)
        total = np.linalg.norm(kernel)
        bounds = [np.linalg.norm(values[rank:]) / total for values in (first, last)]
        assert error >= max(bounds)
        # A simple solution: the largest singular triples of the places of the window.
        simple = np.linalg.norm(np.sort(places, axis=None)[::-1][rank:]) / total
        assert error < simple
        errors.append(error)
    assert (np.diff(errors) < -0.05).all()


def test_no_start_at_random_is_much_better() -> None:
    kernel = rng_of(1).normal(size=(12, 3, 3, 8))
    losts = []
    for seed in range(8):
        parts = [rng_of(seed).normal(size=(length, 6)) for length in kernel.shape]
        for axis in [0, 1, 2, 3] * 200:
            others = [part for other, part in enumerate(parts) if other != axis]
            rows = np.moveaxis(kernel, axis, 0).reshape(kernel.shape[axis], -1)
            products = summed([*others, np.eye(6)]).reshape(-1, 6)
            parts[axis] = rows @ np.linalg.pinv(products).T
        losts.append(relative(summed(parts), kernel) ** 2)
    lost = sum_of_terms(kernel, 6, **SETTINGS).lost
    assert lost < np.mean(losts)
    assert lost < 1.03 * min(losts)


def test_damping_keeps_terms_that_cancel_from_growing() -> None:
    # Sums of two terms come as near to this as one likes, and there is no nearest.
    kernel = np.zeros((2, 2, 2))
    kernel[1, 0, 0] = kernel[0, 1, 0] = kernel[0, 0, 1] = 1
    found = {}
    for damping in (1e-3, 1e-6):
        settings = {**SETTINGS, "damping": damping}
        terms = sum_of_terms(kernel, 2, **settings)
        parts = [np.linalg.norm(part, axis=0) for part in terms.vectors]
        squares = float(np.sum(np.prod(parts, axis=0) ** 2)) / 3
        # No better than what terms of no size at all would give.
        assert terms.lost + damping * squares < 1
        found[damping] = (squares, terms.lost)
    assert found[1e-3][0] < 5 < found[1e-6][0]
    assert found[1e-3][1] > 10 * found[1e-6][1]


def test_bounds_of_the_rank() -> None:
    kernel = np.asarray(PARAMS["k"], np.float64).transpose(3, 0, 1, 2)
    low, high = rank_bounds(kernel, 0.6)
    assert 1 < low < high
    assert sum_of_terms(kernel, high, **SETTINGS).lost <= 0.4
    assert sum_of_terms(kernel, low - 1, **SETTINGS).lost > 0.4


def test_energy_takes_the_fewest_that_are_found() -> None:
    leaf = split(Cp(energy=0.7))
    (rank,) = set(leaf.ranks)
    assert relative(leaf.dense(), PARAMS["k"]) ** 2 <= 0.3 + 1e-6
    fewer = split(Cp(rank=rank - 1))
    assert relative(fewer.dense(), PARAMS["k"]) ** 2 > 0.3
    assert rank < rank_bounds(np.asarray(PARAMS["k"]).transpose(3, 0, 1, 2), 0.7)[1]
    random = rng_of(4)
    vectors = [random.normal(size=(n, 3)) for n in (3, 3, 8, 12)]
    exact = jnp.asarray(summed(vectors), jnp.float32)
    leaf = split(Cp(energy=1.0, tolerance=1e-6), exact)
    assert leaf.ranks == (3, 3, 3)
    assert relative(leaf.dense(), exact) < 1e-4


def test_a_part_of_the_numbers_and_the_same_result_each_time() -> None:
    leaf = split(Cp(parameters=0.3))
    dense = PARAMS["k"].size
    assert 0.3 * dense - 26 < leaf.stored_bytes / 4 <= 0.3 * dense
    again = split(Cp(parameters=0.3))
    for a, b in zip(leaf.factors, again.factors, strict=True):
        np.testing.assert_array_equal(a, b)
    other = split(Cp(parameters=0.3, seed=1))
    assert any((a != b).any() for a, b in zip(leaf.factors, other.factors, strict=True))
    zero = split(Cp(rank=2), jnp.zeros((3, 3, 8, 12)))
    assert not np.asarray(zero.dense()).any()


WINDOWS: dict[str, tuple[Layer, tuple[int, ...], tuple[int, ...]]] = {
    "one axis": (
        layer(("NWC", "WIO", "NWC"), strides=(2,), dilation=(3,)),
        (5, 6, 7),
        (2, 17, 6),
    ),
    "strides": (layer(strides=(2, 3)), (3, 5, 8, 12), (5, 9, 11, 8)),
    "padding": (
        layer(padding=[(2, 0), (-1, 3)], strides=(2, 1)),
        (3, 5, 8, 12),
        (5, 9, 11, 8),
    ),
    "dilation": (layer(padding="VALID", dilation=(2, 3)), (3, 3, 8, 12), (5, 9, 9, 8)),
    "channels first": (
        layer(("NCHW", "OIHW", "NHWC"), strides=(1, 2)),
        (12, 8, 3, 4),
        (5, 8, 6, 9),
    ),
    "an axis of one": (
        layer(strides=(2, 2), padding=[(1, 1), (0, 1)]),
        (1, 5, 8, 12),
        (5, 6, 9, 8),
    ),
    "a long window": (
        layer(("NWC", "WIO", "NWC"), strides=(2,)),
        (40, 6, 7),
        (2, 50, 6),
    ),
    "no position": (layer(padding="VALID"), (3, 4, 8, 12), (5, 7, 2, 8)),
    "three axes": (
        layer(("NDHWC", "DHWIO", "NDHWC"), strides=(1, 2, 1), dilation=(2, 1, 1)),
        (3, 2, 3, 5, 7),
        (2, 6, 6, 4, 5),
    ),
}


def sizes_in(jaxpr: Any) -> Iterator[int]:
    """The sizes of all arrays that a program makes."""
    for eqn in jaxpr.eqns:
        yield from (var.aval.size for var in eqn.outvars)
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple) else (value,):
                if hasattr(inner, "jaxpr"):
                    yield from sizes_in(inner.jaxpr)


@pytest.mark.parametrize("what", WINDOWS)
def test_the_factors_run_as_the_dense_kernel_would(what: str) -> None:
    fn, shape, data = WINDOWS[what]
    params, x = {"k": normal(*shape) / 6}, normal(*data)
    sites = find_sites(fn, params, x)
    small = factorize(params, [("k", Cp(rank=4, sweeps=5))], sites=sites)
    leaf = small["k"]
    longer = [n for n in leaf.shape if n > 1]
    assert len(leaf.factors) == len(longer)
    assert leaf.depthwise == (False, *(True,) * (len(longer) - 2), False)
    (entry,) = inspect(fn, small, x)
    assert (entry.how, entry.why) == (How.FACTORS, "")

    run = compressed(fn)
    wanted = fn({"k": leaf.dense()}, x)
    np.testing.assert_allclose(jax.jit(run)(small, x), wanted, rtol=0, atol=2e-5)
    assert leaf.size not in set(sizes_in(jax.make_jaxpr(run)(small, x).jaxpr))
    dense = jax.make_jaxpr(lambda tree: tree["k"].dense())(small).jaxpr
    assert leaf.size in set(sizes_in(dense))


@pytest.mark.parametrize("rank", [1, 2])
def test_one_input_and_one_term(rank: int) -> None:
    params, x = {"k": normal(3, 3, 1, 12)}, normal(5, 7, 6, 1)
    sites = find_sites(PLAIN, params, x)
    small = factorize(params, [("k", Cp(rank=rank))], sites=sites)
    assert small["k"].depthwise == (False, rank > 1, rank > 1, False)
    wanted = PLAIN({"k": small["k"].dense()}, x)
    out = jax.jit(compressed(PLAIN))(small, x)
    np.testing.assert_allclose(out, wanted, rtol=0, atol=2e-5)


def test_on_accelerators_the_convolutions_are_grouped() -> None:
    small = {"k": split(Cp(rank=4, sweeps=1))}
    run = jax.jit(compressed(PLAIN))
    for platform, count in (("cpu", 0), ("tpu", 2), ("cuda", 2)):
        lowered = run.trace(small, IMAGES).lower(lowering_platforms=(platform,))
        assert lowered.as_text().count("feature_group_count = 4") == count


def test_copies_of_a_loop() -> None:
    def looped(params: Any, x: jax.Array) -> jax.Array:
        def step(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, None]:
            return jnp.tanh(PLAIN({"k": kernel}, x)), None

        return jax.lax.scan(step, x, params["k"])[0]

    params = {"k": normal(2, 3, 3, 8, 8) / 6}
    sites = find_sites(looped, params, IMAGES)
    small = factorize(params, [("k", Cp(energy=0.5))], sites=sites)
    leaf = small["k"]
    assert leaf.stack_axes == (0,)
    for copy, dense in zip(leaf.dense(), params["k"], strict=True):
        assert relative(copy, dense) ** 2 <= 0.5 + 1e-6
    assert inspect(looped, small, IMAGES)[0].how is How.FACTORS
    wanted = looped({"k": leaf.dense()}, IMAGES)
    out = jax.jit(compressed(looped))(small, IMAGES)
    np.testing.assert_allclose(out, wanted, rtol=0, atol=2e-5)


def test_bfloat16_runs_in_bfloat16() -> None:
    params = {"k": PARAMS["k"].astype(jnp.bfloat16)}
    x = IMAGES.astype(jnp.bfloat16)
    sites = find_sites(PLAIN, params, x)
    small = factorize(params, [("k", Cp(rank=6))], sites=sites)
    assert {f.dtype for f in small["k"].factors} == {np.dtype(jnp.bfloat16)}
    out = jax.jit(compressed(PLAIN))(small, x)
    assert out.dtype == jnp.bfloat16
    wanted = PLAIN({"k": small["k"].dense()}, x)
    assert relative(out.astype(jnp.float32), wanted.astype(jnp.float32)) < 0.02


def test_factors_are_trained_inside_compressed() -> None:
    small, target = {"k": split(Cp(rank=4))}, PLAIN(PARAMS, IMAGES)

    def loss(tree: Any) -> jax.Array:
        return jnp.mean((compressed(PLAIN)(tree, IMAGES) - target) ** 2)

    def dense_loss(tree: Any) -> jax.Array:
        return jnp.mean((PLAIN({"k": tree["k"].dense()}, IMAGES) - target) ** 2)

    found, wanted = jax.jit(lambda t: (jax.grad(loss)(t), jax.grad(dense_loss)(t)))(
        small
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    optimizer = optax.adam(0.03)

    @jax.jit
    def step(tree: Any, state: Any) -> Any:
        updates, state = optimizer.update(jax.grad(loss)(tree), state)
        return optax.apply_updates(tree, updates), state

    state, before = optimizer.init(small), float(jax.jit(loss)(small))
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        for _ in range(40):
            small, state = step(small, state)
    assert float(jax.jit(loss)(small)) < 0.95 * before


def test_quantized_stored_counted_and_summarized(tmp_path: pathlib.Path) -> None:
    rules = [("k", Cp(rank=6))]
    small = factorize(PARAMS, rules, sites=SITES)
    eight = quantize_factors(small, [("k", Weights(format=Int(8)))], sites=SITES)
    assert all(isinstance(factor, QTensor) for factor in eight["k"].factors)
    assert relative(eight["k"].dense(), small["k"].dense()) < 0.03
    (entry,) = inspect(PLAIN, eight, IMAGES)
    assert entry.how is How.FACTORS
    assert "factor with a window is made dense" in entry.why
    wanted = PLAIN({"k": eight["k"].dense()}, IMAGES)
    out = jax.jit(compressed(PLAIN))(eight, IMAGES)
    np.testing.assert_allclose(out, wanted, rtol=0, atol=2e-5)

    for tree in (small, eight):
        checkpoint.save(tmp_path / "saved", tree)
        back = checkpoint.load(tmp_path / "saved", PARAMS)["k"]
        assert back.windows == ((), (0,), (1,), ())
        np.testing.assert_array_equal(back.dense(), tree["k"].dense())

    (row,) = describe_changes(PARAMS, small, rules, sites=SITES)
    assert row.after == "rank 6x6x6"
    assert (row.bytes_before, row.bytes_after) == (4 * 864, 4 * 6 * (8 + 3 + 3 + 12))
    assert row.error is not None
    np.testing.assert_allclose(row.error, relative(small["k"].dense(), PARAMS["k"]))

    found = sizes(PLAIN, small, IMAGES)
    positions = 5 * 7 * 6
    assert found.macs == positions * 864
    assert found.rows[0].stored_macs == positions * 6 * (8 + 3 + 3 + 12)


def test_depthwise_factors_of_any_place() -> None:
    def made(*factors: Any, windows: Any) -> LowRank:
        return LowRank(
            factors=factors,
            windows=windows,
            shape=(3, 3, 8, 12),
            dtype=np.dtype(np.float32),
            output_axes=(3,),
            input_axes=(0, 1, 2),
        )

    slid, across = normal(8, 3, 3, 1), normal(12, 8)
    leaf = made(slid, across, windows=((0, 1), ()))
    assert leaf.depthwise == (True, False)
    wanted = np.einsum("chw,oc->hwco", slid[..., 0], across)
    np.testing.assert_allclose(leaf.dense(), wanted, rtol=1e-5, atol=1e-5)
    out = jax.jit(compressed(PLAIN))({"k": leaf}, IMAGES)
    exact = PLAIN({"k": leaf.dense()}, IMAGES)
    np.testing.assert_allclose(out, exact, rtol=0, atol=1e-4)
    leaf = made(across, normal(12, 3, 3, 1), windows=((), (0, 1)))
    assert leaf.depthwise == (False, True)
    out = jax.jit(compressed(PLAIN))({"k": leaf}, IMAGES)
    exact = PLAIN({"k": leaf.dense()}, IMAGES)
    np.testing.assert_allclose(out, exact, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match=r"factor 0 is \[9, 3, 3, 1\], not \[R, 3, 3"):
        made(normal(9, 3, 3, 1), normal(12, 9), windows=((0, 1), ()))
    with pytest.raises(ValueError, match=r"factor 1 is \[12, 1\], not \[12, 8\]"):
        made(normal(8, 3, 3, 8), normal(12, 1), windows=((0, 1), ()))


def grouped(shape: tuple[int, ...], batch: int, groups: int) -> Any:
    fn = layer(groups=groups)
    params, x = {"k": normal(*shape)}, normal(batch, 8, 8, groups * shape[2])
    return factorize(params, [("k", Cp(rank=1))], sites=find_sites(fn, params, x))


def split_of(shape: tuple[int, ...], data: tuple[int, ...]) -> Any:
    params, x = {"k": normal(*shape)}, normal(*data)
    sites = find_sites(PLAIN, params, x)
    return factorize(params, [("k", Cp(rank=1))], sites=sites)


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "rank": (
        lambda: split(Cp(rank=34)),
        r"'k' \[3, 3, 8, 12\] would not become smaller: rank 34 is asked for and takes "
        "884 numbers instead of 864; the largest rank that is smaller is 33; or",
    ),
    "no rank": (
        lambda: split_of((1, 2, 3, 1), (2, 9, 7, 3)),
        "rank 1 takes 6 numbers instead of 6",
    ),
    "energy": (
        lambda: split(Cp(energy=1.0)),
        r"is 33, which keeps 0\.9\d+ of the energy and not 1.0; or exclude it",
    ),
    "budget": (
        lambda: split(Cp(parameters=0.02)),
        r"0.02 is less than rank 1 of 'k' \[3, 3, 8, 12\] takes; it is 0.0301 at least",
    ),
    "depthwise": (
        lambda: grouped((3, 3, 1, 16), 1, 16),
        r"the convolution of 'k' \[3, 3, 1, 16\] has 16 groups, and Cp splits",
    ),
    "groups": (lambda: grouped((3, 3, 4, 16), 5, 2), "has 2 groups, and Cp splits"),
    "window": (
        lambda: split_of((1, 1, 8, 12), (2, 9, 7, 8)),
        "that of 'k' .* has no axis longer than 1; use Svd",
    ),
    "no choice": (lambda: Cp(), "exactly one of rank, energy, parameters; got none"),
    "two choices": (lambda: Cp(rank=1, energy=0.5), "got rank and energy"),
    "fraction": (lambda: Cp(parameters=1.5), r"parameters is in \(0, 1\], not 1.5"),
    "sweeps": (lambda: Cp(rank=1, sweeps=0), "sweeps is a number of at least 1"),
    "seed": (lambda: Cp(rank=1, seed=-1), "seed is a number of at least 0, not -1"),
    "damping": (lambda: Cp(rank=1, damping=0.0), r"damping is in \(0, 1\), not 0.0"),
}


@pytest.mark.parametrize("what", WRONG)
def test_errors(what: str) -> None:
    call, message = WRONG[what]
    with pytest.raises((MismatchError, ValueError), match=message):
        call()


def test_a_product_is_refused() -> None:
    params, x = {"w": normal(4, 5)}, normal(2, 4)
    sites = find_sites(lambda p, x: x @ p["w"], params, x)
    with pytest.raises(
        MismatchError, match=r"gives 'w' a Cp, .* the leaf's uses are dot"
    ):
        factorize(params, [("w", Cp(rank=1))], sites=sites)
