"""Any model and a recipe: compressed, measured, saved, loaded, exported."""

import dataclasses
import pathlib
import subprocess
import sys
import warnings

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jcompress as jc
from jcompress import checkpoint
from jcompress.errors import MismatchError
from jcompress.execution import How, compressed, inspect
from jcompress.formats import Int
from jcompress.low_rank import Svd
from jcompress.models import Compressed, NotFaster, Step, as_function
from jcompress.pruning import Unstructured
from jcompress.pruning.one_shot import Magnitude, OneShot
from jcompress.quantization import Quantize, Weights, quantize
from jcompress.sites import find_sites
from jcompress.tensors import (
    LowRank,
    NMSparse,
    QTensor,
    UnstructuredSparse,
    is_compressed,
)

X = jax.random.normal(jax.random.key(0), (6, 32))


class Nnx(nnx.Module):
    """With what behaves otherwise in training."""

    def __init__(self, rngs):
        self.up = nnx.Linear(32, 64, rngs=rngs)
        self.norm = nnx.BatchNorm(64, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.down = nnx.Linear(64, 16, rngs=rngs)

    def __call__(self, x):
        return self.down(self.drop(nnx.relu(self.norm(self.up(x)))))


class Linen(nn.Module):
    """Two products."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(16)(nn.relu(nn.Dense(64)(x)))


def of_nnx():
    return Nnx(nnx.Rngs(0))


def of_linen():
    return Linen(), Linen().init(jax.random.key(1), X)


def of_equinox():
    return eqx.nn.MLP(32, 16, 64, depth=1, key=jax.random.key(2))


def of_function():
    keys = jax.random.split(jax.random.key(3))
    params = {
        "up": jax.random.normal(keys[0], (32, 64)) / 5,
        "down": jax.random.normal(keys[1], (64, 16)) / 8,
    }
    return lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"], params


MODELS = {"nnx": of_nnx, "linen": of_linen, "function": of_function}


def called(model, x):
    if isinstance(model, nnx.Module):
        model.eval()
        return model(x)
    fn, params = model
    return fn.apply(params, x) if isinstance(fn, nn.Module) else fn(params, x)


def leaves_of(small):
    leaves = jax.tree.leaves(small.params, is_leaf=is_compressed)
    return [leaf for leaf in leaves if is_compressed(leaf)]


@pytest.mark.parametrize("kind", MODELS)
def test_every_kind_of_model(kind, tmp_path):
    model = MODELS[kind]()
    small = jc.compress(model, X, jc.w8(), measure=False)
    assert [type(leaf) for leaf in leaves_of(small)] == [QTensor, QTensor]
    wanted = np.asarray(called(model, X))
    got = np.asarray(small(X))
    assert 0 < np.abs(got - wanted).max() < 0.05 * np.abs(wanted).max()
    # The same numbers as by hand.
    fn, params, _ = as_function(model)
    by_hand = quantize(
        params,
        [(..., Quantize(weights=Weights(format=Int(8))))],
        sites=find_sites(fn, params, X),
    )
    np.testing.assert_array_equal(jax.jit(compressed(fn))(by_hand, X), got)
    small.save(tmp_path / "model")
    back = jc.load(tmp_path / "model", MODELS[kind](), X)
    assert isinstance(back, Compressed)
    np.testing.assert_array_equal(back(X), got)
    assert jax.tree.structure(back.params) == jax.tree.structure(small.params)


def test_an_equinox_module_takes_one_example():
    model = of_equinox()
    small = jc.compress(model, X[0], jc.w8(), measure=False)
    assert len(leaves_of(small)) == 2
    np.testing.assert_allclose(small(X[0]), model(X[0]), atol=0.05)


def test_a_keras_model():
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "jax":
        pytest.skip("Keras runs on another backend here")
    layers = keras.layers
    model = keras.Sequential([keras.Input((32,)), layers.Dense(64), layers.Dense(16)])
    small = jc.compress(model, X, jc.w8(), measure=False)
    assert len(leaves_of(small)) == 2
    np.testing.assert_allclose(small(X), model(X), atol=0.05)


def test_keywords_are_constants_and_compile_once():
    traces = []

    def fn(params, x, *, twice=False):
        traces.append(twice)
        y = x @ params["w"]
        return y + y if twice else y

    model = (fn, {"w": jnp.eye(32)})
    small = jc.compress(model, X, jc.w8(), measure=False)
    traces.clear()
    np.testing.assert_allclose(small(X, twice=True), 2 * small(X), rtol=1e-6)
    count = len(traces)
    small(X, twice=True)
    small(X + 1, twice=True)
    assert len(traces) == count


def test_training_layers_are_used_for_inference_and_stay_as_they_are():
    model = of_nnx()
    model.train()
    small = jc.compress(model, X, jc.w8(), measure=False)
    np.testing.assert_array_equal(small(X), small(X))
    assert not model.drop.deterministic
    assert not model.norm.use_running_average


def test_recipes_in_a_row(tmp_path):
    model = of_function()
    small = jc.compress(model, X, jc.half_width(), jc.w4(group=16), measure=False)
    assert small.params["up"].shape == (32, 32)
    assert small.params["down"].shape == (32, 16)
    assert {leaf.format.bits for leaf in leaves_of(small)} == {4}
    assert {leaf.scales.shape[-1] for leaf in leaves_of(small)} == {2}
    small.save(tmp_path / "model")
    back = jc.load(tmp_path / "model", of_function(), X)
    np.testing.assert_array_equal(back(X), small(X))
    assert back.plan is not None
    sparse = jc.compress(model, X, jc.nm(2, 4), jc.w8(), measure=False)
    assert [type(leaf) for leaf in leaves_of(sparse)] == [NMSparse, NMSparse]
    kept = np.asarray(sparse.params["up"].dense()) != 0
    assert kept.T.reshape(-1, 4).sum(1).max() == 2
    assert sparse.params["up"].values.dtype == jnp.int8
    single = jc.compress(model, X, jc.sparse(0.875), measure=False)
    assert {type(leaf) for leaf in leaves_of(single)} == {UnstructuredSparse}
    left = np.asarray(single.params["up"].dense()) != 0
    assert left.sum() == left.size // 8
    dense = {n: leaf.dense() for n, leaf in single.params.items()}
    np.testing.assert_allclose(single(X), model[0](dense, X), rtol=1e-4, atol=1e-5)
    factors = jc.compress(model, X, jc.svd(parameters=0.5), measure=False)
    assert [type(leaf) for leaf in leaves_of(factors)] == [LowRank, LowRank]


def test_groups_fall_back_where_they_do_not_fit():
    params = {"a": jax.random.normal(jax.random.key(0), (30, 64))}
    params["b"] = jax.random.normal(jax.random.key(1), (64, 8))
    small = jc.compress(
        (lambda p, x: x @ p["a"] @ p["b"], params),
        X[:, :30],
        jc.w4(group=32, exclude=()),
        measure=False,
    )
    assert small.params["a"].scales.shape[-1] == 1
    assert small.params["b"].scales.shape[-1] == 2
    some = jc.compress(
        (lambda p, x: x @ p["a"] @ p["b"], params),
        X[:, :30],
        jc.w8a8(exclude=("b",)),
        measure=False,
    )
    assert some.params["a"].activation is not None
    assert not is_compressed(some.params["b"])


def test_data_makes_the_outputs_err_less():
    model = of_function()
    mixed = jax.random.normal(jax.random.key(5), (8, 32)) * 3
    data = [
        jax.random.normal(key, (64, 8)) @ mixed
        for key in jax.random.split(jax.random.key(6), 2)
    ]
    errors = {}
    for name, step in {"bits": jc.w4(group=None), "nm": jc.nm(2, 4)}.items():
        for known in ((), data):
            small = jc.compress(model, data[0], step, data=known, measure=False)
            wanted = called(model, data[1])
            apart = small(data[1]) - wanted
            errors[name, bool(known)] = float(
                jnp.linalg.norm(apart) / jnp.linalg.norm(wanted)
            )
    assert errors["bits", True] < 0.8 * errors["bits", False]
    assert errors["nm", True] < 0.8 * errors["nm", False]


def test_static_ranges_keep_integers_between_convolutions():
    def model(p, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        for name in ("first", "second"):
            x = jax.lax.conv_general_dilated(
                x, p[name], (1, 1), "SAME", dimension_numbers=numbers
            )
            x = jax.nn.relu(x)
        return x

    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "first": jax.random.normal(keys[0], (1, 1, 16, 64)) / 4,
        "second": jax.random.normal(keys[1], (3, 3, 64, 16)) / 24,
    }
    x, *data = (jax.random.normal(key, (4, 12, 12, 16)) for key in keys[2:])
    small = {
        given: jc.compress(
            (model, params), x, jc.w8a8(static=True), data=batches, measure=False
        )
        for given, batches in (("example", []), ("batches", data))
    }
    for made in small.values():
        first, _ = inspect(made.plain, made.params, x)
        assert "its result in 8 bits" in first.why or first.how is How.DENSE
        dense = model(params, x)
        assert jnp.abs(made(x) - dense).max() < 0.05 * jnp.abs(dense).max()
    scales = [made.params["first"].input_scales[0].scale for made in small.values()]
    assert scales[0] != scales[1]  # each of what it has seen
    # After a step that stores another leaf, too.
    rules = [("second", Quantize())]
    both = jc.compress((model, params), x, rules, jc.w8a8(static=True), measure=False)
    assert both.params["second"].activation is None
    assert both.params["first"].input_scales


def test_shared_ranges_keep_integers_in_sums():
    def model(p, x):
        numbers = ("NHWC", "HWIO", "NHWC")

        def conv(x, name):
            return jax.lax.conv_general_dilated(
                x, p[name], (1, 1), "SAME", dimension_numbers=numbers
            )

        x = jax.nn.relu(conv(x, "first"))
        x = jax.nn.relu(x + conv(x, "second"))
        return conv(x, "third")

    keys = jax.random.split(jax.random.key(1), 4)
    shapes = {"first": (1, 1, 16, 64), "second": (3, 3, 64, 64), "third": (1, 1, 64, 8)}
    params = {
        name: jax.random.normal(key, shape) / 16
        for key, (name, shape) in zip(keys[:3], shapes.items(), strict=True)
    }
    x = jax.random.normal(keys[3], (4, 12, 12, 16))
    recipe = jc.w8a8(static=True, shared=True)
    made = jc.compress((model, params), x, recipe, measure=False)
    first, second, _ = inspect(made.plain, made.params, x)
    for entry in (first, second):
        assert "its result in 8 bits" in entry.why or entry.how is How.DENSE
    dense = model(params, x)
    assert jnp.abs(made(x) - dense).max() < 0.05 * jnp.abs(dense).max()
    with pytest.raises(ValueError, match="goes with static=True"):
        jc.w8a8(shared=True)


def test_rules_are_steps():
    model = of_function()
    rules = [("up", Quantize(weights=Weights(format=Int(3))))]
    small = jc.compress(model, X, rules, measure=False)
    assert small.params["up"].format.bits == 3
    zeros = [("up", OneShot(method=Magnitude(), pattern=Unstructured(), sparsity=0.5))]
    pruned = jc.compress(model, X, zeros, measure=False)
    assert int((pruned.params["up"] == 0).sum()) == 1024
    np.testing.assert_allclose(pruned(X), called((model[0], pruned.params), X))
    thin = jc.compress(
        model, X, [("up", Svd(rank=4))], [("down", Quantize())], measure=False
    )
    assert isinstance(thin.params["up"], LowRank)
    assert isinstance(thin.params["down"], QTensor)


def test_the_table_and_what_was_measured():
    keys = jax.random.split(jax.random.key(0))
    params = {"w": jax.random.normal(keys[0], (1024, 1024))}
    x = jax.random.normal(keys[1], (4, 1024))
    model = (lambda p, x: x @ p["w"], params)
    with warnings.catch_warnings():
        # Whether it is faster is for the machine to say.
        warnings.simplefilter("ignore", NotFaster)
        small = jc.compress(model, x, jc.w8a8())
    assert 0 < small.error < 0.02
    assert small.times[0] <= small.times[1] <= small.times[2]
    text = str(small)
    assert "int8" in text
    assert "(smaller)" in text
    assert f"{small.error:.2%}" in text
    assert "times as long as the dense one" in text
    report = small.report()
    assert report.facts["compressed"].bytes < 0.26 * report.facts["dense"].bytes
    assert 4 in report.latency


def test_each_model_is_compiled_once_to_be_measured():
    traced = []

    def model(params, x):
        traced.append(x.shape)
        return jax.nn.relu(x @ params["up"]) @ params["down"]

    params = {"up": jnp.ones((64, 32)), "down": jnp.ones((32, 8))}
    x = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    counts = []
    for measure in (False, True):
        traced.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotFaster)
            jc.compress((model, params), x, jc.w8(), measure=measure)
        counts.append(len(traced))
    # Both programs, and whether the dense one has operations to be put together.
    assert counts[1] - counts[0] == 3


def test_says_when_nothing_is_gained():
    def slow(p, x):
        # Most of the time is not in the product.
        return jax.lax.fori_loop(0, 400, lambda _, y: jnp.sin(y), x @ p["w"])

    model = (slow, {"w": jnp.eye(32)})
    with pytest.warns(NotFaster, match=r"times as long .* w8a8\(\) may gain more"):
        jc.compress(model, X, jc.w8())


def test_expect_times_each_leaf_beforehand():
    found = jc.expect(of_function(), X, jc.w8a8())
    assert [leaf.name for leaf in found.leaves] == ["down", "up"]
    assert all(leaf.dense > 0 and leaf.small > 0 for leaf in found.leaves)
    assert found.dense == pytest.approx(sum(leaf.dense for leaf in found.leaves))
    verdicts = {leaf.verdict for leaf in found.leaves}
    assert verdicts <= {"faster", "the same", "slower"}
    assert "us compressed" in str(found)
    with pytest.raises(ValueError, match="no step of the recipe quantizes"):
        jc.expect(of_function(), X, jc.svd())


@pytest.mark.parametrize("portable", [False, True])
def test_the_file_runs_without_the_model(portable, tmp_path):
    small = jc.compress(of_function(), X, jc.w8(), measure=False)
    path = tmp_path / "model.jax"
    written = small.export(path, portable=portable)
    assert path.stat().st_size == written
    np.save(tmp_path / "x.npy", X[:3])
    np.save(tmp_path / "y.npy", small(X[:3]))
    code = f"""
import sys, numpy as np, jax
{"" if portable else "import jcompress.kernels"}
program = jax.export.deserialize(open("model.jax", "rb").read())
y = np.asarray(program.call(np.load("x.npy")))
print(np.abs(y - np.load("y.npy")).max())
assert ("jcompress" in sys.modules) is {not portable}
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) <= (1e-5 if portable else 0)


