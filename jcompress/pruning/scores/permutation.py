"""How much a metric falls when the values of one unit change places in the batch."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.errors import MismatchError
from jcompress.pruning.scores._trees import place_scores
from jcompress.rules import Rules, resolve
from jcompress.sites import Axes, Operation, Site, leaf_axes
from jcompress.statistics.kinds import Count
from jcompress.statistics.rows import observer
from jcompress.tracing.deferred import Deferred
from jcompress.tracing.handlers import Bind
from jcompress.tracing.interpreter import Program
from jcompress.tracing.trace import Traced, trace
from jcompress.tracing.values import Location, Use

_NAME = "score_by_permutation"


class Permuted(NamedTuple):
    """What `score_by_permutation` measured.

    Attributes:
        drop: how much the metric fell, the mean over the repetitions: a tree like the
            parameters with float32 arrays at the measured leaves, None at the others.
        spread: the standard deviation over the repetitions, likewise; a drop that is
            no larger than this says little.
    """

    drop: Any
    spread: Any


def score_by_permutation(
    metric: Callable[..., jax.Array],
    rules: Rules[Any],
    params: Any,
    *args: Any,
    key: jax.Array,
    repeats: int = 5,
) -> Permuted:
    """Score units by how much a metric drops when the unit is shuffled in the batch.

    A unit is what a weight reads: one of its inputs, of a convolution an input channel.
    Its values change places among the examples, so that they stay likely and say
    nothing of their example any more. All weights of the leaf that read the unit get
    its score, as with `score_by_activations`, and for the same uses.

    One leaf after the other is compiled, and the metric then evaluated `repeats` times
    for each of its units.

    Args:
        metric: takes the parameters and `args`, a batch, and gives a number, the higher
            the better, such as the accuracy, or minus the loss.
        rules: pairs of a predicate and anything but None, as for `observe`: the leaves.
        params: a tree of arrays.
        *args: further arguments of `metric`. Examples are numbered by the first axis of
            the data of a product that it does not sum over.
        key: a key of `jax.random`.
        repeats: shuffles for each unit.

    Returns:
        The drops, and their spread.

    Raises:
        ValueError: `repeats` is below 1.
        MismatchError: what `jcompress.rules.resolve` raises; a leaf is in no product,
            or its inputs cannot be told apart: a grouped convolution, experts, copies
            side by side, a function with a custom gradient.

    References:
        Breiman 2001, "Random Forests", section 10; Fisher et al. 2019, "All Models are
        Wrong, but Many are Useful", section 3.
    """
    if repeats < 1:
        raise ValueError(f"{_NAME}: repeats is at least 1, not {repeats}")
    traced = trace(metric, params, args, {})
    resolved = resolve(rules, traced.sites, transform=_NAME)
    plans = {path: _planned(traced, path) for path in resolved.leaves}
    whole = jnp.asarray(
        _number(*Program(traced=traced, handlers={})(traced.leaves, traced.data)[0])
    )
    drop, spread = {}, {}
    for n, (path, shuffles) in enumerate(plans.items()):
        found = _measured(
            traced, path, shuffles, whole, jax.random.fold_in(key, n), repeats
        )
        axes = leaf_axes(traced.sites.of(path))
        shape = traced.sites.of(path)[0].shape
        units = next(iter(shuffles.values())).axes
        drop[path], spread[path] = (_on_leaf(x, shape, axes, units) for x in found)
    return Permuted(place_scores(params, drop), place_scores(params, spread))


@dataclasses.dataclass(frozen=True)
class _Shuffle:
    """Handler of a product that shuffles one unit of its data over the examples.

    Attributes:
        number: int32, of a shape that broadcasts to the data's: each value's unit.
        batch: the axis of the examples.
        axes: the axes of the leaf that number the units.
        key: of the shuffle; None until it is known.
    """

    number: np.ndarray[Any, Any]
    batch: int
    axes: tuple[int, ...]
    key: jax.Array | None = None

    def __call__(
        self, use: Use, inputs: list[Any], bind: Bind, read: Any
    ) -> tuple[list[Any], Any]:
        """Evaluate the product; `read` is the unit, below 0 none."""
        assert use.data is not None
        assert self.key is not None
        inputs = [x.dense() if isinstance(x, Deferred) else x for x in inputs]
        data = inputs[use.data]
        order = jax.random.permutation(self.key, data.shape[self.batch])
        moved = jnp.take(data, order, axis=self.batch)
        number = jnp.broadcast_to(jnp.asarray(self.number), data.shape)
        inputs[use.data] = jnp.where(number == read, moved, data)
        return bind(inputs), None


def _planned(traced: Traced, path: str) -> dict[Location, _Shuffle]:
    """The handlers of a leaf's products.

    Raises:
        MismatchError: it has none, or one whose inputs cannot be told apart.
    """
    products = traced.sites.products(path)
    made = {site.location: _shuffle(traced, site) for site in products}
    problems = [why for why in made.values() if isinstance(why, str)]
    if problems or not made:
        why = problems[0] if problems else "no product reads it"
        raise MismatchError(
            f"{_NAME}: the units that {path!r} reads cannot be shuffled: {why}; "
            f"exclude it by a rule ({path!r}, None)"
        )
    return {where: each for where, each in made.items() if isinstance(each, _Shuffle)}


def _shuffle(traced: Traced, site: Site) -> _Shuffle | str:
    use, axes = traced.uses[site.location], leaf_axes(traced.sites.of(site.path))
    rows = observer(site, use, axes, Count(), outputs=False)
    if isinstance(rows, str):
        return rows
    if site.groups > 1:
        return "it is a grouped convolution"
    if rows.experts is not None or rows.stacks:
        return "its copies stand side by side"
    shape = site.data_shape
    params = use.eqn.params
    units = tuple(axis for axis in axes.input if axis not in site.window_axes)
    if site.operation is Operation.CONV:
        if len(units) != 1:
            return "its input channels are no single axis"
        batch, feature, *_ = params["dimension_numbers"].lhs_spec
        number = np.arange(shape[feature], dtype=np.int32)
        lined = [1] * len(shape)
        lined[feature] = len(number)
        return _Shuffle(number.reshape(lined), batch, units)
    contracted, batched = (pair[use.data or 0] for pair in params["dimension_numbers"])
    free = [d for d in range(len(shape)) if d not in (*contracted, *batched)]
    if not free:
        return "its data have no axis of examples"
    # Where each input of the leaf, in the leaf's order, stands in the data.
    with jax.ensure_compile_time_eval():
        places = jnp.arange(math.prod(shape), dtype=jnp.int32).reshape(shape)
        inputs = np.asarray(rows.rows(places))
    first = inputs.reshape(-1, inputs.shape[-1])[0]
    where = np.unravel_index(first, shape)
    lined = [size if d in contracted else 1 for d, size in enumerate(shape)]
    number = np.zeros(lined, np.int32)
    at = tuple(w if d in contracted else 0 * w for d, w in enumerate(where))
    number[at] = np.arange(len(first), dtype=np.int32)
    return _Shuffle(number, free[0], units)


def _measured(
    traced: Traced,
    path: str,
    shuffles: Mapping[Location, _Shuffle],
    whole: jax.Array,
    key: jax.Array,
    repeats: int,
) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation of the drops, [*S, units]."""
    shape = traced.sites.of(path)[0].shape
    some = next(iter(shuffles.values()))
    units = math.prod(shape[axis] for axis in some.axes)
    stacks = tuple(length for _, length in traced.uses[next(iter(shuffles))].stacked)

    @jax.jit
    def drops(leaves: Any, data: Any, keys: jax.Array) -> jax.Array:
        def one(number: jax.Array) -> jax.Array:
            layer, unit = number // units, number % units
            layers = jnp.arange(math.prod(stacks), dtype=jnp.int32).reshape(stacks)
            read = jnp.where(layers == layer, unit, -1)

            def shuffled(key: jax.Array) -> jax.Array:
                handlers = {
                    where: dataclasses.replace(each, key=key)
                    for where, each in shuffles.items()
                }
                program = Program(traced=traced, handlers=handlers)
                outs, _ = program(leaves, data, dict.fromkeys(shuffles, read))
                return whole - _number(*outs)

            each: jax.Array = jax.lax.map(shuffled, keys)
            return each

        count = math.prod(stacks) * units
        found: jax.Array = jax.lax.map(one, jnp.arange(count, dtype=jnp.int32))
        return found

    keys = jax.random.split(key, repeats)
    found = drops(traced.leaves, traced.data, keys).reshape(*stacks, units, repeats)
    return jnp.mean(found, axis=-1), jnp.std(found, axis=-1)


def _on_leaf(
    x: jax.Array, shape: tuple[int, ...], axes: Axes, units: tuple[int, ...]
) -> jax.Array:
    """Numbers [*S, units] at all entries of the leaf that read the unit."""
    numbered = (*axes.stack, *units)
    sizes = tuple(shape[axis] for axis in numbered)
    turned = x.reshape(sizes).transpose(np.argsort(numbered).tolist())
    wide = [shape[a] if a in numbered else 1 for a in range(len(shape))]
    return jnp.broadcast_to(turned.reshape(wide), shape)


def _number(*outs: Any) -> jax.Array:
    if len(outs) != 1 or jnp.ndim(outs[0]) != 0:
        raise MismatchError(f"{_NAME}: metric gives one number, not {len(outs)} arrays")
    return jnp.asarray(outs[0]).astype(jnp.float32)
