"""A product with a weight, brought into the form `[*S, ..., K] x [*S, N, K]`."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.tensors.axes import Axes, matrix_shape
from jcompress.tracing.jaxprs import aval_shape
from jcompress.tracing.values import Use
from jcompress.tracing.views import Factor


@dataclasses.dataclass(frozen=True)
class Order:
    """Factors of leaf axes as an equation has them, and where the leaf has them.

    Attributes:
        sizes: of the factors, as the equation has them.
        order: their numbers, as the leaf has them.
    """

    sizes: tuple[int, ...]
    order: tuple[int, ...]

    @classmethod
    def of(cls, factors: Sequence[Factor]) -> "Order":
        """The order of factors that are given as the equation has them."""
        places = sorted(
            range(len(factors)), key=lambda i: (factors[i].axis, -factors[i].stride)
        )
        return cls(tuple(factor.size for factor in factors), tuple(places))

    @property
    def in_leaf(self) -> tuple[int, ...]:
        """The sizes in leaf order."""
        return tuple(self.sizes[i] for i in self.order)

    def to_leaf(self, start: int) -> tuple[int, ...]:
        """The permutation into leaf order, of axes that begin at `start`."""
        return tuple(start + i for i in self.order)

    def from_leaf(self, start: int) -> tuple[int, ...]:
        """The permutation out of leaf order."""
        return tuple(start + self.order.index(i) for i in range(len(self.order)))


def stored_orders(
    use: Use,
    operand: int,
    shape: tuple[int, ...],
    parts: Sequence[tuple[Sequence[int], tuple[int, ...]]],
) -> "list[Order] | str":
    """The factors of a weight's axes as an equation has them, or why they do not fit.

    Args:
        use: the site.
        operand: which input of the equation is the weight.
        shape: shape of the dense array that is stored; in a scan, of one slice.
        parts: for each role, the axes of the equation's input, in their order there,
            and the axes of the dense array that are stored in that role.
    """
    if len(use.views[operand]) != 1:
        leaves = {view.leaf for view in use.views[operand]}
        if len(leaves) == 1:
            return "arithmetic changes the weight before it is multiplied"
        return "several leaves are joined into one matrix"
    (view,) = use.views[operand]
    if view.derived:
        return "arithmetic changes the weight before it is multiplied"
    if view.partial or view.broadcast:
        return "the weight is cut, padded or repeated before it is multiplied"
    leaf_rank = len(next(s for s in use.sites if s.operand == operand).shape)
    kept = [axis for axis in range(leaf_rank) if axis not in view.stacked]
    if len(kept) != len(shape):
        return "one position of one of its axes is taken out before it is multiplied"
    orders = []
    for dims, stored in parts:
        factors = [f for d in dims for f in view.dims[d] if f.size != 1]
        wanted = {kept[axis] for axis in stored if shape[axis] != 1}
        size = math.prod(shape[axis] for axis in stored)
        found = {factor.axis for factor in factors}
        if found != wanted or math.prod(f.size for f in factors) != size:
            return "other products of the leaf sum over other axes"
        orders.append(Order.of(factors))
    return orders


@dataclasses.dataclass(frozen=True, kw_only=True)
class Product:
    """How to compute a `dot_general` with a kernel for canonical matrices.

    Attributes:
        weight_first: whether the weight is the left input.
        batch: the data's batch axes.
        free: the data's free axes.
        contract: the data's contracted axes.
        stack_sizes: sizes of the stack axes as they are stored.
        stacks: the factors of the batch axes.
        inputs: the factors of the contracted axes.
        outputs: the factors of the weight's free axes.
        batch_sizes: sizes of the batch axes.
        out_sizes: sizes of the weight's free axes.
        dtype: dtype of the result.
    """

    weight_first: bool
    batch: tuple[int, ...]
    free: tuple[int, ...]
    contract: tuple[int, ...]
    stack_sizes: tuple[int, ...]
    stacks: Order
    inputs: Order
    outputs: Order
    batch_sizes: tuple[int, ...]
    out_sizes: tuple[int, ...]
    dtype: Any

    @classmethod
    def of(
        cls, use: Use, operand: int, shape: tuple[int, ...], axes: Axes
    ) -> "Product | str":
        """Plan a product, or say why the kernel cannot take it.

        Args:
            use: the site.
            operand: which input of the equation is the weight.
            shape: shape of the dense array that is stored; in a scan, of one slice.
            axes: the roles that its storage is made for.
        """
        eqn = use.eqn
        if eqn.primitive.name != "dot_general":
            return f"there is no kernel for {eqn.primitive.name}"
        other = 1 - operand
        contract, batch = eqn.params["dimension_numbers"]
        w_shape, x_shape = (aval_shape(eqn.invars[i]) for i in (operand, other))
        w_used = {*contract[operand], *batch[operand]}
        w_free = [d for d in range(len(w_shape)) if d not in w_used]
        orders = stored_orders(
            use,
            operand,
            shape,
            (
                (batch[operand], axes.stack),
                (contract[operand], axes.input),
                (w_free, axes.output),
            ),
        )
        if isinstance(orders, str):
            return orders
        x_used = {*contract[other], *batch[other]}
        stack_sizes, _, _ = matrix_shape(shape, axes)
        return cls(
            weight_first=operand == 0,
            batch=tuple(batch[other]),
            free=tuple(d for d in range(len(x_shape)) if d not in x_used),
            contract=tuple(contract[other]),
            stack_sizes=stack_sizes,
            stacks=orders[0],
            inputs=orders[1],
            outputs=orders[2],
            batch_sizes=tuple(x_shape[d] for d in batch[other]),
            out_sizes=tuple(w_shape[d] for d in w_free),
            dtype=eqn.outvars[0].aval.dtype,
        )

    def rows(self, x: jax.Array) -> jax.Array:
        """Bring the data to `[*S, *free, K]`."""
        return self._rows(x, self.inputs)

    def per_row(self, scale: jax.Array) -> jax.Array:
        """Bring what holds one number for each row to `[*S, *free, 1]`."""
        return self._rows(scale, Order((), ()))

    def _rows(self, x: jax.Array, inputs: Order) -> jax.Array:
        free = tuple(x.shape[d] for d in self.free)
        x = jnp.transpose(x, self.batch + self.free + self.contract)
        x = x.reshape(*self.stacks.sizes, *free, *inputs.sizes)
        first = len(self.stacks.sizes)
        last = first + len(free)
        order = (*self.stacks.to_leaf(0), *range(first, last), *inputs.to_leaf(last))
        size = math.prod(inputs.sizes)
        return jnp.transpose(x, order).reshape(*self.stack_sizes, *free, size)

    def result(self, y: jax.Array) -> jax.Array:
        """Bring `[*S, *free, N]` to the axes and the dtype of the equation's result."""
        free = y.shape[len(self.stack_sizes) : -1]
        y = y.reshape(*self.stacks.in_leaf, *free, *self.outputs.in_leaf)
        first = len(self.stacks.sizes)
        last = first + len(free)
        batch, rows = self.stacks.from_leaf(0), tuple(range(first, last))
        outputs = self.outputs.from_leaf(last)
        if self.weight_first:
            y = jnp.transpose(y, batch + outputs + rows)
            y = y.reshape(*self.batch_sizes, *self.out_sizes, *free)
        else:
            y = jnp.transpose(y, batch + rows + outputs)
            y = y.reshape(*self.batch_sizes, *free, *self.out_sizes)
        return y.astype(self.dtype)

    def output_rows(self, y: jax.Array) -> jax.Array:
        """Bring the equation's result to `[*S, *free, N]`, what `result` undoes."""
        batch, rows = len(self.batch), len(self.free)
        wide = len(self.out_sizes)
        first, second = (wide, rows) if self.weight_first else (rows, wide)
        start = list(range(batch))
        left = list(range(batch, batch + first))
        right = list(range(batch + first, batch + first + second))
        free, outputs = (right, left) if self.weight_first else (left, right)
        sizes = tuple(y.shape[d] for d in free)
        y = jnp.transpose(y, (*start, *free, *outputs))
        y = y.reshape(*self.stacks.sizes, *sizes, *self.outputs.sizes)
        split = len(self.stacks.sizes)
        last = split + rows
        order = (
            *self.stacks.to_leaf(0),
            *range(split, last),
            *self.outputs.to_leaf(last),
        )
        size = math.prod(self.outputs.sizes)
        return jnp.transpose(y, order).reshape(*self.stack_sizes, *sizes, size)

    def run(
        self, kernel: Callable[..., jax.Array], rows: jax.Array, *arrays: Any
    ) -> jax.Array:
        """Multiply rows with a weight's arrays, copy by copy."""
        for _ in self.stack_sizes:
            kernel = jax.vmap(kernel)
        return self.result(kernel(rows, *arrays))


def contracted(use: Use) -> tuple[int, ...]:
    """The axes of a product's data that it sums over; of a convolution, all but one."""
    assert use.data is not None
    eqn = use.eqn
    match eqn.primitive.name:
        case "dot_general":
            return tuple(eqn.params["dimension_numbers"][0][use.data])
        case "conv_general_dilated":
            batch = eqn.params["dimension_numbers"].lhs_spec[0]
            rank = len(aval_shape(eqn.invars[0]))
            return tuple(axis for axis in range(rank) if axis != batch)
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    return tuple(numbers.dot_dimension_numbers[0][use.data])
