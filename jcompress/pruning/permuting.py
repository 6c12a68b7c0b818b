"""An order of hidden units in which N:M and blocks keep more of what matters."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.conversion import resolve_specs
from jcompress.errors import MismatchError
from jcompress.leaves import named_leaves
from jcompress.pruning.patterns import NM, Block, Pattern
from jcompress.pruning.scores.magnitude import score_by_magnitude
from jcompress.rules import Rules
from jcompress.shrinking import Group, Groups, find_groups
from jcompress.shrinking.permuting import check_same_function, permute
from jcompress.sites import Sites, leaf_axes
from jcompress.tensors.axes import to_matrix


class Permuted(NamedTuple):
    """A tree with its hidden units in another order.

    Attributes:
        params: the tree; it computes the same.
        gains: for each leaf whose inputs were permuted, what its pattern keeps of the
            scores after it, over what it kept before: for N:M the sum, for blocks the
            sum of the squares of their scores.
        left: why the inputs of each other leaf of the rules stay in their order.
    """

    params: Any
    gains: Mapping[str, float]
    left: Mapping[str, str]


def permute_inputs(
    fn: Callable[..., Any],
    params: Any,
    rules: Rules[Pattern],
    *args: Any,
    key: jax.Array,
    scores: Any = None,
    sweeps: int = 200,
    tolerance: float = 1e-4,
    **kwargs: Any,
) -> Permuted:
    """Reorder hidden units so that N:M patterns and blocks keep more of the scores.

    Which inputs of a weight share a group of N:M, or a block, is only a matter of how
    hidden units are numbered. Units that are permuted in one leaf are permuted in all
    that meet them, which is found in the function itself, as for shrinking; nothing is
    stored and nothing runs besides. Again and again groups are paired at random, and of
    all swaps of one input between both the best is made, if it keeps more.

    Prune afterwards. Statistics of inputs must be observed again.

    Args:
        fn: any function of a parameter tree.
        params: the tree, of dense leaves.
        rules: pairs of a predicate and the `NM` or `Block` that the leaf will have.
        *args: further arguments of `fn`: a batch. The function is evaluated before and
            after.
        key: for the pairs.
        scores: a tree of scores that are not negative, such as `score_by_wanda` gives;
            None for magnitudes.
        sweeps: how often all groups are paired.
        tolerance: by how much outputs may differ, as a share of the largest.
        **kwargs: further keyword arguments of `fn`.

    Returns:
        The tree, and what was gained.

    Raises:
        TypeError: the rules are malformed, or a spec is another pattern.
        ValueError: `sweeps` is no positive int.
        MismatchError: a rule matches no weight or does not fit its leaf, a leaf has no
            scores, the inputs of none can be permuted, leaves that share their inputs
            have different patterns, or the permuted function is another one.

    References:
        Pool and Yu 2021, "Channel Permutations for N:M Sparsity": swaps between pairs
        of groups, section 4.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jcompress.pruning import NM, permute_inputs
        >>> model = lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"]
        >>> keys = jax.random.split(jax.random.key(0), 3)
        >>> params = {
        ...     "up": jax.random.normal(keys[0], (4, 16)),
        ...     "down": jax.random.normal(keys[1], (16, 2)),
        ... }
        >>> rules = [("down", NM(2, 4))]
        >>> found = permute_inputs(model, params, rules, jnp.ones((1, 4)), key=keys[2])
        >>> found.gains["down"] > 1
        True
    """
    name = "permute_inputs"
    if not isinstance(sweeps, int) or isinstance(sweeps, bool) or sweeps < 1:
        raise ValueError(f"{name}: sweeps is a positive int, not {sweeps!r}")
    groups = find_groups(fn, params, *args, **kwargs)
    sites = groups.sites
    usage = "NM(n, m) or Block((bn, bk))"
    resolved = resolve_specs(rules, sites, (NM, Block), transform=name, usage=usage)
    given = dict(named_leaves(score_by_magnitude(params) if scores is None else scores))
    together, left = _by_group(resolved.leaves, groups, sites)
    if not together:
        said = "; ".join(f"{path}: {why}" for path, why in left.items())
        raise MismatchError(f"{name}: the inputs of no leaf can be permuted: {said}")
    orders = {group.name: np.arange(group.size) for group in groups}
    before: dict[str, float] = {}
    for number, (unit, paths) in enumerate(together.items()):
        pattern = _shared(paths, resolved.leaves)
        tables = {path: _table(path, given, pattern, sites) for path in paths}
        table = jnp.concatenate(list(tables.values()))
        order = _search(table, jax.random.fold_in(key, number), pattern, sweeps)
        orders[unit] = np.asarray(order)
        for path, own in tables.items():
            kept = float(_kept(own, pattern))
            after = float(_kept(own[:, order], pattern))
            before[path] = after / kept if kept else 1.0
    moved = permute(params, groups, orders)
    check_same_function(name, fn, params, moved, args, kwargs, tolerance)
    return Permuted(moved, before, left)


def _by_group(
    specs: Mapping[str, Pattern], groups: Groups, sites: Sites
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The leaves by the group of their inputs; and why others have none."""
    together: dict[str, list[str]] = {}
    left: dict[str, str] = {}
    for path, pattern in specs.items():
        shape, axes = sites.of(path)[0].shape, leaf_axes(sites.of(path))
        try:
            pattern.check(path, shape, axes)
        except MismatchError as error:
            raise MismatchError(f"permute_inputs: {error}") from None
        if not axes.input or not sites.products(path):
            left[path] = "it is only looked up"
            continue
        # Neighbours in a group are neighbours on the last axis of the inputs.
        axis = axes.input[-1]
        if shape[axis] % _width(pattern):
            left[path] = (
                f"its groups of {_width(pattern)} inputs go on from one row of axis "
                f"{axis}, {shape[axis]} long, to the next"
            )
            continue
        found = _group_of(path, axis, groups)
        if found is None:
            why = groups.fixed.get(f"{path}:{axis}", "its units cannot move one by one")
            left[path] = f"axis {axis}: {why}"
        else:
            together.setdefault(found.name, []).append(path)
    return together, left


