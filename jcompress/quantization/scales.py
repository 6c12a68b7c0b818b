"""Where learned scales begin: `init_scales`."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.errors import MismatchError
from jcompress.formats import NumberFormat
from jcompress.quantization._folds import Folds, into
from jcompress.quantization._plan import QuantizationPlan
from jcompress.quantization.learned import (
    Clip,
    Learned,
    LearnedScales,
    Step,
    numbers_between,
)
from jcompress.quantization.spec import Quantize
from jcompress.rules import Rules
from jcompress.sites import leaf_axes
from jcompress.tensors.axes import to_matrix
from jcompress.tensors.range_specs import Pact
from jcompress.tensors.specs import Activation
from jcompress.tensors.weight_matrix import grouped
from jcompress.tracing.handlers import Bind, Handler
from jcompress.tracing.interpreter import Program
from jcompress.tracing.values import Location, Use


def init_scales(
    fn: Callable[..., Any],
    rules: Rules[Quantize],
    variables: Any,
    *args: Any,
    folds: Folds | None = None,
    **kwargs: Any,
) -> dict[str, LearnedScales]:
    """Scales for `Lsq` and `Pact` to train, from the weights and a batch of data.

    A symmetric scale begins at `2 mean|x| / sqrt(p)` with p the largest number, as in
    LSQ. An asymmetric range begins at the smallest number and ends at the largest, as
    in LSQ+; 0 is always in it. A clip begins at the largest number, or the largest
    absolute one if it is symmetric. `fn` runs once, with its weights as they are.

    Train the result with the parameters, best with a learning rate of its own and
    without weight decay: it is a pytree of float32 arrays.

    Args:
        fn: any function of a parameter tree.
        rules: the rules that will be given to `fake_quant` and `quantize`.
        variables: the tree of parameters.
        *args: further arguments of `fn`: a batch.
        folds: as of `fake_quant`, which then gets the same.
        **kwargs: further keyword arguments of `fn`.

    Returns:
        For each leaf with a learned range, by its name, its `LearnedScales`.

    Raises:
        TypeError: the rules are malformed.
        MismatchError: as `fake_quant`, and if no rule has a learned range.

    References:
        Esser et al. 2019, section 2.1; Bhalgat et al. 2020, section 4.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jcompress.formats import Int
        >>> from jcompress.qat import Lsq, init_scales
        >>> from jcompress.quantization import Quantize, Weights, fake_quant
        >>> model = lambda params, x: x @ params["w"]
        >>> params, x = {"w": jnp.array([[1.0], [-3.0]])}, jnp.ones((1, 2))
        >>> rules = [("w", Quantize(weights=Weights(format=Int(3), range=Lsq())))]
        >>> scales = init_scales(model, rules, params, x)
        >>> def loss(params, scales):
        ...     return fake_quant(model, rules, scales=scales)(params, x).sum()
        >>> to_params, to_scales = jax.grad(loss, argnums=(0, 1))(params, scales)
        >>> to_scales["w"].weights.scale.shape
        (1, 1)
    """
    plan = QuantizationPlan.of(
        fn, rules, variables, args, kwargs, transform="init_scales", folds=folds
    )
    if not plan.learned:
        raise MismatchError(
            "init_scales: no rule has range=Lsq() or Pact(), so there is no scale to "
            "learn"
        )
    handlers: dict[Location, Handler] = {
        where: _Measure() for locations in plan.learned.values() for where in locations
    }
    program = Program(traced=plan.traced, handlers=handlers, statistic=_Joined())
    # What reads something is known to hand something back, in a branch not taken too.
    reads = {where: jnp.zeros(plan.lengths(where)) for where in handlers}
    _, seen = program(plan.traced.leaves, plan.traced.data, reads)
    leaves = dict(zip(plan.traced.names, plan.traced.leaves, strict=True))
    return {
        path: LearnedScales(
            _of_weights(plan, path, leaves[path]),
            tuple(_of_inputs(seen[where], plan.inputs[where]) for where in locations),
        )
        for path, locations in plan.learned.items()
    }


class _Size(NamedTuple):
    """What is measured of numbers: all float32 of one shape."""

    total: jax.Array
    numbers: jax.Array
    low: jax.Array
    high: jax.Array


def _measured(x: jax.Array, axes: tuple[int, ...]) -> _Size:
    x = x.astype(jnp.float32)
    many = np.prod([x.shape[axis] for axis in axes], dtype=np.float32)
    return _Size(
        total=jnp.sum(jnp.abs(x), axis=axes),
        numbers=jnp.full_like(jnp.sum(x, axis=axes), many),
        low=jnp.min(x, axis=axes, initial=0),
        high=jnp.max(x, axis=axes, initial=0),
    )


@dataclasses.dataclass(frozen=True)
class _Measure:
    """Handler of a product whose input is measured."""

    def __call__(
        self, use: Use, inputs: list[Any], bind: Bind, read: Any
    ) -> tuple[list[Any], Any]:
        assert use.data is not None
        x = inputs[use.data]
        return bind(inputs), _measured(x, tuple(range(x.ndim)))


class _Joined:
    """How measurements become one."""

    def empty(self, like: Any) -> Any:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)

    def join(self, a: _Size, b: _Size) -> _Size:
        return _Size(
            a.total + b.total,
            a.numbers + b.numbers,
            jnp.minimum(a.low, b.low),
            jnp.maximum(a.high, b.high),
        )

    def reduce(self, stacked: _Size) -> _Size:
        return _Size(
            stacked.total.sum(0),
            stacked.numbers.sum(0),
            stacked.low.min(0),
            stacked.high.max(0),
        )

    def across(self, value: _Size, axis_names: tuple[str, ...]) -> _Size:
        return _Size(
            jax.lax.psum(value.total, axis_names),
            jax.lax.psum(value.numbers, axis_names),
            jax.lax.pmin(value.low, axis_names),
            jax.lax.pmax(value.high, axis_names),
        )


def _step(size: _Size, format: NumberFormat) -> Step:
    top = np.float32(numbers_between(format))
    if format.symmetric:
        mean = size.total / jnp.maximum(size.numbers, np.float32(1))
        return Step(_positive(np.float32(2) * mean / jnp.sqrt(top)))
    return Step(_positive((size.high - size.low) / top), size.low)


def _positive(scale: jax.Array) -> jax.Array:
    return jnp.where(scale > 0, scale, np.float32(1))


def _of_inputs(size: _Size, spec: Activation) -> Learned:
    format = spec.format
    if isinstance(spec.range, Pact):
        high = jnp.maximum(size.high, -size.low) if format.symmetric else size.high
        return Clip(_positive(high))
    return _step(size, format)


def _of_weights(plan: QuantizationPlan, path: str, leaf: Any) -> Step | None:
    shape = plan.weight_scale_shape(path)
    spec = plan.specs[path].weights
    if shape is None or spec is None:
        return None
    folded = into(jnp.asarray(leaf), plan.factors.get(path))
    matrix = to_matrix(folded, leaf_axes(plan.traced.sites.of(path)))
    numbers = grouped(matrix, shape)
    axes = (numbers.ndim - 3, numbers.ndim - 1)
    step: Step = jax.tree.map(
        lambda part: part.reshape(shape),
        _step(_measured(numbers, axes), spec.format),
    )
    return step
