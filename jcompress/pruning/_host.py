"""Arithmetic on concrete arrays by NumPy, with the results of the compiled programs.

JAX compiles a program for each shape that it meets, which for a small weight takes much
longer than to score, rank or mask it; a model has dozens of shapes. What arrives traced
goes the compiled way, and so does a large array on an accelerator. Both ways take the
same float32 operations in the same order. XLA counts numbers below the smallest normal
one as 0 on a CPU; so does this module.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Host = np.ndarray[Any, Any]

_FEW = 2**22
"""Elements up to which an accelerator's array is worth fetching."""


def on_host(x: Any) -> Host | None:
    """The array in the host's memory, on a CPU without a copy.

    None for one that is traced, large and on an accelerator, or on other hosts.
    """
    if not isinstance(x, jax.Array):
        return np.asarray(x)
    if isinstance(x, jax.core.Tracer) or not x.is_fully_addressable:
        return None
    near = all(device.platform == "cpu" for device in x.devices())
    if not near and x.size > _FEW:
        return None
    host: Host = jax.device_get(x)
    return host


def place_like(host: Host, leaf: Any) -> jax.Array:
    """The array on the devices of a leaf; tied to none if the leaf is tied to none."""
    tied = isinstance(leaf, jax.Array) and leaf.committed
    placed: jax.Array = jax.device_put(host, leaf.sharding if tied else None)
    return placed


def has_nan(x: Any) -> bool:
    """Whether a concrete array holds a NaN."""
    host = on_host(x)
    if host is None:
        return bool(_has_nan(x))
    # The maximum of what holds a NaN is one, without an array of verdicts.
    return bool(host.size) and bool(np.isnan(host.max()))


def flush(x: Host) -> Host:
    """The array with 0 for numbers below the smallest normal one; itself if none is."""
    tiny = np.finfo(x.dtype).tiny
    small = (x < tiny) & (x > -tiny) & (x != 0)
    return np.where(small, np.zeros((), x.dtype), x) if small.any() else x


def mean_of_first(entries: Any) -> Any:
    """The mean over the first axis, float32 [K, G] -> [G], by halves.

    An order of the additions that is written out gives the same bits, and so the same
    ties, in NumPy and in any compiled program; it errs less than a running sum, too.
    """
    hosted, count = isinstance(entries, np.ndarray), len(entries)
    if entries.dtype != np.float64:
        entries = entries.astype(np.float32)
    if count == 1:
        return entries[0]
    if hosted:
        entries = flush(entries)
    while len(entries) > 1:
        half = len(entries) // 2
        sums = entries[:half] + entries[half : 2 * half]
        if len(entries) % 2:
            parts = [sums, entries[-1:]]
            sums = np.concatenate(parts) if hosted else jnp.concatenate(parts)
        entries = flush(sums) if hosted else sums
    mean = entries[0] * np.asarray(1 / count, entries.dtype)
    return flush(mean) if hosted else mean


@jax.jit
def _has_nan(x: jax.Array) -> jax.Array:
    return jnp.isnan(x).any()
