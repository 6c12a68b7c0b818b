"""Choices that depend on the device: tile sizes, and when XLA's form is the faster one.

A table holds them for one kind of device, as JSON:

    {"platform": "tpu", "device_kind": "TPU v5 lite", "choices":
     {"weight_only_matmul": {"W4 bfloat16 grouped": {"rows": 64, "few_block": 512}}}}

An explicit argument of a form comes first, then the table that `jcompress tune` wrote
on the user's device, then the one that the package ships, then the form's own rule.
While tracing nobody may ask what hardware there is, so the kind of the device comes
from the mesh or from the tables: see `device_kind`.
"""

import contextlib
import contextvars
import functools
import json
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from jcompress.kernels import _native
from jcompress.kernels._rows import at_most

SHIPPED = pathlib.Path(__file__).with_name("tiles")
"""Where the package has its tables."""
VARIABLE = "JCOMPRESS_TILES"
"""Names another folder for the user's tables."""

Choices = Mapping[str, int | None]
"""What was found best: `rows`, up to which a platform's own form is taken (null: any
number), and parameters of that form."""


_trial: contextvars.ContextVar[tuple[str, str, Choices] | None] = (
    contextvars.ContextVar("jcompress_tiles_trial", default=None)
)


@contextlib.contextmanager
def trying(operation: str, key: str, choices: Choices) -> Iterator[None]:
    """Let choices go before those of the tables, for what is traced meanwhile."""
    token = _trial.set((operation, key, choices))
    try:
        yield
    finally:
        _trial.reset(token)


def tiles(operation: str, kind: str, key: str) -> Choices:
    """What the tables say for a kind of device; empty if they say nothing.

    Args:
        operation: name of the public function.
        kind: as `device_kind` gives it.
        key: the case, for example from `weight_key`.

    Raises:
        ValueError: a table cannot be read; the message names it.
    """
    found: dict[str, int | None] = {}
    for folder in (SHIPPED, user_folder()):
        table = _read(folder / file_name(kind))
        found |= table.get("choices", {}).get(operation, {}).get(key, {})
    trial = _trial.get()
    if trial is not None and trial[:2] == (operation, key):
        found |= trial[2]
    return found


def suits(operation: str, platform: str, key: str, rows: int) -> bool:
    """Whether the platform's own kernel takes this number of rows, by the tables.

    It takes a symbolic number of rows unless the tables leave it none.
    """
    most = tiles(operation, device_kind(platform), key).get("rows")
    return most is None or at_most(rows, most, unknown=True)


def weight_key(bits: int, x: Any, groups: int, *, floating: bool = False) -> str:
    """The key of a product with a weight of small numbers.

    Args:
        bits: of a stored number; those above 4 lie in bytes.
        x: what is multiplied: a dtype, or "int8" if floats become integers.
        groups: of scales.
        floating: whether the stored numbers are float8.
    """
    grouped = " grouped" if groups > 1 else ""
    letter = "F" if floating else "W"
    return f"{letter}{bits if bits <= 4 else 8} {x}{grouped}"


def device_kind(platform: str) -> str:
    """The kind of the device that a program is traced for, as far as can be known.

    For a CPU the instructions that the compiled kernels use. For others what the mesh
    says (`jax.set_mesh`), or `jax_default_device`; or, if the user has tuned one device
    of that platform and no other, that one. Empty if nothing is known.
    """
    if platform == "cpu":
        return f"cpu {_native.instructions() or ''}".strip()
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is not None:
        return str(device.device_kind)
    config: Any = jax.config
    default = config.jax_default_device
    if isinstance(default, jax.Device):
        return str(default.device_kind)
    kinds = _tuned_kinds(user_folder(), platform)
    return kinds[0] if len(kinds) == 1 else ""


def user_folder() -> pathlib.Path:
    """Where the user's tables are."""
    named = os.environ.get(VARIABLE)
    if named:
        return pathlib.Path(named)
    home = pathlib.Path.home()
    if sys.platform == "darwin":
        return home / "Library" / "Application Support" / "jcompress"
    if sys.platform == "win32":
        return pathlib.Path(os.environ.get("APPDATA", home)) / "jcompress"
    config = os.environ.get("XDG_CONFIG_HOME")
    return (pathlib.Path(config) if config else home / ".config") / "jcompress"


def file_name(kind: str) -> str:
    """The name of a table."""
    return re.sub(r"[^a-z0-9_]+", "-", kind.lower()).strip("-") + ".json"


def write(
    folder: pathlib.Path,
    platform: str,
    kind: str,
    choices: Mapping[str, Mapping[str, Choices]],
) -> pathlib.Path:
    """Add choices to a table, whole or not at all.

    Args:
        folder: is made if need be.
        platform: "cpu", "tpu" or "cuda".
        kind: of the device.
        choices: by operation and key; what the table has under other keys stays.

    Returns:
        The table's file.

    Raises:
        OSError: it cannot be written.
        ValueError: the table that is there cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_name(kind)
    _read.cache_clear()
    all_choices = {
        operation: dict(keys)
        for operation, keys in _read(path).get("choices", {}).items()
    }
    for operation, keys in choices.items():
        all_choices.setdefault(operation, {}).update(keys)
    table = {"platform": platform, "device_kind": kind, "choices": all_choices}
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".", suffix=".json")
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(table, file, indent=1, sort_keys=True)
            file.write("\n")
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    _read.cache_clear()
    _tuned_kinds.cache_clear()
    return path


@functools.cache
def _read(path: pathlib.Path) -> Mapping[str, Any]:
    try:
        table = json.loads(path.read_text())
        keys = [key for found in table["choices"].values() for key in found.values()]
        numbers = [number for key in keys for number in key.values()]
        if not all(n is None or type(n) is int for n in numbers):
            raise TypeError("choices are integers or null")
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"the table {path} is damaged ({error}); delete it, and fill it again by "
            "`jcompress tune`"
        ) from error
    found: Mapping[str, Any] = table
    return found


@functools.cache
def _tuned_kinds(folder: pathlib.Path, platform: str) -> tuple[str, ...]:
    tables = [_read(path) for path in sorted(folder.glob("[!.]*.json"))]
    return tuple(t["device_kind"] for t in tables if t.get("platform") == platform)
