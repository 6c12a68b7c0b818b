"""`observe`: statistics of what weights are multiplied with."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp

from jcompress.errors import MismatchError
from jcompress.rules import Rules, resolve
from jcompress.sites import Site, leaf_axes
from jcompress.statistics.kinds import Statistic
from jcompress.statistics.moments import groups_of
from jcompress.statistics.rows import Observer, observer
from jcompress.tracing.interpreter import Program
from jcompress.tracing.trace import Traced, trace

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["by_leaf"],
    meta_fields=["statistic"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Observed(Mapping[str, Any]):
    """What `observe` collected: a mapping from leaves' names, and a pytree.

    `a + b` is the statistic of the data of both. A loop over batches that is compiled
    as a whole begins with `jax.eval_shape(observed, ...)[1].empty()`.

    Attributes:
        by_leaf: the statistic's value for each leaf.
        statistic: what was collected.
    """

    by_leaf: Mapping[str, Any]
    statistic: Statistic

    def __getitem__(self, path: str) -> Any:
        return self.by_leaf[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_leaf)

    def __len__(self) -> int:
        return len(self.by_leaf)

    def __add__(self, other: "Observed") -> "Observed":
        if not isinstance(other, Observed):
            return NotImplemented
        if self.statistic != other.statistic or set(self) != set(other):
            raise MismatchError(
                f"observe: {self.statistic} of {', '.join(self)} and "
                f"{other.statistic} of {', '.join(other)} do not add up; collect both "
                "with the same rules and statistic"
            )
        return self._each(
            lambda path, value: self.statistic.join(value, other.by_leaf[path])
        )

    def empty(self) -> "Observed":
        """The same for no data; only shapes and dtypes of the values are read."""
        return self._each(lambda _, value: self.statistic.empty(value))

    def reduce(self) -> "Observed":
        """One for all, of values with a further leading axis, as `jax.vmap` gives."""
        return self._each(lambda _, value: self.statistic.reduce(value))

    def across(self, *axis_names: str) -> "Observed":
        """One for all devices along axes of a mesh, inside of a `shard_map`."""
        return self._each(lambda _, value: self.statistic.across(value, axis_names))

    def _each(self, change: Callable[[str, Any], Any]) -> "Observed":
        changed = {path: change(path, value) for path, value in self.by_leaf.items()}
        return dataclasses.replace(self, by_leaf=changed)


def observe(
    fn: Callable[Arguments, Result],
    rules: Rules[Any],
    statistic: Statistic,
    *,
    outputs: bool = False,
) -> Callable[Arguments, tuple[Result, Observed]]:
    """Make a function also return statistics of what its weights are multiplied with.

    For each leaf that a rule selects and a product or convolution uses, the statistic
    of all inputs x [K] that one call multiplies with the leaf's matrix [*S, N, K] (see
    `jcompress.sites.leaf_axes`). S are the axes that number copies, such as the layers
    of a `scan`. Of a convolution the inputs are the patches, in the order of the
    kernel's input axes; if it has G > 1 groups, those of each group, [*S, G, K]. Of
    experts (`ragged_dot`) they are the rows of each. Several products of one leaf, the
    steps of a loop that uses it whole and the devices of a `shard_map` count together;
    devices that do the same work count once (each counts with `check_vma=False`).

    The data are not kept: memory does not grow with the number of rows. It is that of
    the selected leaves' statistics; to hold one at a time, call it leaf by leaf with
    the rules `[(path, True)]`. Statistics carry no gradient.

    Args:
        fn: any function of a parameter tree, such as `model.apply`.
        rules: pairs of a predicate and anything but None; so the rules of the transform
            that will use the statistics can be given. Leaves that are only looked up
            have no inputs and are left out.
        statistic: `SecondMoments()`, `AbsoluteMax()`, `Several(...)`, or one of your
            own (see `Statistic`).
        outputs: look at the results of the products [*S, N] (without bias) instead.

    Returns:
        A function with the arguments of `fn`; it gives `(result, statistics)`, the
        latter an `Observed` by the names of the leaves. It jits, scans, vmaps and
        differentiates like `fn`. Called, it raises what `jcompress.rules.resolve`
        raises, and MismatchError if no selected leaf has inputs, or if those of one
        cannot be seen as rows beside its matrix: inside of a function with a custom
        gradient, of a part of a leaf, of a matrix joined from several.

    Example:
        >>> import jax.numpy as jnp
        >>> from jcompress.statistics import SecondMoments, observe
        >>> layer = lambda params, x: x @ params["w"]
        >>> observed = observe(layer, [("w", True)], SecondMoments())
        >>> _, stats = observed({"w": jnp.ones((2, 3))}, jnp.array([[1.0, 2.0]]))
        >>> _, more = observed({"w": jnp.ones((2, 3))}, jnp.array([[0.0, 1.0]]))
        >>> (stats + more)["w"]
        Array([[1., 2.],
               [2., 5.]], dtype=float32)
    """

    @functools.wraps(fn)
    def observed(
        *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> tuple[Result, Observed]:
        variables, *rest = args
        traced = trace(fn, variables, tuple(rest), kwargs)
        resolved = resolve(rules, traced.sites, transform="observe")
        found = {path: traced.sites.products(path) for path in resolved.leaves}
        found = {path: sites for path, sites in found.items() if sites}
        if not found:
            raise MismatchError(
                f"observe: {', '.join(resolved.leaves)} take part in no product or "
                "convolution, so there are no inputs to look at"
            )
        handlers, reads = {}, {}
        for sites in found.values():
            for site in sites:
                where = site.location
                handlers[where] = _handler(traced, site, statistic, outputs)
                lengths = tuple(length for _, length in traced.uses[where].stacked)
                reads[where] = jnp.zeros(lengths, jnp.float32)
        program = Program(traced=traced, handlers=handlers, statistic=statistic)
        outs, values = program(traced.leaves, traced.data, reads)
        by_leaf = {
            path: functools.reduce(
                statistic.join,
                (_stacked(traced, site, handlers, values) for site in sites),
            )
            for path, sites in found.items()
        }
        return traced.rebuild(outs), Observed(by_leaf, statistic)

    return observed


def _handler(
    traced: Traced, site: Site, statistic: Statistic, outputs: bool
) -> Observer:
    path = site.path
    axes = leaf_axes(traced.sites.of(path))
    if not outputs:
        try:
            groups_of(traced.sites, path)
        except MismatchError as error:
            raise MismatchError(f"observe: {error}") from None
    made = observer(site, traced.uses[site.location], axes, statistic, outputs=outputs)
    if isinstance(made, str):
        raise MismatchError(
            f"observe: {path!r} {list(site.shape)}: the data of one of its products "
            f"are not rows beside its matrix: {made}; exclude it by a rule "
            f"({path!r}, None)"
        )
    return made


def _stacked(
    traced: Traced, site: Site, handlers: Mapping[Any, Observer], values: Any
) -> Any:
    """The value of one product with all of the leaf's stack axes in front."""
    where = site.location
    axes = leaf_axes(traced.sites.of(site.path))
    stacks = tuple(site.shape[axis] for axis in axes.stack)
    lead = len(traced.uses[where].stacked) + handlers[where].stacks
    return jax.tree.map(lambda x: x.reshape(*stacks, *x.shape[lead:]), values[where])
