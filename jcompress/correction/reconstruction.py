"""Reconstruction: the rounding of a block is learned from the block's own outputs."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.conversion import replace_leaves
from jcompress.errors import MismatchError
from jcompress.leaves import named_leaves
from jcompress.quantization import Quantize, fake_quant
from jcompress.rounding.copies import counted
from jcompress.rounding.offsets import Offsets, Start, round_with
from jcompress.rules import Predicate, resolve
from jcompress.sites import find_sites
from jcompress.statistics import Input, NamedScope, Output, tap
from jcompress.tensors import QTensor, is_compressed
from jcompress.tensors.axes import from_matrix, to_matrix
from jcompress.tensors.specs import Activation, Dynamic, MovingAverage, Static

_LOOKS = 10
"""How often all batches are looked at on the way, to keep the best seen."""


class Reconstruction(NamedTuple):
    """What `reconstruct` tells while it works.

    Attributes:
        step: how many steps are done.
        error: the mean squared error over all batches, relative to the outputs.
        least: the least seen so far; what is returned has it.
    """

    step: int
    error: float
    least: float


def reconstruct(
    fn: Callable[..., Any],
    params: Any,
    small: Any,
    batches: Sequence[tuple[Any, ...]],
    *,
    leaves: Predicate = ...,
    places: Sequence[Input | Output | NamedScope] | None = None,
    steps: int = 200,
    learning_rate: float = 0.005,
    on_look: Callable[[Reconstruction], None] | None = None,
) -> Any:
    """Learn the rounding of a block of weights together, from the block's outputs.

    Rounding a weight by itself makes the error of its own products small. What matters
    is the error of what the layers around it make of them: after the nonlinearity, the
    attention, the residual sum. Here all weights of a block are adjusted at once, so
    that its outputs on the batches are those of the float model. What is learned is as
    in `SignRound`: an offset for each weight before it is rounded, up to half a step,
    and the ends of each range. It starts at the numbers that `small` holds, however
    they were chosen, and keeps the best seen, so that on the batches no result is worse
    than `small`.

    Take the blocks in the order of execution, each with its place; or the whole model
    at once, with the function's outputs. A step runs the function up to the places,
    forward and backward, on one batch.

    Args:
        fn: any function of a parameter tree, such as `model.apply`.
        params: the parameters before they were quantized, dense.
        small: the same tree with `QTensor` leaves, such as `quantize` gives.
        batches: the further arguments of `fn`, one tuple for each batch, at least one;
            all of the same shapes, or there is a compilation for each. The outputs of
            the float model for all of them are kept in memory.
        leaves: which quantized leaves are adjusted; all others stay as they are.
        places: the outputs of the block, as for `tap`: `[NamedScope("**/layer_3")]` of
            a Flax model, `[Output("layer_3/bias")]`. None for the function's results.
        steps: how many, taking the batches in turn.
        learning_rate: the size of the first step; it falls linearly to 0.
        on_look: called ten times on the way.

    Returns:
        `small` with other numbers and scales in the leaves of the block, in the same
        formats.

    Raises:
        ValueError: there is no batch, `steps` is no positive int or `learning_rate` is
            not above 0.
        MismatchError: no leaf in `leaves` is a `QTensor`, or a leaf of `params` is
            compressed or of another shape; a place matches nothing, or no output is of
            floats.

    References:
        Li et al. 2021, "BRECQ: Pushing the Limit of Post-Training Quantization by Block
        Reconstruction", section 3.2; Cheng et al. 2023, "Optimize Weight Rounding via
        Signed Gradient Descent for the Quantization of LLMs", section 3.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jcompress.correction import reconstruct
        >>> from jcompress.execution import compressed
        >>> from jcompress.formats import Int
        >>> from jcompress.quantization import Quantize, Weights, quantize
        >>> from jcompress.sites import find_sites
        >>> model = lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"]
        >>> a, b, x = (jax.random.normal(jax.random.key(n), (32, 32)) for n in range(3))
        >>> params = {"a": a, "b": b}
        >>> rules = [(..., Quantize(weights=Weights(format=Int(3))))]
        >>> small = quantize(params, rules, sites=find_sites(model, params, x))
        >>> better = reconstruct(model, params, small, [(x,)], steps=100)
        >>> def error(tree):
        ...     far = compressed(model)(tree, x) - model(params, x)
        ...     return float(jnp.square(far).sum())
        >>> error(better) < 0.7 * error(small), better["a"].form
        (True, 'int3')
    """
    _check(batches, steps, learning_rate)
    chosen = _chosen(fn, params, small, batches, leaves)
    run = fn if places is None else _values(tap(fn, places))
    acted = _with_activations(run, small)
    plain = jax.jit(run)
    wanted = [_floats(plain(params, *batch)) for batch in batches]
    if not jax.tree.leaves(wanted[0]):
        raise MismatchError(
            "reconstruct: the outputs hold no floats, so there is nothing to match; "
            "give places= whose values are floats"
        )
    named = dict(named_leaves(params))
    blocks = {path: _Block.of(named[path], tensor) for path, tensor in chosen.items()}
    fixed = {path: block.start for path, block in blocks.items()}, _densified(small)
    size = sum(float(sum(jnp.sum(jnp.square(x)) for x in each)) for each in wanted)
    unit = np.float32(size / len(wanted) or 1.0)

    def loss(now: Any, fixed: Any, wanted: Any, *batch: Any) -> jax.Array:
        starts, tree = fixed
        made = {path: blocks[path].dense(now[path], starts[path]) for path in now}
        outs = _floats(acted(replace_leaves(tree, made), *batch))
        pairs = zip(outs, wanted, strict=True)
        return sum((jnp.sum(jnp.square(a - b)) for a, b in pairs), jnp.zeros(())) / unit

    @jax.jit
    def step(now: Any, fixed: Any, rate: Any, wanted: Any, *batch: Any) -> Any:
        gradient = jax.grad(loss)(now, fixed, wanted, *batch)
        return {path: now[path].moved(gradient[path], rate) for path in now}

    judge = jax.jit(loss)

    def error(now: Any) -> float:
        pairs = zip(wanted, batches, strict=True)
        each = [judge(now, fixed, outs, *batch) for outs, batch in pairs]
        return float(sum(each)) / len(batches)

    now = {path: block.none() for path, block in blocks.items()}
    first, best, least = now, now, error(now)
    every = -(-steps // _LOOKS)
    for number in range(steps):
        rate = np.float32(learning_rate * (1 - number / steps))
        at = number % len(batches)
        now = step(now, fixed, rate, wanted[at], *batches[at])
        if (number + 1) % every == 0 or number + 1 == steps:
            found = error(now)
            if found < least:
                best, least = now, found
            if on_look is not None:
                on_look(Reconstruction(number + 1, found, least))
    if best is first:
        return small
    made = {path: block.stored(best[path]) for path, block in blocks.items()}
    return replace_leaves(small, made)


@dataclasses.dataclass(frozen=True)
class _Block:
    """One leaf that is adjusted; its copies in a stack are flattened to one axis."""

    tensor: QTensor
    start: Start

    @classmethod
    def of(cls, leaf: Any, tensor: QTensor) -> "_Block":
        format = tensor.format
        matrix = to_matrix(jnp.asarray(leaf).astype(jnp.float32), tensor.axes)
        numbers = tensor.numbers.astype(jnp.float32) * np.float32(format.unit)
        scales = tensor.scale_format.read(tensor.scales, tensor.scale_factor)
        zeros = tensor.zeros
        parts: Any = (numbers, matrix, scales)
        if zeros is not None:
            parts = (*parts, zeros.astype(jnp.float32))
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[-2:]), parts)

        def one(numbers: Any, matrix: Any, scales: Any, zeros: Any = None) -> Start:
            return Start.at(numbers, matrix, scales, zeros, format)

        start: Start = jax.jit(jax.vmap(one))(*flat)
        return cls(tensor, start)

    def none(self) -> Offsets:
        return Offsets.none(self.start.matrix, self.start.span.low)

    def _rounded(self, now: Offsets, start: Start) -> Any:
        kinds = self.tensor.format, self.tensor.scale_format
        return jax.vmap(lambda now, start: round_with(now, start, *kinds))(now, start)

    def dense(self, now: Offsets, start: Start) -> jax.Array:
        """The leaf, with gradients to what is learned."""
        tensor = self.tensor
        matrix: jax.Array = self._rounded(now, start)[0].reshape(tensor.matrix_shape)
        return from_matrix(matrix, tensor.axes, tensor.shape).astype(tensor.dtype)

    def stored(self, now: Offsets) -> QTensor:
        """The leaf as it is stored."""
        tensor = self.tensor
        _, numbers, scales, zeros = jax.jit(self._rounded)(now, self.start)
        shape = tensor.scales.shape
        values = counted(numbers, tensor.format).reshape(tensor.matrix_shape)
        stored, factor = tensor.scale_format.store(scales.reshape(shape))
        if zeros is not None:
            zeros = zeros.reshape(shape).astype(tensor.format.dtype)
        return dataclasses.replace(
            tensor,
            values=tensor.format.pack(values),
            scales=stored,
            scale_factor=factor,
            zeros=zeros,
        )


def _check(
    batches: Sequence[tuple[Any, ...]], steps: int, learning_rate: float
) -> None:
    if not batches:
        raise ValueError(
            "reconstruct: batches is empty; give at least one tuple of the arguments "
            "that the function takes after the tree"
        )
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f"reconstruct: steps is a positive int, not {steps!r}")
    if not learning_rate > 0:
        raise ValueError(
            f"reconstruct: learning_rate is above 0, not {learning_rate!r}"
        )


def _chosen(
    fn: Callable[..., Any],
    params: Any,
    small: Any,
    batches: Sequence[tuple[Any, ...]],
    leaves: Predicate,
) -> dict[str, QTensor]:
    """The leaves to adjust, by name."""
    sites = find_sites(fn, params, *batches[0])
    asked = resolve([(leaves, True)], sites, transform="reconstruct").leaves
    floats, others = dict(named_leaves(params)), dict(named_leaves(small))
    chosen = {}
    for path in asked:
        tensor = others.get(path)
        if not isinstance(tensor, QTensor):
            continue
        if is_compressed(floats[path]) or floats[path].shape != tensor.shape:
            raise MismatchError(
                f"reconstruct: {path!r} of params is not the dense leaf "
                f"{list(tensor.shape)} that small was made from"
            )
        chosen[path] = tensor
    if not chosen:
        kinds = {path: type(others.get(path)).__name__ for path in asked}
        raise MismatchError(
            "reconstruct: no leaf in `leaves` is a QTensor in small, so there is no "
            f"rounding to learn; they are {kinds}; give what quantize returns"
        )
    return chosen


def _values(tapped: Callable[..., Any]) -> Callable[..., Any]:
    return lambda params, *batch: tapped(params, *batch)[1]


def _floats(outs: Any) -> list[jax.Array]:
    """All floats of a tree of outputs, in float32."""
    arrays = map(jnp.asarray, jax.tree.leaves(outs))
    return [
        x.astype(jnp.float32) for x in arrays if jnp.issubdtype(x.dtype, jnp.floating)
    ]


def _densified(tree: Any) -> Any:
    return jax.tree.map(
        lambda leaf: leaf.dense() if is_compressed(leaf) else leaf,
        tree,
        is_leaf=is_compressed,
    )


def _with_activations(run: Callable[..., Any], small: Any) -> Callable[..., Any]:
    """The function with the data quantized as the leaves of `small` say."""
    rules: list[tuple[Predicate, Quantize | None]] = []
    ranges = {}
    for path, leaf in named_leaves(small):
        base = getattr(leaf, "base", leaf)
        if not isinstance(base, QTensor) or base.activation is None:
            continue
        activation = base.activation
        if not isinstance(activation.range, Dynamic):
            if not isinstance(activation.range, MovingAverage | Static):
                # What was trained is stored as ranges.
                activation = dataclasses.replace(activation, range=Static())
            ranges[path] = tuple(
                scale.range(activation.format) for scale in base.input_scales
            )
        rules.append((_only(path), _acting(activation)))
    if not rules:
        return run
    return fake_quant(run, rules, ranges=ranges or None)


def _only(path: str) -> Predicate:
    return functools.partial(_is, path)


def _is(path: str, site: Any) -> bool:
    return bool(site.path == path)


def _acting(activation: Activation) -> Quantize:
    return Quantize(weights=None, activation=activation)
