"""Convert chosen leaves of a parameter tree, and say what changed.

How to write a transform `params, rules, sites -> params` with this module: resolve the
rules (`jcompress.rules.resolve`), then call `convert_leaves(transform, params,
resolved.leaves, convert, sites=sites)`. It finds the leaf of every name in
`resolved.leaves`, raises MismatchError if one is absent, of another shape than the
sites say, of a dtype that is no float, or compressed already, calls `convert(name,
leaf, spec)` for each, and puts what this returns in its place. `accept=(QTensor,)` lets
compressed leaves of these types through, `floats=False` every dtype, and
`traced="why"` refuses traced leaves. A transform that must see all leaves before it
makes the first uses the two halves, `find_leaves` and `replace_leaves`. Users call
`describe_changes(before, after, rules, sites=sites)` for the table of any of them.
"""

import dataclasses
import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jcompress.errors import MismatchError
from jcompress.leaves import named_leaves, path_name
from jcompress.rules import Rules, resolve
from jcompress.sites import Sites
from jcompress.tensors import is_compressed

__all__ = [
    "Change",
    "Changes",
    "convert_leaves",
    "describe_changes",
    "find_leaves",
    "replace_leaves",
]

Spec = TypeVar("Spec")

_WIDTH = 80


def find_leaves(
    transform: str,
    params: Any,
    names: Iterable[str],
    *,
    sites: Sites,
    accept: tuple[type, ...] = (),
    advice: str = "give the tree of dense weights",
    floats: bool = True,
    traced: str | None = None,
) -> dict[str, Any]:
    """Find the leaves that a transform is to convert, and check them.

    Args:
        transform: the caller's name, for the errors.
        params: the parameters.
        names: the leaves to find.
        sites: the sites of the function that uses `params`, with the same names.
        accept: types of compressed leaves that may arrive.
        advice: what to do about a leaf that is compressed otherwise, for the error.
        floats: whether a leaf must hold floats.
        traced: why a leaf must not be traced, for the error; None if it may be.

    Returns:
        The leaves by name, in the order of `names`: compressed leaves as they are,
        others with a shape and a dtype.

    Raises:
        MismatchError: a leaf is absent, of another shape than at its sites, compressed,
            or not of floats.
        ValueError: a leaf is traced and must not be.
    """
    present = dict(named_leaves(params))
    found = {}
    for name in names:
        if name not in present:
            raise MismatchError(_absent(transform, name, list(present)))
        leaf, shape = present[name], sites.of(name)[0].shape
        exclude = f"exclude it by a rule ({name!r}, None)"
        if is_compressed(leaf) and not isinstance(leaf, accept):
            raise MismatchError(
                f"{transform}: {name!r} is already a {type(leaf).__name__}; {advice}, "
                f"or {exclude}"
            )
        if tuple(np.shape(leaf)) != tuple(shape):
            raise MismatchError(
                f"{transform}: {name!r} is {list(np.shape(leaf))} in the tree and "
                f"{list(shape)} at its sites; trace the sites with this tree"
            )
        parts = jax.tree.leaves(leaf)
        if traced and any(isinstance(part, jax.core.Tracer) for part in parts):
            raise ValueError(
                f"{transform}: {name!r} is traced, and {traced}; call it outside of jit"
            )
        if not hasattr(leaf, "dtype"):
            leaf = jnp.asarray(leaf)
        if floats and not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise MismatchError(
                f"{transform}: {name!r} is {leaf.dtype} {list(shape)}, and only floats "
                f"can be converted; {exclude}"
            )
        found[name] = leaf
    return found


