"""How far the outputs of a compressed model are off, and how long a call takes."""

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.models.compressed import Compressed, fastest, verdict
from jcompress.models.work import Arguments
from jcompress.report import latency
from jcompress.report.programs import Jitted


class NotFaster(UserWarning):
    """A compressed model takes as long as the dense one, or longer."""


def measured(small: Compressed) -> Compressed:
    """Run both on the example and time them; each is compiled once.

    Warns:
        NotFaster: it takes as long as the dense model, or longer.
    """
    variants = _variants(small)
    error = _error(small, variants)
    taken = latency(variants, [small.args, _moved(small.args)])
    ratio = taken.ratio("compressed")
    times = (ratio.low, ratio.median, ratio.high)
    if verdict(times) != "faster":
        warnings.warn(
            f"compress: a call takes {ratio.median:.2f} times as long as that of the "
            f"dense model ({ratio.low:.2f} to {ratio.high:.2f}), here and on this "
            "example. Small layers and single rows gain little; a larger batch or "
            "w8a8() may gain more. expect(...) tells the time of each leaf",
            NotFaster,
            stacklevel=3,
        )
    return dataclasses.replace(small, error=error, times=times)


def output_error(small: Compressed) -> float:
    """The length of the difference of outputs on the example over that of the dense.

    Raises:
        ValueError: the outputs are not finite, and those of the dense model are.
    """
    return _error(small, _variants(small))


def _variants(small: Compressed) -> dict[str, tuple[Jitted, Any]]:
    dense = small.dense
    return {
        "dense": (Jitted(fastest(dense, small.args)), dense.params),
        "compressed": (Jitted(small.fn), small.params),
    }


def _error(small: Compressed, variants: Mapping[str, tuple[Jitted, Any]]) -> float:
    wanted, got = (run(params, *small.args) for run, params in variants.values())
    return _difference(wanted, got)


def _moved(args: Arguments) -> Arguments:
    """Other inputs of the same kind: the examples change places."""

    def roll(x: Any) -> Any:
        return np.roll(np.asarray(x), 1, axis=0) if np.ndim(x) else x

    moved: Arguments = jax.tree.map(roll, args)
    return moved


def _difference(wanted: Any, got: Any) -> float:
    apart = whole = 0.0
    for a, b in zip(jax.tree.leaves(wanted), jax.tree.leaves(got), strict=True):
        if a.shape != b.shape or not jnp.issubdtype(a.dtype, jnp.inexact):
            continue
        first, second = (np.asarray(x, np.float64).ravel() for x in (a, b))
        if np.isfinite(first).all() and not np.isfinite(second).all():
            raise ValueError(
                "compress: outputs of the compressed model on the example are not "
                "finite, those of the dense one are"
            )
        apart += float(np.sum((first - second) ** 2))
        whole += float(np.sum(first**2))
    return (apart / whole) ** 0.5 if whole else 0.0
