"""`QTensor`: its storage, its life as a pytree, loops over it, and its errors."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jcompress.formats import Int
from jcompress.quantization import Activation, PerGroup, PerTensor, Weights
from jcompress.tensors import CompressedTensor, QTensor, is_compressed
from jcompress.tensors.ranges import InputScale
from jcompress.tensors.weight_matrix import quantize_matrix


def make(
    matrix_shape: tuple[int, ...] = (5, 12),
    *,
    spec: Weights | None = None,
    **changes: Any,
) -> QTensor:
    """A tensor whose dense array is its matrix, unless `changes` say otherwise."""
    spec = spec or Weights(format=Int(4, symmetric=False))
    rng = np.random.default_rng(0)
    matrix = jnp.asarray(rng.normal(size=matrix_shape), jnp.float32)
    values, scales, zeros = quantize_matrix(matrix, spec)
    stacks = len(matrix_shape) - 2
    given = {
        "values": spec.format.pack(values),
        "scales": scales,
        "zeros": zeros,
        "format": spec.format,
        "shape": matrix_shape,
        "dtype": jnp.float32,
        "stack_axes": tuple(range(stacks)),
        "output_axes": (stacks,),
        "input_axes": (stacks + 1,),
    }
    return QTensor(**{**given, **changes})


def test_dense_is_the_formula() -> None:
    tensor = make((2, 5, 11), spec=Weights(format=Int(4, symmetric=False)))
    dense = np.empty(tensor.shape, np.float32)
    for s, n, k in np.ndindex(*tensor.shape):
        byte = int(tensor.values[s, n, k // 2])
        nibble = byte >> 4 if k % 2 else byte & 15
        value = nibble - 16 if nibble > 7 else nibble
        zero = int(tensor.zeros[s, n, 0])
        dense[s, n, k] = np.float32(value - zero) * np.asarray(tensor.scales)[s, n, 0]
    np.testing.assert_array_equal(tensor.dense(), dense)


def test_axes_in_any_order() -> None:
    flat = make((3, 6, 8))
    tensor = make(
        (3, 6, 8),
        shape=(2, 3, 2, 4, 3),
        stack_axes=(1,),
        output_axes=(4, 0),
        input_axes=(3, 2),
    )
    assert (tensor.output_axes, tensor.input_axes) == ((0, 4), (2, 3))
    blocks = np.asarray(flat.dense()).reshape(3, 2, 3, 2, 4)
    expected = np.einsum("sabij->saijb", blocks).transpose(1, 0, 2, 3, 4)
    np.testing.assert_array_equal(tensor.dense(), expected)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_few_bits_take_few_bytes(bits: int) -> None:
    tensor = make((8, 64), spec=Weights(format=Int(bits)))
    assert tensor.values.nbytes == 8 * 64 * bits // 8
    assert tensor.stored_bytes == 8 * 64 * bits // 8 + 8 * 4
    assert make((8, 65), spec=Weights(format=Int(bits))).values.nbytes == 8 * -(
        -65 * bits // 8
    )


def test_is_a_leaf_only_on_request() -> None:
    tree = {"w": make(), "b": jnp.ones(3)}
    assert len(jax.tree.leaves(tree)) == 4
    assert len(jax.tree.leaves(tree, is_leaf=is_compressed)) == 2
    assert is_compressed(tree["w"])
    assert not is_compressed(tree["b"])
    assert isinstance(tree["w"], CompressedTensor)
    assert (tree["w"].ndim, tree["w"].size) == (2, 60)
    names = [
        jax.tree_util.keystr(path)
        for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]
    ]
    assert names == ["['b']", "['w'].values", "['w'].scales", "['w'].zeros"]


def same(a: QTensor, b: QTensor) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_through_tree_map_jit_and_device_put() -> None:
    tensor = make(input_scales=(InputScale(jnp.ones(()), jnp.zeros(())),))
    same(jax.tree.map(lambda x: x, tensor), tensor)
    same(jax.jit(lambda t: t)(tensor), tensor)
    same(jax.device_put(tensor, jax.devices()[1]), tensor)
    leaves, treedef = jax.tree.flatten(tensor)
    same(jax.tree.unflatten(treedef, leaves), tensor)
    hash(treedef)
    assert jax.tree.map(lambda x: x.ndim, tensor).scales == 2
    assert jax.tree.map(lambda _: None, tensor).values is None


def test_jit_does_not_trace_again_for_the_same_format() -> None:
    traces = []

    @jax.jit
    def f(t: QTensor) -> jax.Array:
        traces.append(t.format)
        return t.dense()

    f(make())
    f(make())
    assert traces == [Int(4, symmetric=False)]
    f(make(activation=Activation()))
    assert traces == [Int(4, symmetric=False)] * 2


def test_abstract() -> None:
    abstract = jax.eval_shape(lambda: make())
    assert abstract.values.shape == (5, 6)
    assert abstract.stored_bytes == make().stored_bytes
    dense = jax.eval_shape(lambda t: t.dense(), abstract)
    assert (dense.shape, dense.dtype) == ((5, 12), jnp.float32)


def test_vmap_over_tensors_that_it_made() -> None:
    spec = Weights(format=Int(4), granularity=PerGroup(4))

    def convert(matrix: jax.Array) -> QTensor:
        values, scales, zeros = quantize_matrix(matrix, spec)
        return QTensor(
            values=Int(4).pack(values), scales=scales, zeros=zeros, format=Int(4),
            shape=(5, 12), dtype=jnp.float32, output_axes=(0,), input_axes=(1,),
        )  # fmt: skip

    matrices = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5, 12)), "float32")
    many = jax.vmap(convert)(matrices)
    assert many.values.shape == (3, 5, 6)
    dense = jax.vmap(lambda t: t.dense())(many)
    for i in range(3):
        np.testing.assert_array_equal(dense[i], convert(matrices[i]).dense())


@pytest.mark.parametrize(
    "spec",
    [
        Weights(format=Int(4, symmetric=False), granularity=PerGroup(4)),
        Weights(format=Int(8), granularity=PerTensor()),
    ],
)
def test_scan_over_a_stack(spec: Weights) -> None:
    scales = (
        InputScale(jnp.ones(()), None),
        InputScale(jnp.arange(3, dtype=jnp.float32), jnp.zeros(3)),
    )
    tensor = make((3, 5, 12), spec=spec, input_scales=scales, activation=Activation())
    opened = tensor.unstack()
    assert opened is not None
    arrays, rebuild = opened
    assert all(array.shape[0] == 3 for array in arrays)

    def body(_: None, slices: list[jax.Array]) -> tuple[None, Any]:
        layer = rebuild(slices)
        assert layer.shape == (5, 12)
        assert layer.stack_axes == ()
        assert layer.activation == Activation()
        return None, (layer.dense(), layer.input_scales)  # type: ignore[attr-defined]

    _, (dense, seen) = jax.lax.scan(body, None, arrays)
    np.testing.assert_array_equal(dense, tensor.dense())
    np.testing.assert_array_equal(seen[0].scale, [1, 1, 1])
    np.testing.assert_array_equal(seen[1].scale, [0, 1, 2])


def test_unstack_of_two_stacks_and_of_none() -> None:
    tensor = make((2, 3, 5, 12))
    opened = tensor.unstack()
    assert opened is not None
    arrays, rebuild = opened
    inner = rebuild([array[1] for array in arrays])
    np.testing.assert_array_equal(inner.dense(), tensor.dense()[1])
    again = inner.unstack()
    assert again is not None
    assert again[1]([array[2] for array in again[0]]).shape == (5, 12)
    assert make().unstack() is None
    moved = make((3, 5, 12), shape=(5, 3, 12), stack_axes=(1,), output_axes=(0,))
    assert moved.unstack() is None


def test_bfloat16() -> None:
    wide, narrow = make(), make(dtype=jnp.bfloat16)
    assert narrow.dense().dtype == jnp.bfloat16
    np.testing.assert_array_equal(narrow.dense(), wide.dense().astype(jnp.bfloat16))


def test_sharded_arrays_stay_sharded() -> None:
    mesh = jax.make_mesh((4,), ("n",), axis_types=(jax.sharding.AxisType.Auto,))
    by_row = jax.sharding.NamedSharding(mesh, jax.P("n"))
    tensor = jax.device_put(make((8, 12)), by_row)
    assert tensor.values.sharding == by_row
    assert math.prod(tensor.values.addressable_shards[0].data.shape) == 2 * 6
    np.testing.assert_array_equal(
        jax.jit(lambda t: t.dense())(tensor), make((8, 12)).dense()
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 9}, r"format is one of jcompress.formats, .* not 9"),
        ({"format": Int(4)}, r"Int\(bits=4, .*\) has no zero points"),
        (
            {"format": Int(8, symmetric=False)},
            r"values is uint8 \[5, 6\], not int8 \[5, 12\]",
        ),
        ({"input_axes": (0,)}, r"do not partition the 2 axes of shape \(5, 12\)"),
        ({"input_axes": ()}, "do not partition the 2 axes"),
        ({"shape": (5, 14)}, r"not uint8 \[5, 7\]"),
        ({"scales": jnp.ones((5, 7))}, "7 groups of scales do not divide 12 inputs"),
        ({"scales": jnp.ones((4, 1))},
         r"4 rows of scales do not divide 5 outputs"),
        ({"scales": jnp.ones((5, 1), jnp.bfloat16)}, r"scales is bfloat16 \[5, 1\]"),
        ({"zeros": jnp.ones((5, 1))}, r"zeros is float32 \[5, 1\], not int8 \[5, 1\]"),
        ({"zeros": jnp.ones((1, 1), jnp.int8)}, r"not int8 \[5, 1\]"),
    ],
)  # fmt: skip
def test_errors(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_is_frozen() -> None:
    with pytest.raises(AttributeError):
        make().format = Int(8)  # type: ignore[misc]
