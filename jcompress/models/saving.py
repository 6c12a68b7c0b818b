"""`load`: what `Compressed.save` wrote, read again."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from jcompress import checkpoint
from jcompress.errors import MismatchError
from jcompress.models.adapting import as_function
from jcompress.models.compressed import FORMAT, Compressed, running
from jcompress.models.work import as_arguments
from jcompress.shrinking import Plan, shrink, shrunk


def load(folder: str | pathlib.Path, model: Any, inputs: Any) -> Compressed:
    """Read what `Compressed.save` wrote.

    Args:
        folder: the folder.
        model: the model that was compressed, with any weights: it says what a call
            computes.
        inputs: an example of what it is called with; a tuple for several arguments.

    Raises:
        ImportError: the extra `checkpoint` is not installed.
        CheckpointError: there is no such folder, it is damaged, of a newer version, or
            for another model; the leaf is named.
    """
    dense = as_function(model)
    args = as_arguments(inputs)
    found = checkpoint.load(pathlib.Path(folder))
    if not isinstance(found, Mapping) or not {"params", "about"} <= set(found):
        raise checkpoint.CheckpointError(
            f"load: {folder} holds a tree and no model that Compressed.save wrote; "
            "jcompress.checkpoint.load reads it"
        )
    _check_format(found["about"], folder)
    fn, like, plan = dense.fn, dense.params, None
    if "plan" in found:
        try:
            chosen = plan = Plan.from_tree(found["plan"])
        except MismatchError as error:
            raise checkpoint.CheckpointError(f"load: {folder}: {error}") from error
        fn = shrunk(fn, plan)
        like = jax.eval_shape(lambda params: shrink(params, chosen), like)
    params = checkpoint.load(pathlib.Path(folder), {**found, "params": like})["params"]
    return Compressed(
        fn=running(fn, params),
        plain=fn,
        params=params,
        dense=dense,
        args=args,
        plan=plan,
    )


def _check_format(about: Any, folder: str | pathlib.Path) -> None:
    """Refuse what `Compressed.save` of another version wrote, or something else."""
    try:
        format = json.loads(about)["format"]
    except (ValueError, TypeError, KeyError):
        format = None
    if not isinstance(format, int):
        raise checkpoint.CheckpointError(
            f"load: {folder} names no format; Compressed.save did not write it"
        )
    if format > FORMAT:
        raise checkpoint.CheckpointError(
            f"load: {folder} is of format {format}, and this version of jcompress "
            f"knows {FORMAT}; update it"
        )
