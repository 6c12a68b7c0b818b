"""One-shot pruning with reconstruction: each method against its published algorithm."""

import doctest
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.errors import MismatchError
from jcompress.execution import compressed
from jcompress.formats import Binary, Int
from jcompress.pruning import NM, Block, Unstructured, to_sparse
from jcompress.pruning.one_shot import (
    LeastSquares,
    Magnitude,
    Method,
    OneShot,
    OptimalBrainSurgeon,
    OptimalNM,
    SparseGpt,
    Wanda,
    prune_weights,
    sparsegpt,
    wanda,
)
from jcompress.pruning.one_shot import weights as weights_module
from jcompress.quantization import MeanAbsolute, PerChannel, PerGroup, Weights
from jcompress.sites import find_sites
from jcompress.statistics import SecondMoments, observe
from jcompress.tensors import NMSparse, QTensor, UnstructuredSparse
from jcompress.tensors.weight_matrix import dequantize_matrix, weight_scales

Host = np.ndarray[Any, Any]
N, K, DAMPING = 6, 40, 0.01


BITS = Weights(format=Binary(), range=MeanAbsolute())


def moments(seed: int) -> Host:
    """Those of inputs of different sizes that hang together."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(200, 10)) @ rng.normal(size=(10, K))
    x = (x + 0.5 * rng.normal(size=(200, K))) * rng.permutation(np.geomspace(0.3, 3, K))
    return (x.T @ x).astype(np.float32)


W = np.random.default_rng(0).normal(size=(2, N, K)).astype(np.float32)
H = np.stack([moments(1), moments(2)])


def damped(h: Host) -> Host:
    h = h.astype(np.float64)
    return h + DAMPING * np.mean(np.diag(h)) * np.eye(K)


def errors(made: Any) -> Host:
    """`tr((W - W') H (W - W')^T)` of each copy, H damped."""
    change = np.asarray(made, np.float64) - W
    hs = np.stack([damped(h) for h in H])
    return np.einsum("snk,skl,snl->s", change, hs, change)


def made(how: Method, pattern: Any, sparsity: float = 0.5) -> Host:
    run = jax.jit(lambda w, h: how.prune(w, pattern, sparsity, h))
    return np.asarray(run(jnp.asarray(W), jnp.asarray(H)))


def first_lowest(scores: Host, count: int) -> Host:
    """The places of the lowest of all scores, True; of equal ones the first."""
    gone = np.zeros(scores.size, bool)
    gone[np.argsort(scores.reshape(-1), kind="stable")[:count]] = True
    return gone.reshape(scores.shape)


def published_sparsegpt(
    w: Host, h: Host, pattern: Any, sparsity: float, block: int, rounded: Any = None
) -> Host:
    """Algorithm 1 of the paper: errors go through the inverse of the moments."""
    w = w.astype(np.float64).copy()
    upper = np.linalg.cholesky(np.linalg.inv(damped(h))).T
    out = np.zeros_like(w)
    for start in range(0, K, block):
        end = min(start + block, K)
        gone = np.zeros((N, end - start), bool)
        lost = np.zeros((N, end - start))
        size = np.diag(upper)
        if isinstance(pattern, Unstructured):
            scores = np.square(w[:, start:end] / size[start:end])
            count = round(sparsity * N * end) - round(sparsity * N * start)
            # Ours go through the inputs first; without equal scores it is the same.
            gone = first_lowest(scores, count)
        for i in range(start, end):
            if isinstance(pattern, NM) and i % pattern.m == 0:
                own = slice(i, i + pattern.m)
                scores = np.square(w[:, own] / size[own])
                for n in range(N):
                    gone[n, i - start : i - start + pattern.m] = first_lowest(
                        scores[n], pattern.m - pattern.n
                    )
            value = w[:, i] if rounded is None else rounded(w[:, i], i)
            value = np.where(gone[:, i - start], 0, value)
            out[:, i] = value
            lost[:, i - start] = (w[:, i] - value) / size[i]
            w[:, i:end] -= lost[:, i - start, None] * upper[i, i:end]
        w[:, end:] -= lost @ upper[start:end, end:]
    return out


@pytest.mark.parametrize(
    ("pattern", "sparsity"),
    [(Unstructured(), 0.6), (NM(2, 4), 0.5), (NM(3, 5), 0.4), (NM(1, 20), 0.95)],
)
def test_sparsegpt_is_the_published_algorithm(pattern: Any, sparsity: float) -> None:
    found = made(SparseGpt(block=16), pattern, sparsity)
    block = 16 if isinstance(pattern, Unstructured) else K
    for copy in range(2):
        wanted = published_sparsegpt(W[copy], H[copy], pattern, sparsity, block)
        np.testing.assert_array_equal(found[copy] == 0, wanted == 0)
        np.testing.assert_allclose(found[copy], wanted, atol=2e-3)
        assert (found[copy] == 0).sum() == round(sparsity * N * K)


@pytest.mark.parametrize("symmetric", [True, False])
def test_pruned_and_rounded_in_the_same_pass(symmetric: bool) -> None:
    spec = Weights(format=Int(4, symmetric=symmetric), granularity=PerGroup(10))
    how, pattern = SparseGpt(), NM(2, 4)
    run = jax.jit(lambda w, h: how.prune_and_round(w, pattern, 0.5, h, spec))
    numbers = run(jnp.asarray(W), jnp.asarray(H))
    assert numbers.values.dtype == spec.format.dtype
    found = np.asarray(dequantize_matrix(*numbers, jnp.float32))
    # Scales are those of the weights that stay, as they are without rounding.
    floats = np.stack(
        [published_sparsegpt(W[copy], H[copy], pattern, 0.5, K) for copy in range(2)]
    )
    scales, zeros = jax.device_get(
        weight_scales(jnp.asarray(floats, jnp.float32), spec)
    )
    np.testing.assert_allclose(numbers.scales, scales, rtol=1e-3)
    low, high = spec.format.low, spec.format.high
    for copy in range(2):

        def rounded(x: Host, i: int, copy: int = copy) -> Host:
            scale = scales[copy, :, i // 10]
            zero = 0 if zeros is None else zeros[copy, :, i // 10]
            return (np.clip(np.rint(x / scale) + zero, low, high) - zero) * scale

        wanted = published_sparsegpt(W[copy], H[copy], pattern, 0.5, K, rounded)
        # What is rounded the other way once goes on in all that follows.
        same = np.isclose(found[copy], wanted, atol=1e-5)
        assert same.mean() > 0.98
        groups = (found[copy] != 0).reshape(N, K // 4, 4).sum(-1)
        assert (groups <= 2).all()


def published_obs(w: Host, h: Host, count: int, pattern: Any) -> Host:
    """Outputs in a loop, an inverse that loses a row and a column a step; a heap."""
    h = damped(h)
    orders, costs = [], []
    for row in w.astype(np.float64):
        row, inverse, alive = row.copy(), np.linalg.inv(h), list(range(K))
        order, cost = [], []
        while alive:
            free = alive
            if isinstance(pattern, NM):
                gone = np.bincount(np.array(order, int) // pattern.m, minlength=K)
                full = pattern.m - pattern.n
                free = [i for i in alive if gone[i // pattern.m] < full]
                if not free:
                    break
            size = [row[i] ** 2 / inverse[i, i] for i in free]
            best = free[int(np.argmin(size))]
            order.append(best)
            cost.append(min(size))
            row -= row[best] / inverse[best, best] * inverse[:, best]
            inverse -= np.outer(inverse[:, best], inverse[best]) / inverse[best, best]
            alive.remove(best)
        orders.append(order)
        costs.append(cost)
    taken = [0] * len(w)
    if isinstance(pattern, NM):
        taken = [len(order) for order in orders]
    else:
        for _ in range(count):
            heads = [
                c[t] if t < K else np.inf for c, t in zip(costs, taken, strict=True)
            ]
            taken[int(np.argmin(heads))] += 1
    keep = np.ones(w.shape, bool)
    for n, order in enumerate(orders):
        keep[n, order[: taken[n]]] = False
    return best_values(w, h, keep)


def best_values(w: Host, h: Host, keep: Host) -> Host:
    out = np.zeros(w.shape)
    for n, own in enumerate(keep):
        right = h @ w[n].astype(np.float64)
        out[n, own] = np.linalg.solve(h[np.ix_(own, own)], right[own])
    return out


@pytest.mark.parametrize(
    ("pattern", "sparsity"), [(Unstructured(), 0.6), (NM(2, 4), 0.5)]
)
def test_optimal_brain_surgeon_is_the_published_one(
    pattern: Any, sparsity: float
) -> None:
    found = made(OptimalBrainSurgeon(), pattern, sparsity)
    for copy in range(2):
        count = round(sparsity * N * K)
        wanted = published_obs(W[copy], H[copy], count, pattern)
        np.testing.assert_array_equal(found[copy] == 0, wanted == 0)
        np.testing.assert_allclose(found[copy], wanted, atol=2e-3)


def test_optimal_nm_tries_every_pattern_of_a_group() -> None:
    found = made(OptimalNM(), NM(2, 4))
    for copy in range(2):
        h, w = damped(H[copy]), W[copy].astype(np.float64).copy()
        for start in range(0, K, 4):
            inverse = np.linalg.inv(h[start:, start:])
            for n in range(N):
                trials = []
                for gone in map(list, itertools.combinations(range(4), 2)):
                    part = w[n, start:][gone]
                    cost = np.linalg.solve(inverse[np.ix_(gone, gone)], part)
                    moved = w[n, start:] - inverse[:, gone] @ cost
                    moved[gone] = 0
                    trials.append((part @ cost, moved))
                w[n, start:] = min(trials, key=lambda trial: trial[0])[1]
        np.testing.assert_array_equal(found[copy] == 0, w == 0)
        np.testing.assert_allclose(found[copy], w, atol=2e-3)


@pytest.mark.parametrize("pattern", [Unstructured(), NM(2, 4), Block((2, 4))])
def test_what_stays_gets_its_best_values(pattern: Any) -> None:
    first = made(Wanda(), pattern)
    found = made(LeastSquares(), pattern)
    for copy in range(2):
        wanted = best_values(W[copy], damped(H[copy]), first[copy] != 0)
        np.testing.assert_array_equal(found[copy] == 0, first[copy] == 0)
        np.testing.assert_allclose(found[copy], wanted, atol=2e-3)
    if pattern == Unstructured():
        few = errors(made(LeastSquares(steps=2), pattern))
        assert (few < errors(first)).all()
        assert (errors(found) <= few).all()
        # What is solved stays so, however many steps there are.
        many = errors(made(LeastSquares(steps=1000), pattern))
        np.testing.assert_allclose(many, errors(found), rtol=1e-3)


def test_scores_are_the_published_ones() -> None:
    sizes = np.sqrt(np.stack([np.diag(h) for h in H]))[:, None, :]
    found = made(Wanda(), Unstructured(), 0.3)
    for copy, n in np.ndindex(2, N):
        gone = first_lowest(np.abs(W[copy, n]) * sizes[copy, 0], round(0.3 * K))
        np.testing.assert_array_equal(found[copy, n], np.where(gone, 0, W[copy, n]))
    found = made(Magnitude(), Unstructured(), 0.3)
    gone = first_lowest(np.abs(W), round(0.3 * W.size))
    np.testing.assert_array_equal(found, np.where(gone, 0, W))
    found = made(Wanda(), NM(1, 4), 0.75)
    groups = (np.abs(W) * sizes).reshape(2, N, K // 4, 4)
    wanted = (groups == groups.max(-1, keepdims=True)).reshape(W.shape)
    np.testing.assert_array_equal(found, np.where(wanted, W, 0))


def test_methods_in_their_order() -> None:
    """The more a method knows, the less is lost; in each of two copies."""
    surgeon, gpt = OptimalBrainSurgeon(), SparseGpt()
    tuned = LeastSquares(start=gpt)
    for pattern in (Unstructured(), NM(2, 4)):
        order: list[Method] = [surgeon, tuned, gpt, Wanda(), Magnitude()]
        found = [errors(made(how, pattern)) for how in order]
        for better, worse in itertools.pairwise(found):
            assert (better < worse).all()
        refit = errors(made(LeastSquares(start=Wanda()), pattern))
        assert (refit < 0.5 * found[3]).all()
    assert errors(made(OptimalNM(), NM(2, 4))).sum() < found[2].sum()


def model(params: Any, x: jax.Array) -> jax.Array:
    """A convolution, layers of a scan with two output axes, and a product."""
    h = jax.lax.conv_general_dilated(
        x, params["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    h = jnp.tanh(h).mean((1, 2))

    def layer(h: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
        return jnp.tanh(jnp.einsum("bi,iod->bod", h, w).reshape(h.shape)), None

    h = jax.lax.scan(layer, h, params["layers"])[0]
    return h @ params["head"]


def tree() -> Any:
    rng = np.random.default_rng(5)
    shapes = {"conv": (3, 3, 4, 8), "layers": (2, 8, 2, 4), "head": (8, 3)}
    return {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}


PARAMS = tree()
X = jnp.asarray(np.random.default_rng(6).normal(size=(4, 6, 6, 4)), jnp.float32)
SITES = find_sites(model, PARAMS, X)


@pytest.fixture(scope="module")
def seen() -> dict[str, jax.Array]:
    run = jax.jit(observe(model, [(..., True)], SecondMoments()))
    return dict(run(PARAMS, X)[1])


def test_trees_with_convolutions_and_stacks(seen: dict[str, jax.Array]) -> None:
    rules = [
        ("conv", sparsegpt(NM(2, 4))),
        ("layers", sparsegpt(sparsity=0.5)),
        ("head", sparsegpt(sparsity=0.5, weights=Weights(format=Int(8)))),
    ]
    pruned = prune_weights(PARAMS, rules, sites=SITES, moments=seen)
    assert isinstance(pruned["head"], QTensor)
    assert pruned["conv"].shape == PARAMS["conv"].shape
    # Inputs are heights, widths and channels; of each output, 2 of 4 in a row.
    matrix = np.asarray(pruned["conv"]).transpose(3, 0, 1, 2).reshape(8, -1, 4)
    assert ((matrix != 0).sum(-1) == 2).all()
    assert [(layer == 0).sum() for layer in pruned["layers"]] == [32, 32]
    assert (pruned["head"].dense() == 0).sum() >= 12
    naive = [(name, wanda(spec.pattern, spec.sparsity)) for name, spec in rules]
    plain = prune_weights(PARAMS, naive, sites=SITES, moments=seen)
    whole = seen["conv"]
    for name, lost in (("conv", pruned), ("wanda", plain)):
        change = (lost["conv"] - PARAMS["conv"]).reshape(-1, 8).T
        error = float(jnp.sum((change @ whole) * change))
        if name == "conv":
            best = error
    assert best < error


def test_pruned_and_rounded_it_is_stored_without_zeros(
    seen: dict[str, jax.Array],
) -> None:
    eight = Weights(format=Int(8))
    rules = [
        ("conv", sparsegpt(NM(2, 4), weights=eight)),
        ("layers", sparsegpt(sparsity=0.7, weights=eight)),
    ]
    small = prune_weights(PARAMS, rules, sites=SITES, moments=seen)
    patterns = [("conv", NM(2, 4)), ("layers", Unstructured())]
    sparse = to_sparse(small, patterns, sites=SITES)
    for name, kind in (("conv", NMSparse), ("layers", UnstructuredSparse)):
        assert isinstance(sparse[name], kind)
        np.testing.assert_array_equal(sparse[name].dense(), small[name].dense())
    found = jax.jit(compressed(model))(sparse, X)
    dense = {name: getattr(x, "dense", lambda x=x: x)() for name, x in small.items()}
    np.testing.assert_allclose(found, model(dense, X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [SparseGpt(), LeastSquares(start=Wanda())])
@pytest.mark.parametrize("granularity", [PerChannel(), PerGroup(32)])
def test_pruned_and_rounded_to_four_bits_it_is_stored_without_zeros(
    method: Any, granularity: Any
) -> None:
    rng = np.random.default_rng(7)
    params = {
        "up": jnp.asarray(rng.normal(size=(64, 128)), jnp.float32),
        "layers": jnp.asarray(rng.normal(size=(2, 128, 128)) / 8, jnp.float32),
    }
    x = jnp.asarray(rng.normal(size=(96, 64)), jnp.float32)

    def run(params: Any, x: jax.Array) -> jax.Array:
        layer = lambda h, w: (jnp.tanh(h @ w), None)  # noqa: E731
        return jax.lax.scan(layer, x @ params["up"], params["layers"])[0]

    four = Weights(format=Int(4), granularity=granularity)
    half, most = NM(2, 4), Unstructured()
    rules = [
        ("up", OneShot(method=method, pattern=half, weights=four)),
        ("layers", OneShot(method=method, pattern=most, sparsity=0.7, weights=four)),
    ]
    sites = find_sites(run, params, x)
    _, seen = jax.jit(observe(run, rules, SecondMoments()))(params, x)
    small = prune_weights(params, rules, sites=sites, moments=seen)
    sparse = to_sparse(small, [(..., Unstructured())], sites=sites)
    for name, leaf in sparse.items():
        assert isinstance(leaf, UnstructuredSparse)
        assert leaf.values.dtype == jnp.uint8
        assert leaf.stored_bytes < small[name].stored_bytes
        np.testing.assert_array_equal(leaf.dense(), small[name].dense())
    found = jax.jit(compressed(run))(sparse, x)
    dense = {name: leaf.dense() for name, leaf in small.items()}
    np.testing.assert_allclose(found, run(dense, x), rtol=1e-4, atol=1e-4)


def test_outputs_stay_on_their_devices(seen: dict[str, jax.Array]) -> None:
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    cut = jax.NamedSharding(mesh, jax.P(None, None, None, "d"))
    tree = {**PARAMS, "conv": jax.device_put(PARAMS["conv"], cut)}
    rules = [("conv", sparsegpt(NM(2, 4)))]
    whole = prune_weights(PARAMS, rules, sites=SITES, moments=seen)
    parts = prune_weights(tree, rules, sites=SITES, moments=seen)
    np.testing.assert_allclose(parts["conv"], whole["conv"], atol=1e-5)
    assert parts["conv"].sharding.is_equivalent_to(cut, 4)


def test_pruned_again_it_stays_as_it_is(seen: dict[str, jax.Array]) -> None:
    for spec in (sparsegpt(sparsity=0.5), sparsegpt(NM(2, 4)), wanda(sparsity=0.5)):
        rules = [("conv", spec)]
        once = prune_weights(PARAMS, rules, sites=SITES, moments=seen)
        twice = prune_weights(once, rules, sites=SITES, moments=seen)
        np.testing.assert_allclose(twice["conv"], once["conv"], atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NM(5, 4), "1 <= n < m"),
        (lambda: OneShot(), "needs a sparsity"),
        (lambda: sparsegpt(sparsity=1.0), r"in \[0, 1\), not 1.0"),
        (lambda: sparsegpt(sparsity=-0.1), r"in \[0, 1\), not -0.1"),
        (lambda: sparsegpt(NM(2, 4), 0.75), "removes 0.5, but the sparsity is 0.75"),
        (lambda: sparsegpt(Block((2, 2)), 0.5), r"does not make Block\(\(2, 2\)\)"),
        (lambda: OneShot(method=OptimalNM(), sparsity=0.5), "does not make Unstruct"),
        (
            lambda: OneShot(method=Wanda(), sparsity=0.5, weights=Weights()),
            r"Wanda\(\) does not round",
        ),
        (
            lambda: sparsegpt(sparsity=0.5, weights=BITS),
            "has no number for 0",
        ),
        (lambda: SparseGpt(damping=0), "damping is above 0, not 0"),
        (lambda: SparseGpt(block=24), "multiple of 16, not 24"),
        (lambda: LeastSquares(steps=0), "steps is a positive int, not 0"),
    ],
)
def test_specs_that_make_no_sense(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_trees_that_do_not_fit(seen: dict[str, jax.Array]) -> None:
    def run(name: str, spec: Any, tree: Any = PARAMS, moments: Any = seen) -> Any:
        return prune_weights(tree, [(name, spec)], sites=SITES, moments=moments)

    half = sparsegpt(sparsity=0.5)
    with pytest.raises(MismatchError, match=r"prune_weights: 'conv' .* 36 inputs .* 7"):
        run("conv", sparsegpt(NM(2, 7)))
    with pytest.raises(MismatchError, match="none of 'conv', which SparseGpt needs"):
        run("conv", half, moments=None)
    with pytest.raises(MismatchError, match=r"are \[3, 3\], not \[36, 36\]"):
        run("conv", half, moments={"conv": jnp.eye(3)})
    bad = {"conv": seen["conv"].at[0, 0].set(jnp.nan)}
    with pytest.raises(ValueError, match="moments of 'conv' hold numbers that are not"):
        run("conv", half, moments=bad)
    bad = {**PARAMS, "conv": PARAMS["conv"].at[0, 0, 0, 0].set(jnp.nan)}
    with pytest.raises(ValueError, match="'conv' holds numbers that are not finite"):
        run("conv", half, tree=bad)
    with pytest.raises(MismatchError, match="matches no weight"):
        run("bias", half)
    with pytest.raises(TypeError, match=r"a rule carries OneShot"):
        run("conv", NM(2, 4))
    row, eye = jnp.zeros((1, 16)), jnp.eye(16)
    with pytest.raises(MismatchError, match="has 12870 ways to keep 8 of 16"):
        OptimalNM().prune(row, NM(8, 16), 0.5, eye)
    table = {"t": jnp.ones((5, 4))}
    sites = find_sites(lambda p, i: p["t"][i], table, jnp.zeros(3, jnp.int32))
    with pytest.raises(MismatchError, match=r"only looked up, .* SparseGpt to learn"):
        prune_weights(table, [("t", half)], sites=sites)
    with pytest.raises(TypeError, match=r"start is a method .*, not 'wanda'"):
        LeastSquares(start="wanda")


def test_nothing_to_prune() -> None:
    for how in (SparseGpt(), OptimalNM(), LeastSquares(), OptimalBrainSurgeon()):
        pattern = NM(2, 4)
        found = how.prune(jnp.zeros((0, 4)), pattern, 0.5, jnp.eye(4))
        assert found.shape == (0, 4)


def test_the_examples_run() -> None:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        failed, attempted = doctest.testmod(weights_module)
    assert attempted
    assert not failed


@pytest.mark.parametrize("symmetric", [True, False])
def test_fitted_weights_are_rounded_among_themselves(symmetric: bool) -> None:
    spec = Weights(format=Int(4, symmetric=symmetric), granularity=PerGroup(10))
    how, pattern = LeastSquares(start=Wanda()), NM(2, 4)
    run = jax.jit(lambda w, h: how.prune_and_round(w, pattern, 0.5, h, spec))
    numbers = run(jnp.asarray(W), jnp.asarray(H))
    found = np.asarray(dequantize_matrix(*numbers, jnp.float32))
    fitted = made(how, pattern)
    # What was removed is exactly 0, and all else a number of its group.
    assert np.all(found[fitted == 0] == 0)
    scales, zeros = jax.device_get(weight_scales(jnp.asarray(fitted), spec))
    np.testing.assert_array_equal(numbers.scales, scales)
    wide = np.repeat(scales, 10, axis=2)
    offset = 0 if zeros is None else np.repeat(zeros, 10, axis=2)
    nearest = np.clip(
        np.rint(fitted / wide) + offset, spec.format.low, spec.format.high
    )
    nearest = (nearest - offset) * wide
    assert errors(found).sum() < 0.9 * errors(nearest).sum()
    # One input after the other, as GPTQ has it, for one output.
    for copy in range(2):
        upper = np.linalg.cholesky(np.linalg.inv(damped(H[copy]))).T
        w = fitted[copy].astype(np.float64)
        wanted = np.zeros_like(w)
        for i in range(K):
            scale, zero = wide[copy, :, i], 0 if zeros is None else offset[copy, :, i]
            value = np.clip(
                np.rint(w[:, i] / scale) + zero, spec.format.low, spec.format.high
            )
            value = np.where(fitted[copy, :, i] == 0, 0, (value - zero) * scale)
            wanted[:, i] = value
            lost = (w[:, i] - value) / upper[i, i]
            w[:, i:] -= lost[:, None] * upper[i, i:]
        assert np.isclose(found[copy], wanted, atol=1e-5).mean() > 0.98
