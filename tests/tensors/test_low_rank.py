"""`LowRank` and `Adapted`: what they stand for, how they run, and their errors."""

import dataclasses
import itertools
import string
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress import checkpoint
from jcompress.execution import How, compressed, inspect
from jcompress.formats import Int
from jcompress.tensors import Adapted, LowRank, QTensor

pytestmark = pytest.mark.once

TOLERANCE = 2e-5
rng = np.random.default_rng(0)


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def check_close(got: Any, wanted: Any) -> None:
    size = max(float(np.nanmax(np.abs(np.asarray(wanted)))), 1.0)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=TOLERANCE * size)


def check_runs(fn: Any, leaf: Any, x: jax.Array, how: How, why: str = "") -> None:
    """The leaf runs in a way, and like the array that it stands for."""
    tree, whole = {"w": leaf}, {"w": leaf.dense()}
    (entry,) = inspect(fn, tree, x)
    assert (entry.how, entry.why) == (how, why)
    wanted = fn(whole, x)
    got = jax.jit(compressed(fn))(tree, x)
    assert got.dtype == wanted.dtype
    check_close(got, wanted)


def matrix_leaf(shape: tuple[int, ...], rank: int, **axes: Any) -> LowRank:
    """A leaf with random factors for the given axes."""
    axes = {"stack_axes": (), **axes}
    sizes = {k: [shape[a] for a in v] for k, v in axes.items()}
    stacks = sizes["stack_axes"]
    inputs, outputs = (int(np.prod(sizes[k])) for k in ("input_axes", "output_axes"))
    factors = (normal(*stacks, rank, inputs), normal(*stacks, outputs, rank))
    return LowRank(factors=factors, shape=shape, dtype=jnp.float32, **axes)


def quantized(factor: jax.Array, stacks: int = 0) -> QTensor:
    """An int8 factor."""
    scale = jnp.abs(factor).max(-1, keepdims=True) * np.float32(1 / 127)
    return QTensor(
        values=jnp.round(factor / scale).astype(jnp.int8),
        scales=scale,
        format=Int(8),
        shape=factor.shape,
        dtype=jnp.float32,
        stack_axes=tuple(range(stacks)),
        output_axes=(stacks,),
        input_axes=(stacks + 1,),
    )


def with_quantized_factors(leaf: LowRank) -> LowRank:
    stacks = len(leaf.stack_axes)
    factors = tuple(quantized(factor, stacks) for factor in leaf.factors)
    return dataclasses.replace(leaf, factors=factors)


def test_dense_is_the_formula() -> None:
    leaf = matrix_leaf(
        (4, 2, 3, 5), 2, stack_axes=(1,), input_axes=(0, 3), output_axes=(2,)
    )
    down, up = (np.asarray(f, np.float64) for f in leaf.factors)
    wanted = np.einsum("snr,srk->snk", up, down)
    wanted = wanted.reshape(2, 3, 4, 5).transpose(2, 0, 1, 3)
    np.testing.assert_allclose(leaf.dense(), wanted, atol=1e-5)
    assert leaf.ranks == (2,)
    assert leaf.stored_bytes == 4 * 2 * 2 * (20 + 3)
    half = dataclasses.replace(leaf, dtype=jnp.bfloat16)
    np.testing.assert_array_equal(half.dense(), leaf.dense().astype(jnp.bfloat16))


KERNELS = {
    "tucker": (((), (0, 1), ()), "HWIO"),
    "columns then rows": (((0,), (1,)), "HWIO"),
    "rows then columns": (((3,), (2,)), "OIHW"),
    "whole window first": (((0, 1), ()), "HWIO"),
    "matrix": ((), "OHWI"),
}
SIZES = {"H": 3, "W": 2, "I": 4, "O": 5}


def kernel_leaf(name: str, *, stack: int = 0) -> LowRank:
    windows, layout = KERNELS[name]
    shape = tuple(SIZES[axis] for axis in layout)
    lead = (stack,) if stack else ()
    inputs = tuple(a for a, axis in enumerate(layout) if axis != "O")
    first = 4 if windows else 24
    ranks = [first, *[3] * (max(len(windows), 2) - 1), 5]
    factors = tuple(
        normal(
            *lead, after, *(shape[a] for a in (windows[i] if windows else ())), before
        )
        for i, (before, after) in enumerate(itertools.pairwise(ranks))
    )
    up = len(lead)
    return LowRank(
        factors=factors,
        windows=tuple(tuple(a + up for a in w) for w in windows),
        shape=(*lead, *shape),
        dtype=jnp.float32,
        stack_axes=tuple(range(up)),
        output_axes=(layout.index("O") + up,),
        input_axes=tuple(a + up for a in inputs),
    )


