"""Products whose results only parameters scale and shift, channel by channel."""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from jcompress.rescaling.known import Call, Host, Known, Values, narrowed
from jcompress.tracing.jaxprs import Body, Kind, aval_shape, bodies, is_literal, kind_of
from jcompress.tracing.trace import Traced
from jcompress.tracing.values import Location, Place
from jcompress.tracing.views import View, follow
from jcompress.tracing.walk import Domain, Inside, walk

Array = TypeVar("Array", jax.Array, Host)

OUTPUT: Location = (-1,)
"""Where a leaf is used that the function returns."""

_SHIFTS = {"add": 1, "add_any": 1, "sub": -1}
_SCALES = {"mul": 1, "div": -1}
_VIEWS = frozenset(
    {"convert_element_type", "copy", "reshape", "transpose", "squeeze", "expand_dims"}
)


@dataclasses.dataclass(frozen=True)
class AffineStep:
    """One equation that scales or shifts the result of a product.

    Attributes:
        location: where it stands.
        scales: whether it scales rather than shifts.
        sign: 1 to add or multiply, -1 to subtract or divide.
        by: the other input, of size 1 along every axis but the channels'.
        places: which axis of `by` each channel axis is; empty for a scalar.
        data: which input is the product's result.
    """

    location: Location
    scales: bool
    sign: int
    by: Known
    places: tuple[int, ...]
    data: int

    def by_channel(self, array: Array) -> Array:
        """What `by` holds, of the shape of the channels, or () for a scalar."""
        if not self.places:
            return array.reshape(())
        sizes = [array.shape[place] for place in self.places]
        order = [*self.places, *(d for d in range(array.ndim) if d not in self.places)]
        return array.transpose(order).reshape(sizes)

    def vector(self, values: Values) -> Host:
        """What is added or multiplied, by channel, in float64."""
        array = self.by_channel(np.asarray(values(self.by)).astype(np.float64))
        if self.scales and self.sign < 0:
            with np.errstate(divide="ignore"):
                return np.asarray(1 / array)
        return array if self.scales else self.sign * array


@dataclasses.dataclass(eq=False)
class Chain:
    """A product with one weight, and the steps that its result goes through.

    Attributes:
        location: where the product stands.
        operand: which of its inputs is the weight.
        weight: that input.
        channels: for each channel axis, the axis of the result and of the weight.
        sizes: the sizes of the channel axes.
        steps: the steps, in order.
    """

    location: Location
    operand: int
    weight: Known
    channels: tuple[tuple[int, int], ...]
    sizes: tuple[int, ...]
    steps: list[AffineStep] = dataclasses.field(default_factory=list)

    @property
    def places(self) -> set[Location]:
        """Where its equations stand."""
        return {self.location, *(step.location for step in self.steps)}

    def total(self, values: Values) -> tuple[Host, Host]:
        """Factor and shift by channel: `result = factor * product + shift`."""
        factor, shift = np.ones(self.sizes), np.zeros(self.sizes)
        for step in self.steps:
            vector = step.vector(values)
            if step.scales:
                factor, shift = factor * vector, shift * vector
            else:
                shift = shift + vector
        return factor, shift


@dataclasses.dataclass(frozen=True)
class _Data:
    """A value that depends on data: what gave it, and the chain that it ends."""

    origin: str
    chain: Chain | None = None
    view: View | None = None


@dataclasses.dataclass(frozen=True)
class Affine:
    """What `find_chains` found.

    Attributes:
        chains: products of data with one leaf, with their steps.
        used: where each leaf meets data or is returned.
        broken: why a leaf that scales data is in no chain.
    """

    chains: tuple[Chain, ...]
    used: Mapping[int, frozenset[Location]]
    broken: Mapping[int, str]


