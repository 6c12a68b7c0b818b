"""The spec that pruning rules carry, and what a list of them means for a tree."""

import dataclasses
import enum
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.errors import MismatchError
from jcompress.leaves import named_leaves
from jcompress.pruning.patterns import NM, Pattern, Unstructured
from jcompress.rules import Rules, resolve
from jcompress.sites import Sites, leaf_axes
from jcompress.tensors import is_compressed
from jcompress.tensors.axes import Axes

Schedule = Callable[[Any], Any]
"""A function from the step to a value: any optax schedule."""

Sparsity = float | jax.Array | Schedule
"""The fraction removed, in [0, 1): a number, a scalar array, or a schedule of it."""


class Scope(enum.Enum):
    """Which groups compete for staying."""

    LEAF = "leaf"
    """Those of one leaf: every leaf of a rule reaches the sparsity."""
    GLOBAL = "global"
    """Those of all leaves of a rule together, by the mean score of their entries.

    The sparsity is then the fraction of all their groups; a leaf may lose more or
    less, and even all of its groups.
    """

    def __repr__(self) -> str:
        return f"Scope.{self.name}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prune:
    """How the leaves of a rule are pruned.

    Attributes:
        pattern: what is removed together.
        sparsity: the fraction of groups removed, in [0, 1), or an optax schedule of
            it; None takes the sparsity given to the transform. `NM` says by itself
            what it removes and needs none.
        scope: whether each leaf, or all leaves of the rule together, reach it.

    Raises:
        TypeError: a field is of the wrong type.
        MismatchError: a sparsity outside [0, 1), or one at odds with `NM`; `NM` with a
            global scope, as it keeps n of every m everywhere.
    """

    pattern: Pattern = dataclasses.field(default_factory=Unstructured)
    sparsity: float | Schedule | None = None
    scope: Scope = Scope.LEAF

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, Pattern):
            raise TypeError(
                f"Prune: the pattern is {self.pattern!r}; use Unstructured(), "
                "NM(2, 4), Block((4, 4)) or Channels()"
            )
        if not isinstance(self.scope, Scope):
            raise TypeError(
                f"Prune: the scope is {self.scope!r}; use Scope.LEAF or Scope.GLOBAL"
            )
        if isinstance(self.pattern, NM) and self.scope is Scope.GLOBAL:
            raise MismatchError(
                f"Prune: {self.pattern!r} keeps {self.pattern.n} of every "
                f"{self.pattern.m} in every leaf; leave the scope out"
            )
        _check_sparsity(self.sparsity, self.pattern)


@dataclasses.dataclass(frozen=True)
class PruningPlan:
    """Rules resolved against sites: everything that is known before any weight is.

    Attributes:
        transform: the caller's name, for the errors.
        leaves: the spec of every leaf that is pruned, in tree order.
        rule_of: which rule took each of them.
        skipped: why each other weight is left alone.
        axes: the axes of every pruned leaf by role.
        shapes: the shape of every pruned leaf.
        sparsity: what each rule removes.
    """

    transform: str
    leaves: Mapping[str, Prune]
    rule_of: Mapping[str, int]
    skipped: Mapping[str, str]
    axes: Mapping[str, Axes]
    shapes: Mapping[str, tuple[int, ...]]
    sparsity: Mapping[int, Sparsity]

    @property
    def changes(self) -> bool:
        """Whether any sparsity may change from step to step."""
        return not all(isinstance(value, float) for value in self.sparsity.values())

    def find(self, tree: Any) -> dict[str, jax.Array]:
        """The arrays of a tree that the plan prunes, by name, in tree order.

        Raises:
            MismatchError: one is missing, compressed, of another shape or no float.
        """
        present = dict(named_leaves(tree))
        for path, shape in self.shapes.items():
            if path not in present:
                raise MismatchError(self._missing(path, list(present)))
            leaf = present[path]
            if is_compressed(leaf):
                raise MismatchError(
                    f"{self.transform}: {path!r} is already compressed "
                    f"({type(leaf).__name__}); prune before converting"
                )
            if tuple(jnp.shape(leaf)) != shape:
                raise MismatchError(
                    f"{self.transform}: {path!r} has shape {jnp.shape(leaf)}, but the "
                    f"sites were found with {shape}; find them for this tree"
                )
            _check_float(self.transform, path, jnp.result_type(leaf))
        return {path: jnp.asarray(present[path]) for path in self.leaves}

    def _missing(self, path: str, present: list[str]) -> str:
        hint = ""
        for name in present:
            if path.endswith("/" + name):
                prefix = path[: -len(name) - 1]
                hint = f"; for this subtree use sites.below({prefix!r})"
                break
            if name.endswith("/" + path):
                hint = f"; it has {name!r}, so give the subtree or the sites of it all"
                break
        shown = ", ".join(present[:8]) + (", ..." if len(present) > 8 else "")
        return (
            f"{self.transform}: rule {self.rule_of[path]} prunes {path!r}, which is "
            f"not in the tree: {shown or 'it is empty'}{hint}"
        )


