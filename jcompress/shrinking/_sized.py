"""Evaluate single equations on arrays from which positions were removed."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.shrinking._axis_maps import linear_solve_bodies, linear_solve_inputs
from jcompress.tracing.interpreter import Program, Resizing
from jcompress.tracing.jaxprs import Body
from jcompress.tracing.values import Location

Keep = np.ndarray[Any, np.dtype[np.bool_]] | None
"""Which positions of an axis are kept; None for all."""
Keeps = tuple[Keep, ...]
Resizer = Callable[[Body, Sequence[Keeps]], tuple[Resizing, list[Keeps]]]
"""How a program runs on smaller inputs, and which positions of its results stay."""


def cut(array: Any, keeps: Keeps) -> Any:
    """An array without the removed positions."""
    # Arrays of the host stay there.
    take: Any = np.take if isinstance(array, np.ndarray) else jnp.take
    for axis, keep in enumerate(keeps):
        if keep is not None:
            array = take(array, np.flatnonzero(keep), axis=axis)
    return array


@dataclasses.dataclass(frozen=True)
class SizedEquation:
    """An equation that is evaluated at other sizes than those of the trace.

    Attributes:
        program: the program that it stands in.
        eqn: the equation.
        ins: its inputs.
        here: where it stands.
        before: which positions of its inputs are kept.
        after: which positions of its results are kept.
        resizer: for programs made out of the equation, such as its gradient.
    """

    program: Program
    eqn: Any
    ins: list[Any]
    here: Location
    before: list[Keeps]
    after: list[Keeps]
    resizer: Resizer

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that the first result has now."""
        sizes = zip(self.eqn.outvars[0].aval.shape, self.after[0], strict=True)
        return tuple(n if keep is None else int(keep.sum()) for n, keep in sizes)


Change = dict[str, Any] | list[Any]
"""Other static parameters of an equation, or its results."""


def _broadcast(at: SizedEquation) -> Change:
    return {"shape": at.shape}


def _reshape(at: SizedEquation) -> Change:
    return {"new_sizes": at.shape}


def _slice(at: SizedEquation) -> Change:
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


def _split(at: SizedEquation) -> Change:
    axis = at.eqn.params["axis"]
    sizes = [
        size if keeps[axis] is None else int(keeps[axis].sum())
        for size, keeps in zip(at.eqn.params["sizes"], at.after, strict=True)
    ]
    return {"sizes": tuple(sizes)}


def _pad(at: SizedEquation) -> Change:
    config = []
    for (low, high, interior), keep in zip(
        at.eqn.params["padding_config"], at.after[0], strict=True
    ):
        if keep is not None:
            low, high = int(keep[:low].sum()), int(keep[len(keep) - high :].sum())
        config.append((low, high, interior))
    return {"padding_config": tuple(config)}


def _gather(at: SizedEquation) -> Change:
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


def _conv(at: SizedEquation) -> Change:
    groups = at.eqn.params["feature_group_count"]
    keep = at.before[0][at.eqn.params["dimension_numbers"].lhs_spec[1]]
    if groups == 1 or keep is None:
        return {}
    return {"feature_group_count": int(keep.reshape(groups, -1)[:, 0].sum())}


def _linear_solve(at: SizedEquation) -> Change:
    consts, right = linear_solve_inputs(at.eqn, at.ins)

    def run(name: str) -> Callable[..., Any] | None:
        if name not in programs:
            return None
        number = list(programs).index(name)

        def call(*given: Any) -> Any:
            # A solver is also handed the matrix as a function, which it has itself.
            outs, _ = at.program.run(
                programs[name], [*consts[name], *given[-1]], (*at.here, number), {}
            )
            return outs

        return call

    programs = linear_solve_bodies(at.eqn)
    matvec, solve = run("matvec"), run("solve")
    assert matvec is not None
    assert solve is not None
    return list(
        jax.lax.custom_linear_solve(
            matvec, right, solve, transpose_solve=run("transpose_solve")
        )
    )


def _random_bits(at: SizedEquation) -> Change:
    return {"shape": at.shape[at.ins[0].ndim :]}


SIZED: dict[str, Callable[[SizedEquation], Change]] = {
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "slice": _slice,
    "split": _split,
    "pad": _pad,
    "gather": _gather,
    "dynamic_slice": _gather,
    "conv_general_dilated": _conv,
    "random_bits": _random_bits,
    "custom_linear_solve": _linear_solve,
}
"""What becomes of the operations that have sizes, by the name of the primitive."""
