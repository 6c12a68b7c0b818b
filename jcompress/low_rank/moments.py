"""Second moments of the inputs of products, collected at their sites."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jcompress.errors import MismatchError
from jcompress.low_rank.specs import Factoring, Svd
from jcompress.rules import Rules, resolve
from jcompress.sites import PRODUCTS, Site, Sites, leaf_axes
from jcompress.tensors.axes import Axes, matrix_shape
from jcompress.tracing.handlers import Bind
from jcompress.tracing.interpreter import Program
from jcompress.tracing.jaxprs import aval_shape
from jcompress.tracing.products import Order, Product, stored_orders
from jcompress.tracing.trace import trace
from jcompress.tracing.values import Use


def input_moments(
    fn: Callable[..., Any], rules: Rules[Factoring]
) -> Callable[..., tuple[Any, dict[str, jax.Array]]]:
    """Make a function also return the second moments of its weights' inputs.

    For each leaf to which a rule gives `Svd`, and which a product or a convolution
    uses, the sum of x x^T over all inputs x [K] of these products, float32 [*S, K, K],
    in the order of the leaf's matrix [*S, N, K]; of a convolution, over the patches.
    Sums of several batches add: `jax.tree.map(jnp.add, total, new)`.

    Args:
        fn: any function of a parameter tree, such as `model.apply`.
        rules: the rules that will be given to `factorize`.

    Returns:
        A function with the arguments of `fn`; it gives `(outputs, moments)`, moments by
        the name of the leaf. Called, it raises what `jcompress.rules.resolve` raises,
        and MismatchError if no leaf has inputs or those of one cannot be seen.

    Example:
        >>> import jax.numpy as jnp
        >>> from jcompress.low_rank.factorizing import Svd, input_moments
        >>> layer = lambda params, x: x @ params["w"]
        >>> observed = input_moments(layer, [("w", Svd(rank=1))])
        >>> _, moments = observed({"w": jnp.ones((2, 3))}, jnp.array([[1.0, 2.0]]))
        >>> moments["w"]
        Array([[1., 2.],
               [2., 4.]], dtype=float32)
    """

    @functools.wraps(fn)
    def observed(
        variables: Any, *args: Any, **kwargs: Any
    ) -> tuple[Any, dict[str, jax.Array]]:
        traced = trace(fn, variables, args, kwargs)
        resolved = resolve(rules, traced.sites, transform="input_moments")
        seen = {
            path: product_sites(traced.sites, path)
            for path, spec in resolved.leaves.items()
            if isinstance(spec, Svd)
        }
        seen = {path: sites for path, sites in seen.items() if sites}
        if not seen:
            raise MismatchError(
                "input_moments: no rule gives Svd to a leaf that a product or a "
                "convolution uses, so there are no inputs to look at"
            )
        handlers, reads = {}, {}
        for path, sites in seen.items():
            axes = leaf_axes(traced.sites.of(path))
            for site in sites:
                use = traced.uses[site.location]
                handlers[site.location] = _observer(path, site, use, axes)
                lengths = tuple(length for _, length in use.stacked)
                reads[site.location] = jnp.zeros(lengths, jnp.float32)
        program = Program(traced=traced, handlers=handlers, statistic=Sums())
        outs, sums = program(traced.leaves, traced.data, reads)
        moments = {}
        for path, sites in seen.items():
            stacks, _, inputs = matrix_shape(
                sites[0].shape, leaf_axes(traced.sites.of(path))
            )
            parts = [
                sums[site.location].reshape(*stacks, inputs, inputs) for site in sites
            ]
            moments[path] = sum(parts[1:], start=parts[0])
        return traced.rebuild(outs), moments

    return observed


def product_sites(sites: Sites, path: str) -> list[Site]:
    """The sites at which a leaf meets data in a product or a convolution."""
    return [site for site in sites.of(path) if site.operation in PRODUCTS]


class Sums:
    """Statistics that add up."""

    def empty(self, like: Any) -> Any:
        """The sum of nothing."""
        return jnp.zeros(like.shape, like.dtype)

    def join(self, a: Any, b: Any) -> Any:
        """The sum of both."""
        return a + b

    def reduce(self, stacked: Any) -> Any:
        """The sum along the leading axis."""
        return jnp.sum(stacked, axis=0)

    def across(self, value: Any, axis_names: tuple[str, ...]) -> Any:
        """The sum over all devices."""
        return jax.lax.psum(value, axis_names)


@dataclasses.dataclass(frozen=True)
class Observer:
    """Handler of a product that sums x x^T over its inputs.

    Attributes:
        rows: brings the data to [*S, ..., K].
        stacks: how many axes S has.
    """

    rows: Callable[[jax.Array], jax.Array]
    stacks: int

    def __call__(
        self, use: Use, inputs: list[Any], bind: Bind, read: Any
    ) -> tuple[list[Any], Any]:
        """Evaluate the equation and return the second moments of its data."""
        assert use.data is not None
        data = jax.lax.stop_gradient(inputs[use.data]).astype(jnp.float32)
        rows = self.rows(data)
        lead = rows.shape[: self.stacks]
        rows = rows.reshape(*lead, -1, rows.shape[-1])
        moment = jnp.einsum(
            "...tk,...tl->...kl", rows, rows, precision=jax.lax.Precision.HIGHEST
        )
        return bind(inputs), moment


def _observer(path: str, site: Site, use: Use, axes: Axes) -> Observer:
    why = _unseen(site, use)
    if why:
        raise MismatchError(_cannot(path, why))
    (view,) = use.views[site.operand]
    kept = [axis for axis in range(len(site.shape)) if axis not in view.stacked]
    shape = tuple(site.shape[axis] for axis in kept)
    within = Axes(
        *(tuple(kept.index(a) for a in part if a not in view.stacked) for part in axes)
    )
    if view.stacked - set(axes.stack):
        raise MismatchError(_cannot(path, "other products of it sum over its copies"))
    lengths = tuple(length for _, length in use.stacked)
    first = axes.stack[: len(lengths)]
    if set(first) != view.stacked or tuple(site.shape[a] for a in first) != lengths:
        raise MismatchError(
            _cannot(path, "its copies are not taken apart in their order")
        )
    if use.eqn.primitive.name == "conv_general_dilated":
        rows = _patches(use, site.operand, shape, within)
        if isinstance(rows, str):
            raise MismatchError(_cannot(path, rows))
        return Observer(rows, 0)
    plan = Product.of(use, site.operand, shape, within)
    if isinstance(plan, str):
        raise MismatchError(_cannot(path, plan))
    return Observer(plan.rows, len(within.stack))


def _unseen(site: Site, use: Use) -> str:
    if site.sealed:
        return "it is inside a function with a custom gradient"
    if use.data is None:
        return "it is multiplied with another parameter, not with data"
    if len(use.views[site.operand]) != 1:
        return "several leaves are joined into one matrix"
    return ""


def _cannot(path: str, why: str) -> str:
    return (
        f"input_moments: the inputs of {path!r} cannot be seen as those of its matrix: "
        f"{why}; exclude it by a rule ({path!r}, None) and factorize it apart"
    )


def _patches(
    use: Use, operand: int, shape: tuple[int, ...], axes: Axes
) -> Callable[[jax.Array], jax.Array] | str:
    """What brings a convolution's data to the patches [..., K] that it multiplies."""
    params = use.eqn.params
    numbers = params["dimension_numbers"]
    if operand != 1:
        return "the weight is the data of the convolution"
    if params["feature_group_count"] != 1 or params["batch_group_count"] != 1:
        return "each group of channels of a convolution has its own"
    features, depth, *spatial = numbers.rhs_spec
    roles: Sequence[tuple[Sequence[int], tuple[int, ...]]] = (
        ((depth, *spatial), axes.input),
        ((features,), axes.output),
    )
    orders = stored_orders(use, operand, shape, roles)
    if isinstance(orders, str):
        return orders
    columns: Order = orders[0]
    sizes = aval_shape(use.eqn.invars[1])
    window = tuple(sizes[d] for d in spatial)

    def rows(x: jax.Array) -> jax.Array:
        images = jnp.transpose(x, numbers.lhs_spec)
        patches = jax.lax.conv_general_dilated_patches(
            images,
            window,
            params["window_strides"],
            params["padding"],
            lhs_dilation=params["lhs_dilation"],
            rhs_dilation=params["rhs_dilation"],
            precision=jax.lax.Precision.HIGHEST,
        )
        flat = jnp.moveaxis(patches, 1, -1)
        split = flat.reshape(-1, *columns.sizes)
        turned = jnp.transpose(split, (0, *columns.to_leaf(1)))
        return turned.reshape(split.shape[0], -1)

    return rows