def make_plan(
    rules: Rules[Prune], sites: Sites, sparsity: Sparsity | None, transform: str
) -> PruningPlan:
    """Resolve pruning rules, and raise whatever can be known to be wrong.

    Raises:
        TypeError: a spec is no `Prune`.
        MismatchError: a rule matches nothing, lacks a sparsity, does not fit a leaf
            that it matches, or would remove nothing.
    """
    resolved = resolve(rules, sites, transform=transform)
    axes: dict[str, Axes] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    amounts: dict[int, Sparsity] = {}
    for path, spec in resolved.leaves.items():
        index = resolved.rule_of[path]
        if not isinstance(spec, Prune):
            raise TypeError(
                f"{transform}: rule {index} carries {spec!r}; use Prune(...) or None"
            )
        uses = sites.of(path)
        shapes[path] = uses[0].shape
        axes[path] = leaf_axes(uses)
        _check_float(transform, path, uses[0].dtype)
        if index not in amounts:
            amounts[index] = _amount(spec, sparsity, index, transform)
        try:
            spec.pattern.check(path, shapes[path], axes[path])
        except MismatchError as error:
            raise MismatchError(f"{transform}: {error}") from None
    for index, amount in amounts.items():
        paths = [path for path, rule in resolved.rule_of.items() if rule == index]
        if isinstance(amount, float) and amount > 0:
            spec = resolved.leaves[paths[0]]
            counts = [group_count(spec.pattern, shapes[p], axes[p]) for p in paths]
            if spec.scope is Scope.GLOBAL:
                counts = [sum(counts)]
            if not any(spec.pattern.count(amount, count) for count in counts):
                raise MismatchError(
                    f"{transform}: rule {index} removes nothing: sparsity {amount} of "
                    f"at most {max(counts)} groups rounds to 0 in "
                    f"{', '.join(paths)}; the least that acts is above "
                    f"{0.5 / max(counts):.3g}"
                )
    return PruningPlan(
        transform=transform,
        leaves=resolved.leaves,
        rule_of=resolved.rule_of,
        skipped=resolved.skipped,
        axes=axes,
        shapes=shapes,
        sparsity=amounts,
    )


def group_count(pattern: Pattern, shape: tuple[int, ...], axes: Axes) -> int:
    """How many groups of a leaf compete in one row."""
    scores = jax.ShapeDtypeStruct(shape, jnp.float32)
    rows: Any = jax.eval_shape(lambda x: pattern.rows(x, axes), scores)
    return int(rows.shape[-1])


def _amount(
    spec: Prune, sparsity: Sparsity | None, index: int, transform: str
) -> Sparsity:
    amount: Sparsity | None = sparsity if spec.sparsity is None else spec.sparsity
    if amount is None:
        if isinstance(spec.pattern, NM):
            return spec.pattern.sparsity
        raise MismatchError(
            f"{transform}: rule {index} has no sparsity; give it one, "
            f"Prune(pattern={spec.pattern!r}, sparsity=0.5), or give {transform} one"
        )
    try:
        _check_sparsity(amount, spec.pattern)
    except MismatchError as error:
        raise MismatchError(f"{transform}: rule {index}: {error}") from None
    if isinstance(amount, jax.Array) or callable(amount):
        return amount
    return float(amount)


def _check_sparsity(sparsity: Any, pattern: Pattern) -> None:
    if sparsity is None or callable(sparsity):
        return
    if isinstance(sparsity, jax.Array):
        if sparsity.shape != () or not jnp.issubdtype(sparsity.dtype, jnp.floating):
            raise MismatchError(
                "the sparsity is an array of shape "
                f"{sparsity.shape} and dtype {sparsity.dtype}; it must be a float "
                "scalar"
            )
        return
    number = isinstance(sparsity, int | float | np.floating | np.integer)
    if not number or isinstance(sparsity, bool):
        raise TypeError(
            f"the sparsity is {sparsity!r}; use a number in [0, 1) or a schedule of it"
        )
    if not 0 <= sparsity < 1:
        raise MismatchError(
            f"the sparsity is {sparsity}; it is the fraction removed, in [0, 1)"
        )
    if isinstance(pattern, NM) and not math.isclose(sparsity, pattern.sparsity):
        raise MismatchError(
            f"{pattern!r} removes {pattern.sparsity:.6g}, but the sparsity is "
            f"{sparsity}; give its rule a Prune(sparsity={pattern.sparsity:.6g}) of "
            "its own, or a schedule that ends there"
        )


def _check_float(transform: str, path: str, dtype: Any) -> None:
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise MismatchError(
            f"{transform}: {path!r} is of dtype {dtype}; only weights of floats or "
            f"complex numbers can be pruned; put the rule ({path!r}, None) before"
        )
