"""Folding: a scale and shift by channel goes into the product before it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.errors import MismatchError
from jcompress.leaves import path_name
from jcompress.rescaling.affine import find_chains
from jcompress.rescaling.fold_chain import Attempt, Made, StaysError
from jcompress.rescaling.fold_chain import Folded as Folded
from jcompress.rescaling.fold_chain import Neutral as Neutral
from jcompress.rescaling.fold_factor import FoldFactor as FoldFactor
from jcompress.rescaling.known import Host, Values
from jcompress.sites import Operation
from jcompress.tensors import is_compressed
from jcompress.tracing.handlers import Bind, Handler
from jcompress.tracing.interpreter import Program
from jcompress.tracing.trace import Traced, trace
from jcompress.tracing.values import Location, Use


@dataclasses.dataclass(frozen=True)
class Folding:
    """What `fold` made; `print` tells it.

    Attributes:
        variables: the tree with the weights folded and the rest neutral (factors 1,
            means 0, variances 1 - epsilon), for the function as it is.
        small: the same tree with None for the leaves in `removed`, for
            `folded(fn, removed)`.
        removed: what the leaves are that need not be stored, by name.
        folded: what went where.
        skipped: for each other leaf that scales data, why it stays.
    """

    variables: Any
    small: Any
    removed: Mapping[str, Neutral]
    folded: tuple[Folded, ...]
    skipped: Mapping[str, str]

    def __str__(self) -> str:
        lines = [
            f"{one.weight} took in {', '.join(one.neutral)}"
            + (f"; {one.bias} is the shift" if one.bias else "")
            for one in self.folded
        ]
        lines += [f"{path} stays: {why}" for path, why in self.skipped.items()]
        return "\n".join(lines)


def fold(fn: Callable[..., Any], variables: Any, *args: Any, **kwargs: Any) -> Folding:
    """Fold batch normalization, and other scales by channel, into weights.

    Where only parameters scale and shift the result of a product or convolution,
    channel by channel, and nothing else uses it in between, the factors go into the
    weight and the shifts into one leaf:

        ((W x + b - mean) / sqrt(var + eps)) * scale + bias = (a W) x + shift

    The result is found in the traced function, whatever its layers are called: dense,
    grouped, depthwise and transposed convolutions and products; Linen, NNX or your own
    arithmetic; batch normalization in evaluation mode, and learned scales of layers.
    Every fold is checked by evaluating what the parameters give before and after.

    Two things can be had. `fn` on `Folding.variables` gives the outputs that it gave,
    up to rounding: one weight to prune or quantize, but the normalization is still
    computed. `folded(fn, removed)` on `Folding.small` does without: fewer leaves and
    fewer operations.

    Args:
        fn: any function of a parameter tree, in evaluation mode, such as
            `functools.partial(model.apply, train=False)`.
        variables: the tree, statistics included, with concrete arrays.
        *args: further arguments of `fn`; shapes suffice.
        **kwargs: further keyword arguments of `fn`.

    Returns:
        The new trees, and what was folded and what not.

    Raises:
        MismatchError: nothing can be folded; the error names every leaf that scales
            data and why it stays.
        ValueError: a leaf is traced, or the tree has no array.

    References:
        Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference", section 3.2.

    Example:
        >>> import jax.numpy as jnp
        >>> from jcompress.rescaling.folding import fold, folded
        >>> def layer(p, x):
        ...     return (x @ p["w"] - p["mean"]) * p["scale"]
        >>> p = {"w": jnp.eye(2), "mean": jnp.ones(2), "scale": jnp.array([2.0, 3.0])}
        >>> made = fold(layer, p, jnp.ones((1, 2)))
        >>> made.variables["w"], list(made.removed)
        (Array([[2., 0.],
               [0., 3.]], dtype=float32), ['scale'])
        >>> folded(layer, made.removed)(made.small, jnp.array([[1.0, 2.0]]))
        Array([[0., 3.]], dtype=float32)
    """
    traced, made, skipped = _attempted("fold", fn, variables, args, kwargs)
    changed: dict[int, Any] = {}
    removed: dict[str, Neutral] = {}
    for one in made:
        changed.update(one.leaves)
        removed.update(one.removed)
    named = {traced.names[leaf]: value for leaf, value in changed.items()}
    full = jax.tree_util.tree_map_with_path(
        lambda path, leaf: named.get(path_name(path), leaf),
        variables,
        is_leaf=is_compressed,
    )
    small = jax.tree_util.tree_map_with_path(
        lambda path, leaf: None if path_name(path) in removed else leaf,
        full,
        is_leaf=is_compressed,
    )
    done = tuple(one.folded for one in made)
    return Folding(full, small, removed, done, skipped)


def find_folds(
    fn: Callable[..., Any], variables: Any, *args: Any, **kwargs: Any
) -> dict[str, FoldFactor]:
    """Find by what `fold` would multiply each weight, to train as it will be served.

    A weight that is folded before it is quantized is rounded with the scale of its
    normalization inside. `fake_quant(train, rules, folds=find_folds(evaluate,
    variables, x))` rounds it so while it is trained: whatever the running variance and
    the scale are at that step, and though the training itself normalizes with the
    statistics of the batch. It matters where channels share a scale (`PerTensor()`,
    `PerBlock(...)`), where scales are learned, or stored coarsely; a float scale for
    each channel, taken from its weights, grows with them, and nothing changes.

    Args:
        fn: the function that will be served, in evaluation mode, of the tree that is
            trained: the same names, statistics included.
        variables: the tree, with concrete arrays; those of `model.init` will do.
        *args: further arguments of `fn`; shapes suffice.
        **kwargs: further keyword arguments of `fn`.

    Returns:
        For each weight that takes in what follows its product, by its name, its
        factor, a function of the leaves.

    Raises:
        MismatchError, ValueError: as `fold`.

    References:
        Jacob et al. 2018, section 3.2; Krishnamoorthi 2018, "Quantizing deep
        convolutional networks for efficient inference: A whitepaper", section 3.2.2.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jcompress.formats import Int
        >>> from jcompress.quantization import (
        ...     PerTensor, Quantize, Weights, fake_quant, quantize)
        >>> from jcompress.rescaling import find_folds, fold, folded
        >>> from jcompress.sites import find_sites
        >>> def train(p, x):
        ...     y = x @ p["w"]
        ...     return y / jnp.sqrt(y.var(0, keepdims=True) + 1e-5) * p["scale"][None]
        >>> def evaluate(p, x):
        ...     return x @ p["w"] / jnp.sqrt(p["var"][None] + 1e-5) * p["scale"][None]
        >>> w = jax.random.normal(jax.random.key(0), (8, 3))
        >>> p = {"w": w, "var": jnp.array([1.0, 9, 25]), "scale": jnp.array([5., 1, 2])}
        >>> x = jax.random.normal(jax.random.key(1), (4, 8))
        >>> folds = find_folds(evaluate, p, x)
        >>> spec = Weights(format=Int(4), granularity=PerTensor())
        >>> rules = [("w", Quantize(weights=spec))]
        >>> loss = lambda p: fake_quant(train, rules, folds=folds)(p, x).sum()
        >>> jax.grad(loss)(p)["w"].shape
        (8, 3)
        >>> made = fold(evaluate, p, x)  # and serve it
        >>> serve = folded(evaluate, made.removed)
        >>> sites = find_sites(serve, made.small, x)
        >>> small = quantize(made.small, rules, sites=sites)
        >>> trained = fake_quant(evaluate, rules, folds=folds)(p, x)
        >>> bool(jnp.allclose(x @ small["w"].dense(), trained, atol=1e-5))
        True
    """
    _, made, _ = _attempted("find_folds", fn, variables, args, kwargs)
    return {one.folded.weight: one.factor for one in made}


def _attempted(
    transform: str,
    fn: Callable[..., Any],
    variables: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> tuple[Traced, list[Made], dict[str, str]]:
    """The folds that can be made, and why other leaves that scale data stay."""
    traced = trace(fn, variables, args, kwargs)
    for name, leaf in zip(traced.names, traced.leaves, strict=True):
        parts = jax.tree.leaves(leaf)
        if any(isinstance(part, jax.core.Tracer) for part in parts):
            raise ValueError(
                f"{transform}: {name} is traced, and folding looks at its values; call "
                "it outside of jit"
            )
    affine = find_chains(traced)
    done: list[Made] = []
    skipped = {traced.names[leaf]: why for leaf, why in affine.broken.items()}
    for chain in affine.chains:
        attempt = Attempt(traced, affine, chain)
        try:
            made = attempt.fold()
        except StaysError as stays:
            for leaf in attempt.scaling:
                skipped[traced.names[leaf]] = str(stays)
            continue
        if made is not None:
            done.append(made)
    told = [one.folded for one in done]
    gone = {path for one in told for path in (*one.neutral, one.weight, one.bias)}
    for site in traced.sites:
        scales = site.primitive in ("mul", "div")
        if scales and site.operation is Operation.ELEMENTWISE:
            why = "a loop, a branch or a function with a custom gradient uses it"
            skipped.setdefault(site.path, why)
    skipped = {path: why for path, why in skipped.items() if path not in gone}
    if not done:
        reasons = "; ".join(f"{path}: {why}" for path, why in skipped.items())
        raise MismatchError(
            f"{transform}: nothing to fold. "
            + (reasons or "No leaf scales the result of a product by channel")
            + ". Batch normalization folds in evaluation mode only"
        )
    return traced, done, skipped


def folded(
    fn: Callable[..., Any], removed: Mapping[str, Neutral]
) -> Callable[..., Any]:
    """Make a function leave out the normalization that `fold` took into the weights.

    Args:
        fn: the function given to `fold`.
        removed: `Folding.removed`, the leaves left out. They depend on the function
            only, not on the values of its parameters: a fresh process that loads
            `Folding.small` gets them from `fold` with any variables.

    Returns:
        A function of `Folding.small` with the further arguments and the results of
        `fn`. Called, it raises MismatchError if a leaf in `removed` is present in the
        tree or not known, or if the function uses one for something else than scaling
        and
        shifting a product's result (in training mode, say).
    """

    @functools.wraps(fn)
    def run(variables: Any, *args: Any, **kwargs: Any) -> Any:
        full = _filled(variables, removed)
        traced = trace(fn, full, args, kwargs)
        affine = find_chains(traced)
        out = {n: name for n, name in enumerate(traced.names) if name in removed}
        steps = [step for chain in affine.chains for step in chain.steps]
        idle: dict[Location, Handler] = {}
        # The factors are constants, also where the function is being traced.
        with jax.ensure_compile_time_eval():
            values = Values(
                [_constant(removed[out[n]]) if n in out else None
                 for n in range(len(traced.names))]
            )  # fmt: skip
            for step in steps:
                known = step.by.leaves and step.by.leaves <= out.keys()
                if known and _does_nothing(step.vector(values), step.scales):
                    idle[step.location] = _Skip(step.data)
        for leaf in out:
            if affine.used.get(leaf, frozenset()) - {step.location for step in steps}:
                raise MismatchError(
                    f"folded: {traced.names[leaf]} was folded away, and the function "
                    "called here uses it for more than scaling the result of a "
                    "product; call it in the mode in which fold traced it"
                )
        outs, _ = Program(traced=traced, handlers=idle)(traced.leaves, traced.data)
        return traced.rebuild(outs)

    return run


@dataclasses.dataclass(frozen=True)
class _Skip:
    """Handler of an equation that does nothing: hands one input on."""

    operand: int

    def __call__(
        self, use: Use, inputs: list[Any], bind: Bind, read: Any
    ) -> tuple[list[Any], Any]:
        return [inputs[self.operand]], None


def _constant(neutral: Neutral) -> jax.Array:
    return jnp.full(neutral.shape, neutral.value, neutral.dtype)


def _filled(variables: Any, removed: Mapping[str, Neutral]) -> Any:
    flat, structure = jax.tree_util.tree_flatten_with_path(
        variables, is_leaf=lambda x: x is None or is_compressed(x)
    )
    names = [path_name(path) for path, _ in flat]
    if not removed or set(removed) - set(names):
        odd = ", ".join(sorted(set(removed) - set(names))) or "nothing"
        raise MismatchError(
            f"folded: {odd} was removed, which is no leaf of the tree: "
            f"{', '.join(names[:8])}"
        )
    leaves = []
    for name, (_, leaf) in zip(names, flat, strict=True):
        if name in removed and leaf is not None:
            raise MismatchError(
                f"folded: {name} is present, though it was folded away; give "
                "Folding.small"
            )
        leaves.append(_constant(removed[name]) if name in removed else leaf)
    return jax.tree.unflatten(structure, leaves)


def _does_nothing(vector: Host, scales: bool) -> bool:
    neutral = np.abs(vector - 1) < 1e-5 if scales else vector == 0
    return bool(np.all(neutral))
