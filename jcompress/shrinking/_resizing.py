"""Evaluate a traced program on arrays from which positions were removed."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress._interpreter import Program, Resizing, bind
from jcompress._jaxprs import Body, bodies
from jcompress._trace import Traced
from jcompress._values import Location
from jcompress.shrinking._coupling import Choices, Coupling
from jcompress.shrinking._ids import FIXED, Ids, Why
from jcompress.shrinking._labels import Labels

Keep = np.ndarray[Any, np.dtype[np.bool_]] | None
"""Which positions of an axis are kept; None for all."""
Keeps = tuple[Keep, ...]
_PASSES = 8


class Conflict(Exception):
    """An operation does not allow the removal of positions of an input.

    Attributes:
        number: which input.
        axis: which of its axes.
        why: the operation.
    """

    def __init__(self, number: int, axis: int, why: Why) -> None:
        super().__init__(number, axis, why)
        self.number, self.axis, self.why = number, axis, why


def passes(coupled: Callable[[Choices], Coupling]) -> Coupling:
    """Repeat a pass with other choices until no choice can be bettered."""
    choices: Choices = {}
    best = coupled(choices)
    for _ in range(_PASSES):
        better = best.failing()
        if not better:
            break
        choices = {**choices, **better}
        best = coupled(choices)
    return best


def resizing(body: Body, keeps: Sequence[Keeps]) -> tuple[Resizing, list[Keeps]]:
    """How a program runs on inputs from which positions were removed.

    Args:
        body: the program.
        keeps: for each input and each of its axes which positions are kept.

    Returns:
        What the interpreter needs, and which positions of the results are kept.

    Raises:
        Conflict: an operation fixes what is to be removed.
    """
    outs: list[Labels] = []

    def coupled(choices: Choices) -> Coupling:
        one = Coupling(choices)
        inputs = []
        removed.clear()
        for number, (var, axes) in enumerate(
            zip(body.jaxpr.invars, keeps, strict=True)
        ):
            ids = []
            for axis, keep in enumerate(axes):
                size = var.aval.shape[axis]
                ids.append(np.full(size, FIXED, np.int64))
                if keep is not None:
                    (gone,) = one.ties.fresh(1)
                    removed[int(gone)] = number, axis
                    ids[-1][~keep] = gone
            inputs.append(Labels(tuple(ids)))
        outs[:] = one.run(body, inputs)
        return one

    removed: dict[int, tuple[int, int]] = {}
    coupling = passes(coupled)
    component = coupling.ties.components()
    fixed = coupling.ties.fixed()
    gone = np.zeros(component.max() + 1, bool)
    for one, (number, axis) in removed.items():
        if fixed[one]:
            why = coupling.ties.why_fixed(np.array([one]))
            raise Conflict(number, axis, why or Why("an input"))
        gone[component[one]] = True
    keep_of = _Keeps(gone[component])
    equations = {}
    for here, (ins, results) in coupling.equations.items():
        before = [keep_of(value) for value in ins]
        after = [keep_of(value) for value in results]
        count = _count(coupling, here, keep_of)
        if count is not None or any(k is not None for v in before + after for k in v):
            equations[here] = functools.partial(
                _resized, before=before, after=after, count=count
            )
    consts = {}
    for at, labels in coupling.consts.items():
        held = [keep_of(value) for value in labels]
        if any(keep is not None for value in held for keep in value):
            consts[at] = held
    return Resizing(equations, _cut_consts(body, consts)), [keep_of(v) for v in outs]


class _Keeps:
    """Reads off a table of removed ids which positions of a value are kept."""

    def __init__(self, gone: np.ndarray[Any, np.dtype[np.bool_]]) -> None:
        self._gone = gone
        self._gone[FIXED] = False

    def __call__(self, value: Labels) -> Keeps:
        return tuple(map(self.axis, value.ids))

    def axis(self, ids: Ids) -> Keep:
        gone = self._gone[ids]
        return ~gone if gone.any() else None


def _count(
    coupling: Coupling, here: Location, keep_of: _Keeps
) -> tuple[int, float] | None:
    """Which input is the number of terms of a sum, and the factor of that number."""
    if here not in coupling.counts:
        return None
    operand, reciprocal, summed = coupling.counts[here]
    (ins, _) = coupling.equations[here]
    before = after = 1
    for ids in summed:
        keep = keep_of.axis(ids)
        before *= len(ids)
        after *= len(ids) if keep is None else int(keep.sum())
    if before == after:
        return None
    number = ins[operand].number
    assert number is not None
    terms = 1 / number if reciprocal else number
    less = round(before - terms)
    left = max(after - less, 1)
    return operand, (terms / left if reciprocal else left / terms)


def _cut_consts(
    body: Body, held: dict[Location, list[Keeps]]
) -> dict[Location, tuple[Any, ...]]:
    """The constants of programs within the program, without what was removed."""
    found = {}
    for at, keeps in held.items():
        inner = body
        for index in range(0, len(at), 2):
            inner = bodies(inner.jaxpr.eqns[at[index]])[at[index + 1]]
        found[at] = tuple(map(cut, inner.consts, keeps))
    return found


def cut(array: Any, keeps: Keeps) -> Any:
    """An array without the removed positions."""
    # Arrays of the host stay there.
    take: Any = np.take if isinstance(array, np.ndarray) else jnp.take
    for axis, keep in enumerate(keeps):
        if keep is not None:
            array = take(array, np.flatnonzero(keep), axis=axis)
    return array


def _resized(
    program: Program,
    eqn: Any,
    ins: list[Any],
    here: Location,
    *,
    before: list[Keeps],
    after: list[Keeps],
    count: tuple[int, float] | None,
) -> list[Any]:
    if count is not None:
        operand, factor = count
        ins = list(ins)
        ins[operand] = ins[operand] * jnp.asarray(factor, jnp.result_type(ins[operand]))
    own = _RESIZED.get(eqn.primitive.name)
    if own is None:
        return bind(eqn, ins)
    change = own(_Equation(program, eqn, ins, here, before, after))
    return change if isinstance(change, list) else bind(eqn, ins, **change)


@dataclasses.dataclass(frozen=True)
class _Equation:
    program: Program
    eqn: Any
    ins: list[Any]
    here: Location
    before: list[Keeps]
    after: list[Keeps]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that the first result has now."""
        sizes = zip(self.eqn.outvars[0].aval.shape, self.after[0], strict=True)
        return tuple(n if keep is None else int(keep.sum()) for n, keep in sizes)


