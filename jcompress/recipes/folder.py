"""The directory of a run: what lies in it, and reading and writing its small files."""

import json
import os
import pathlib
import tomllib
import zipfile
from typing import Any

import numpy as np

from jcompress.recipes.recipe import (
    Recipe,
    RecipeError,
    named_values,
    read_recipe,
    write_recipe,
)

RECIPE = "recipe.toml"
DENSE = "dense"
PLAN = "plan"
WEIGHTS = "compressed"
PREDICTIONS = "predictions.npz"
REPORT = "report.json"
PAGE = "report.html"
STATE = "state"

SCHEMA = 2
"""The version of `report.json`; it changes when a key changes its name or meaning."""
_SIDES = ("dense", "compressed")
_KEYS = ("accuracy", "bytes", "parameters", "nonzero", "macs", "latency_ms", "labels")

Path = str | os.PathLike[str]


class FolderError(ValueError):
    """A directory that is not what the command needs; the message is one line."""


def write_whole(path: pathlib.Path, content: bytes) -> None:
    """Write a file that is either complete or, on any failure, as it was before."""
    draft = path.with_name(f"{path.name}.tmp")
    try:
        draft.write_bytes(content)
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def read_run_recipe(folder: pathlib.Path) -> Recipe:
    """The recipe of a run, of which the file holds every key.

    Raises:
        FolderError: the file is damaged; keys that are missing are not filled in.
    """
    path = folder / RECIPE
    try:
        recipe = read_recipe(path)
        whole = named_values(path) == tomllib.loads(write_recipe(recipe))
    except RecipeError as error:
        raise FolderError(f"{path} is damaged: {one_line(error)}") from error
    if not whole:
        raise FolderError(f"{path} is damaged: it lacks keys that every run writes")
    return recipe


def read_report(folder: pathlib.Path) -> dict[str, Any]:
    """What `report.json` of a finished run holds.

    Raises:
        FolderError: the file is damaged, or was written by another version.
    """
    path = folder / REPORT
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise FolderError(f"{path} is damaged: {one_line(error)}") from error
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema != SCHEMA:
        raise FolderError(
            f"{path} has schema {schema!r}; this version of jcompress reads {SCHEMA}"
        )
    for side in _SIDES:
        entry = found.get(side)
        for key in _KEYS:
            if not isinstance(entry, dict) or key not in entry:
                raise FolderError(f"{path} is damaged: {side} has no {key!r}")
    for key in ("table", "verification"):
        if not isinstance(found.get(key), str):
            raise FolderError(f"{path} is damaged: it has no {key!r}")
    return found


def read_predictions(folder: pathlib.Path) -> tuple[np.ndarray[Any, Any], str]:
    """The logits of the test images before saving, and where they were computed.

    Raises:
        FolderError: the file is damaged.
    """
    path = folder / PREDICTIONS
    try:
        # Opened here, since NumPy leaves a damaged file open.
        with (
            path.open("rb") as stream,
            np.load(stream, allow_pickle=False) as archive,
        ):
            logits, environment = archive["logits"], str(archive["environment"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise FolderError(f"{path} is damaged: {one_line(error)}") from error
    if logits.ndim != 2 or logits.dtype != np.float32:
        raise FolderError(
            f"{path} is damaged: its logits are {logits.dtype} {list(logits.shape)}"
        )
    return logits, environment


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks, or its kind if it has none."""
    return " ".join(str(error).split()) or type(error).__name__