@pytest.mark.parametrize("name", KERNELS)
def test_dense_kernels_are_the_formula(name: str) -> None:
    windows, layout = KERNELS[name]
    leaf = kernel_leaf(name)
    if not windows:
        wanted = np.asarray(leaf.factors[1]) @ np.asarray(leaf.factors[0])
        np.testing.assert_allclose(leaf.dense(), wanted.reshape(leaf.shape), atol=1e-5)
        return
    ranks = string.ascii_lowercase
    terms = []
    for i, window in enumerate(windows):
        before = "I" if i == 0 else ranks[i]
        after = "O" if i == len(windows) - 1 else ranks[i + 1]
        terms.append(after + "".join(layout[a] for a in window) + before)
    wanted = np.einsum(f"{','.join(terms)}->{layout}", *map(np.asarray, leaf.factors))
    np.testing.assert_allclose(leaf.dense(), wanted, atol=1e-5)


CONVOLUTIONS = {
    "strided, same": ((2, 1), "SAME", (1, 2)),
    "padded by hand": ((1, 2), [(1, 2), (0, 3)], (2, 1)),
}


@pytest.mark.parametrize("how", CONVOLUTIONS)
@pytest.mark.parametrize("name", KERNELS)
def test_convolutions_run_by_factor(name: str, how: str) -> None:
    strides, padding, dilation = CONVOLUTIONS[how]
    layout = KERNELS[name][1]
    data = "NCHW" if layout == "OIHW" else "NHWC"

    def model(params: Any, x: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x,
            params["w"],
            strides,
            padding,
            rhs_dilation=dilation,
            dimension_numbers=(data, layout, "NHWC"),
        )

    shape = (2, 4, 9, 8) if data == "NCHW" else (2, 9, 8, 4)
    check_runs(model, kernel_leaf(name), normal(*shape), How.FACTORS)


def test_convolutions_with_quantized_factors() -> None:
    def model(params: Any, x: jax.Array) -> jax.Array:
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, params["w"], (1, 1), "SAME", dimension_numbers=numbers
        )

    leaf = kernel_leaf("tucker")
    first, core, last = leaf.factors
    thin = dataclasses.replace(leaf, factors=(quantized(first), core, quantized(last)))
    check_runs(model, thin, normal(1, 5, 5, 4), How.FACTORS)
    scale = jnp.float32(0.05)
    slid = QTensor(
        values=jnp.clip(jnp.round(core / scale), -127, 127)
        .astype(jnp.int8)
        .reshape(3, 18),
        scales=scale.reshape(1, 1),
        format=Int(8),
        shape=core.shape,
        dtype=jnp.float32,
        output_axes=(0,),
        input_axes=(1, 2, 3),
    )
    leaf = dataclasses.replace(leaf, factors=(first, slid, last))
    why = "a compressed factor with a window is made dense"
    check_runs(model, leaf, normal(1, 5, 5, 4), How.FACTORS, why)


def test_what_no_factor_follows_is_made_dense() -> None:
    def grouped(params: Any, x: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x,
            params["w"],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=5,
        )

    why = "the factors of a grouped convolution do not run as convolutions"
    leaf = kernel_leaf("tucker")
    check_runs(grouped, leaf, normal(1, 4, 4, 20), How.DENSE, why)

    def flat(params: Any, x: jax.Array) -> jax.Array:
        return x @ params["w"].reshape(24, 5)

    why = "its factors are those of a convolution"
    check_runs(flat, leaf, normal(2, 24), How.DENSE, why)

    def turned(params: Any, x: jax.Array) -> jax.Array:
        kernel = jnp.transpose(params["w"], (0, 2, 1, 3))
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    why = "the factors were split over other axes than the window's"
    check_runs(turned, leaf, normal(1, 4, 4, 2), How.DENSE, why)


def dot(params: Any, x: jax.Array) -> jax.Array:
    return x @ params["w"]


def heads(params: Any, x: jax.Array) -> jax.Array:
    return jnp.einsum("bi,ihd->bhd", x, params["w"])


def experts(params: Any, x: jax.Array) -> jax.Array:
    return jnp.einsum("ebi,eio->ebo", x, params["w"])


def scanned(params: Any, x: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["w"])[0]


def pointwise(params: Any, x: jax.Array) -> jax.Array:
    images, kernel = x.reshape(-1, 2, 3, 8), params["w"].reshape(1, 1, 8, 6)
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        images, kernel, (1, 2), "VALID", dimension_numbers=numbers
    )


def ragged(params: Any, x: jax.Array) -> jax.Array:
    sizes = jnp.asarray([4, 0, 5], jnp.int32)
    return jax.lax.ragged_dot(x, params["w"], sizes)


