"""Learned gates on weights or groups of them: L0 regularisation by hard concrete."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jcompress.conversion import convert_leaves, find_leaves, resolve_specs
from jcompress.errors import MismatchError
from jcompress.leaves import named_leaves
from jcompress.pruning.masks import place_masks
from jcompress.pruning.patterns import NM, Pattern, Unstructured
from jcompress.rules import Rules
from jcompress.sites import Sites, leaf_axes
from jcompress.tensors.axes import Axes


@dataclasses.dataclass(frozen=True, kw_only=True)
class HardConcrete:
    """The gates of a rule: random numbers in [0, 1] that are often exactly 0 or 1.

    Attributes:
        pattern: what shares a gate; `Channels()` learns which units go.
        keep: the probability that a gate is not 0 at first, in (0, 1).
        temperature: lower is closer to 0 and 1, above 0.
        stretch: the interval to which a concrete number is stretched before it is
            clipped, from below 0 to above 1.

    Raises:
        ValueError: a value out of its range; the pattern `NM`.
    """

    pattern: Pattern = dataclasses.field(default_factory=Unstructured)
    keep: float = 0.9
    temperature: float = 2 / 3
    stretch: tuple[float, float] = (-0.1, 1.1)

    def __post_init__(self) -> None:
        if isinstance(self.pattern, NM):
            raise ValueError(
                f"HardConcrete: {self.pattern!r} says how many of a group stay, and "
                "gates learn it; use a pattern of whole groups"
            )
        if not 0 < self.keep < 1 or not self.temperature > 0:
            raise ValueError(
                "HardConcrete: keep is in (0, 1) and temperature above 0, not "
                f"{self.keep!r} and {self.temperature!r}"
            )
        if not self.stretch[0] < 0 or not self.stretch[1] > 1:
            raise ValueError(
                "HardConcrete: stretch goes from below 0 to above 1, not "
                f"{self.stretch!r}"
            )

    @property
    def shift(self) -> float:
        """The logit above which a gate is not 0 in half of the draws, negated."""
        low, high = self.stretch
        return -self.temperature * math.log(-low / high)

    def value(self, logits: jax.Array, key: jax.Array | None) -> jax.Array:
        """Gates for logits of any shape: drawn by a key, or the usual value."""
        noisy = logits
        if key is not None:
            tiny = jnp.finfo(jnp.float32).tiny
            drawn = jax.random.uniform(key, logits.shape, minval=tiny)
            noise = jnp.log(drawn) - jnp.log1p(-drawn)
            noisy = (logits + noise) / self.temperature
        low, high = self.stretch
        stretched = jax.nn.sigmoid(noisy) * (high - low) + low
        return jnp.clip(stretched, 0, 1)


class L0(NamedTuple):
    """Four functions, made by `l0_gates`.

    Attributes:
        init: params -> gates, a tree like the parameters with the float32 logits of
            the gates [rows, groups], and None where there are none. Train it beside
            the parameters.
        apply: (params, gates, key=None) -> params times gates. With a key they are
            drawn, for training; without one they have their usual value, for use.
        kept: gates -> the expected number of weights that are not zero, a float32
            scalar. The loss adds it times a strength.
        masks: (params, gates) -> Boolean masks of what is not zero in use.
    """

    init: Callable[[Any], Any]
    apply: Callable[..., Any]
    kept: Callable[[Any], jax.Array]
    masks: Callable[[Any, Any], Any]


class _Leaf(NamedTuple):
    spec: HardConcrete
    shape: tuple[int, ...]
    axes: Axes

    @property
    def rows(self) -> tuple[int, int]:
        return self.spec.pattern.row_shape(self.shape, self.axes)

    def spread(self, gates: jax.Array) -> jax.Array:
        spread: jax.Array = self.spec.pattern.spread(gates, self.shape, self.axes)
        return spread


def l0_gates(rules: Rules[HardConcrete], *, sites: Sites) -> L0:
    """Learn which weights, or groups of them, a model needs.

    Args:
        rules: ordered pairs of a predicate and a `HardConcrete`.
        sites: the sites of the function that is trained, for its tree of parameters.

    Raises:
        MismatchError: a rule matches nothing or does not fit its leaves.

    References:
        Louizos et al. 2018, "Learning Sparse Neural Networks through L0
        Regularization", equations 10 to 13.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jcompress.pruning import Channels
        >>> from jcompress.sites import find_sites
        >>> params = {"w": jnp.ones((4, 3))}
        >>> sites = find_sites(lambda p, x: x @ p["w"], params, jnp.ones((1, 4)))
        >>> l0 = l0_gates([("w", HardConcrete(pattern=Channels()))], sites=sites)
        >>> gates = l0.init(params)
        >>> def loss(params, gates, key):
        ...     used = l0.apply(params, gates, key)
        ...     return jnp.sum(used["w"]) + 1e-3 * l0.kept(gates)
        >>> float(l0.kept(gates))
        10.8
    """
    resolved = resolve_specs(
        rules, sites, HardConcrete, transform="l0_gates", usage="HardConcrete(...)"
    )
    leaves: dict[str, _Leaf] = {}
    for path, spec in resolved.leaves.items():
        uses = sites.of(path)
        leaf = _Leaf(spec, uses[0].shape, leaf_axes(uses))
        try:
            spec.pattern.check(path, leaf.shape, leaf.axes)
        except MismatchError as error:
            raise MismatchError(f"l0_gates: {error}") from None
        leaves[path] = leaf

    def logits_of(gates: Any) -> dict[str, jax.Array]:
        named = {name: x for name, x in named_leaves(gates) if x is not None}
        if {n: x.shape for n, x in named.items()} != {
            n: leaf.rows for n, leaf in leaves.items()
        }:
            raise MismatchError(
                f"l0_gates: gates are for {', '.join(leaves)}, made by init; these are "
                f"for {', '.join(named) or 'nothing'}"
            )
        return named

    def init(params: Any) -> Any:
        find_leaves("l0_gates", params, leaves, sites=sites)
        logits = {
            path: jnp.full(
                leaf.rows,
                math.log(leaf.spec.keep / (1 - leaf.spec.keep)) - leaf.spec.shift,
                jnp.float32,
            )
            for path, leaf in leaves.items()
        }
        return place_masks(params, logits)

    def apply(params: Any, gates: Any, key: jax.Array | None = None) -> Any:
        named = logits_of(gates)
        number = {path: place for place, path in enumerate(leaves)}

        def gate(path: str, weight: jax.Array, leaf: _Leaf) -> jax.Array:
            own = None if key is None else jax.random.fold_in(key, number[path])
            value = leaf.spread(leaf.spec.value(named[path], own))
            return weight * value.astype(weight.dtype)

        return convert_leaves("l0_gates", params, leaves, gate, sites=sites)

    def kept(gates: Any) -> jax.Array:
        total = jnp.zeros((), jnp.float32)
        for path, logits in logits_of(gates).items():
            leaf = leaves[path]
            size = math.prod(leaf.shape) / math.prod(leaf.rows)
            total += size * jnp.sum(jax.nn.sigmoid(logits + leaf.spec.shift))
        return total

    def masks(params: Any, gates: Any) -> Any:
        named = logits_of(gates)
        return place_masks(
            params,
            {
                path: leaf.spread(leaf.spec.value(named[path], None) > 0)
                for path, leaf in leaves.items()
            },
        )

    return L0(init, apply, kept, masks)
