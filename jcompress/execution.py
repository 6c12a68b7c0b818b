"""`compressed`: run a function on a tree with compressed leaves, by the best way."""

import dataclasses
import enum
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress._flow import Location, Use
from jcompress._interpreter import Bind, Deferred, Handler, Program
from jcompress._product import Product
from jcompress._trace import Traced, trace
from jcompress.kernels.int8_matmul import int8_matmul
from jcompress.kernels.weight_only_matmul import weight_only_matmul
from jcompress.quantization.arithmetic import (
    dequantize_matrix,
    fake_quantize,
    quantize_values,
)
from jcompress.quantization.simulate import input_scale
from jcompress.sites import PRODUCTS, WEIGHTS, Operation
from jcompress.tensors import QTensor, is_compressed
from jcompress.tensors.packing import unpack_nibbles


class How(enum.Enum):
    """How a compressed leaf is used at a site."""

    INTEGER = "integer product"
    """Integers times integers, scaled afterwards."""
    WEIGHT_ONLY = "weight-only product"
    """Floats times stored integers; the dense weight is the kernel's business."""
    ROWS = "rows made dense"
    """Looked up in the stored form; only what was picked is made dense."""
    DENSE = "made dense"
    """The whole leaf is made dense, then used as before."""


@dataclasses.dataclass(frozen=True)
class Execution:
    """How one compressed leaf ran at one site.

    Attributes:
        path: the leaf's name.
        operation: what the leaf does there: a primitive's name.
        how: the way taken.
        why: for `How.DENSE`, what stood in the way of another.
    """

    path: str
    operation: str
    how: How
    why: str = ""


