"""`LowRank`: a weight stored as a chain of thin factors."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jcompress.tensors.axes import Axes
from jcompress.tensors.base import CompressedTensor, Rebuild, is_compressed
from jcompress.tensors.matrix import MatrixTensor
from jcompress.tensors.rounding import round_to

Factor = jax.Array | CompressedTensor
"""A factor: trainable floats, or itself a compressed leaf."""


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LowRank(MatrixTensor):
    """A weight stored as factors that are applied to the data one after the other.

    With the matrix [*S, N, K] of `MatrixTensor`, L factors and R_0 = K, R_L = N:

        factors[i]: [*S, R_(i+1), R_i],  matrix[s] = factors[L-1][s] ... factors[0][s]

    The kernel of a convolution can also be split over its window. `windows[i]` are
    then the axes of the dense array over which factor i slides, with the sizes W_i; the
    input axes in no window are the channels, R_0 is the product of their sizes, and

        factors[i]: [*S, R_(i+1), *W_i, R_i]
        dense[s, n, w_0, ..., w_(L-1), c]
            = sum over r of factors[L-1][s, n, w_(L-1), r_(L-1)] ...
              factors[0][s, r_1, w_0, c]

    in float32, the axes in their places, then cast to `dtype`. So `((), (0, 1), ())`
    is Tucker-2 and `((0,), (1,))` a column of the window after the other.

    A factor with a window may be depthwise: it slides over each of its channels apart,
    R_(i+1) = R_i > 1, is stored as [*S, R_(i+1), *W_i, 1], and stands for

        full[s, r_(i+1), w_i, r_i] = factors[i][s, r_i, w_i, 0] if r_(i+1) = r_i else 0

    So `((), (0,), (1,), ())` with depthwise factors in the middle is a CP split.

    Invariants, checked on construction: L >= 2; the shapes above; the windows are
    disjoint and hold input axes; an array is of a float dtype; a compressed factor is
    stored with the stack axes leading, then its output axis, the rest inputs, and
    does not quantize its data.

    Attributes:
        factors: the factors, the first of which meets the data.
        windows: the axes that each factor slides over, increasing; () for a matrix.

    Raises:
        ValueError: an invariant does not hold.
    """

    arrays: ClassVar[tuple[str, ...]] = ("factors",)

    factors: tuple[Factor, ...]
    windows: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        windows = tuple(tuple(int(axis) for axis in w) for w in self.windows)
        object.__setattr__(self, "factors", tuple(self.factors))
        object.__setattr__(self, "windows", windows if any(windows) else ())
        super().__post_init__()

    @property
    def form(self) -> str:
        """The ranks, such as "rank 8"."""
        return f"rank {'x'.join(map(str, self.ranks))}"

    @property
    def channel_axes(self) -> tuple[int, ...]:
        """The input axes over which no factor slides."""
        slid = {axis for window in self.windows for axis in window}
        return tuple(axis for axis in self.input_axes if axis not in slid)

    @property
    def window_of(self) -> tuple[tuple[int, ...], ...]:
        """The window of each factor."""
        return self.windows or ((),) * len(self.factors)

    @property
    def ranks(self) -> tuple[int, ...]:
        """R_1 to R_(L-1): the sizes between the factors."""
        place = len(self.stack_axes)
        return tuple(factor.shape[place] for factor in self.factors[:-1])

    @property
    def depthwise(self) -> tuple[bool, ...]:
        """Whether each factor slides over its channels apart."""
        given = (math.prod(self.shape[a] for a in self.channel_axes), *self.ranks)
        return tuple(
            bool(window) and size > 1 and factor.shape[-1] == 1
            for window, size, factor in zip(
                self.window_of, given, self.factors, strict=True
            )
        )

    def check_arrays(self) -> None:
        """Raise ValueError if a factor is not of the shape and kind it should be."""
        if len(self.factors) < 2:
            raise ValueError(
                f"LowRank: a product has two factors at least, not {len(self.factors)}"
            )
        self._check_windows()
        stacks = tuple(self.shape[axis] for axis in self.stack_axes)
        given = math.prod(self.shape[axis] for axis in self.channel_axes)
        outputs = math.prod(self.shape[axis] for axis in self.output_axes)
        last = len(self.factors) - 1
        for number, factor in enumerate(self.factors):
            window = tuple(self.shape[axis] for axis in self.window_of[number])
            rank = len(stacks) + len(window) + 2
            found = tuple(factor.shape)
            made = found[len(stacks)] if len(found) == rank else 0
            wanted = (*stacks, outputs if number == last else made, *window, given)
            apart = bool(window) and made == given
            fits = found == wanted or (apart and found == (*wanted[:-1], 1))
            if not fits or not made:
                free = str(outputs) if number == last else "R"
                sizes = [*map(str, stacks), free, *map(str, window), str(given)]
                raise ValueError(
                    f"LowRank: factor {number} is {list(found)}, not "
                    f"[{', '.join(sizes)}]"
                )
            _check_kind(number, factor, len(stacks))
            given = made

    def _check_windows(self) -> None:
        if self.windows and len(self.windows) != len(self.factors):
            raise ValueError(
                f"LowRank: {len(self.windows)} windows for {len(self.factors)} factors"
            )
        slid = [axis for window in self.windows for axis in window]
        inputs = set(self.input_axes)
        ordered = all(list(window) == sorted(window) for window in self.windows)
        if len(set(slid)) != len(slid) or not inputs.issuperset(slid) or not ordered:
            raise ValueError(
                f"LowRank: windows {self.windows} are not disjoint increasing parts of "
                f"the input axes {self.input_axes}"
            )

    def _dense(self) -> jax.Array:
        stacks = [self.shape[axis] for axis in self.stack_axes]
        lead = len(stacks)
        made: jax.Array | None = None
        for factor, apart in zip(self.factors, self.depthwise, strict=True):
            part = dense_factor(factor).astype(jnp.float32)
            if apart:
                made = _slid_apart(part, made, stacks)
                continue
            if made is None:
                made = part.reshape(*stacks, part.shape[lead], -1)
                continue
            # The window so far moves inwards, the new one stands before it.
            wide = part.reshape(*stacks, -1, part.shape[-1])
            product = jnp.matmul(wide, made, precision=jax.lax.Precision.HIGHEST)
            made = product.reshape(*stacks, part.shape[lead], -1)
        assert made is not None
        slid = tuple(axis for window in self.windows[::-1] for axis in window)
        order = (*self.stack_axes, *self.output_axes, *slid, *self.channel_axes)
        whole = made.reshape([self.shape[axis] for axis in order])
        places = tuple(order.index(axis) for axis in range(len(order)))
        return round_to(jnp.transpose(whole, places), self.dtype)

    def unstack(self) -> tuple[list[jax.Array], Rebuild] | None:
        """Open the leaf for a loop over its axis 0.

        Returns:
            The arrays of the factors, each led by axis 0 of the dense array, and the
            function that makes the leaf of one slice; None unless axis 0 is a stack
            axis.
        """
        if 0 not in self.stack_axes:
            return None
        opened = [open_part(factor) for factor in self.factors]

        def rebuild(slices: Sequence[jax.Array]) -> CompressedTensor:
            return dataclasses.replace(
                self,
                factors=tuple(close_parts(opened, slices)),
                windows=tuple(tuple(a - 1 for a in w) for w in self.windows),
                **self.sliced(),
            )

        return [array for arrays, _ in opened for array in arrays], rebuild


Opened = tuple[list[jax.Array], Rebuild | None]
"""The arrays of one part of a leaf, and how one slice of it is made; None: an array."""


def open_part(part: Factor) -> Opened:
    """Open an array or a compressed leaf for a loop over its axis 0.

    Raises:
        ValueError: the storage of the compressed leaf is not led by axis 0.
    """
    if not isinstance(part, CompressedTensor):
        return [part], None
    found = part.unstack()
    if found is None:
        raise ValueError(
            f"a {type(part).__name__} whose first axis is no stack axis cannot be "
            "taken apart"
        )
    return found


def close_parts(opened: Sequence[Opened], slices: Sequence[Any]) -> list[Any]:
    """Make the slices of several parts from one slice of each of their arrays."""
    parts: list[Any] = []
    start = 0
    for arrays, rebuild in opened:
        mine = slices[start : start + len(arrays)]
        parts.append(mine[0] if rebuild is None else rebuild(list(mine)))
        start += len(arrays)
    return parts


def _slid_apart(
    part: jax.Array, made: jax.Array | None, stacks: list[int]
) -> jax.Array:
    """A depthwise factor [*S, R, *W, 1] on what the factors before it make [*S, R, M].

    Returns:
        [*S, R, W M]; with no factor before it, of the channels themselves.
    """
    rank = part.shape[len(stacks)]
    if made is None:
        made = jnp.broadcast_to(jnp.eye(rank, dtype=part.dtype), (*stacks, rank, rank))
    wide, columns = part.reshape(*stacks, rank, -1, 1), made[..., None, :]
    shape = (*stacks, rank, wide.shape[-2], columns.shape[-1])
    product = jnp.broadcast_to(wide, shape) * jnp.broadcast_to(columns, shape)
    return product.reshape(*stacks, rank, -1)


def dense_factor(factor: Factor) -> jax.Array:
    """The array that a factor is or stands for."""
    return factor.dense() if is_compressed(factor) else jnp.asarray(factor)


def factor_axes(rank: int, stacks: int) -> Axes:
    """The role of each axis of a factor, by its number of axes; stack axes lead."""
    return Axes(tuple(range(stacks)), (stacks,), tuple(range(stacks + 1, rank)))


def _check_kind(number: int, factor: Factor, stacks: int) -> None:
    if not is_compressed(factor):
        if not jnp.issubdtype(factor.dtype, jnp.floating):
            raise ValueError(
                f"LowRank: factor {number} is {factor.dtype}; arrays are of floats"
            )
        return
    axes = getattr(factor, "axes", None)
    if axes != factor_axes(len(factor.shape), stacks):
        raise ValueError(
            f"LowRank: factor {number} is a {type(factor).__name__} with {axes}, not "
            f"{factor_axes(len(factor.shape), stacks)}"
        )
    if getattr(factor, "activation", None) is not None:
        raise ValueError(
            f"LowRank: factor {number} quantizes its data; a factor has no activation"
        )