def test_export_of_one_size_where_the_size_is_computed_with():
    model = (lambda p, x: (x @ p["w"]).reshape(len(x), -1), {"w": jnp.eye(32)})
    small = jc.compress(model, X, jc.w8(), measure=False)
    with pytest.raises(ValueError, match="any_batch=False"):
        small.export("never.jax")
    assert not pathlib.Path("never.jax").exists()


class TestBadInput:
    def test_models(self):
        for model, words in (
            (Linen(), r"give the pair \(Linen\(...\), variables\)"),
            (3, "a model is an NNX module, .*not int"),
            ((Linen(), {}), "a dict with the entry 'params'"),
            (({}, {}), "the first of this pair is no function but dict"),
        ):
            with pytest.raises(TypeError, match=words):
                jc.compress(model, X, jc.w8())

    def test_steps(self):
        model = of_function()
        with pytest.raises(ValueError, match="say what to do"):
            jc.compress(model, X)
        with pytest.raises(TypeError, match=r"call it: w8\(...\)"):
            jc.compress(model, X, jc.w8)
        with pytest.raises(TypeError, match="'w8' is no step"):
            jc.compress(model, X, "w8")
        with pytest.raises(TypeError, match="they carry int"):
            jc.compress(model, X, [(..., 8)])
        with pytest.raises(MismatchError, match="nowhere"):
            jc.compress(model, X, [("nowhere", Quantize())])
        for wrong in (
            lambda: jc.w4(group=0),
            lambda: jc.nm(4, 2),
            lambda: jc.half_width(keep=1.0),
            lambda: jc.svd(parameters=0),
            lambda: jc.sparse(1.0),
        ):
            with pytest.raises(ValueError, match=r"group|NM|keep|parameters|sparsity"):
                wrong()

    def test_outputs_that_are_not_finite(self):
        class Broken(Step):
            def apply(self, work):
                params = jax.tree.map(lambda x: x * jnp.nan, work.params)
                return dataclasses.replace(work, params=params)

        with pytest.raises(ValueError, match="not finite"):
            jc.compress(of_function(), X, Broken())

    def test_files(self, tmp_path):
        small = jc.compress(of_function(), X, jc.w8(), measure=False)
        small.save(tmp_path / "model")
        wide = (of_function()[0], {"up": jnp.ones((32, 8)), "down": jnp.ones((8, 16))})
        with pytest.raises(checkpoint.CheckpointError, match=r"params/(up|down)"):
            jc.load(tmp_path / "model", wide, X)
        with pytest.raises(checkpoint.CheckpointError, match="there is no directory"):
            jc.load(tmp_path / "absent", of_function(), X)
        checkpoint.save(tmp_path / "tree", {"w": jnp.ones(3)})
        with pytest.raises(checkpoint.CheckpointError, match="no model that"):
            jc.load(tmp_path / "tree", of_function(), X)
