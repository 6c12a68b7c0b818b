"""What a few equations compute, found by evaluating them on some rows with NumPy.

A normalisation or an activation function can be written in many ways. Instead of
knowing them all, one evaluates the equations on numbers, and compares with the
functions that there are kernels for. The rows are few, and axes before the last are one
here.
"""

import dataclasses
import enum
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jcompress.tracing.jaxprs import Body, Kind, aval_shape, bodies, is_literal, kind_of

Array = np.ndarray[Any, np.dtype[Any]]


class Form(enum.IntFlag):
    """Along which axes of [rows, last axis] a value may change."""

    SCALAR = 0
    VECTOR = 1
    """Along the last axis."""
    ROW = 2
    """From row to row."""
    FULL = 3


class Unknown(Exception):
    """An equation is none of those that can be evaluated row by row."""


_erf = np.vectorize(math.erf, otypes=[np.float64])
_erfc = np.vectorize(math.erfc, otypes=[np.float64])

_NUMPY: Mapping[str, Callable[..., Any]] = {
    "abs": np.abs,
    "add": np.add,
    "add_any": np.add,
    "copy": np.array,
    "div": np.divide,
    "eq": np.equal,
    "erf": _erf,
    "erfc": _erfc,
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "ge": np.greater_equal,
    "gt": np.greater,
    "le": np.less_equal,
    "log": np.log,
    "log1p": np.log1p,
    "logistic": lambda x: 0.5 + 0.5 * np.tanh(0.5 * x),
    "lt": np.less,
    "max": np.maximum,
    "min": np.minimum,
    "mul": np.multiply,
    "ne": np.not_equal,
    "neg": np.negative,
    "pow": np.power,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "select_n": lambda which, *cases: np.where(which, cases[-1], cases[0]),
    "sign": np.sign,
    "sqrt": np.sqrt,
    "square": np.square,
    "stop_gradient": np.array,
    "sub": np.subtract,
    "tanh": np.tanh,
}
_REDUCTIONS: Mapping[str, Callable[..., Any]] = {
    "reduce_max": np.max,
    "reduce_sum": np.sum,
}