Change = dict[str, Any] | list[Any]
"""Other static parameters of an equation, or its results."""


def _broadcast(at: _Equation) -> Change:
    return {"shape": at.shape}


def _reshape(at: _Equation) -> Change:
    return {"new_sizes": at.shape}


def _iota(at: _Equation) -> Change:
    (whole,) = bind(at.eqn, at.ins)
    return [cut(whole, at.after[0])]


def _slice(at: _Equation) -> Change:
    p = at.eqn.params
    rank = len(at.before[0])
    strides = p["strides"] or (1,) * rank
    starts, limits, steps = [], [], []
    (value,) = at.ins
    for axis, keep in enumerate(at.before[0]):
        start, limit, step = p["start_indices"][axis], p["limit_indices"][axis], 1
        if keep is None:
            step = strides[axis]
        else:
            wanted = np.zeros(len(keep), bool)
            wanted[start : limit : strides[axis]] = True
            # Among the kept positions those that the slice takes.
            taken = np.flatnonzero(wanted[keep])
            start, limit = (int(taken[0]), int(taken[-1]) + 1) if len(taken) else (0, 0)
            if limit - start != len(taken):
                value = jnp.take(value, taken, axis=axis)
                start, limit = 0, len(taken)
        starts.append(start)
        limits.append(limit)
        steps.append(step)
    return [jax.lax.slice(value, starts, limits, steps)]


def _split(at: _Equation) -> Change:
    axis = at.eqn.params["axis"]
    sizes = [
        size if keeps[axis] is None else int(keeps[axis].sum())
        for size, keeps in zip(at.eqn.params["sizes"], at.after, strict=True)
    ]
    return {"sizes": tuple(sizes)}


def _pad(at: _Equation) -> Change:
    config = []
    for (low, high, interior), keep in zip(
        at.eqn.params["padding_config"], at.after[0], strict=True
    ):
        if keep is not None:
            low, high = int(keep[:low].sum()), int(keep[len(keep) - high :].sum())
        config.append((low, high, interior))
    return {"padding_config": tuple(config)}


def _gather(at: _Equation) -> Change:
    numbers = at.eqn.params.get("dimension_numbers")
    # Of an axis that the indices have as well, one position is taken at a time.
    batch = () if numbers is None else numbers.operand_batching_dims
    sizes = [
        size if keep is None or axis in batch else int(keep.sum())
        for axis, (size, keep) in enumerate(
            zip(at.eqn.params["slice_sizes"], at.before[0], strict=True)
        )
    ]
    return {"slice_sizes": tuple(sizes)}