USES: dict[str, tuple[Any, LowRank, tuple[int, ...], str]] = {
    "dot": (dot, matrix_leaf((8, 6), 3, input_axes=(0,), output_axes=(1,)), (5, 8), ""),
    "heads": (
        heads,
        matrix_leaf((8, 2, 3), 2, input_axes=(0,), output_axes=(1, 2)),
        (5, 8),
        "",
    ),
    "experts": (
        experts,
        matrix_leaf((3, 8, 6), 2, stack_axes=(0,), input_axes=(1,), output_axes=(2,)),
        (3, 5, 8),
        "",
    ),
    "scan": (
        scanned,
        matrix_leaf((3, 8, 8), 2, stack_axes=(0,), input_axes=(1,), output_axes=(2,)),
        (5, 8),
        "",
    ),
    "pointwise": (
        pointwise,
        matrix_leaf((8, 6), 3, input_axes=(0,), output_axes=(1,)),
        (12, 8),
        "",
    ),
    "ragged": (
        ragged,
        matrix_leaf((3, 8, 6), 2, stack_axes=(0,), input_axes=(1,), output_axes=(2,)),
        (9, 8),
        "one expert after the other",
    ),
}


@pytest.mark.parametrize("use", USES)
def test_products_run_by_factor(use: str) -> None:
    fn, leaf, shape, why = USES[use]
    check_runs(fn, leaf, normal(*shape), How.FACTORS, why)


@pytest.mark.parametrize("use", ["dot", "scan", "ragged"])
def test_products_run_by_quantized_factor(use: str) -> None:
    fn, leaf, shape, why = USES[use]
    leaf = with_quantized_factors(leaf)
    check_runs(fn, leaf, normal(*shape), How.FACTORS, why)


def test_ragged_products_by_factor_without_a_loop() -> None:
    from jcompress.execution.experts import by_factor

    fn, leaf, shape, _ = USES["ragged"]
    x = normal(*shape)
    whole = {"w": leaf.dense()}
    closed = jax.make_jaxpr(fn)(whole, x)
    (eqn,) = (e for e in closed.jaxpr.eqns if e.primitive.name.startswith("ragged"))
    sizes = jnp.asarray([4, 0, 5], jnp.int32)
    check_close(by_factor(x, sizes, leaf, eqn), fn(whole, x))