@dataclasses.dataclass(frozen=True)
class Rows:
    """Values of some rows.

    Attributes:
        numbers: float64, of a shape that broadcasts to [rows, last axis].
        form: along which axes they may change.
        order: where the axes before the last come from, if they were transposed; ()
            if they are as the region's arrays have them.
    """

    numbers: Array
    form: Form
    order: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Region:
    """Equations that work on the rows of arrays of one shape.

    Attributes:
        body: the program.
        shape: of the whole arrays.
        given: the values that the region begins with.
    """

    body: Body
    shape: tuple[int, ...]
    given: Mapping[Any, Rows]

    def evaluate(self, equations: Sequence[int]) -> dict[Any, Rows]:
        """The values of some equations, in order; those that it begins with, too.

        Raises:
            Unknown: one of them cannot be evaluated row by row.
        """
        known = dict(self.given)
        with np.errstate(all="ignore"):
            for number in equations:
                eqn = self.body.jaxpr.eqns[number]
                outs = self._equation(eqn, [self._value(v, known) for v in eqn.invars])
                known.update(zip(eqn.outvars, outs, strict=True))
        return known

    def _value(self, atom: Any, known: Mapping[Any, Rows]) -> Rows:
        if is_literal(atom):
            if np.ndim(atom.val):
                raise Unknown
            return Rows(np.full((1, 1), atom.val, np.float64), Form.SCALAR)
        if atom not in known:
            raise Unknown
        return known[atom]

    def _equation(self, eqn: Any, ins: list[Rows]) -> list[Rows]:
        name = eqn.primitive.name
        out = eqn.outvars[0].aval
        if kind_of(eqn) in (Kind.CUSTOM_GRADIENT, Kind.CALL, Kind.INLINE):
            (body,) = bodies(eqn)
            if body.consts or name == "custom_vjp_call":
                raise Unknown
            inner = Region(
                body, self.shape, dict(zip(body.jaxpr.invars, ins, strict=True))
            )
            known = inner.evaluate(range(len(body.jaxpr.eqns)))
            return [inner._value(atom, known) for atom in body.jaxpr.outvars]
        if name in ("broadcast_in_dim", "reshape", "squeeze"):
            return [self._placed(eqn, ins[0])]
        if name in _REDUCTIONS:
            axes = tuple(eqn.params["axes"])
            if axes != (len(self.shape) - 1,) or not ins[0].form & Form.VECTOR:
                raise Unknown
            numbers = _REDUCTIONS[name](ins[0].numbers, axis=1, keepdims=True)
            return [Rows(numbers, ins[0].form & ~Form.VECTOR, ins[0].order)]
        if name == "transpose":
            return [self._transposed(eqn, ins[0])]
        form = Form.SCALAR
        for one in ins:
            form |= one.form
        orders = {one.order for one in ins if one.form & Form.ROW}
        if len(orders) > 1:
            raise Unknown
        order = orders.pop() if orders else ()
        values = [one.numbers for one in ins]
        if name == "convert_element_type":
            narrow = not _floating(eqn.invars[0].aval) and form is not Form.SCALAR
            if narrow or not _floating(out):
                raise Unknown
            return [Rows(values[0], form, order)]
        if name == "integer_pow":
            return [Rows(values[0] ** eqn.params["y"], form, order)]
        if name == "clamp":
            low, x, high = values
            return [Rows(np.minimum(np.maximum(x, low), high), form, order)]
        if name not in _NUMPY or (name == "select_n" and len(ins) != 3):
            raise Unknown
        return [Rows(np.asarray(_NUMPY[name](*values), np.float64), form, order)]

    def _placed(self, eqn: Any, value: Rows) -> Rows:
        """A value after a change of shape that leaves it on its rows and last axis."""
        before = aval_shape(eqn.invars[0])
        after = aval_shape(eqn.outvars[0])
        rank = len(self.shape)
        shape = self.shape
        if value.order:
            shape = (*(shape[d] for d in value.order), shape[-1])
        if eqn.primitive.name == "broadcast_in_dim":
            dims = tuple(int(d) for d in eqn.params["broadcast_dimensions"])
        else:
            dims = _kept(before, after)
        fits = all(size in (1, full) for size, full in zip(after, shape, strict=False))
        own = [d for d, size in zip(dims, before, strict=True) if size != 1]
        if value.form is Form.SCALAR:
            return value
        if value.form is Form.ROW and len(after) == rank - 1 and after == shape[:-1]:
            return (
                value if own == [d for d in range(rank - 1) if after[d] != 1] else _no()
            )
        if len(after) != rank or not fits:
            raise Unknown
        lead = [d for d in range(rank - 1) if shape[d] != 1]
        last = [rank - 1] if shape[-1] != 1 else []
        wanted = (lead if value.form & Form.ROW else []) + (
            last if value.form & Form.VECTOR else []
        )
        return value if own == wanted else _no()

    def _transposed(self, eqn: Any, value: Rows) -> Rows:
        """A value whose axes before the last change places."""
        moved = tuple(int(d) for d in eqn.params["permutation"])
        rank = len(self.shape)
        if value.form is Form.SCALAR:
            return value
        if len(moved) == rank and moved[-1] == rank - 1:
            moved = moved[:-1]
        if len(moved) != rank - 1 or not value.form & Form.ROW:
            raise Unknown
        before = value.order or tuple(range(rank - 1))
        order = tuple(before[d] for d in moved)
        kept = order == tuple(range(rank - 1))
        return dataclasses.replace(value, order=() if kept else order)


def _no() -> Any:
    raise Unknown


def _floating(aval: Any) -> bool:
    return bool(aval.dtype in (np.float32, np.float64))


def _kept(before: Sequence[int], after: Sequence[int]) -> tuple[int, ...]:
    """Where axes are after a reshape that adds or drops those of size 1.

    Raises:
        Unknown: it does something else.
    """
    places = [d for d, size in enumerate(after) if size != 1]
    if [size for size in before if size != 1] != [after[d] for d in places]:
        raise Unknown
    rest = iter(places)
    return tuple(next(rest) if size != 1 else 0 for size in before)


def full(
    generator: np.random.Generator, size: int, small: Sequence[float] = ()
) -> Rows:
    """Rows that differ in size and in mean, for what is done to each.

    Args:
        generator: of random numbers.
        size: of a row.
        small: standard deviations of more rows, whose mean is about 0.
    """
    deviations = np.array([0.3, 1.0, 4.0, *small])[:, None]
    means = np.array([0.2, 0.0, -1.0, *(0.0 for _ in small)])[:, None]
    numbers = generator.normal(size=(len(deviations), size))
    return Rows(numbers * deviations + means, Form.FULL)


def vector(generator: np.random.Generator, size: int) -> Rows:
    """Numbers that are the same for all rows."""
    return Rows(generator.normal(size=(1, size)) + 0.5, Form.VECTOR)


def same(a: Array, b: Array, tolerance: float = 1e-6) -> bool:
    """Whether numbers agree, relative to the largest of their row."""
    if not np.isfinite(a).all() or not np.isfinite(b).all():
        return False
    top = np.maximum(np.abs(b).max(axis=-1, keepdims=True), 1e-30)
    return bool((np.abs(a - b) <= tolerance * top).all())
