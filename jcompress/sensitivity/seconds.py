"""What each leaf costs in each form in time, measured here."""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.errors import MismatchError
from jcompress.execution import compressed
from jcompress.pruning import to_sparse
from jcompress.pruning.one_shot import Magnitude, OneShot, prune_weights
from jcompress.quantization import Quantize, quantize
from jcompress.report import latency
from jcompress.rounding import Nearest
from jcompress.rules import Predicate
from jcompress.sensitivity.candidates import (
    Candidate,
    Candidates,
    for_leaf,
    name_of,
)
from jcompress.sensitivity.counting import stored_by_candidate
from jcompress.sensitivity.making import made
from jcompress.sites import WEIGHTS, Operation, Sites, find_sites
from jcompress.tensors.range_specs import FullRange, Lsq
from jcompress.tensors.ranges import Range
from jcompress.tensors.specs import Dynamic, Static
from jcompress.tracing.interpreter import bind
from jcompress.tracing.trace import trace
from jcompress.tracing.values import Use

_INPUTS = 2
"""Sets of data that a product is timed on, in turn."""
_LEAST = 1e-9
"""Seconds of what takes no more than calling a program."""


def measure_seconds(
    fn: Callable[..., Any],
    params: Any,
    candidates: Candidates,
    *args: Any,
    leaves: Predicate = ...,
    partial: bool = False,
    rounds: int = 11,
    sample_seconds: float = 2e-3,
    **kwargs: Any,
) -> dict[str, tuple[float, ...]]:
    """Time the products of each leaf in each of several forms, on this machine.

    The result is what `choose_formats(..., costs=...)` takes, with a budget in seconds.
    Each product, convolution and lookup of the function is compiled by itself, for its
    own shapes, once with each form in `compressed` and once with nothing to do;
    they are timed in alternation, and the median counts, less that of nothing. Equal
    ones are timed once. What a loop repeats counts as often as it runs (the body of a
    `while` loop once).

    A model takes longer than the sum: what lies between the products is not in it. And
    a small weight stays in the processor's cache here, while a model of many layers
    reads it from memory: compare the whole model with `jcompress.report.compare`
    before you believe a choice.

    Args:
        fn: any function of a parameter tree, such as `model.apply`.
        params: the tree; shapes suffice.
        candidates: the forms, as of `measure_sensitivity`; None among them is the leaf
            as it is.
        *args: further arguments of `fn`, of the batch size that counts; shapes suffice.
        leaves: which leaves; every weight unless it says otherwise.
        partial: infinite seconds for what does not suit a leaf, in place of raising.
        rounds: how often each is timed, at least 5.
        sample_seconds: the least duration of one timing; short calls are repeated.
        **kwargs: further keyword arguments of `fn`.

    Returns:
        For each leaf its seconds in one call of the function, in each candidate.

    Raises:
        ValueError: there is no candidate, or too few rounds.
        MismatchError: a candidate does not suit a leaf, or has no weights.

    Example:
        >>> import jax.numpy as jnp
        >>> from jcompress.formats import Int
        >>> from jcompress.quantization import Quantize, Weights
        >>> from jcompress.sensitivity import measure_seconds
        >>> model = lambda p, x: x @ p["w"]
        >>> formats = [Quantize(weights=Weights(format=Int(4))), None]
        >>> seconds = measure_seconds(
        ...     model, {"w": jnp.ones((64, 64))}, formats, jnp.ones((1, 64)), rounds=5)
        >>> len(seconds["w"]), min(seconds["w"]) > 0
        (2, True)
    """
    traced = trace(fn, params, args, kwargs)
    sites = traced.sites
    chosen = stored_by_candidate(
        params, candidates, sites=sites, leaves=leaves, partial=partial
    )
    known: dict[Hashable, tuple[float, ...]] = {}
    seconds = {}
    for path, stored in chosen.items():
        suits = [n for n, size in enumerate(stored) if size is not None]
        own = [for_leaf(path, candidates[n], sites) for n in suits]
        total = np.full(len(candidates), np.inf)
        total[suits] = 0
        for site in sites.of(path):
            if site.operation not in WEIGHTS:
                continue
            one = _Alone(
                traced.uses[site.location],
                site.operand,
                site.operation,
                dense=site.derived or site.in_custom_gradient,
            )
            key = one.key, tuple(map(repr, own))
            if key not in known:
                known[key] = one.seconds(path, own, rounds, sample_seconds)
            total[suits] += (site.runs or 1) * np.asarray(known[key])
        seconds[path] = tuple(map(float, total))
    return seconds