def _group_of(path: str, axis: int, groups: Groups) -> Group | None:
    """The group whose units are the positions of an axis, one each."""
    for group in groups:
        for member in group.members:
            if (member.path, member.axis) == (path, axis):
                single = np.array_equal(member.units, np.arange(group.size))
                return group if single else None
    return None


def _shared(paths: list[str], specs: Mapping[str, Pattern]) -> Pattern:
    found = {specs[path] for path in paths}
    if len(found) > 1:
        raise MismatchError(
            f"permute_inputs: {', '.join(paths)} have the same inputs, and so one "
            f"order of them, but different patterns, {', '.join(map(repr, found))}"
        )
    return found.pop()


def _width(pattern: Pattern) -> int:
    if isinstance(pattern, NM):
        return pattern.m
    assert isinstance(pattern, Block)
    return pattern.shape[1]


def _table(
    path: str, scores: Mapping[str, Any], pattern: Pattern, sites: Sites
) -> jax.Array:
    """The scores of a leaf, [R, U]: its units are columns."""
    uses = sites.of(path)
    axes, shape = leaf_axes(uses), uses[0].shape
    found = scores.get(path)
    if found is None or tuple(np.shape(found)) != shape:
        raise MismatchError(
            f"permute_inputs: scores has none of {path!r} {list(shape)}"
        )
    units = shape[axes.input[-1]]
    matrix = to_matrix(jnp.asarray(found, jnp.float32), axes)
    if isinstance(pattern, Block):
        # What a block has of one input counts as one.
        *stacks, outputs, inputs = matrix.shape
        high = pattern.shape[0]
        matrix = matrix.reshape(*stacks, outputs // high, high, inputs).sum(-2)
    return matrix.reshape(-1, units)


def _values(rows: list[jax.Array], pattern: Pattern) -> jax.Array:
    """What groups keep, of the scores of their inputs, one array for each: [...]."""
    if isinstance(pattern, Block):
        total = functools.reduce(jnp.add, rows)
        return jnp.square(total)
    assert isinstance(pattern, NM)
    kept = jnp.zeros_like(rows[0])
    for i, mine in enumerate(rows):
        above = jnp.zeros(mine.shape, jnp.int32)
        for j, other in enumerate(rows):
            if i != j:
                more = other > mine if i < j else other >= mine
                above = above + more.astype(jnp.int32)
        kept = kept + jnp.where(above < pattern.n, mine, np.float32(0))
    return kept


@functools.partial(jax.jit, static_argnums=1)
def _kept(table: jax.Array, pattern: Pattern) -> jax.Array:
    """What the pattern keeps of all scores [R, U]."""
    width = _width(pattern)
    groups = table.reshape(len(table), -1, width)
    return jnp.sum(_values([groups[..., i] for i in range(width)], pattern))


@functools.partial(jax.jit, static_argnums=(2, 3))
def _search(
    table: jax.Array, key: jax.Array, pattern: Pattern, sweeps: int
) -> jax.Array:
    """An order of the columns, int32 [U], in which the pattern keeps more."""
    width = _width(pattern)
    count = table.shape[1] // width
    pairs = count // 2

    def swapped(first: jax.Array, second: jax.Array) -> jax.Array:
        """What each swap gains, [pairs, width^2]: columns are [R, pairs, width]."""
        a = [first[..., i] for i in range(width)]
        b = [second[..., i] for i in range(width)]
        now = _values(a, pattern) + _values(b, pattern)

        def one(place: jax.Array) -> jax.Array:
            i, j = place // width, place % width
            here = [
                jnp.where(i == k, jnp.take(second, j, -1), a[k]) for k in range(width)
            ]
            there = [
                jnp.where(j == k, jnp.take(first, i, -1), b[k]) for k in range(width)
            ]
            new = _values(here, pattern) + _values(there, pattern)
            return jnp.sum(new - now, axis=0)

        gains: jax.Array = jax.lax.map(one, jnp.arange(width * width)).T
        return gains

    def sweep(order: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
        places = jax.random.permutation(key, count)[: 2 * pairs]
        groups = order.reshape(count, width)
        ours, theirs = groups[places[:pairs]], groups[places[pairs:]]
        gains = swapped(table[:, ours], table[:, theirs])
        best = jnp.argmax(gains, axis=1)
        good = jnp.take_along_axis(gains, best[:, None], 1)[:, 0] > 0
        row = jnp.arange(pairs)
        i, j = best // width, best % width
        mine, other = ours[row, i], theirs[row, j]
        ours = ours.at[row, i].set(jnp.where(good, other, mine))
        theirs = theirs.at[row, j].set(jnp.where(good, mine, other))
        groups = groups.at[places[:pairs]].set(ours).at[places[pairs:]].set(theirs)
        return groups.reshape(-1), None

    start = jnp.arange(table.shape[1], dtype=jnp.int32)
    if pairs == 0:
        return start
    order: jax.Array
    order, _ = jax.lax.scan(sweep, start, jax.random.split(key, sweeps))
    return order
