"""Whole units of a leaf: output channels, input rows, heads, layers."""

import abc
import dataclasses
import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jcompress.errors import MismatchError
from jcompress.pruning._host import mean_of_first
from jcompress.pruning.patterns.base import Pattern, check_divides, is_whole
from jcompress.tensors.axes import Axes


class Roles(NamedTuple):
    """The axes of a leaf as a pattern of whole units sees them.

    Attributes:
        rest: axes along which all entries go together.
        rows: axes that number rows, of which each loses units of its own.
        units: axes that number the units.
    """

    rest: tuple[int, ...]
    rows: tuple[int, ...]
    units: tuple[int, ...]


class Units(Pattern):
    """All entries at one position of some axes go together, or of a run of positions.

    Subclasses say which axes number the units, and how many units there are.
    """

    @abc.abstractmethod
    def roles(self, axes: Axes) -> Roles:
        """The role of each axis."""

    def units(self, positions: int) -> int:
        """How many units the positions along the axes make: equal runs."""
        return positions

    def rows(self, scores: Any, axes: Axes) -> Any:
        """A row of the means of all units; `Roles.rows` numbers the rows."""
        roles, shape = self.roles(axes), scores.shape
        rest, rows, positions = _sizes(shape, roles)
        units = self.units(positions)
        # Most leaves have their inputs first: for channels this copies nothing.
        ordered = scores.transpose(roles.rest + roles.rows + roles.units)
        if units == positions:
            entries = ordered.reshape(rest, rows * units)
        else:
            runs = ordered.reshape(rest, rows, units, positions // units)
            entries = runs.transpose(0, 3, 1, 2).reshape(-1, rows * units)
        return mean_of_first(entries).reshape(rows, units)

    def row_shape(self, shape: tuple[int, ...], axes: Axes) -> tuple[int, int]:
        """The number of rows, and of the units of each."""
        _, rows, positions = _sizes(shape, self.roles(axes))
        return rows, self.units(positions)

    def spread(self, keep: Any, shape: tuple[int, ...], axes: Axes) -> Any:
        """Each verdict on all entries of its unit."""
        roles = self.roles(axes)
        _, _, positions = _sizes(shape, roles)
        np_or_jnp = np if isinstance(keep, np.ndarray) else jnp
        runs = np_or_jnp.repeat(keep, positions // self.units(positions), axis=1)
        order = roles.rest + roles.rows + roles.units
        lined = runs.reshape([shape[axis] for axis in roles.rows + roles.units])
        whole = np_or_jnp.broadcast_to(lined, tuple(shape[axis] for axis in order))
        return whole.transpose(tuple(order.index(axis) for axis in range(len(shape))))


def _sizes(shape: tuple[int, ...], roles: Roles) -> tuple[int, int, int]:
    rest, rows, units = (math.prod(shape[axis] for axis in part) for part in roles)
    return rest, rows, units


@dataclasses.dataclass(frozen=True)
class Channels(Units):
    """Whole output channels: all entries with the same place on the output axes.

    Of a leaf that is only looked up, such as an embedding, these are its rows.
    """

    def check(self, path: str, shape: tuple[int, ...], axes: Axes) -> None:
        """Raise `MismatchError` if the leaf has fewer than two channels."""
        _check_several(
            path, shape, self.row_shape(shape, axes)[1], "output channel", axes.output
        )

    def roles(self, axes: Axes) -> Roles:
        """The output axes number the units."""
        return Roles(axes.input, axes.stack, axes.output)


@dataclasses.dataclass(frozen=True)
class Rows(Units):
    """Whole input units: all entries with the same place on the input axes.

    A leaf that loses one ignores this input. Of a convolution without `axis` a unit is
    an input channel at one place of the window, as rows of its patches are.

    Attributes:
        axis: the only input axis that numbers the units; of a convolution kernel
            (height, width, inputs, outputs) `Rows(axis=2)` removes input channels. None
            takes all input axes.

    Raises:
        ValueError: `axis` is no integer from 0 on.
    """

    axis: int | None = None

    def __post_init__(self) -> None:
        if self.axis is not None and not (is_whole(self.axis) and self.axis >= 0):
            raise ValueError(f"Rows: axis is an integer from 0 on, not {self.axis!r}")

    def check(self, path: str, shape: tuple[int, ...], axes: Axes) -> None:
        """Raise `MismatchError` if `axis` is no input axis, or there is one unit."""
        if self.axis is not None and self.axis not in axes.input:
            raise MismatchError(
                f"{path!r} of shape {shape}: axis {self.axis} of {self!r} is no input "
                f"axis; those are {axes.input}"
            )
        units = self.roles(axes).units
        _check_several(path, shape, self.row_shape(shape, axes)[1], "input unit", units)

    def roles(self, axes: Axes) -> Roles:
        """The input axes, or one of them, number the units."""
        units = axes.input if self.axis is None else (self.axis,)
        rest = tuple(axis for axis in axes.input if axis not in units)
        return Roles(axes.output + rest, axes.stack, units)


@dataclasses.dataclass(frozen=True)
class Heads(Units):
    """Whole heads of attention: equal runs of a projection's outputs, or inputs.

    The output axes of a query, key or value projection, flattened in their order, are
    cut into `number` runs, each a head, whether the leaf is (width, heads, size) or
    (width, heads * size). Of the projection after attention the inputs are.

    Attributes:
        number: how many heads the leaf has.
        inputs: whether the heads lie along the inputs.

    Raises:
        ValueError: `number` is no integer from 2 on.

    References:
        Michel et al. 2019, "Are Sixteen Heads Really Better than One?".
    """

    number: int
    inputs: bool = dataclasses.field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if not (is_whole(self.number) and self.number > 1):
            raise ValueError(
                f"Heads: number is an integer from 2 on, not {self.number!r}"
            )

    def __repr__(self) -> str:
        return f"Heads({self.number}{', inputs=True' if self.inputs else ''})"

    def check(self, path: str, shape: tuple[int, ...], axes: Axes) -> None:
        """Raise `MismatchError` if the heads do not divide their axes."""
        side = axes.input if self.inputs else axes.output
        noun = "inputs" if self.inputs else "outputs"
        total = math.prod(shape[axis] for axis in side)
        check_divides(self, path, shape, self.number, total, noun, side)

    def roles(self, axes: Axes) -> Roles:
        """The output axes, or the input axes, number the units."""
        if self.inputs:
            return Roles(axes.output, axes.stack, axes.input)
        return Roles(axes.input, axes.stack, axes.output)

    def units(self, positions: int) -> int:
        """As many as there are heads."""
        return self.number


@dataclasses.dataclass(frozen=True)
class Layers(Units):
    """Whole layers of a stacked leaf: all entries of one copy, such as a scan's step.

    A copy of zeros in each leaf of a residual block leaves what passes by it.
    `jcompress.depth` takes layers out of the program.
    """

    def check(self, path: str, shape: tuple[int, ...], axes: Axes) -> None:
        """Raise `MismatchError` if the leaf does not hold several copies."""
        _check_several(
            path, shape, self.row_shape(shape, axes)[1], "stacked layer", axes.stack
        )

    def roles(self, axes: Axes) -> Roles:
        """The stack axes number the units."""
        return Roles(axes.output + axes.input, (), axes.stack)


def _check_several(
    path: str, shape: tuple[int, ...], count: int, noun: str, axes: tuple[int, ...]
) -> None:
    if count < 2:
        raise MismatchError(
            f"{path!r} of shape {shape} has {count} {noun} ({noun.split()[0]} axes "
            f"{axes}), which must stay; put the rule ({path!r}, None) before"
        )
