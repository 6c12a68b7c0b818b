"""Rotations of the residual stream and of the heads that spread outliers over all."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jcompress.errors import MismatchError
from jcompress.rescaling._rotation_parts import narrowed
from jcompress.rescaling._rotation_value import CannotRotateError
from jcompress.rescaling._rotation_walk import lengths_of
from jcompress.rescaling.known import Host
from jcompress.rescaling.rescaled import checked, replaced, traced_for
from jcompress.rescaling.rotating import Members, RotatedAxes, Rotations, axis_name
from jcompress.rescaling.scalable import Scaling
from jcompress.shrinking import Groups, find_groups
from jcompress.sites import Sites

_Candidate = tuple[list[int], Members, Mapping[str, Host]]
"""Lengths of vectors to try, the axes, and where in a leaf, if not everywhere."""


@dataclasses.dataclass(frozen=True)
class Rotated:
    """Parameters of the same function with rotated axes; `print` tells which.

    Attributes:
        params: the new tree, for the function as it is.
        rotated: the sets of axes that were rotated.
        skipped: for each other set, by its first axis, why it was not.
        error: by how much the outputs differ on the given arguments, relative to the
            largest.
    """

    params: Any
    rotated: tuple[RotatedAxes, ...]
    skipped: Mapping[str, str]
    error: float

    def __str__(self) -> str:
        lines = [str(one) for one in self.rotated]
        lines += _by_reason(self.skipped)
        return "\n".join([*lines, f"largest relative difference {self.error:.1e}"])


def rotate(
    fn: Callable[..., Any],
    params: Any,
    *args: Any,
    key: jax.Array,
    axes: Sequence[str] | None = None,
    tolerance: float = 1e-5,
    **kwargs: Any,
) -> Rotated:
    """Rotate the residual stream and the heads, so that no channel stands out.

    What writes to a residual stream gets `Q` on its output axis, what reads it `Q^T` on
    its input axis, the embeddings too; so does the pair of values and outputs within
    each head, also where one weight holds queries, keys and values. A large channel is
    then spread over all, which makes activations and weights easier to quantize; the
    function stays the same and costs the same.

    It is found in the traced function: axes that are added to and multiplied with each
    other are candidates, and those are rotated through which only goes what commutes
    with rotations: sums, products with weights, root mean squares. Scales of RMS
    normalisations go into the weights behind them first. A normalisation that takes the
    mean away is kept by rotations that keep the mean. `Q` is a Hadamard matrix with
    random signs, times a random orthogonal matrix where the size needs one.

    Args:
        fn: any function of a parameter tree, such as `model.apply`.
        params: the tree, with concrete arrays.
        *args: further arguments of `fn`, on which the check is made.
        key: for the random signs and factors.
        axes: names `leaf:axis` of axes that must be rotated, each one of its set; by
            default all are that can be.
        tolerance: as of `smooth`.
        **kwargs: further keyword arguments of `fn`.

    Returns:
        The new parameters, what was rotated, and what was not and why.

    Raises:
        MismatchError: nothing can be rotated, or not what `axes` names; with what
            stands in the way: convolutions over the axis, functions of its elements.
        ValueError: an array has no values, or the outputs differ by more than
            `tolerance`.

    References:
        Ashkboos et al. 2024, "QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs",
        section 4, stages 1a and 1b; Liu et al. 2024, "SpinQuant: LLM Quantization with
        Learned Rotations", section 3.1, R1 and R2.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jcompress.rescaling import rotate
        >>> def model(p, x):
        ...     x = x @ p["in"]
        ...     x = x + jax.nn.relu(x @ p["up"]) @ p["down"]
        ...     return x @ p["out"]
        >>> p = {name: jnp.eye(4) for name in ("in", "up", "down", "out")}
        >>> made = rotate(model, p, jnp.ones((2, 4)), key=jax.random.key(0))
        >>> print(made.rotated[0])
        down:1, in:1, out:0, up:0: 4, Hadamard
        >>> print(abs(made.params["in"]))
        [[0.5 0.5 0.5 0.5]
         [0.5 0.5 0.5 0.5]
         [0.5 0.5 0.5 0.5]
         [0.5 0.5 0.5 0.5]]
    """
    traced = traced_for("rotate", fn, params, args, kwargs)
    with jax.default_matmul_precision("highest"):
        groups = find_groups(fn, params, *args, **kwargs)
    scaling = Scaling(traced)
    rotations = Rotations(traced, scaling)
    done: list[RotatedAxes] = []
    skipped: dict[str, str] = {}
    taken: set[tuple[str, int]] = set()
    candidates = [*_whole(groups), *_heads(scaling, lengths_of(traced))]
    for number, (sizes, members, parts) in enumerate(candidates):
        if taken & set(members):
            continue
        try:
            own = jax.random.fold_in(key, number)
            made = rotations.rotate(sizes, members, own, parts)
        except CannotRotateError as found:
            for member in members:
                skipped.setdefault(axis_name(*member), str(found))
            continue
        done.append(made)
        taken |= set(members)
    rotated = {axis for one in done for axis in one.axes}
    skipped = {name: why for name, why in skipped.items() if name not in rotated}
    missing = [name for name in axes or () if name not in rotated]
    if missing or not done:
        fixed = {**groups.fixed, **skipped}
        wanted = missing or list(fixed)
        unknown = "it is no axis that a rotation could reach"
        reasons = "; ".join(_by_reason({n: fixed.get(n, unknown) for n in wanted}))
        raise MismatchError(f"rotate: nothing was rotated. {reasons}")
    error = checked("rotate", traced, rotations.new, tolerance)
    return Rotated(replaced(params, rotations.new), tuple(done), skipped, error)


def _by_reason(skipped: Mapping[str, str]) -> list[str]:
    """One line for all that stay for the same reason."""
    names: dict[str, list[str]] = {}
    for name, why in skipped.items():
        names.setdefault(why, []).append(name)
    return [f"{', '.join(every)} stay: {why}" for why, every in names.items()]


def _whole(groups: Groups) -> Iterator[_Candidate]:
    """Axes whose positions are all coupled one by one, such as a stream's."""
    for group in groups:
        if group.size < 2 or group.inputs or group.outputs:
            continue
        every = np.arange(group.size)
        members = [(one.path, one.axis) for one in group.members]
        whole = all(np.array_equal(np.sort(one.units), every) for one in group.members)
        if whole and not any(_is_stack(groups.sites, *one) for one in members):
            yield [group.size], members, {}