def _conv(at: _Equation) -> Change:
    groups = at.eqn.params["feature_group_count"]
    keep = at.before[0][at.eqn.params["dimension_numbers"].lhs_spec[1]]
    if groups == 1 or keep is None:
        return {}
    return {"feature_group_count": int(keep.reshape(groups, -1)[:, 0].sum())}


def _random_bits(at: _Equation) -> Change:
    return {"shape": at.shape[at.ins[0].ndim :]}


def _body(at: _Equation) -> Callable[..., list[Any]]:
    (body,) = bodies(at.eqn)

    def run(*values: Any) -> list[Any]:
        outs, _ = at.program.run(body, values, (*at.here, 0), {})
        return outs

    return run


def _floats(values: Sequence[Any]) -> list[int]:
    return [i for i, v in enumerate(values) if jnp.issubdtype(v.dtype, jnp.inexact)]


def _at(values: Sequence[Any], numbers: Sequence[int], new: Sequence[Any]) -> list[Any]:
    whole = list(values)
    for number, value in zip(numbers, new, strict=True):
        whole[number] = value
    return whole


def _custom_jvp(at: _Equation) -> Change:
    """The function's own rule, traced at its own sizes and shrunk as well."""
    numbers = _floats([var.aval for var in at.eqn.invars])

    def rule(values: Sequence[Any], tangents: Sequence[Any]) -> Any:
        return jax.jvp(
            lambda *given: bind(at.eqn, _at(values, numbers, given)),
            [values[i] for i in numbers],
            list(tangents),
        )

    call = jax.custom_jvp(_body(at))

    @call.defjvp
    def _(primals: Sequence[Any], tangents: Sequence[Any]) -> Any:
        small = _again(at, rule, numbers)
        return small(list(primals), [tangents[i] for i in numbers])

    return list(call(*at.ins))


def _custom_vjp(at: _Equation) -> Change:
    numbers = _floats([var.aval for var in at.eqn.invars])
    outs = _floats([var.aval for var in at.eqn.outvars])

    def rule(values: Sequence[Any], cotangents: Sequence[Any]) -> Any:
        def of_floats(*given: Any) -> list[Any]:
            results = bind(at.eqn, _at(values, numbers, given))
            return [results[i] for i in outs]

        _, back = jax.vjp(of_floats, *(values[i] for i in numbers))
        return list(back(list(cotangents)))

    call = jax.custom_vjp(_body(at))

    def forward(*values: Any) -> Any:
        return call(*values), values

    def backward(values: Any, cotangents: Any) -> Any:
        small = _again(at, rule, outs, of_results=True)
        found = small(list(values), [cotangents[i] for i in outs])
        return tuple(_at([None] * len(values), numbers, found))

    call.defvjp(forward, backward)
    return list(call(*at.ins))


def _again(
    at: _Equation, rule: Any, numbers: list[int], of_results: bool = False
) -> Callable[..., Any]:
    """A gradient rule, traced at the sizes of the trace, on the arrays there are."""
    atoms = at.eqn.outvars if of_results else at.eqn.invars
    keeps = at.after if of_results else at.before

    def dense(atom: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(atom.aval.shape, atom.aval.dtype)

    closed, shape = jax.make_jaxpr(rule, return_shape=True)(
        [dense(atom) for atom in at.eqn.invars], [dense(atoms[i]) for i in numbers]
    )
    body = Body.of(closed)
    change, _ = resizing(body, [*at.before, *(keeps[i] for i in numbers)])
    program = dataclasses.replace(at.program, resizing=change, handlers={})

    def run(values: list[Any], others: list[Any]) -> Any:
        outs, _ = program.run(body, [*values, *others], (), {})
        return jax.tree.unflatten(jax.tree.structure(shape), outs)

    return run


_RESIZED: dict[str, Callable[[_Equation], Change]] = {
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "iota": _iota,
    "slice": _slice,
    "split": _split,
    "pad": _pad,
    "gather": _gather,
    "dynamic_slice": _gather,
    "conv_general_dilated": _conv,
    "random_bits": _random_bits,
    "custom_jvp_call": _custom_jvp,
    "custom_vjp_call": _custom_vjp,
}


def evaluate(
    traced: Traced, leaves: Sequence[Any], keeps: Sequence[Keeps]
) -> tuple[list[Any], list[Keeps]]:
    """Run a traced function on leaves from which positions were removed."""
    data = [(None,) * np.ndim(value) for value in traced.data]
    change, outs = resizing(traced.body, [*keeps, *data])
    program = Program(traced=traced, handlers={}, resizing=change)
    results, _ = program(leaves, traced.data)
    return results, outs