def find_chains(traced: Traced) -> Affine:
    """Find each product's result for as long as it is only scaled and shifted."""
    chains = _Chains(traced)
    known: list[_Value] = [
        Known(tuple(leaf.shape), frozenset({number}), result=number)
        for number, (_, leaf) in enumerate(traced.sites.leaves)
    ]
    data = (_Data("an input of the function") for _ in traced.data)
    for out in walk(traced.body, [*known, *data], chains):
        if isinstance(out, Known):
            chains.use(out, OUTPUT)
    used = {leaf: frozenset(places) for leaf, places in chains.used.items()}
    return Affine(tuple(chains.found), used, chains.broken)


_Value = Known | _Data


def _shared(body: Body) -> frozenset[Any]:
    """The values with several readers, in a program and in those that it holds."""
    uses = collections.Counter(
        atom
        for atoms in (*(e.invars for e in body.jaxpr.eqns), body.jaxpr.outvars)
        for atom in atoms
        if not is_literal(atom)
    )
    shared = frozenset(atom for atom, times in uses.items() if times > 1)
    held = (b for e in body.jaxpr.eqns if kind_of(e) in _ENTERED for b in bodies(e))
    return shared.union(*map(_shared, held))


_ENTERED = frozenset({Kind.CALL, Kind.INLINE, Kind.REMAT})
"""What runs once, as if it stood in the program around it."""


class _Chains(Domain[_Value]):
    """Follows the results of products for as long as they are scaled and shifted.

    Attributes:
        found: the chains.
        used: where each leaf meets data.
        broken: why a leaf that scales data is in no chain.
    """

    def __init__(self, traced: Traced) -> None:
        self._traced = traced
        self._shared = _shared(traced.body)
        self.found: list[Chain] = []
        self.used: dict[int, set[Location]] = collections.defaultdict(set)
        self.broken: dict[int, str] = {}

    def use(self, value: Known, where: Location) -> None:
        """Leaves meet data, or are returned."""
        for leaf in value.leaves:
            self.used[leaf].add(where)

    def constant(self, value: Any, aval: Any) -> _Value:
        """A value that depends on no leaf."""
        if not isinstance(value, jax.Array):
            value = np.asarray(value, aval.dtype)
        return Known(tuple(aval.shape), frozenset(), value)

    def equation(
        self, eqn: Any, ins: list[_Value], place: Place, inside: Inside[_Value] | None
    ) -> list[_Value]:
        """What becomes of products and of leaves in an equation."""
        ins = self._read(eqn.invars, ins)
        known = [value for value in ins if isinstance(value, Known)]
        if len(known) == len(ins):
            leaves = frozenset[int]().union(*(value.leaves for value in known))
            call = Call(eqn, tuple(known))
            return [
                Known(aval_shape(var), leaves, call, number)
                for number, var in enumerate(eqn.outvars)
            ]
        if inside is not None and kind_of(eqn) in _ENTERED:
            (body,) = bodies(eqn)
            return self._read(body.jaxpr.outvars, inside(ins))
        for value in known:
            self.use(value, place.location)
        if inside is None:
            for attempt in (self._product, self._viewed, self._step):
                out = attempt(eqn, ins, place.location)
                if out is not None:
                    return [out]
        return [_Data(eqn.primitive.name)] * len(eqn.outvars)

    def _read(self, atoms: Sequence[Any], values: list[_Value]) -> list[_Value]:
        """Values as one of their readers may take them: if others read them, too, the
        chain ends there."""
        return [
            _Data(
                f"the result of {self._name(value.chain)}, which is used elsewhere too"
            )
            if isinstance(value, _Data)
            and value.chain
            and not is_literal(atom)
            and atom in self._shared
            else value
            for atom, value in zip(atoms, values, strict=True)
        ]

    def _name(self, chain: Chain) -> str:
        return " and ".join(self._traced.names[leaf] for leaf in chain.weight.leaves)

    def _product(self, eqn: Any, ins: list[Any], here: Location) -> _Data | None:
        name = eqn.primitive.name
        if name not in ("dot_general", "conv_general_dilated"):
            return None
        operand = 0 if isinstance(ins[0], Known) else 1
        weight = ins[operand]
        if not isinstance(weight, Known) or len(weight.leaves) != 1:
            return None
        if name == "conv_general_dilated":
            if operand == 0:
                return None
            spec = eqn.params["dimension_numbers"]
            channels = [(spec.out_spec[1], spec.rhs_spec[0])]
        else:
            channels = _dot_channels(eqn, operand)
        shape = aval_shape(eqn.outvars[0])
        sizes = tuple(shape[out] for out, _ in channels)
        chain = Chain(here, operand, weight, tuple(channels), sizes)
        self.found.append(chain)
        return _Data(name, chain, View.whole(0, shape))

    def _viewed(self, eqn: Any, ins: list[Any], here: Location) -> _Data | None:
        if eqn.primitive.name not in _VIEWS or len(ins) != 1 or not ins[0].chain:
            return None
        view = ins[0].view
        if eqn.primitive.name not in ("convert_element_type", "copy"):
            (view,) = follow(eqn, [view])
        if view is None:
            return None
        return _Data(eqn.primitive.name, ins[0].chain, view)

    def _step(self, eqn: Any, ins: list[Any], here: Location) -> _Data | None:
        name = eqn.primitive.name
        if name not in {**_SHIFTS, **_SCALES} or len(ins) != 2:
            return None
        data = 0 if isinstance(ins[0], _Data) else 1
        value, by = ins[data], ins[1 - data]
        if not isinstance(by, Known):
            return None
        scales = name in _SCALES
        broken = ""
        if value.chain is None:
            broken = f"what it scales comes from {value.origin}, not from a product"
        elif data == 1 and name in ("sub", "div"):
            broken = (
                f"the result of {self._name(value.chain)} is on the right of {name}"
            )
        elif aval_shape(eqn.invars[data]) != aval_shape(eqn.outvars[0]):
            broken = f"it repeats the result of {self._name(value.chain)}"
        else:
            placed = _placed(by, value.view, [out for out, _ in value.chain.channels])
            if placed is not None:
                narrow, places = placed
                sign = (_SCALES if scales else _SHIFTS)[name]
                step = AffineStep(here, scales, sign, narrow, places, data)
                value.chain.steps.append(step)
                return _Data(name, value.chain, value.view)
            broken = f"it is not by output channel of {self._name(value.chain)}"
        if scales:
            self.broken.update(dict.fromkeys(by.leaves, broken))
        return None


