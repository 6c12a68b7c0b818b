"""A convolution with a kernel of low rank, as the convolutions with its factors."""

import dataclasses
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.execution.products import factor_product, product_dtype, summed_dtype
from jcompress.kernels import Implementation
from jcompress.tensors import LowRank, is_compressed
from jcompress.tensors.low_rank import dense_factor
from jcompress.tracing.jaxprs import aval_shape
from jcompress.tracing.products import Order, stored_orders
from jcompress.tracing.values import Use
from jcompress.tracing.views import View

WINDOW_DENSE = "a compressed factor with a window is made dense"
"""How a compressed factor that slides is used."""

SHIFTS = 32
"""The largest window whose depthwise convolution is a sum of shifted data on CPUs.

There XLA's grouped convolution took 10 to 60 times as long for a window of 3, and its
gradient 4 to 29 times. Longer sums take long to compile.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WindowStep:
    """How one factor slides over the data [B, *positions, channels].

    Attributes:
        window: the sizes of its window, one for each spatial axis.
        order: which axis of the window, as the factor stores it, comes first, second,
            ... among the spatial axes.
        columns: of the first factor of a matrix, the factors of the kernel's spatial
            and input axes, in that order; else None.
        strides: steps of the window.
        padding: zeros before and after the data.
        dilation: distances between the entries of the window.
    """

    window: tuple[int, ...]
    order: tuple[int, ...]
    columns: Order | None
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]

    @property
    def is_product(self) -> bool:
        """Whether it looks at one position at a time, and at all of them."""
        still = all(pad == (0, 0) for pad in self.padding)
        one = {*self.window, *self.strides} == {1}
        return self.columns is None and still and one and not self.order

    def positions(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """How many positions the window takes on each spatial axis of the data."""
        reach = [
            (w - 1) * d + 1 for w, d in zip(self.window, self.dilation, strict=True)
        ]
        whole = [n + sum(pad) for n, pad in zip(sizes, self.padding, strict=True)]
        ends = zip(whole, reach, self.strides, strict=True)
        return tuple(max((n - r) // stride + 1, 0) for n, r, stride in ends)

    def kernel(self, factor: jax.Array) -> jax.Array:
        """A factor as [outputs, *window, channels]; 1 for the last if depthwise."""
        if self.columns is not None:
            split = factor.reshape(factor.shape[0], *self.columns.in_leaf)
            turned = jnp.transpose(split, (0, *self.columns.from_leaf(1)))
        else:
            places = (0, *(1 + axis for axis in self.order), factor.ndim - 1)
            turned = jnp.transpose(factor, places)
        return turned.reshape(factor.shape[0], *self.window, -1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FactoredConv:
    """How to compute a `conv_general_dilated` with the factors of its kernel.

    Attributes:
        eqn: the convolution.
        steps: one for each factor.
        to_images: the data's axes: batch, spatial ones, channels.
        from_images: which axis of [B, *positions, N] each axis of the result is.
        channels: the factors of the kernel's input axis.
        outputs: the factors of its output axis.
    """

    eqn: Any
    steps: tuple[WindowStep, ...]
    to_images: tuple[int, ...]
    from_images: tuple[int, ...]
    channels: Order
    outputs: Order

    @classmethod
    def of(cls, use: Use, operand: int, tensor: LowRank) -> "FactoredConv | str":
        """Plan a convolution, or say why the factors cannot take it."""
        if operand != 1 or use.data != 0:
            return "the weight is the data of the convolution"
        params = use.eqn.params
        numbers = params["dimension_numbers"]
        if params["feature_group_count"] != 1 or params["batch_group_count"] != 1:
            return "the factors of a grouped convolution do not run as convolutions"
        if any(d != 1 for d in params["lhs_dilation"]):
            return "the factors do not run on dilated data"
        if tensor.stack_axes:
            return (
                "one position of one of its axes is taken out before it is multiplied"
            )
        features, depth, *spatial = numbers.rhs_spec
        parts = (
            ((*spatial, depth), tensor.input_axes),
            ((features,), tensor.output_axes),
        )
        orders = stored_orders(use, operand, tensor.shape, parts)
        if isinstance(orders, str):
            return orders
        (view,) = use.views[operand]
        steps = _steps(use.eqn, view, spatial, tensor, orders[0])
        if isinstance(steps, str):
            return steps
        data_batch, data_depth, *data_spatial = numbers.lhs_spec
        out_batch, out_depth, *out_spatial = numbers.out_spec
        placed = (out_batch, *out_spatial, out_depth)
        return cls(
            eqn=use.eqn,
            steps=steps,
            to_images=(data_batch, *data_spatial, data_depth),
            from_images=tuple(placed.index(axis) for axis in range(len(placed))),
            channels=Order.of([f for f in view.dims[depth] if f.size != 1]),
            outputs=orders[1],
        )

    def why(self, tensor: LowRank) -> str:
        """Which part of the leaf is made dense, if one is."""
        pairs = zip(self.steps, tensor.factors, strict=True)
        dense = any(is_compressed(f) and not step.is_product for step, f in pairs)
        return WINDOW_DENSE if dense else ""

    def run(
        self, x: jax.Array, tensor: LowRank, implementation: Implementation | None
    ) -> jax.Array:
        """The convolution of the data as the equation has it."""
        y = jnp.transpose(x, self.to_images)
        if tensor.windows:
            channels = self.channels
            y = _ordered(y, channels.sizes, channels.to_leaf(0))
        for step, factor in zip(self.steps, tensor.factors, strict=True):
            if step.is_product:
                y = factor_product(y, factor, self.eqn, implementation)
            else:
                y = self._slid(y, step.kernel(dense_factor(factor)), step)
        y = _ordered(y, self.outputs.in_leaf, self.outputs.from_leaf(0))
        out = self.eqn.outvars[0].aval
        return jnp.transpose(y, self.from_images).astype(out.dtype)

    def _slid(self, x: jax.Array, kernel: jax.Array, step: WindowStep) -> jax.Array:
        """Slide a kernel [outputs, *window, channels, or 1 if depthwise] over data."""
        # The gradient of a convolution wants inputs and result of one dtype.
        dtype = product_dtype(self.eqn)
        x, kernel = x.astype(dtype), kernel.astype(dtype)
        spec = (0, x.ndim - 1, *range(1, x.ndim - 1))
        groups = x.shape[-1] // kernel.shape[-1]

        def convolved(x: jax.Array, kernel: jax.Array) -> jax.Array:
            return jax.lax.conv_general_dilated(
                x,
                kernel,
                step.strides,
                step.padding,
                rhs_dilation=step.dilation,
                dimension_numbers=jax.lax.ConvDimensionNumbers(spec, spec, spec),
                feature_group_count=groups,
                precision=self.eqn.params["precision"],
            )

        positions = step.positions(x.shape[1:-1])
        if groups == 1 or math.prod(step.window) > SHIFTS or not all(positions):
            return convolved(x, kernel)
        out: jax.Array = jax.lax.platform_dependent(
            x,
            kernel,
            cpu=lambda x, kernel: _shifted(x, kernel, step, positions),
            default=convolved,
        )
        return out


def _shifted(
    x: jax.Array, kernel: jax.Array, step: WindowStep, positions: tuple[int, ...]
) -> jax.Array:
    """A depthwise convolution: [B, *positions, R] and [R, *window, 1]."""
    around = [(0, 0, 0), *((low, high, 0) for low, high in step.padding), (0, 0, 0)]
    dtype, summed = x.dtype, summed_dtype(x.dtype)
    x = jax.lax.pad(x, jnp.zeros((), dtype), around)
    out = jnp.zeros((x.shape[0], *positions, x.shape[-1]), summed)
    for place in itertools.product(*map(range, step.window)):
        starts, ends = [], []
        for axis, at in enumerate(place):
            starts.append(at * step.dilation[axis])
            ends.append(starts[-1] + (positions[axis] - 1) * step.strides[axis] + 1)
        part = jax.lax.slice(
            x,
            (0, *starts, 0),
            (x.shape[0], *ends, x.shape[-1]),
            (1, *step.strides, 1),
        )
        weight = jnp.broadcast_to(kernel[(slice(None), *place, 0)], part.shape)
        out = out + part.astype(summed) * weight.astype(summed)
    return out.astype(dtype)


def _ordered(x: jax.Array, sizes: tuple[int, ...], order: tuple[int, ...]) -> jax.Array:
    """Reorder the parts of the last axis."""
    if order == tuple(range(len(order))):
        return x
    lead = x.shape[:-1]
    places = (*range(len(lead)), *(len(lead) + place for place in order))
    return jnp.transpose(x.reshape(*lead, *sizes), places).reshape(x.shape)


def _steps(
    eqn: Any, view: View, spatial: list[int], tensor: LowRank, columns: Order
) -> "tuple[WindowStep, ...] | str":
    """One step for each factor, or why the factors do not follow the window."""
    sizes = aval_shape(eqn.invars[1])
    params = eqn.params
    turns = [(0, -1)] * len(spatial)
    if tensor.windows:
        found = _turns(view, spatial, tensor)
        if isinstance(found, str):
            return found
        turns = found
    steps = []
    for number, axes in enumerate(tensor.window_of):
        mine = [owner == number for owner, _ in turns]
        named = [axis for owner, axis in turns if owner == number and axis >= 0]
        rest = [axis for axis in range(len(axes)) if axis not in named]

        def own(values: Any, other: Any, mine: list[bool] = mine) -> tuple[Any, ...]:
            pairs = zip(values, mine, strict=True)
            return tuple(value if is_mine else other for value, is_mine in pairs)

        steps.append(
            WindowStep(
                window=own([sizes[d] for d in spatial], 1),
                order=(*named, *rest),
                columns=None if tensor.windows or number else columns,
                strides=own(params["window_strides"], 1),
                padding=own([(low, high) for low, high in params["padding"]], (0, 0)),
                dilation=own(params["rhs_dilation"], 1),
            )
        )
    return tuple(steps)


def _turns(
    view: View, spatial: list[int], tensor: LowRank
) -> "list[tuple[int, int]] | str":
    """For each spatial axis, which factor slides over it, as which of its axes."""
    wrong = "the factors were split over other axes than the window's"
    rank = len(tensor.shape) + len(view.stacked)
    kept = [axis for axis in range(rank) if axis not in view.stacked]
    first = next(number for number, axes in enumerate(tensor.windows) if axes)
    turns, left = [], {a for axes in tensor.windows for a in axes}
    for dim in spatial:
        factors = [f for f in view.dims[dim] if f.size != 1]
        if not factors:
            turns.append((first, -1))
            continue
        axis = kept.index(factors[0].axis)
        whole = len(factors) == 1 and factors[0].size == tensor.shape[axis]
        owners = [n for n, axes in enumerate(tensor.windows) if axis in axes]
        if not whole or not owners:
            return wrong
        turns.append((owners[0], tensor.windows[owners[0]].index(axis)))
        left.discard(axis)
    if any(tensor.shape[axis] != 1 for axis in left):
        return wrong
    return turns
