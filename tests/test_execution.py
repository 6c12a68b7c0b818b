"""`compressed` equals the fake-quantized function, on every model of the zoo."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

from jcompress.execution import compressed
from jcompress.quantization import (
    Activation,
    PerTensor,
    Quantize,
    Weights,
    fake_quant,
    quantize,
)
from jcompress.rules import RuleError
from jcompress.sites import PRODUCTS, Site, find_sites
from jcompress.tensors import is_compressed

TOLERANCE = 2e-5
"""Of the largest output: float32 sums of up to some hundred products, reordered."""


def floats(site: Site) -> bool:
    return jnp.issubdtype(site.dtype, jnp.floating)


def quantizable(site: Site) -> bool:
    return floats(site) and site.operation in PRODUCTS and not site.sealed


SPECS = {
    "int8": Quantize(weights=Weights(bits=8)),
    "int4": Quantize(weights=Weights(bits=4, symmetric=False)),
    "int8_per_tensor": Quantize(weights=Weights(granularity=PerTensor())),
    "dynamic": Quantize(
        weights=Weights(bits=8, symmetric=False), activation=Activation()
    ),
}


def check_close(got: Any, wanted: Any, tolerance: float) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        if not isinstance(a, jax.Array) or jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            continue
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        size = np.abs(b).max() if b.size else 0.0
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(size, 1.0))


def tolerance_of(variables: Any) -> float:
    dtypes = {jnp.result_type(x) for x in jax.tree.leaves(variables)}
    return 4e-2 if jnp.bfloat16 in dtypes else TOLERANCE


def jitted(fn: Any, case: zoo.Case) -> Any:
    """`fn` of the tree, compiled for the arrays; everything else stays Python."""

    def run(variables: Any) -> Any:
        leaves, tree = jax.tree.flatten((variables, case.args, case.kwargs))
        arrays = [x if isinstance(x, jax.Array) else None for x in leaves]

        @jax.jit
        def compiled(arrays: Any) -> Any:
            full = [x if a is None else a for x, a in zip(leaves, arrays, strict=True)]
            variables, args, kwargs = jax.tree.unflatten(tree, full)
            return fn(variables, *args, **kwargs)

        return compiled(arrays)

    return run


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", zoo.NAMES)
def test_compressed_equals_fake_quantized(name: str, spec: str) -> None:
    case = zoo.build(name)
    sites = find_sites(case.fn, case.variables, *case.args, **case.kwargs)
    wanted = quantizable if SPECS[spec].activation else floats
    rules = [(wanted, SPECS[spec])]
    fake = fake_quant(case.fn, rules)
    try:
        tree = quantize(case.variables, rules, sites=sites)
        expected = jitted(fake, case)(case.variables)
    except RuleError as error:
        assert (
            "matches no weight" in str(error)
            or "no leaf of the tree is a weight" in str(error)
            or "multiplied with another parameter" in str(error)
            or "are one matrix" in str(error)
        ), error
        return
    assert any(is_compressed(x) for x in jax.tree.leaves(tree, is_leaf=is_compressed))
    got = jitted(compressed(case.fn), case)(tree)
    check_close(got, expected, tolerance_of(case.variables))
