"""Programs that are written to files."""

import os
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np


def write_program(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    path: pathlib.Path,
    *,
    checks: Sequence[Any],
    any_batch: bool,
    platforms: Sequence[str] | None,
) -> int:
    """Trace a function of inputs and write the program; the number of bytes.

    Args:
        fn: the function.
        args: an example of its inputs.
        path: the file.
        checks: checks of `jax.export` that are left out.
        any_batch: leave the first axis open where it is as long as that of the first
            input.
        platforms: what it is compiled for; the current platform if None.

    Raises:
        ValueError: the function cannot be traced with an open axis.
    """
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), args)
    if any_batch:
        shapes = _open(shapes)
    make = jax.export.export(
        jax.jit(fn), platforms=platforms, disabled_checks=list(checks)
    )
    try:
        program = make(*shapes)
    except Exception as error:
        if not any_batch:
            raise
        raise ValueError(
            "export: the model cannot be traced for batches of any size, perhaps since "
            "it computes with the size of its input; give any_batch=False for a "
            f"program of the example's size. {type(error).__name__}: {error}"
        ) from error
    data = program.serialize()
    _write(path, data)
    return len(data)


def _open(shapes: Any) -> Any:
    """With the symbol b for the first axis of all that have the first one's size."""
    sized = [x.shape[0] for x in jax.tree.leaves(shapes) if x.shape]
    if not sized:
        return shapes
    (batch,) = jax.export.symbolic_shape("b")

    def one(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        if not x.shape or x.shape[0] != sized[0]:
            return x
        return jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype)

    return jax.tree.map(one, shapes)


def _write(path: pathlib.Path, data: bytes | bytearray) -> None:
    """Beside its place first, so that a file is whole or absent."""
    handle, name = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(name, path)
    except BaseException:
        pathlib.Path(name).unlink(missing_ok=True)
        raise
