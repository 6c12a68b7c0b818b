"""Put variants of a model side by side, in one call."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jcompress.report.counts import nonzero, parameters, stored_bytes
from jcompress.report.measure import Variant, latency
from jcompress.report.metric import Metric
from jcompress.report.programs import Jitted
from jcompress.report.table import Comparison, Facts
from jcompress.sites import find_sites

Batches = Mapping[int, Sequence[tuple[Any, ...]]]


def compare(
    variants: Mapping[str, Variant],
    *args: Any,
    metrics: Sequence[Metric] = (),
    batches: Batches | None = None,
    jit: bool = True,
    rounds: int = 31,
    timed: Callable[[int], None] | None = None,
) -> Comparison:
    """Measure size, speed and quality of several variants of one model.

    Args:
        variants: by name `(fn, params)`, each with its own function and tree, such as
            `{"dense": (fn, params), "int4": (compressed(fn), small)}`; the first is
            the baseline. A tree may hold random keys and functions beside arrays.
        *args: the arguments that follow the tree, the same for all variants. They are
            one batch, whose size is that of the first axis of the first array; for
            timing its examples take turns in their places.
        metrics: how good a variant is.
        batches: what is timed instead of `args`: by batch size, at least two sets of
            the arguments that follow the tree; `latency` rotates them. Multiplications
            are those of the smallest batch, for one example.
        jit: compile the functions. False for functions that are jitted by themselves.
        rounds: rounds of timing.
        timed: called with each batch size when it has been timed.

    Returns:
        The comparison; `print` shows the table. Parameters and zeros are those of the
        collection `params` if the tree is a Flax dict of variables, bytes those of the
        whole tree.

    Raises:
        ValueError: there are fewer than two variants, one is not `(fn, params)`, there
            is nothing to call them with, or `latency` cannot use it.

    Example:
        >>> import jax.numpy as jnp
        >>> from jcompress.execution import compressed
        >>> from jcompress.quantization import Quantize, quantize
        >>> from jcompress.report import Metric, compare
        >>> from jcompress.sites import find_sites
        >>> fn = lambda params, x: x @ params["w"]
        >>> params, x = {"w": jnp.ones((64, 64))}, jnp.ones((2, 64))
        >>> sites = find_sites(fn, params, x)
        >>> small = quantize(params, [(..., Quantize())], sites=sites)
        >>> found = compare(
        ...     {"dense": (fn, params), "int8": (compressed(fn), small)},
        ...     x,
        ...     metrics=[
        ...         Metric("sum", lambda run, p: run(p, x).sum(), higher_is_better=True)
        ...     ],
        ... )
        >>> found.facts["dense"].bytes, found.facts["int8"].bytes
        (16384, 4352)
    """
    _check(variants)
    given = _batches(args) if batches is None else batches
    if not given:
        raise ValueError("compare: batches is empty; give at least one batch size")
    least = min(given)
    arguments = args or given[least][0]
    examples = _batch_size(args) if args else least
    facts = {}
    runs = {name: (Jitted(fn) if jit else fn) for name, (fn, _) in variants.items()}
    for name, (fn, params) in variants.items():
        weights = _weights(params)
        macs = _macs(fn, params, arguments)
        facts[name] = Facts(
            bytes=stored_bytes(params),
            parameters=parameters(weights),
            nonzero=nonzero(weights),
            macs=None if macs is None else macs // examples,
            metrics={m.name: m.value(name, runs[name], params) for m in metrics},
        )
    times = {}
    timed_fns = {name: (runs[name], params) for name, (_, params) in variants.items()}
    for size, inputs in given.items():
        times[size] = latency(timed_fns, inputs, jit=jit, rounds=rounds)
        if timed is not None:
            timed(size)
    return Comparison(facts=facts, latency=times, metrics=tuple(metrics))


def _check(variants: Mapping[str, Variant]) -> None:
    for name, variant in variants.items():
        pair = isinstance(variant, tuple) and len(variant) == 2
        if not pair or not callable(variant[0]):
            raise ValueError(
                f"compare: the variant {name!r} is a {type(variant).__name__}; give "
                "(fn, params), a function and the tree it takes first"
            )
    if len(variants) < 2:
        raise ValueError(
            "compare: a baseline and another variant at least, such as {'dense': (fn, "
            f"params), 'small': (compressed(fn), small)}}; got {list(variants)}"
        )


def _weights(params: Any) -> Any:
    """The collection `params` of a dict of Flax variables, else the whole tree."""
    flax = isinstance(params, Mapping) and "params" in params
    return params["params"] if flax else params


def _macs(fn: Callable[..., Any], params: Any, args: tuple[Any, ...]) -> int | None:
    """Multiplications with weights; None if the function hides what it does."""
    try:
        return find_sites(fn, params, *args).macs
    except ValueError:
        # `compressed(fn)` refuses the dense shapes that are traced; fn takes them.
        inner = getattr(fn, "__wrapped__", None)
        return None if inner is None else find_sites(inner, params, *args).macs


def _batch_size(args: tuple[Any, ...]) -> int:
    for leaf in jax.tree.leaves(args):
        if np.ndim(leaf) and hasattr(leaf, "dtype"):
            return int(leaf.shape[0])
    raise ValueError(
        "compare: give the arguments that follow the tree, with an array led by the "
        "batch among them, or batches={size: [(x,), ...]}"
    )


def _batches(args: tuple[Any, ...]) -> Batches:
    """The same examples in four orders."""
    size = _batch_size(args)

    def moved(leaf: Any, by: int) -> Any:
        if not hasattr(leaf, "dtype") or not np.ndim(leaf) or leaf.shape[0] != size:
            return leaf
        if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf
        return jax.numpy.roll(leaf, by, axis=0)

    return {
        size: [
            jax.tree.map(lambda leaf, by=by: moved(leaf, by), args) for by in range(4)
        ]
    }