def _is_stack(sites: Sites, path: str, axis: int) -> bool:
    """Whether an axis numbers layers or experts."""
    return any(axis in site.stack_axes for site in sites.of(path))


def _heads(scaling: Scaling, lengths: set[int]) -> Iterator[_Candidate]:
    """The axes of neighbours on which heads and their sizes are merged.

    Of a weight that holds more than what the neighbours read, such as queries and keys
    beside the values, first all is tried, then that part.
    """
    for group in scaling.inputs:
        found = [
            *(_last(scaling, name, inputs=True) for name in group.consumers),
            *(_last(scaling, name, inputs=False) for name in group.producers),
        ]
        members = [one for one in found if one is not None]
        if len(members) < len(found):
            continue
        sizes = [scaling.shape(name)[axis] for name, axis in members]
        common = int(np.gcd.reduce(sizes))
        most = common + (len(set(sizes)) > 1)
        runs = sorted(n for n in lengths if 1 < n < most and common % n == 0)
        if not runs:
            continue
        yield runs[::-1], members, {}
        parts = {}
        for name in group.producers:
            where = scaling.written(name, group.consumers[0])
            if where is not None and not where.all():
                parts[name] = narrowed(where)
        if parts:
            yield runs[::-1], members, parts


def _last(scaling: Scaling, name: str, *, inputs: bool) -> tuple[str, int] | None:
    """The innermost axis of inputs or outputs of a leaf; None if there is none."""
    axes = scaling.axes(name)
    if axes is None:
        rank = len(scaling.shape(name))
        return (name, rank - 1) if rank else None
    found = axes.input if inputs else axes.output
    return (name, found[-1]) if found else None
