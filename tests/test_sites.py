"""`find_sites` against tables of sites written by hand."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from flax import linen as nn

from jcompress.formats import Int
from jcompress.leaves import named_leaves
from jcompress.quantization import Quantize, Weights, quantize
from jcompress.report.sizes import sizes
from jcompress.rules import resolve
from jcompress.sites import PRODUCTS, WEIGHTS, Operation, Site, Sites, find_sites
from jcompress.tensors import QTensor

every_model = pytest.mark.parametrize("name", zoo.NAMES)


@functools.cache
def sites_of(name: str) -> Sites:
    model = zoo.build(name)
    return find_sites(model.fn, model.variables, *model.args, **model.kwargs)


def as_use(site: Site) -> zoo.Use:
    return zoo.Use(
        operation=site.operation,
        input_axes=site.input_axes,
        output_axes=site.output_axes,
        stack_axes=site.stack_axes,
        macs=site.macs,
        runs=site.runs,
        derived=site.derived,
        in_custom_gradient=site.in_custom_gradient,
    )


def array_leaves(tree: Any) -> dict[str, Any]:
    return {name: x for name, x in named_leaves(tree) if hasattr(x, "dtype")}


@every_model
def test_the_hand_table_speaks_of_every_leaf_once(name: str) -> None:
    model = zoo.build(name)
    groups = (model.weights, model.elementwise, model.stacked, model.unused)
    spoken = [path for group in (*groups, model.loose) for path in group]
    assert sorted(spoken) == sorted(array_leaves(model.variables))


@every_model
def test_weights(name: str) -> None:
    model = zoo.build(name)
    found: dict[str, list[zoo.Use]] = {}
    for site in sites_of(name):
        if site.operation in WEIGHTS and site.path not in model.loose:
            found.setdefault(site.path, []).append(as_use(site))
    assert found == dict(model.weights)


@every_model
def test_macs(name: str) -> None:
    assert sites_of(name).macs == zoo.build(name).macs


@every_model
def test_elementwise_leaves(name: str) -> None:
    model = zoo.build(name)
    for path in (*model.elementwise, *model.stacked):
        uses = sites_of(name).of(path)
        assert uses, path
        stack = (0,) if path in model.stacked else ()
        for site in uses:
            axes = tuple(i for i in range(len(site.shape)) if i not in stack)
            assert site.operation is Operation.ELEMENTWISE, (path, site.operation)
            assert (site.input_axes, site.output_axes, site.stack_axes) == (
                (),
                axes,
                stack,
            ), path


@every_model
def test_unused_leaves(name: str) -> None:
    model = zoo.build(name)
    sites = sites_of(name)
    order = list(array_leaves(model.variables))
    assert sites.unused == tuple(sorted(model.unused, key=order.index))
    for path in model.loose:
        assert sites.of(path), path


@every_model
def test_every_site_is_consistent(name: str) -> None:
    model = zoo.build(name)
    leaves = array_leaves(model.variables)
    sites = sites_of(name)
    assert [path for path, _ in sites.leaves] == list(leaves)
    for path, leaf in sites.leaves:
        assert (leaf.shape, leaf.dtype) == (leaves[path].shape, leaves[path].dtype)
    for site in sites:
        leaf = leaves[site.path]
        assert (site.shape, site.dtype) == (leaf.shape, leaf.dtype)
        axes = (site.input_axes, site.output_axes, site.stack_axes)
        assert sorted(sum(axes, ())) == list(range(leaf.ndim)), (site.path, axes)
        assert all(list(group) == sorted(group) for group in axes)
        assert isinstance(site.macs, int)
        if site.operation in PRODUCTS:
            # Where two leaves are multiplied, one of them carries the count.
            here = [other for other in sites if other.location == site.location]
            assert any(other.macs > 0 for other in here), site
        elif site.operation is not Operation.OPAQUE:
            assert site.macs == 0, site
        assert site.runs is None or site.runs >= 1
        assert isinstance(site.primitive, str)
    where = [(site.path, site.location, site.operand) for site in sites]
    assert len(set(where)) == len(where)


@every_model
def test_shapes_are_enough(name: str) -> None:
    def shape_of(x: Any) -> Any:
        if not hasattr(x, "dtype"):
            return x
        return jax.ShapeDtypeStruct(
            x.shape, x.dtype, weak_type=getattr(x, "weak_type", False)
        )

    model = zoo.build(name)
    variables, args, kwargs = jax.tree.map(
        shape_of, (model.variables, model.args, dict(model.kwargs))
    )
    assert find_sites(model.fn, variables, *args, **kwargs) == sites_of(name)


def layer(p: Any, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ p["w"].T) + p["b"][None]


PARAMS = {"w": jnp.ones((6, 8)), "b": jnp.ones(6), "idle": jnp.ones(3)}
X = jnp.ones((4, 8))


def test_one_site_in_full() -> None:
    (site,) = find_sites(layer, PARAMS, X).of("w")
    assert site.operation is Operation.DOT
    assert site.primitive == "dot_general"
    assert site.data_shape == (4, 8)
    assert site.out_shape == (4, 6)
    assert (site.size, site.total_macs, site.runs) == (48, 192, 1)
    assert not site.derived
    assert not site.in_custom_gradient


def test_shapes_are_those_of_one_execution() -> None:
    (site,) = sites_of("linen_transformer_remat").of("params/layers/up/kernel")
    assert (site.shape, site.data_shape, site.out_shape) == (
        (3, 12, 20),
        (4, 5, 12),
        (4, 5, 20),
    )
    assert site.total_macs == 3 * site.macs
    (site,) = sites_of("shard_map_dense").of("w")
    assert (site.data_shape, site.out_shape) == ((4, 8), (4, 3))


def test_the_operand_says_which_input_is_the_leaf() -> None:
    (right,) = sites_of("transposed_weight").of("w")
    (left,) = sites_of("weight_on_the_left").of("w")
    assert (right.operand, left.operand) == (1, 0)


def test_order_of_execution() -> None:
    weights = [s.path for s in sites_of("linen_mlp") if s.operation in WEIGHTS]
    assert weights == ["params/Dense_0/kernel", "params/Dense_1/kernel"]
    tied = [s.operation for s in sites_of("linen_transformer") if s.path.endswith("ng")]
    assert tied == [Operation.LOOKUP, Operation.DOT]


def test_the_function_is_traced_once_and_never_run() -> None:
    calls: list[Any] = []

    def fn(p: Any, x: jax.Array) -> jax.Array:
        calls.append(x)
        jax.debug.callback(lambda _: calls.append("ran"), x)
        return layer(p, x)

    find_sites(fn, PARAMS, X)
    assert len(calls) == 1
    assert isinstance(calls[0], jax.core.Tracer)


def test_a_while_body_counts_once() -> None:
    sites = sites_of("while_loop_over_layers")
    (site,) = sites.of("w")
    assert site.runs is None
    assert site.total_macs == site.macs == sites.macs


def test_leaves_that_are_no_arrays_reach_the_function() -> None:
    def fn(p: Any, x: jax.Array) -> jax.Array:
        assert p["activation"] is jax.nn.relu
        assert p["name"] == "dense"
        assert p["nothing"] is None
        assert type(p["scale"]) is float
        assert p["flag"] is True
        y: jax.Array = p["activation"](x @ p["w"]) * p["scale"]
        return y

    p = {"w": jnp.ones((8, 6)), "activation": jax.nn.relu, "name": "dense"}
    more = {"nothing": None, "scale": 2.0, "flag": True}
    sites = find_sites(fn, {**p, **more}, X)
    assert [name for name, _ in sites.leaves] == ["w"]
    assert sites.weights == ("w",)


def test_numpy_leaves_are_arrays() -> None:
    p = {"w": np.ones((6, 8), np.float32), "b": np.ones(6, np.float32)}
    assert find_sites(layer, p, np.ones((4, 8), np.float32)).macs == 4 * 8 * 6


def test_a_compressed_leaf_stands_for_its_dense_array() -> None:
    dense = find_sites(layer, PARAMS, X)
    rules = [("w", Quantize(weights=Weights(format=Int(4))))]
    packed = quantize(PARAMS, rules, sites=dense)
    assert isinstance(packed["w"], QTensor)
    assert find_sites(layer, packed, X) == dense


def test_a_bare_array_is_a_tree() -> None:
    sites = find_sites(lambda w, x: x @ w, jnp.ones((8, 6)), X)
    assert [site.input_axes for site in sites] == [(0,)]


def test_arguments_of_one_kind_are_not_leaves() -> None:
    """A second tree of arrays is data: only the first argument is followed."""
    sites = find_sites(lambda p, q, x: (x @ p["w"]) @ q["u"], PARAMS_T, {"u": X.T}, X)
    assert [site.path for site in sites] == ["w"]


PARAMS_T = {"w": jnp.ones((8, 8))}


@pytest.mark.parametrize("variables", [{}, (), None, {"f": jax.nn.relu, "n": 3}])
def test_a_tree_without_arrays_is_refused(variables: Any) -> None:
    def untouched(*_: Any) -> Any:
        raise AssertionError("called before the tree was checked")

    with pytest.raises(ValueError, match="array"):
        find_sites(untouched, variables, X)


def test_errors_of_the_function_come_through() -> None:
    with pytest.raises(TypeError, match="dot_general"):
        find_sites(layer, PARAMS, jnp.ones((4, 7)))
    with pytest.raises(KeyError, match="w"):
        find_sites(layer, {"b": jnp.ones(6)}, X)


def test_of_weights_and_unused() -> None:
    sites = find_sites(layer, PARAMS, X)
    assert sites.weights == ("w",)
    assert sites.unused == ("idle",)
    assert sites.of("idle") == ()
    assert len(sites) == len(list(sites)) == 2
    assert sites[0] is sites.of("w")[0]


def test_below() -> None:
    sites = sites_of("linen_cnn_eval")
    below = sites.below("params")
    assert [name for name, _ in below.leaves] == [
        name.removeprefix("params/")
        for name, _ in sites.leaves
        if name.startswith("params/")
    ]
    assert below.macs == sites.macs
    assert below.of("head/kernel")[0].location == (
        sites.of("params/head/kernel")[0].location
    )
    assert not [site for site in below if "mean" in site.path]
    assert below == sites.below("params/")
    assert below.below("head").weights == ("kernel",)


@pytest.mark.parametrize("prefix", ["param", "params/plain/kernel", "", "nope"])
def test_below_nothing_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match=r"batch_stats.*params"):
        sites_of("linen_cnn_eval").below(prefix)


def rows(sites: Sites) -> list[list[str]]:
    return [line.split() for line in str(sites).splitlines()]


def test_str() -> None:
    assert rows(find_sites(layer, PARAMS, X)) == [
        ["leaf", "shape", "operation", "in", "out", "stack", "macs", "runs"],
        ["w", "6x8", "dot", "1", "0", "-", "192", "1"],
        ["b", "6", "elementwise", "-", "0", "-", "0", "1"],
        ["unused:", "idle"],
    ]
    assert rows(sites_of("while_loop_over_layers"))[1][-1] == "?"
    assert rows(sites_of("fixed_mask"))[1][2] == "dot*"


def test_str_is_aligned() -> None:
    lines = str(sites_of("linen_cnn_eval")).splitlines()
    column = lines[0].index("operation")
    assert {line[column - 1] for line in lines} == {" "}
    assert all(line[column] != " " for line in lines)
    assert all(line == line.rstrip() for line in lines)


def test_operation_repr_is_code() -> None:
    assert repr(Operation.RAGGED_DOT) == "Operation.RAGGED_DOT"
    assert eval(repr(Operation.DOT)) is Operation.DOT


@pytest.mark.parametrize(
    "wrap", [jax.jit, jax.checkpoint, lambda f: jax.jit(jax.jit(f))]
)
def test_transforms_around_the_function_change_nothing(
    wrap: Callable[[Any], Any],
) -> None:
    plain = [as_use(site) for site in find_sites(layer, PARAMS, X)]
    assert [as_use(site) for site in find_sites(wrap(layer), PARAMS, X)] == plain


ROWS = jnp.ones((3, 8))
MASK = np.eye(8, dtype=bool)
ONE_PRODUCT = {
    "where": lambda p, x: x @ jnp.where(MASK, jnp.exp(p["w"]), p["w"]),
    "gated": lambda p, x: x @ (p["w"] * jax.nn.sigmoid(p["w"])),
    "normalised": lambda p, x: x @ (p["w"] / jnp.linalg.norm(p["w"])),
    "centred": lambda p, x: x @ (p["w"] - p["w"].mean(0, keepdims=True)),
    "sum": lambda p, x: x @ (p["w"] + p["v"]),
    "with itself": lambda p, x: x @ jnp.concatenate([p["w"], p["w"]], 1),
    "joined": lambda p, x: x @ jnp.concatenate([p["w"], p["v"]], 1),
    "turned": lambda p, x: x @ (p["w"] + p["w"].T),
    "padded": lambda p, x: x @ jnp.pad(p["w"], ((0, 0), (8, 0))),
    "squared": lambda p, x: x @ (p["w"].T @ p["w"]),
}


@pytest.mark.parametrize("name", ONE_PRODUCT)
def test_an_equation_counts_once(name: str) -> None:
    """However many ways or leaves reach it; as XLA counts two operations a product."""
    params = {"w": jnp.eye(8) + 1, "v": jnp.eye(8)}
    fn = ONE_PRODUCT[name]
    whole = {
        "with itself": 384,
        "joined": 384,
        "padded": 384,
        "squared": 192 + 512,
    }.get(name, 192)
    assert find_sites(fn, params, ROWS).macs == whole
    assert sizes(fn, params, ROWS).macs == whole
    cost = jax.jit(fn).lower(params, ROWS).compile().cost_analysis()
    assert 2 * whole <= cost["flops"] < 2 * whole + 400  # the arithmetic beside it


SCALINGS = {
    "einsum": lambda p, x: x @ jnp.einsum("sd,s->sd", p["w"], jnp.exp(p["g"])).T,
    "turned": lambda p, x: x @ jnp.einsum("s,sd->ds", p["g"], p["w"]),
    "two ways": lambda p, x: (
        x @ jnp.einsum("sd,s->sd", p["w"], jnp.exp(p["g"]) / p["g"]).T
    ),
    "product": lambda p, x: x @ (p["w"] * p["g"][:, None]).T,
    "stacked": lambda p, x: x @ jnp.einsum("sd,s->sd", p["w"], p["g"]).reshape(16, 8).T,
}


@pytest.mark.parametrize("name", SCALINGS)
def test_a_scale_in_an_einsum_is_no_weight(name: str) -> None:
    params = {"w": jnp.ones((16, 8)), "g": jnp.ones(16)}
    sites = find_sites(SCALINGS[name], params, ROWS)
    assert sites.weights == ("w",)
    (site,) = (site for site in sites if site.path == "w")
    assert (site.operation, site.derived) == (Operation.DOT, True)
    assert (site.input_axes, site.output_axes) == ((1,), (0,))
    assert {site.operation for site in sites.of("g")} == {Operation.ELEMENTWISE}


def test_a_scale_of_data_in_an_einsum_is_no_weight() -> None:
    params = {"g": jnp.ones(8)}
    sites = find_sites(lambda p, x: jnp.einsum("bd,d->bd", x, p["g"]), params, ROWS)
    assert [site.operation for site in sites] == [Operation.ELEMENTWISE]


SQUARE = {"w": jnp.full((8, 8), 0.5), "v": jnp.full((8, 8), 2.0)}


def test_a_stack_of_leaves_in_a_scan_counts_each_step() -> None:
    def fn(p: Any, x: jax.Array) -> jax.Array:
        stack = jnp.stack([p["w"], p["v"]])
        return jax.lax.scan(lambda x, w: (x @ w, None), x, stack)[0]

    sites = find_sites(fn, SQUARE, X)
    assert [(s.macs, s.runs) for s in sites if s.macs] == [(4 * 64, 1)] * 2


class Model:
    """A model that holds its parameters, as those of NNX and Equinox do."""

    def __init__(self, w: jax.Array) -> None:
        self.w = w

    def __call__(self, x: jax.Array) -> jax.Array:
        return x @ self.w


jax.tree_util.register_pytree_node(
    Model, lambda model: ((model.w,), None), lambda _, leaves: Model(*leaves)
)


def test_a_model_in_place_of_the_function_is_refused() -> None:
    model = Model(jnp.ones((8, 6)))
    with pytest.raises(TypeError, match=r"the model Model.*lambda model, x"):
        find_sites(model, X)
    with pytest.raises(TypeError, match=r"the model Dense.*model\.apply"):
        find_sites(nn.Dense(6), {"params": {}}, X)
    with pytest.raises(TypeError, match="not dict; the order is"):
        find_sites(PARAMS, layer, X)  # type: ignore[arg-type]
    assert find_sites(lambda model, x: model(x), model, X).weights == ("0",)
    bound = jax.tree_util.Partial(
        lambda shift, p, x: layer(p, x) + shift, jnp.ones((1, 6))
    )
    assert find_sites(bound, PARAMS, X).weights == ("w",)


def test_leaves_of_several_axes_that_no_rule_reaches_are_named() -> None:
    p = {"w": jnp.ones((8, 6)), "token": jnp.ones((1, 6)), "spline": jnp.ones((4, 6))}
    sites = find_sites(lambda p, x: (x @ p["w"] + p["token"]) * p["spline"], p, X)
    assert list(sites.left_alone) == ["spline"]
    assert "never compressed: spline: `mul` uses it element by element" in str(sites)
    assert resolve([(..., 1)], sites, transform="t").skipped == sites.left_alone


def test_complex_leaves_are_listed() -> None:
    (site,) = sites_of("complex_weight")
    assert site.is_complex
    assert site.dtype == jnp.complex64

    def fn(p: Any, x: jax.Array) -> jax.Array:
        return x.astype(jnp.complex64) @ jax.lax.complex(p["re"], p["im"])

    sites = find_sites(fn, {"re": jnp.ones((8, 6)), "im": jnp.ones((8, 6))}, X)
    assert {site.path: (site.input_axes, site.macs) for site in sites} == {
        "re": ((0,), 4 * 8 * 6),
        "im": ((0,), 0),
    }
    assert not any(site.is_complex for site in sites)
