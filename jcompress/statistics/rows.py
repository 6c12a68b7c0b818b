"""What a weight is multiplied with, as rows beside its matrix `[*S, N, K]`."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.sites import Axes, Site
from jcompress.statistics.kinds import Statistic
from jcompress.tracing.deferred import Deferred
from jcompress.tracing.handlers import Bind
from jcompress.tracing.jaxprs import aval_shape
from jcompress.tracing.meshes import spread, varying
from jcompress.tracing.products import Product, stored_orders
from jcompress.tracing.values import Use

Rows = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Observer:
    """Handler of a product that hands back a statistic of its inputs or outputs.

    Attributes:
        statistic: what is collected.
        rows: brings the data or the result to [*S, ..., K], or [*S, G, M, K].
        stacks: how many axes S has, less those of enclosing scans.
        groups: how many axes number the groups of a convolution: 0 or 1.
        experts: of a ragged product, the input that holds the sizes of the groups.
        outputs: whether the result is looked at, not the data.
    """

    statistic: Statistic
    rows: Rows
    stacks: int
    groups: int
    experts: int | None
    outputs: bool

    def __call__(
        self, use: Use, inputs: list[Any], bind: Bind, read: Any
    ) -> tuple[list[Any], Any]:
        """Evaluate the equation, and its statistic beside it."""
        assert use.data is not None
        inputs = [x.dense() if isinstance(x, Deferred) else x for x in inputs]
        outs = bind(inputs)
        seen = outs[0] if self.outputs else inputs[use.data]
        rows = self.rows(jax.lax.stop_gradient(seen).astype(jnp.float32))
        apart = self.stacks if self.experts is None else 0
        lead = rows.shape[: apart + self.groups]
        rows = rows.reshape(*lead, math.prod(rows.shape[len(lead) : -1]), -1)
        if self.experts is not None:
            value = self._by_expert(rows, inputs[self.experts])
        else:

            def of(rows: jax.Array) -> Any:
                return self.statistic.of(rows, None)

            for _ in lead:
                of = jax.vmap(of)
            value = of(rows)
        # A mere count differs between devices as the rows do that it counts.
        return outs, spread(value, varying(seen))

    def _by_expert(self, rows: jax.Array, sizes: jax.Array) -> Any:
        """One expert after the other, each on the rows of its group."""
        ends = jnp.cumsum(sizes)
        numbers = jnp.arange(rows.shape[0], dtype=ends.dtype)

        def one(group: tuple[jax.Array, jax.Array]) -> Any:
            start, end = group
            return self.statistic.of(rows, (numbers >= start) & (numbers < end))

        return jax.lax.map(one, (ends - sizes, ends))


def observer(
    site: Site, use: Use, axes: Axes, statistic: Statistic, *, outputs: bool
) -> Observer | str:
    """The handler for one product of a leaf, or why it cannot be observed.

    Args:
        site: the product.
        use: its equation.
        axes: of the leaf over all of its products.
        statistic: what is collected.
        outputs: of the results, not of the data.
    """
    if site.in_custom_gradient:
        return "it is inside a function with a custom gradient"
    if use.data is None:
        return "it is multiplied with another parameter, not with data"
    if len(use.views[site.operand]) != 1:
        return "several leaves are joined into one matrix"
    (view,) = use.views[site.operand]
    # Arithmetic on the weight (a mask, rounding) does not change what it meets.
    views = list(use.views)
    views[site.operand] = (dataclasses.replace(view, derived=False),)
    use = dataclasses.replace(use, views=tuple(views))
    kept = [axis for axis in range(len(site.shape)) if axis not in view.stacked]
    shape = tuple(site.shape[axis] for axis in kept)
    within = Axes(
        *(tuple(kept.index(a) for a in part if a not in view.stacked) for part in axes)
    )
    if view.stacked - set(axes.stack):
        return "other products of it sum over its copies"
    part = math.prod(shape) != view.size
    if part and not view.broadcast and not view.partial:
        return "each device of a shard_map multiplies with a part of it"
    lengths = tuple(length for _, length in use.stacked)
    first = axes.stack[: len(lengths)]
    if set(first) != view.stacked or tuple(site.shape[a] for a in first) != lengths:
        return "its copies are not taken apart in their order"
    experts, groups = None, 0
    match use.eqn.primitive.name:
        case "dot_general":
            plan = Product.of(use, site.operand, shape, within)
            if isinstance(plan, str):
                return plan
            rows: Rows = plan.output_rows if outputs else plan.rows
        case "conv_general_dilated":
            planned = _convolution(use, site.operand, shape, within, outputs)
            if isinstance(planned, str):
                return planned
            rows = planned
            groups = int(site.groups > 1 and not outputs)
        case _:
            if not _plain_experts(use, site.operand, shape, within):
                return "the product is not rows [M, K] by experts [G, K, N]"
            rows, experts = jnp.asarray, 2
    return Observer(statistic, rows, len(within.stack), groups, experts, outputs)


def _plain_experts(use: Use, operand: int, shape: tuple[int, ...], axes: Axes) -> bool:
    numbers = use.eqn.params["ragged_dot_dimension_numbers"]
    (contracted, inputs), batch = numbers.dot_dimension_numbers
    if operand != 1 or any(batch) or tuple(contracted) != (1,):
        return False
    groups = tuple(numbers.rhs_group_dimensions)
    outputs = tuple({0, 1, 2} - {*groups, *inputs})
    orders = stored_orders(
        use,
        operand,
        shape,
        ((groups, axes.stack), (inputs, axes.input), (outputs, axes.output)),
    )
    # With one factor each there is no other order than the leaf's.
    return tuple(numbers.lhs_ragged_dimensions) == (0,) and all(
        not isinstance(order, str) and len(order.sizes) <= 1 for order in orders
    )


def _convolution(
    use: Use, operand: int, shape: tuple[int, ...], axes: Axes, outputs: bool
) -> Rows | str:
    """What brings a convolution's patches to [M, K], or its results to [M, N].

    The patches of one in G > 1 groups become [G, M, K].
    """
    params = use.eqn.params
    numbers = params["dimension_numbers"]
    if operand != 1:
        return "the weight is the data of the convolution"
    groups = params["feature_group_count"]
    if params["batch_group_count"] != 1 or (groups != 1 and axes.stack):
        return "it is the kernel of several convolutions at once"
    features, depth, *spatial = numbers.rhs_spec
    roles: Sequence[tuple[Sequence[int], tuple[int, ...]]] = (
        ((depth, *spatial), axes.input),
        ((features,), axes.output),
    )
    orders = stored_orders(use, operand, shape, roles)
    if isinstance(orders, str):
        return orders
    runs = orders[1].order == tuple(range(len(orders[1].order)))
    if groups != 1 and not outputs and not runs:
        return "its outputs are stored in another order than its groups have"
    columns = orders[1] if outputs else orders[0]
    sizes = aval_shape(use.eqn.invars[1])
    window = tuple(sizes[d] for d in spatial)

    def rows(x: jax.Array) -> jax.Array:
        if outputs:
            flat = jnp.moveaxis(x, numbers.out_spec[1], -1)
        else:
            patches = jax.lax.conv_general_dilated_patches(
                jnp.transpose(x, numbers.lhs_spec),
                window,
                params["window_strides"],
                params["padding"],
                lhs_dilation=params["lhs_dilation"],
                rhs_dilation=params["rhs_dilation"],
                precision=jax.lax.Precision.HIGHEST,
            )
            flat = jnp.moveaxis(patches, 1, -1)
        apart = 1 if outputs else groups
        # The channels, of which each group has a run, come before the window.
        split = flat.reshape(math.prod(flat.shape[:-1]), apart, *columns.sizes)
        turned = jnp.transpose(split, (1, 0, *columns.to_leaf(2)))
        matrices = turned.reshape(*turned.shape[:2], math.prod(columns.sizes))
        return matrices if apart > 1 else matrices[0]

    return rows
