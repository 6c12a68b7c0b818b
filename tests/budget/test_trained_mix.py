"""What a search chose, trained by the steps that follow it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jcompress as jc
from jcompress.budget import Mix
from jcompress.formats import Int
from jcompress.low_rank import Svd
from jcompress.pruning import NM, Unstructured
from jcompress.pruning.one_shot import Magnitude, OneShot
from jcompress.quantization import Activation, Quantize, Weights
from jcompress.report.counts import stored_bytes
from jcompress.sensitivity import Keep
from jcompress.sensitivity.widths import Widths
from jcompress.shrinking import find_groups
from jcompress.tensors import LowRank, NMSparse, QTensor, UnstructuredSparse

pytestmark = pytest.mark.once

RNG = np.random.default_rng(0)
EIGHT = Weights(format=Int(8))
X = jnp.asarray(RNG.normal(size=(6, 32, 32)).astype(np.float32))
PARAMS = {
    "a": jnp.asarray(RNG.normal(size=(32, 48)).astype(np.float32) / 6),
    "b": jnp.asarray(RNG.normal(size=(48, 32)).astype(np.float32) / 7),
    "c": jnp.asarray(RNG.normal(size=(32, 16)).astype(np.float32) / 6),
    "d": jnp.asarray(RNG.normal(size=(16, 8)).astype(np.float32) / 4),
    "e": jnp.asarray(RNG.normal(size=(8, 8)).astype(np.float32) / 3),
}
FORMS: dict[str, Any] = {
    "a": OneShot(pattern=NM(2, 4), weights=EIGHT),
    "b": (Svd(rank=6), EIGHT),
    "c": OneShot(method=Magnitude(), pattern=Unstructured(), sparsity=0.75),
    "d": Quantize(weights=Weights(format=Int(3)), activation=Activation()),
    "e": Svd(rank=3),
}


def model(p: Any, x: Any) -> Any:
    for name in "abcd":
        x = jax.nn.relu(x @ p[name])
    return x @ p["e"]


def compress(*steps: Any) -> Any:
    return jc.compress((model, PARAMS), X[0], *steps, data=list(X), measure=False)


def error(small: Any) -> float:
    wanted = jax.vmap(lambda x: model(PARAMS, x))(X)
    found = jnp.stack([small(x) for x in X])
    return float(jnp.sum((wanted - found) ** 2) / jnp.sum(wanted**2))


def test_every_form_is_stored_as_without_training_and_errs_less() -> None:
    plan = Widths.of(PARAMS, find_groups(model, PARAMS, X[0])).plan({"a:1": Keep(0.75)})
    assert plan is not None
    step = jc.distil(steps=150, squares=True, learning_rate=3e-3)
    for mix in (Mix(forms=FORMS), Mix(forms=FORMS, plan=plan)):
        first, small = compress(mix), compress(mix, step)
        assert error(small) < 0.6 * error(first)
        assert jax.tree.structure(small.params) == jax.tree.structure(first.params)
        kinds = {name: type(leaf) for name, leaf in small.params.items()}
        assert kinds == {
            "a": NMSparse,
            "b": LowRank,
            "c": UnstructuredSparse,
            "d": QTensor,
            "e": LowRank,
        }
        for name in "ac":  # what was removed stays away
            own, known = (tree.params[name].dense() for tree in (small, first))
            assert ((np.asarray(own) != 0) <= (np.asarray(known) != 0)).all()
        assert stored_bytes(small.params) <= stored_bytes(first.params)
        (curve,) = small.curves
        assert curve.losses["squares"][-1] < 0.6 * curve.losses["squares"][0]


def test_the_function_that_is_trained_rounds_what_will_be_quantized() -> None:
    """A step of no length: the loss is that of the model that is stored."""
    forms = {name: FORMS[name] for name in "acd"}
    step = jc.distil(steps=6, squares=True, learning_rate=1e-30)
    small = compress(Mix(forms=forms), step)
    (curve,) = small.curves
    apart = [
        float(jnp.mean((model(PARAMS, x) - small(x)) ** 2))
        / float(jnp.mean(model(PARAMS, x) ** 2))
        for x in X
    ]
    np.testing.assert_allclose(
        np.mean(curve.losses["squares"]), np.mean(apart), rtol=1e-4
    )