@dataclasses.dataclass(frozen=True)
class _Alone:
    """One equation as a function of its weight, and of the rest.

    Attributes:
        use: the equation.
        operand: which input is the weight.
        operation: what the weight does.
        dense: whether it is dense when it gets here, in whatever format it is stored.
    """

    use: Use
    operand: int
    operation: Operation
    dense: bool

    @property
    def key(self) -> Hashable:
        eqn = self.use.eqn
        shapes = tuple((x.aval.shape, str(x.aval.dtype)) for x in eqn.invars)
        return eqn.primitive.name, str(eqn.params), shapes, self.operand, self.dense

    def __call__(self, tree: Any, *others: Any) -> Any:
        inputs = list(others)
        inputs.insert(self.operand, tree["w"])
        return bind(self.use.eqn, inputs)

    def seconds(
        self, path: str, candidates: Candidates, rounds: int, sample: float
    ) -> tuple[float, ...]:
        keys = jax.random.split(jax.random.key(0), _INPUTS + 1)
        weight = self._random(keys[0], self.operand)
        others = [
            tuple(
                self._random(key, n)
                for n in range(len(self.use.eqn.invars))
                if n != self.operand
            )
            for key in keys[1:]
        ]
        variants: dict[str, Any] = {
            "nothing": (lambda tree, *others: others[0], {"w": jnp.zeros(1)}),
            "dense": (self, {"w": weight}),
        }
        for number, each in enumerate(candidates):
            if each is None or self.dense:
                continue
            tree = _stored(path, self, {"w": weight}, each, others[0])
            variants[str(number)] = (compressed(self), tree)
        timed = latency(variants, others, rounds=rounds, sample_seconds=sample)
        idle = timed.time("nothing").median
        found = {
            name: max(timed.time(name).median - idle, _LEAST) for name in timed.seconds
        }
        return tuple(
            found.get(str(number), found["dense"]) for number in range(len(candidates))
        )

    def _random(self, key: jax.Array, number: int) -> jax.Array:
        """An input of the equation's shape and dtype."""
        aval = self.use.eqn.invars[number].aval
        if not jnp.issubdtype(aval.dtype, jnp.integer):
            return jax.random.normal(key, aval.shape).astype(aval.dtype)
        if self.operation is Operation.RAGGED_DOT:
            rows = self.use.eqn.outvars[0].aval.shape[0]
            return jnp.full(aval.shape, rows // max(aval.size, 1), aval.dtype)
        most = min(self.use.eqn.invars[self.operand].aval.shape)
        return jax.random.randint(key, aval.shape, 0, max(most, 1), aval.dtype)


def _stored(
    path: str, run: _Alone, tree: Any, spec: Candidate, others: Sequence[Any]
) -> Any:
    """The weight in a form; how its numbers are chosen changes no time."""
    sites = find_sites(run, tree, *others)
    try:
        if isinstance(spec, Quantize):
            return _quantized(tree, spec, sites)
        if isinstance(spec, OneShot):
            return _sparse(tree, spec, sites)
        return {"w": made("w", tree["w"], spec, sites=sites, moments=None)}
    except MismatchError as error:
        raise MismatchError(
            f"measure_seconds: the product of {path} as {name_of(spec)} cannot be "
            f"timed by itself: {error}"
        ) from error


def _sparse(tree: Any, spec: OneShot, sites: Sites) -> Any:
    plain = dataclasses.replace(spec, method=Magnitude(), weights=None)
    tree = prune_weights(tree, [("w", plain)], sites=sites)
    if spec.weights is not None:
        tree = quantize(tree, [("w", Quantize(weights=spec.weights))], sites=sites)
    return to_sparse(tree, [("w", spec.pattern)], sites=sites)


def _quantized(tree: Any, spec: Quantize, sites: Sites) -> Any:
    weights = spec.weights
    if weights is None:
        raise MismatchError(f"a candidate has no weights: {spec!r}")
    if isinstance(weights.range, Lsq):
        weights = dataclasses.replace(weights, range=FullRange())
    ranges: dict[str, list[Range]] = {}
    activation = spec.activation
    if activation is not None and not isinstance(activation.range, Dynamic):
        # What was learned is stored as ranges.
        activation = dataclasses.replace(activation, range=Static())
        ends = (jnp.float32(-3), jnp.float32(3))
        ranges = {"w": [Range(*ends) for _ in sites.products("w")]}
    plain = dataclasses.replace(
        spec, weights=weights, activation=activation, rounding=Nearest()
    )
    return quantize(tree, [("w", plain)], sites=sites, ranges=ranges)