def _dot_channels(eqn: Any, operand: int) -> list[tuple[int, int]]:
    """Pairs of axes of the result and of the weight, those of batches included."""
    contract, batch = eqn.params["dimension_numbers"]
    ranks = [len(aval_shape(atom)) for atom in eqn.invars]
    free = [
        [d for d in range(rank) if d not in (*contract[i], *batch[i])]
        for i, rank in enumerate(ranks)
    ]
    count = len(batch[0])
    start = count if operand == 0 else count + len(free[0])
    pairs = list(enumerate(batch[operand]))
    return pairs + [(start + n, d) for n, d in enumerate(free[operand])]


def _placed(
    by: Known, view: View | None, channels: list[int]
) -> tuple[Known, tuple[int, ...]] | None:
    """A value that meets a chain, without repeats, and where its channels are."""
    assert view is not None
    if not by.shape:
        return by, ()
    places = []
    for channel in channels:
        found = [
            place
            for place, factors in enumerate(view.dims)
            if any(factor.axis == channel for factor in factors)
        ]
        if len(found) != 1 or len(view.dims[found[0]]) != 1 or view.partial:
            return None
        places.append(found[0])
    narrow = narrowed(by)
    others = [n for d, n in enumerate(narrow.shape) if d not in places]
    if len(narrow.shape) != len(view.dims) or math.prod(others) != 1:
        return None
    return narrow, tuple(places)
