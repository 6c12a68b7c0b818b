"""Compare two trees leaf by leaf, and say what a transform did to each."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.conversion.table import Change, Changes
from jcompress.errors import MismatchError
from jcompress.leaves import named_leaves
from jcompress.rules import Rules, resolve
from jcompress.sites import Sites
from jcompress.tensors import is_compressed


def describe_changes(
    before: Any,
    after: Any,
    rules: Rules[Any] | None = None,
    *,
    sites: Sites | None = None,
) -> Changes:
    """Say what any transform did to a parameter tree, leaf by leaf.

    Works for everything that takes and returns a tree of parameters: `quantize`,
    `to_sparse`, `factorize`, `add_adapters`, `to_codebooks`, `hash_weights`, `tie`,
    `shrink` and others, or several of them in a row. Not for traced trees.

    Args:
        before: the tree that was given.
        after: the tree that was returned.
        rules: the rules that the transform was given; None if it takes none.
        sites: the sites that it was given; None without rules.

    Returns:
        A row for each leaf that changed, was added or removed, and, with rules, for
        each weight that stayed as it is, with the reason.

    Raises:
        TypeError: the rules are malformed.
        MismatchError: the rules do not fit the sites, or there are rules without sites.

    Example:
        >>> import jax.numpy as jnp
        >>> from jcompress.conversion import describe_changes
        >>> from jcompress.quantization import Quantize, quantize
        >>> from jcompress.sites import find_sites
        >>> params = {"a": jnp.ones((64, 64)), "b": jnp.ones((64, 8))}
        >>> model = lambda params, x: x @ params["a"] @ params["b"]
        >>> sites = find_sites(model, params, jnp.ones((1, 64)))
        >>> rules = [("a", Quantize())]
        >>> small = quantize(params, rules, sites=sites)
        >>> print(describe_changes(params, small, rules, sites=sites))
        leaf  before         after   bytes  new bytes  error  rule
        a     float32 64x64  int8   16,384      4,352      0  0
        18,432 bytes became 6,400 (smaller)
        skipped b: no rule matches it
    """
    rule_of: Mapping[str, int] = {}
    reasons: Mapping[str, str] = {}
    if rules is not None:
        if sites is None:
            raise MismatchError("describe_changes: rules need sites; pass sites=...")
        resolved = resolve(rules, sites, transform="describe_changes")
        rule_of, reasons = resolved.rule_of, resolved.skipped
    return describe_leaves(before, after, rule_of=rule_of, reasons=reasons)


def describe_leaves(
    before: Any,
    after: Any,
    *,
    rule_of: Mapping[str, int],
    reasons: Mapping[str, str],
    made: Collection[str] = (),
    notes: tuple[str, ...] = (),
) -> Changes:
    """The table of a transform that knows by itself what its rules took.

    Args:
        before: the tree that was given.
        after: the tree that was returned.
        rule_of: the rule that took each leaf, by its name.
        reasons: why others were left alone.
        made: leaves that the transform made, even if they equal what they were.
        notes: what else is to be known, a sentence each.
    """
    old, new = dict(named_leaves(before)), dict(named_leaves(after))
    rows = []
    for name in [*old, *(name for name in new if name not in old)]:
        was, now = old.get(name), new.get(name)
        same = name in old and name in new and (was is now or _equal(was, now))
        if same and name not in rule_of and name not in reasons:
            continue
        skipped = same and name not in made
        first = _numbers(was)
        second = first if same else _numbers(now)
        rows.append(
            Change(
                name=name,
                before=_form(was),
                after=_form(now, removed=True),
                bytes_before=_bytes(was),
                bytes_after=_bytes(now),
                size=int(getattr(was if now is None else now, "size", 0)),
                rule=rule_of.get(name),
                reason=reasons.get(name) or _unchanged(was) if skipped else "",
                error=None if skipped else _error(first, second),
                zeros_before=_zeros(first),
                zeros_after=_zeros(second),
            )
        )
    return Changes(rows=tuple(rows), notes=notes)


def _unchanged(leaf: Any) -> str:
    dtype = getattr(leaf, "dtype", None)
    if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
        return f"it is {dtype}, and only floats can be converted"
    return "the transform left it as it is"


def _equal(a: Any, b: Any) -> bool:
    if is_compressed(a) or is_compressed(b):
        return False
    if not hasattr(a, "dtype") or not hasattr(b, "dtype"):
        return type(a) is type(b) and bool(np.all(a == b))
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    return bool(np.array_equal(np.asarray(a), np.asarray(b)))


def _form(leaf: Any, *, removed: bool = False) -> str:
    if leaf is None:
        return "removed" if removed else "-"
    if is_compressed(leaf):
        return str(leaf.form)
    if not hasattr(leaf, "dtype"):
        return type(leaf).__name__
    return f"{leaf.dtype} {'x'.join(map(str, leaf.shape)) or 'scalar'}"


def _bytes(leaf: Any) -> int:
    if leaf is None or not hasattr(leaf, "dtype"):
        return 0
    if is_compressed(leaf):
        return int(leaf.stored_bytes)
    return math.prod(map(int, leaf.shape)) * int(leaf.dtype.itemsize)


def _numbers(leaf: Any) -> np.ndarray[Any, Any] | None:
    """The dense numbers of a leaf, on the host."""
    if not hasattr(leaf, "dtype") or not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return None
    return np.asarray(leaf.dense() if is_compressed(leaf) else leaf)


def _zeros(numbers: np.ndarray[Any, Any] | None) -> float | None:
    if numbers is None:
        return None
    return 1 - np.count_nonzero(numbers) / max(numbers.size, 1)


def _error(
    first: np.ndarray[Any, Any] | None, second: np.ndarray[Any, Any] | None
) -> float | None:
    if first is None or second is None or first.shape != second.shape:
        return None
    size = _length(first)
    lost = 0.0 if first is second else _length(_wide(first) - _wide(second))
    return lost / size if size else (0.0 if not lost else math.inf)


def _length(numbers: np.ndarray[Any, Any]) -> float:
    return float(np.linalg.norm(_wide(numbers)))


def _wide(numbers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    wide = np.complex128 if np.iscomplexobj(numbers) else np.float64
    return numbers.astype(wide)