def compressed(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function accept a tree in which compressed leaves stand for arrays.

    Every product, convolution and lookup takes the compressed leaf by the best way
    there is on the platform; where no way is known, and wherever else the leaf is
    used, it is made dense on the spot. `inspect` tells which happened where.

    The results equal those of `fake_quant` with the same rules: bit for bit where the
    leaf is made dense or looked up, and up to the order of summation in products
    (float32: about 1e-6 of the largest output).

    Args:
        fn: the function, written for dense leaves, such as `model.apply`.

    Returns:
        A function with the arguments and results of `fn`. Called with a tree that has
        no compressed leaf, it raises ValueError.

    Example:
        >>> import jax.numpy as jnp
        >>> from jcompress.execution import compressed
        >>> from jcompress.quantization import Quantize, quantize
        >>> from jcompress.sites import find_sites
        >>> layer = lambda params, x: x @ params["w"]
        >>> params, x = {"w": jnp.array([[0.5], [1.0]])}, jnp.ones((1, 2))
        >>> sites = find_sites(layer, params, x)
        >>> small = quantize(params, [("w", Quantize())], sites=sites)
        >>> compressed(layer)(small, x).shape
        (1, 1)
    """

    @functools.wraps(fn)
    def run(variables: Any, *args: Any, **kwargs: Any) -> Any:
        traced = trace(fn, variables, args, kwargs)
        outs = _evaluate(traced, [])
        return traced.rebuild(outs)

    return run


def inspect(
    fn: Callable[..., Any], variables: Any, *args: Any, **kwargs: Any
) -> tuple[Execution, ...]:
    """Tell how `compressed(fn)` runs every compressed leaf; nothing is computed.

    Args:
        fn: the function, written for dense leaves.
        variables: a tree with compressed leaves.
        *args: further arguments of `fn`; shapes suffice.
        **kwargs: further keyword arguments of `fn`.

    Returns:
        One entry for each use of each compressed leaf, in the order of execution.

    Raises:
        ValueError: the tree has no compressed leaf.
    """
    traced = trace(fn, variables, args, kwargs)
    record: list[Execution] = []
    jax.eval_shape(
        lambda leaves, data: _evaluate(
            dataclasses.replace(traced, leaves=leaves, data=data), record
        ),
        traced.leaves,
        traced.data,
    )
    return tuple(dict.fromkeys(record))


def _evaluate(traced: Traced, record: list[Execution]) -> list[Any]:
    names = {
        name
        for name, leaf in zip(traced.names, traced.leaves, strict=True)
        if is_compressed(leaf)
    }
    if not names:
        raise ValueError(
            "compressed: the tree has no compressed leaf, so there is nothing to run "
            "compressed; convert it first, for example with jcompress.quantization."
            "quantize(tree, rules, sites=sites)"
        )
    order = {name: _product_locations(traced, name) for name in names}
    handler = _Compressed(order, record)
    handlers: dict[Location, Handler] = {
        where: handler
        for where, use in traced.uses.items()
        if any(site.path in names and site.operation in WEIGHTS for site in use.sites)
    }

    def made_dense(name: str, operation: str) -> None:
        record.append(Execution(name, operation, How.DENSE, "this is no site"))

    program = Program(traced=traced, handlers=handlers, made_dense=made_dense)
    outs, _ = program(traced.leaves, traced.data)
    return outs


def _product_locations(traced: Traced, name: str) -> list[Location]:
    return [s.location for s in traced.sites.of(name) if s.operation in PRODUCTS]


@dataclasses.dataclass(frozen=True)
class _Compressed:
    """Handler of the sites of compressed leaves.

    Attributes:
        order: the locations of each leaf's products; its ranges are in this order.
        record: is told how each site ran.
    """

    order: Mapping[str, Sequence[Location]]
    record: list[Execution]

    def __call__(
        self, use: Use, inputs: list[Any], bind: Bind, read: Any
    ) -> tuple[list[Any], Any]:
        found = [i for i, value in enumerate(inputs) if isinstance(value, Deferred)]
        if len(found) == 1 and isinstance(inputs[found[0]].tensor, QTensor):
            if use.sites[0].operation is Operation.LOOKUP:
                return self._lookup(use, inputs, bind), None
            if use.data is not None and found[0] != use.data:
                return self._product(use, found[0], inputs, bind), None
        return self._dense(use, inputs, bind, "several leaves meet here"), None

    def _note(self, use: Use, inputs: list[Any], how: How, why: str = "") -> None:
        for value in inputs:
            if isinstance(value, Deferred):
                name = use.eqn.primitive.name
                self.record.append(Execution(value.name, name, how, why))

    def _dense(
        self, use: Use, inputs: list[Any], bind: Bind, why: str
    ) -> list[jax.Array]:
        self._note(use, inputs, How.DENSE, why)
        return bind([x.dense() if isinstance(x, Deferred) else x for x in inputs])

    def _product(
        self, use: Use, operand: int, inputs: list[Any], bind: Bind
    ) -> list[jax.Array]:
        assert use.data is not None
        leaf: Deferred = inputs[operand]
        tensor, x = leaf.tensor, inputs[use.data]
        assert isinstance(tensor, QTensor)
        plan = Product.of(use, operand, tensor.shape, tensor.axes)
        weight = (tensor.values, tensor.scales, tensor.zeros)
        activation = tensor.activation
        if activation is not None:
            stored = None
            if tensor.input_ranges:
                place = self.order[leaf.name].index(use.location)
                stored = tensor.input_ranges[place]
            scale, zero = input_scale(x, use, activation, stored)
            bits, symmetric = activation.bits, activation.symmetric
            if isinstance(plan, Product) and tensor.scales.shape[-1] == 1:
                self._note(use, inputs, How.INTEGER)
                q = quantize_values(x, scale, zero, bits=bits, symmetric=symmetric)
                return [_integer_product(plan, q.astype(jnp.int8), scale, zero, tensor)]
            x = fake_quantize(x, scale, zero, bits=bits, symmetric=symmetric)
        if isinstance(plan, Product):
            self._note(use, inputs, How.WEIGHT_ONLY)
            kernel = functools.partial(weight_only_matmul, bits=tensor.bits)
            return [plan.run(kernel, plan.rows(x), *weight)]
        inputs = [x if i == use.data else value for i, value in enumerate(inputs)]
        return self._dense(use, inputs, bind, plan)

    def _lookup(self, use: Use, inputs: list[Any], bind: Bind) -> list[jax.Array]:
        leaf, indices = inputs[0], inputs[1]
        tensor = leaf.tensor
        assert isinstance(tensor, QTensor)
        why = _not_by_rows(use, leaf)
        if why:
            return self._dense(use, inputs, bind, why)
        self._note(use, inputs, How.ROWS)

        def picked(array: jax.Array) -> jax.Array:
            # An index out of bounds fills the scales with NaN, and so the result.
            return jax.lax.gather(
                array,
                indices,
                use.eqn.params["dimension_numbers"],
                (1, array.shape[1]),
                mode=use.eqn.params["mode"],
            ).reshape(-1, array.shape[1])

        zeros = None if tensor.zeros is None else picked(tensor.zeros)
        values = picked(tensor.values)
        if tensor.bits <= 4:
            values = unpack_nibbles(values, tensor.matrix_shape[-1])
        out = use.eqn.outvars[0].aval
        rows = dequantize_matrix(values, picked(tensor.scales), zeros, tensor.dtype)
        return [leaf.viewed(rows.reshape(out.shape))]


def _not_by_rows(use: Use, leaf: Deferred) -> str:
    """Why a lookup cannot be made on the stored rows; empty if it can."""
    tensor = leaf.tensor
    assert isinstance(tensor, QTensor)
    params = use.eqn.params
    if use.eqn.primitive.name != "gather" or not leaf.only_cast:
        return "the index is not that of a plain lookup of rows"
    numbers = params["dimension_numbers"]
    rank = len(use.eqn.outvars[0].aval.shape)
    plain = (
        numbers.collapsed_slice_dims == (0,)
        and numbers.start_index_map == (0,)
        and not numbers.operand_batching_dims
        and numbers.offset_dims == (rank - 1,)
    )
    stored_by_row = (tensor.output_axes, tensor.input_axes) == ((0,), (1,))
    if not plain or not stored_by_row or params["slice_sizes"][0] != 1:
        return "the index is not that of a plain lookup of rows"
    if tensor.scales.shape[0] != tensor.shape[0]:
        return "one scale serves all rows"
    fill = params["fill_value"]
    if fill is not None and not np.isnan(fill):
        return f"an index out of bounds gives {fill}"
    return ""


def _integer_product(
    plan: Product,
    integers: jax.Array,
    scale: jax.Array,
    zero: jax.Array | None,
    tensor: QTensor,
) -> jax.Array:
    rows = plan.rows(integers)

    def per_row(x: jax.Array) -> jax.Array:
        ones = (*rows.shape[:-1], 1)
        return (
            jnp.broadcast_to(x.reshape((1,) * len(ones)), ones)
            if (x.size == 1)
            else plan.per_row(x)
        )

    def kernel(
        x: jax.Array,
        x_scale: jax.Array,
        x_zero: jax.Array | None,
        values: jax.Array,
        scales: jax.Array,
        zeros: jax.Array | None,
    ) -> jax.Array:
        return int8_matmul(x, values, scales, zeros, x_scale=x_scale, x_zero=x_zero)

    return plan.run(
        kernel,
        rows,
        per_row(scale),
        None if zero is None else per_row(zero),
        tensor.integers,
        tensor.scales,
        tensor.zeros,
    )
