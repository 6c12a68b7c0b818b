"""The folder that a compression of the user's own model writes."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

from jcompress.models import Compressed
from jcompress.recipes.folder import PAGE, REPORT

MODEL = "model"
PROGRAM = "model.jax"
REJECTED = "rejected.json"
REJECTED_PAGE = "rejected.html"
OWN = {REPORT, PAGE, MODEL, PROGRAM, REJECTED, REJECTED_PAGE}
"""All names that a compression may write."""


def is_own(folder: pathlib.Path) -> bool:
    """Whether a folder has a report of an earlier compression."""
    for name in (REPORT, REJECTED):
        try:
            found = json.loads((folder / name).read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(found, dict) and found.get("command") == "compress":
            return True
    return False


def write_program(small: Compressed, path: pathlib.Path) -> dict[str, Any]:
    """Write a model as a program: for any batch if it can be traced so.

    Else it is for the batch of the example.

    Returns:
        What the report says of it: `file`, `bytes`, `any_batch`.
    """
    write: Callable[..., int] = small.export
    any_batch = True
    try:
        size = write(path)
    except ValueError:
        any_batch = False
        size = write(path, any_batch=False)
    return {"file": path.name, "bytes": size, "any_batch": any_batch}
