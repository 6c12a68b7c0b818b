"""`compressed`: run a function on a tree with compressed leaves, by the best way."""

import dataclasses
import enum
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress._deferred import Deferred
from jcompress._handlers import Bind, Handler
from jcompress._interpreter import Program
from jcompress._product import Product
from jcompress._trace import Traced, trace
from jcompress._values import Location, Use
from jcompress.kernels.int8_matmul import int8_matmul
from jcompress.kernels.weight_only_matmul import weight_only_matmul
from jcompress.quantization._inputs import input_scale
from jcompress.quantization.arithmetic import (
    Range,
    dequantize_matrix,
    fake_quantize,
)
from jcompress.quantization.formats import Activation
from jcompress.sites import PRODUCTS, WEIGHTS, Operation
from jcompress.tensors import QTensor, is_compressed
from jcompress.tensors.packing import unpack_nibbles

Scaling = tuple[jax.Array, jax.Array | None] | None
"""Scale and zero point of a product's input; None for an input that stays as it is."""


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
    (float32: within 2e-5 of the largest output in our tests).

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
        outs = _evaluate(traced, {})
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
    record: dict[Any, Execution] = {}
    jax.eval_shape(
        lambda leaves, data: _evaluate(
            dataclasses.replace(traced, leaves=leaves, data=data), record
        ),
        traced.leaves,
        traced.data,
    )
    return tuple(record.values())


def _evaluate(traced: Traced, record: dict[Any, Execution]) -> list[Any]:
    tensors = {
        name: leaf
        for name, leaf in zip(traced.names, traced.leaves, strict=True)
        if is_compressed(leaf)
    }
    if not tensors:
        raise ValueError(
            "compressed: the tree has no compressed leaf, so there is nothing to run "
            "compressed; convert it first, for example with jcompress.quantization."
            "quantize(tree, rules, sites=sites)"
        )
    handlers: dict[Location, Handler] = {}
    reads: dict[Location, Range] = {}
    for where, use in traced.uses.items():
        if any(s.path in tensors and s.operation in WEIGHTS for s in use.sites):
            handlers[where] = _Compressed(None, record)
    for name, tensor in tensors.items():
        if not isinstance(tensor, QTensor) or tensor.activation is None:
            continue
        products = [s for s in traced.sites.of(name) if s.operation in PRODUCTS]
        for number, site in enumerate(products):
            handlers[site.location] = _Compressed(tensor.activation, record)
            if tensor.input_ranges:
                reads[site.location] = tensor.input_ranges[number]

    def made_dense(name: str, operation: str) -> None:
        entry = Execution(name, operation, How.DENSE, "this is no site")
        record[name, operation] = entry

    program = Program(traced=traced, handlers=handlers, made_dense=made_dense)
    outs, _ = program(traced.leaves, traced.data, reads)
    return outs


@dataclasses.dataclass(frozen=True)
class _Compressed:
    """Handler of a site of a compressed leaf.

    Attributes:
        activation: how the leaf's input is quantized, even if the leaf arrives dense.
        record: is told how the site ran.
    """

    activation: Activation | None
    record: dict[Any, Execution]

    def __call__(
        self, use: Use, inputs: list[Any], bind: Bind, read: Any
    ) -> tuple[list[Any], Any]:
        found = [i for i, value in enumerate(inputs) if isinstance(value, Deferred)]
        one = len(found) == 1 and isinstance(inputs[found[0]].tensor, QTensor)
        if one and use.sites[0].operation is Operation.LOOKUP:
            return self._lookup(use, inputs, bind), None
        if use.data is None or use.data in found:
            return self._dense(use, inputs, bind, "several leaves meet here"), None
        scaling = None
        if self.activation is not None:
            scaling = input_scale(inputs[use.data], use, self.activation, read)
        if one:
            return self._product(use, found[0], inputs, scaling, bind), None
        inputs = self._faked(use, inputs, scaling)
        return self._dense(use, inputs, bind, "it arrives dense"), None

    def _note(self, use: Use, inputs: list[Any], how: How, why: str = "") -> None:
        for value in inputs:
            if isinstance(value, Deferred):
                entry = Execution(value.name, use.eqn.primitive.name, how, why)
                self.record[value.name, use.location] = entry

    def _dense(
        self, use: Use, inputs: list[Any], bind: Bind, why: str
    ) -> list[jax.Array]:
        self._note(use, inputs, How.DENSE, why)
        return bind([x.dense() if isinstance(x, Deferred) else x for x in inputs])

    def _faked(self, use: Use, inputs: list[Any], scaling: Scaling) -> list[Any]:
        """The inputs with the data rounded as `fake_quant` rounds it."""
        if scaling is None:
            return inputs
        assert self.activation is not None
        bits, symmetric = self.activation.bits, self.activation.symmetric
        return [
            fake_quantize(value, *scaling, bits=bits, symmetric=symmetric)
            if number == use.data
            else value
            for number, value in enumerate(inputs)
        ]

    def _product(
        self, use: Use, operand: int, inputs: list[Any], scaling: Scaling, bind: Bind
    ) -> list[jax.Array]:
        assert use.data is not None
        tensor = inputs[operand].tensor
        plan = Product.of(use, operand, tensor.shape, tensor.axes)
        if not isinstance(plan, Product):
            return self._dense(use, self._faked(use, inputs, scaling), bind, plan)
        if scaling is not None and tensor.scales.shape[-1] == 1:
            assert self.activation is not None
            self._note(use, inputs, How.INTEGER)
            rows = plan.rows(inputs[use.data])
            kernel = functools.partial(_integer_matmul, bits=self.activation.bits)
            given = [None if p is None else _per_row(plan, p, rows) for p in scaling]
            weight = (tensor.integers, tensor.scales, tensor.zeros)
            return [plan.run(kernel, rows, *given, *weight)]
        self._note(use, inputs, How.WEIGHT_ONLY)
        rows = plan.rows(self._faked(use, inputs, scaling)[use.data])
        kernel = functools.partial(weight_only_matmul, bits=tensor.bits)
        return [plan.run(kernel, rows, tensor.values, tensor.scales, tensor.zeros)]

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


def _per_row(plan: Product, part: jax.Array, rows: jax.Array) -> jax.Array:
    """One number for each row, from one for all or one for each."""
    if part.size == 1:
        return jnp.broadcast_to(part.reshape((1,) * rows.ndim), (*rows.shape[:-1], 1))
    return plan.per_row(part)


def _integer_matmul(
    x: jax.Array,
    x_scale: jax.Array,
    x_zero: jax.Array | None,
    values: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    *,
    bits: int,
) -> jax.Array:
    return int8_matmul(
        x, values, scales, zeros, x_scale=x_scale, x_zero=x_zero, x_bits=bits
    )
