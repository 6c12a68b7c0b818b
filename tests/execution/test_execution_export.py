"""Compressed models go through `jax.export`, for any number of rows and anywhere."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from jcompress.execution import How, compressed, inspect
from jcompress.formats import Float8, Int
from jcompress.kernels import Implementation, _native, export_checks
from jcompress.pruning import NM, Block, Prune, apply_masks, make_masks, to_sparse
from jcompress.pruning.scores import score_by_magnitude
from jcompress.quantization import (
    Activation,
    PerGroup,
    PerRow,
    Quantize,
    Weights,
    quantize,
)
from jcompress.sites import find_sites, leaf_axes
from jcompress.tensors import Codebook, is_compressed

rng = np.random.default_rng(0)
WIDE = 128
LAYERS = ("w4", "w3_grouped", "float8", "blocks", "two_of_four", "shared")


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(rng.normal(size=shape) / shape[-1] ** 0.5, jnp.float32)


def model(params: Any, ids: jax.Array) -> jax.Array:
    """Rows of a table, two convolutions and a product for each format."""
    x = params["table"][ids]
    for name in ("conv", "conv_small"):
        numbers = ("NWC", "WIO", "NWC")
        x = jax.lax.conv_general_dilated(
            x, params[name], (1,), "SAME", dimension_numbers=numbers
        )
    x = x.reshape(x.shape[0], -1)
    # What is rounded on the way is here the same whatever runs.
    exact = jax.nn.one_hot(ids, WIDE // ids.shape[1]).reshape(x.shape)
    x = x + exact @ params["w8a8"]
    for name in LAYERS:
        x = x @ params[name]
    return x


@functools.cache
def case() -> tuple[Any, jax.Array]:
    """The compressed tree and the indices."""
    shapes = {"table": (300, WIDE), "conv": (3, WIDE, 352), "conv_small": (1, 352, 32)}
    params = {name: normal(*shape) for name, shape in shapes.items()}
    params |= {name: normal(WIDE, WIDE) for name in (*LAYERS, "w8a8")}
    values = normal(11)
    params["shared"] = values[rng.integers(11, size=(WIDE, WIDE))]
    ids = jnp.asarray(rng.integers(300, size=(3, 4)))
    sites = find_sites(model, params, ids)
    patterns = [("blocks", Block((16, 16))), ("two_of_four", NM(2, 4))]
    pruned = [
        ("blocks", Prune(pattern=patterns[0][1], sparsity=0.6)),
        ("two_of_four", Prune(pattern=patterns[1][1])),
    ]
    masks = make_masks(score_by_magnitude(params), pruned, sites=sites)
    tree = to_sparse(apply_masks(params, masks), patterns, sites=sites)
    by_row = Activation(granularity=PerRow(), format=Int(8))
    group = Weights(format=Int(3), granularity=PerGroup(32))
    rules = [
        ("w4", Quantize(weights=Weights(format=Int(4, symmetric=False)))),
        ("w3_grouped", Quantize(weights=group)),
        ("w8a8", Quantize(activation=by_row)),
        ("float8", Quantize(weights=Weights(format=Float8()))),
        *((name, Quantize()) for name in shapes),
    ]
    tree = quantize(tree, rules, sites=sites)
    tree["shared"] = Codebook.of(tree["shared"], leaf_axes(sites.of("shared")))
    assert all(map(is_compressed, tree.values()))
    return tree, ids


def check_close(got: Any, wanted: Any) -> None:
    size = float(np.abs(np.asarray(wanted)).max())
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5 * size)


@pytest.mark.parametrize("portable", [False, True])
def test_for_any_number_of_rows(portable: bool) -> None:
    tree, ids = case()
    chosen = Implementation.XLA if portable else None
    run = compressed(model, implementation=chosen)
    (rows,) = export.symbolic_shape("rows")
    written = export.export(
        jax.jit(run), disabled_checks=[] if portable else export_checks()
    )(tree, jax.ShapeDtypeStruct((rows, ids.shape[1]), ids.dtype))
    written = export.deserialize(written.serialize())
    wanted = jax.jit(compressed(model))(tree, ids)
    check_close(written.call(tree, ids), wanted)
    check_close(written.call(tree, ids[1:2]), wanted[1:2])
    text = written.mlir_module()
    if portable:
        assert "jcompress_" not in text
    elif not _native.missing() and _native.instructions() != "generic":
        for name in ("matmul", "block_sparse", "nm_sparse", "codebook", "dense"):
            assert f"@jcompress_{name}(" in text


def test_the_layers_run_as_stored() -> None:
    entries = {entry.path: entry for entry in inspect(model, *case())}
    # Which is faster depends on the instructions of the machine.
    conv = entries.pop("conv")
    assert conv.how is How.WEIGHT_ONLY or "in floats" in conv.why
    hows = {path: entry.how for path, entry in entries.items()}
    assert hows.pop("table") is How.ROWS
    assert hows.pop("w8a8") is How.INTEGER
    assert hows.pop("conv_small") is How.DENSE
    assert How.DENSE not in hows.values()
    assert len(hows) == 6


def test_images_of_symbolic_sizes_are_convolved_with_the_dense_kernel() -> None:
    def convolved(params: Any, x: jax.Array) -> jax.Array:
        numbers = ("NHWC", "HWIO", "NHWC")
        y: jax.Array = jax.lax.conv_general_dilated(
            x, params["k"], (1, 1), "VALID", dimension_numbers=numbers
        )
        return y

    params, x = {"k": normal(3, 3, 4, 8)}, normal(2, 5, 6, 4)
    sites = find_sites(convolved, params, x)
    tree = quantize(params, [("k", Quantize())], sites=sites)
    shape = export.symbolic_shape("b, h, w, 4", constraints=["h >= 3", "w >= 3"])
    written = export.export(
        jax.jit(compressed(convolved)), disabled_checks=export_checks()
    )(tree, jax.ShapeDtypeStruct(shape, x.dtype))
    check_close(written.call(tree, x), compressed(convolved)(tree, x))


def test_an_implementation_that_a_kernel_lacks_is_refused() -> None:
    tree, ids = case()
    with pytest.raises(NotImplementedError, match=r"conv has no Implementation\.TPU"):
        compressed(model, implementation=Implementation.TPU)(tree, ids)
    with pytest.raises(TypeError, match="first argument and is given by position"):
        compressed(model)(params=tree, ids=ids)