def test_a_scan_over_kernels() -> None:
    def model(params: Any, x: jax.Array) -> jax.Array:
        def step(x: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
            y = jax.lax.conv_general_dilated(
                x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            return x * np.float32(0.5), y

        return jax.lax.scan(step, x, params["w"])[1]

    leaf = kernel_leaf("columns then rows", stack=2)
    check_runs(model, leaf, normal(1, 4, 4, 4), How.FACTORS)


def look_up(params: Any, ids: jax.Array) -> jax.Array:
    return jnp.take(params["w"], ids, axis=0)


def tied(params: Any, ids: jax.Array) -> jax.Array:
    return jnp.tanh(params["w"][ids]) @ params["w"].T


@pytest.mark.parametrize("integers", [False, True])
def test_lookups_take_rows_of_the_last_factor(integers: bool) -> None:
    leaf = matrix_leaf((9, 4), 2, output_axes=(0,), input_axes=(1,))
    leaf = with_quantized_factors(leaf) if integers else leaf
    ids = jnp.asarray([[8, 0], [3, 11]], jnp.int32)  # 11 is out of bounds: NaN
    check_runs(look_up, leaf, ids, How.ROWS)
    assert np.isnan(compressed(look_up)({"w": leaf}, ids)[1, 1]).all()
    hows = [entry.how for entry in inspect(tied, {"w": leaf}, ids[:1])]
    assert hows == [How.ROWS, How.FACTORS]
    wanted = tied({"w": leaf.dense()}, ids[:1])
    check_close(compressed(tied)({"w": leaf}, ids[:1]), wanted)


def test_bfloat16_products_stay_near() -> None:
    leaf = matrix_leaf((64, 32), 8, input_axes=(0,), output_axes=(1,))
    factors = tuple(factor.astype(jnp.bfloat16) for factor in leaf.factors)
    leaf = dataclasses.replace(leaf, factors=factors, dtype=jnp.bfloat16)
    x = normal(5, 64).astype(jnp.bfloat16)
    got, wanted = compressed(dot)({"w": leaf}, x), x @ leaf.dense()
    assert got.dtype == jnp.bfloat16
    error = np.linalg.norm(np.asarray(got - wanted, np.float32))
    assert error < 0.02 * np.linalg.norm(np.asarray(wanted, np.float32))


def test_gradients_reach_the_factors_and_vmap_maps() -> None:
    leaf = USES["scan"][1]
    x = normal(5, 8)

    def through(leaf: LowRank, fn: Any) -> jax.Array:
        return jnp.sum(fn(leaf) ** 2)

    run = jax.grad(through)(leaf, lambda w: compressed(scanned)({"w": w}, x))
    whole = jax.grad(through)(leaf, lambda w: scanned({"w": w.dense()}, x))
    for got, wanted in zip(run.factors, whole.factors, strict=True):
        assert np.abs(wanted).max() > 1e-3
        check_close(got, wanted)
    mapped = jax.vmap(lambda leaf, x: compressed(dot)({"w": leaf}, x), (0, None))
    pair = jax.tree.map(lambda a: jnp.stack([a, -a]), USES["dot"][1])
    wanted = x @ USES["dot"][1].dense()
    check_close(mapped(pair, x), jnp.stack([wanted, wanted]))


def test_checkpoints(tmp_path: Any) -> None:
    tree = {
        "a": with_quantized_factors(USES["experts"][1]),
        "b": kernel_leaf("tucker"),
        "c": adapted(quantized(normal(6, 8))),
    }
    checkpoint.save(tmp_path, tree)
    like = {n: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for n, leaf in tree.items()}
    for again in (checkpoint.load(tmp_path), checkpoint.load(tmp_path, like=like)):
        assert jax.tree.structure(again) == jax.tree.structure(tree)
        for mine, theirs in zip(
            jax.tree.leaves(again), jax.tree.leaves(tree), strict=True
        ):
            np.testing.assert_array_equal(mine, theirs)


def adapted(base: Any, rank: int = 2, alpha: float = 3.0) -> Adapted:
    """An adapter on a base whose first axis is its output."""
    return Adapted(
        base=base,
        down=normal(rank, base.shape[1]),
        up=normal(base.shape[0], rank),
        alpha=alpha,
        shape=base.shape,
        dtype=base.dtype,
        output_axes=(0,),
        input_axes=(1,),
    )


def test_an_adapted_leaf_is_the_formula() -> None:
    base = normal(6, 8)
    leaf = adapted(base)
    wanted = np.asarray(base) + 1.5 * np.asarray(leaf.up) @ np.asarray(leaf.down)
    np.testing.assert_allclose(leaf.dense(), wanted, atol=1e-5)
    assert leaf.stored_bytes == 4 * (48 + 2 * 14)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "one factor": ({"factors": (normal(6, 8),)}, "two factors at least, not 1"),
    "inputs": (
        {"factors": (normal(3, 7), normal(6, 3))},
        r"0 is \[3, 7\], not \[R, 8\]",
    ),
    "rank": ({"factors": (normal(3, 8), normal(6, 2))}, r"1 is \[6, 2\], not \[6, 3\]"),
    "outputs": (
        {"factors": (normal(3, 8), normal(5, 3))},
        r"1 is \[5, 3\], not \[6, 3\]",
    ),
    "no rank": (
        {"factors": (normal(0, 8), normal(6, 0))},
        r"0 is \[0, 8\], not \[R, 8\]",
    ),
    "integers": (
        {"factors": (jnp.ones((3, 8), jnp.int8), normal(6, 3))},
        "factor 0 is int8; arrays are of floats",
    ),
    "axes": ({"output_axes": (0,)}, "do not partition the 2 axes"),
    "windows": ({"windows": ((1,), ())}, r"windows \(\(1,\), \(\)\) are not disjoint"),
    "count": ({"windows": ((0,),)}, "1 windows for 2 factors"),
    "stored otherwise": (
        {
            "factors": (
                dataclasses.replace(
                    quantized(normal(8, 3)),
                    shape=(3, 8),
                    output_axes=(1,),
                    input_axes=(0,),
                ),
                normal(6, 3),
            )
        },
        "factor 0 is a QTensor with Axes",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_errors(what: str) -> None:
    changes, message = BAD[what]
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(USES["dot"][1], **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": normal(8, 6)}, r"base is float32 \[8, 6\], not float32 \[6, 8\]"),
        ({"base": normal(6, 8).astype(jnp.bfloat16)}, r"base is bfloat16 \[6, 8\]"),
        ({"down": normal(2, 7)}, r"down is float32 \[2, 7\], not .* \[2, 8\]"),
        ({"down": normal(0, 8)}, r"down is \[0, 8\], not \[R, 8\] with R >= 1"),
        ({"up": normal(6, 3)}, r"up is float32 \[6, 3\], not .* \[6, 2\]"),
        ({"alpha": 0.0}, "alpha is finite and not 0"),
    ],
)
def test_errors_of_adapted(changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(adapted(normal(6, 8)), **changes)
