"""What files of weights hold: checkpoints, safetensors, GGUF."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jcompress import checkpoint
from jcompress.conversion import Changes, describe_changes
from jcompress.interchange import FileFormatError, read_gguf
from jcompress.interchange.gguf_parsing import GgufContainer
from jcompress.interchange.gguf_types import MAGIC
from jcompress.interchange.shards import Shards
from jcompress.recipes.folder import Path
from jcompress.report.counts import leaf_bytes
from jcompress.report.text import leaf_table
from jcompress.tensors import is_compressed

BINS = 12
"""Of a histogram."""

_MOST_DENSE = 2**22
"""Elements of a compressed leaf that is made dense for its histogram."""
_PIECES, _PIECE = 64, 1024
"""An array is sampled by so many runs of so many elements."""
_BARS = " ▁▂▃▄▅▆▇█"


class Values(NamedTuple):
    """The distribution of a sample of a leaf's numbers.

    Attributes:
        low: the least number.
        high: the greatest.
        counts: of numbers in each of `BINS` equal parts of that range.
    """

    low: float
    high: float
    counts: tuple[int, ...]

    def __str__(self) -> str:
        top = max(self.counts)
        bars = "".join(_BARS[math.ceil(8 * count / top)] for count in self.counts)
        return f"{self.low:9.2g} |{bars}| {self.high:.2g}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredLeaf:
    """One leaf of a file.

    Attributes:
        name: the leaf.
        form: how it is stored: a dtype, or the form of a compressed leaf.
        shape: of the dense array that it stands for; None if it is no array.
        bytes: that it takes.
        values: the distribution of its numbers; None if they are not finite, not cheap
            to compute, or no numbers.
    """

    name: str
    form: str
    shape: tuple[int, ...] | None
    bytes: int
    values: Values | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredModel:
    """What a file or a folder holds; `str` is the table, within 80 columns.

    Attributes:
        path: where.
        kind: "checkpoint", "safetensors" or "GGUF".
        leaves: in the order of the file.
    """

    path: str
    kind: str
    leaves: tuple[StoredLeaf, ...]

    @property
    def bytes(self) -> int:
        """Bytes of all leaves."""
        return sum(leaf.bytes for leaf in self.leaves)

    def to_json(self) -> dict[str, Any]:
        """The same as plain dicts, lists, numbers and strings."""
        return {
            "path": self.path,
            "kind": self.kind,
            "bytes": self.bytes,
            "leaves": [
                {
                    **dataclasses.asdict(leaf),
                    "values": None if leaf.values is None else leaf.values._asdict(),
                }
                for leaf in self.leaves
            ],
        }

    def __str__(self) -> str:
        rows = [
            (
                leaf.name,
                leaf.form,
                "-" if leaf.shape is None else "x".join(map(str, leaf.shape)) or "1",
                f"{leaf.bytes:,}",
                "" if leaf.values is None else str(leaf.values),
            )
            for leaf in self.leaves
        ]
        head = ("leaf", "format", "shape", "bytes", "values")
        total = f"{self.kind}: {len(rows)} leaves, {self.bytes:,} bytes"
        table = leaf_table([head, *rows], right=(3,), give=((1, 8), (2, 8)))
        return f"{table}\n{total}"


def describe_stored(path: Path) -> StoredModel:
    """List what a checkpoint folder, a safetensors or a GGUF file holds.

    Tensors of a GGUF file are listed as they are stored, and not decoded.

    Args:
        path: a folder of `jcompress.checkpoint.save`, `Compressed.save` or `jcompress
            compress`, one of safetensors files, or a file.

    Raises:
        FileFormatError: it is no such file, or damaged.
        CheckpointError: it is a checkpoint that is damaged.
        ImportError: the extra `checkpoint` is not installed.
        OSError: it is not there, or cannot be read.
    """
    place = pathlib.Path(path)
    kind = _kind(place)
    if kind == "GGUF":
        leaves = [
            StoredLeaf(
                name=name,
                form=tensor.type.name,
                shape=tensor.shape,
                bytes=tensor.size,
                values=None,
            )
            for name, tensor in GgufContainer(place).tensors.items()
        ]
    else:
        leaves = [_described(name, leaf) for name, leaf in read_stored(path).items()]
    return StoredModel(path=str(path), kind=kind, leaves=tuple(leaves))


def describe_difference(before: Path, after: Path) -> Changes:
    """Say leaf by leaf how two checkpoints or files differ.

    Args:
        before: one, as of `describe_stored`.
        after: the other; leaves of the same name are compared.

    Returns:
        A row for each leaf that is not the same in both.

    Raises:
        FileFormatError, CheckpointError, ImportError, OSError: as `describe_stored`.
    """
    old, new = dict(read_stored(before)), dict(read_stored(after))
    for name in old.keys() & new.keys():
        if _same(old[name], new[name]):
            new[name] = old[name]
    return describe_changes(old, new)


def read_stored(path: Path) -> Mapping[str, Any]:
    """The leaves of a checkpoint, a safetensors or a GGUF file, by their names.

    Args:
        path: as of `describe_stored`. Of a model that `Compressed.save` wrote it is
            the parameters.

    Raises:
        FileFormatError, CheckpointError, ImportError, OSError: as `describe_stored`.
    """
    place = pathlib.Path(path)
    kind = _kind(place)
    if kind == "GGUF":
        return read_gguf(place).tensors
    if kind == "safetensors":
        shards = Shards(place)
        return {name: shards.read(name) for name in shards}
    own = place if checkpoint.exists(place) else place / "model"
    leaves = checkpoint.load_leaves(own)
    if not _is_model(leaves):
        return leaves
    parts = [(name.partition("/"), leaf) for name, leaf in leaves.items()]
    return {rest: leaf for (first, _, rest), leaf in parts if first == "params"}


def _kind(place: pathlib.Path) -> str:
    if not place.is_dir():
        with place.open("rb") as file:
            return "GGUF" if file.read(len(MAGIC)) == MAGIC else "safetensors"
    if checkpoint.exists(place) or checkpoint.exists(place / "model"):
        return "checkpoint"
    if any(place.glob("*.safetensors")):
        return "safetensors"
    raise FileFormatError(
        f"{place}: the folder is no checkpoint, and has no '*.safetensors'"
    )


def _is_model(leaves: Mapping[str, Any]) -> bool:
    """Whether `Compressed.save` wrote it."""
    about = leaves.get("about")
    if not isinstance(about, str):
        return False
    try:
        found = json.loads(about)
    except ValueError:
        return False
    return isinstance(found, dict) and {"format", "kind"} <= set(found)


def _described(name: str, leaf: Any) -> StoredLeaf:
    shape = getattr(leaf, "shape", None)
    if is_compressed(leaf):
        form = str(leaf.form)
    else:
        form = str(getattr(leaf, "dtype", type(leaf).__name__))
    return StoredLeaf(
        name=name,
        form=form,
        shape=None if shape is None else tuple(map(int, shape)),
        bytes=leaf_bytes(leaf),
        values=_values(leaf),
    )


def _values(leaf: Any) -> Values | None:
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or not getattr(leaf, "size", 0):
        return None
    if not jnp.issubdtype(dtype, jnp.floating) and not jnp.issubdtype(
        dtype, jnp.integer
    ):
        return None
    if is_compressed(leaf):
        if leaf.size > _MOST_DENSE:
            return None
        leaf = leaf.dense()
    numbers = _sample(np.asarray(leaf).reshape(-1)).astype(np.float64)
    if not np.isfinite(numbers).all():
        return None
    low, high = float(numbers.min()), float(numbers.max())
    counts, _ = np.histogram(numbers, BINS)
    return Values(low, high, tuple(map(int, counts)))


def _sample(flat: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """All of a small array; of a large one runs that are spread evenly."""
    if flat.size <= _PIECES * _PIECE:
        return flat
    starts = np.linspace(0, flat.size - _PIECE, _PIECES).astype(int)
    return np.concatenate([flat[start : start + _PIECE] for start in starts])


def _same(a: Any, b: Any) -> bool:
    """Whether two compressed leaves hold the same; other leaves are compared later."""
    if not (is_compressed(a) and is_compressed(b)):
        return False
    first, second = jax.tree.flatten(a), jax.tree.flatten(b)
    return first[1:] == second[1:] and all(
        np.array_equal(np.asarray(x), np.asarray(y))
        for x, y in zip(first[0], second[0], strict=True)
    )