def replace_leaves(params: Any, made: Mapping[str, Any]) -> Any:
    """The tree with other leaves under the given names; a compressed leaf is one."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: made.get(path_name(path), leaf),
        params,
        is_leaf=is_compressed,
    )


def convert_leaves(
    transform: str,
    params: Any,
    specs: Mapping[str, Spec],
    convert: Callable[[str, Any, Spec], Any],
    *,
    sites: Sites,
    accept: tuple[type, ...] = (),
    advice: str = "give the tree of dense weights",
    floats: bool = True,
    traced: str | None = None,
) -> Any:
    """Convert the named leaves of a tree, after all of them were found and checked.

    Args:
        transform: the caller's name, for the errors.
        params: the parameters.
        specs: what each leaf becomes, by its name.
        convert: makes the new leaf of a name, a leaf and its spec.
        sites: the sites of the function that uses `params`, with the same names.
        accept: types of compressed leaves that may arrive.
        advice: what to do about a leaf that is compressed otherwise, for the error.
        floats: whether a leaf must hold floats.
        traced: why a leaf must not be traced, for the error; None if it may be.

    Returns:
        A tree of the same structure but for the converted leaves.

    Raises:
        MismatchError, ValueError: as `find_leaves`.
    """
    found = find_leaves(
        transform,
        params,
        specs,
        sites=sites,
        accept=accept,
        advice=advice,
        floats=floats,
        traced=traced,
    )
    made = {name: convert(name, leaf, specs[name]) for name, leaf in found.items()}
    return replace_leaves(params, made)


def _absent(transform: str, name: str, present: Sequence[str]) -> str:
    listed = ", ".join(present[:8]) + (", ..." if len(present) > 8 else "")
    text = (
        f"{transform}: the sites have {name!r}, which is not in the tree: "
        f"{listed or 'it is empty'}"
    )
    for other in present:
        if name.endswith("/" + other):
            prefix = name[: -len(other) - 1]
            return f"{text}; for this subtree pass sites=sites.below({prefix!r})"
    for other in present:
        if other.endswith("/" + name):
            return f"{text}; pass the subtree {other[: -len(name) - 1]!r}"
    return f"{text}; if the tree is part of what was traced, pass sites.below(prefix)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """One leaf before and after a transform.

    Attributes:
        name: the leaf's name.
        before: its form, such as "float32 64x10".
        after: its form afterwards, such as "int4"; "removed" if there is none.
        bytes_before: bytes that it took.
        bytes_after: bytes that it takes.
        rule: the place of the rule that took it; None if none did, or none is known.
        reason: why it stayed as it is; empty if it changed.
        error: `|W - W'| / |W|` of the dense arrays; None if that has no meaning, as
            for another shape.
    """

    name: str
    before: str
    after: str
    bytes_before: int
    bytes_after: int
    rule: int | None = None
    reason: str = ""
    error: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Changes:
    """What a transform did to a tree: a table to print, rows to iterate over.

    Attributes:
        rows: one a leaf, in tree order; leaves with a `reason` did not change.
    """

    rows: tuple[Change, ...]

    def __iter__(self) -> Iterator[Change]:
        """The rows."""
        return iter(self.rows)

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.rows)

    def __getitem__(self, name: str) -> Change:
        """The row of a leaf, by its name."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    @property
    def changed(self) -> tuple[Change, ...]:
        """The rows of the leaves that changed."""
        return tuple(row for row in self.rows if not row.reason)

    @property
    def skipped(self) -> tuple[Change, ...]:
        """The rows of the leaves that stayed as they are, with the reasons."""
        return tuple(row for row in self.rows if row.reason)

    @property
    def bytes_before(self) -> int:
        """Bytes of all rows before."""
        return sum(row.bytes_before for row in self.rows)

    @property
    def bytes_after(self) -> int:
        """Bytes of all rows afterwards."""
        return sum(row.bytes_after for row in self.rows)

    def __str__(self) -> str:
        head = ("leaf", "before", "after", "bytes", "bytes after", "error", "rule")
        cells = [
            (
                row.name,
                row.before,
                row.after,
                f"{row.bytes_before:,}",
                f"{row.bytes_after:,}",
                "-" if row.error is None else f"{row.error:.2g}",
                "-" if row.rule is None else str(row.rule),
            )
            for row in self.changed
        ]
        total = f"{self.bytes_before:,} bytes became {self.bytes_after:,}"
        lines = [*_aligned([head, *cells]), total] if cells else ["nothing changed"]
        for row in self.skipped:
            text = f"skipped {row.name}: {row.reason}"
            lines += textwrap.wrap(text, _WIDTH, subsequent_indent="  ")
        return "\n".join(lines)


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines of at most 80 columns; the names, then the forms, give way."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for column, least in ((0, 16), (1, 10), (2, 8)):
        over = sum(widths) + 2 * (len(widths) - 1) - _WIDTH
        widths[column] -= max(0, min(over, widths[column] - least))

    def cell(text: str, column: int) -> str:
        width = widths[column]
        if len(text) > width:
            # The end of a name tells more, the beginning of a form.
            text = (
                "..." + text[3 - width :] if column == 0 else text[: width - 3] + "..."
            )
        return text.rjust(width) if 3 <= column <= 5 else text.ljust(width)

    return [
        "  ".join(cell(text, column) for column, text in enumerate(row)).rstrip()
        for row in rows
    ]


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
        leaf  before         after   bytes  bytes after  error  rule
        a     float32 64x64  int8   16,384        4,352      0  0
        18,432 bytes became 6,400
        skipped b: no rule matches it
    """
    rule_of: Mapping[str, int] = {}
    reasons: Mapping[str, str] = {}
    if rules is not None:
        if sites is None:
            raise MismatchError("describe_changes: rules need sites; pass sites=...")
        resolved = resolve(rules, sites, transform="describe_changes")
        rule_of, reasons = resolved.rule_of, resolved.skipped
    old, new = dict(named_leaves(before)), dict(named_leaves(after))
    rows = []
    for name in [*old, *(name for name in new if name not in old)]:
        was, now = old.get(name), new.get(name)
        same = name in old and name in new and (was is now or _equal(was, now))
        if same and name not in rule_of and name not in reasons:
            continue
        reason = ""
        if same:
            reason = reasons.get(name) or _unchanged(was)
        rows.append(
            Change(
                name=name,
                before=_form(was),
                after=_form(now, removed=True),
                bytes_before=_bytes(was),
                bytes_after=_bytes(now),
                rule=rule_of.get(name),
                reason=reason,
                error=None if same else _error(was, now),
            )
        )
    return Changes(rows=tuple(rows))


def _unchanged(leaf: Any) -> str:
    dtype = getattr(leaf, "dtype", None)
    if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
        return f"it is {dtype}, and only floats are converted"
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


def _error(was: Any, now: Any) -> float | None:
    numbers = [_numbers(leaf) for leaf in (was, now)]
    first, second = numbers
    if first is None or second is None or first.shape != second.shape:
        return None
    size = float(np.linalg.norm(first))
    lost = float(np.linalg.norm(first - second))
    return lost / size if size else (0.0 if not lost else math.inf)


def _numbers(leaf: Any) -> np.ndarray[Any, Any] | None:
    if not hasattr(leaf, "dtype") or not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return None
    dense = leaf.dense() if is_compressed(leaf) else leaf
    wide = np.complex128 if jnp.issubdtype(dense.dtype, jnp.complexfloating) else float
    return np.asarray(dense).astype(wide)
