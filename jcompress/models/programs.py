"""Programs that are written to files."""

import inspect
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen
import jax
import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path

from jcompress import __version__
from jcompress.interchange.files import replacing
from jcompress.kernels import _native
from jcompress.serving.layout import ArraySpec, Description, packed
from jcompress.serving.program import require_flatbuffers

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
"""What JAX writes programs for."""


def write_program(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    path: pathlib.Path,
    *,
    names: Sequence[str],
    checks: Sequence[Any],
    any_batch: bool,
    platforms: Sequence[str] | None,
) -> int:
    """Trace a function of inputs and write the program; the number of bytes.

    Args:
        fn: the function.
        args: an example of its inputs.
        path: the file.
        names: what the inputs are called, one for each of `args`.
        checks: checks of `jax.export` that are left out.
        any_batch: leave the first axis open where it is as long as that of the first
            input.
        platforms: what it is compiled for; the current platform if None.

    Raises:
        ValueError: the function cannot be traced with an open axis, the names are not
            as many as the inputs, or a platform is none of JAX's.
        ImportError: the package flatbuffers is not installed.
    """
    require_flatbuffers()
    _check(names, args, platforms)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), args)
    if any_batch:
        shapes = with_open_batch(shapes)
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
    data = packed(program.serialize(), _description(program, names))
    with replacing(path) as file:
        file.write(data)
    return len(data)


def input_names(fn: Callable[..., Any], args: tuple[Any, ...]) -> list[str]:
    """What a model calls its inputs, or "input", or "input0" and so on.

    Args:
        fn: `fn(params, *args)`.
        args: an example of the inputs.
    """
    module = getattr(fn, "__self__", None)
    told = type(module).__call__ if isinstance(module, flax.linen.Module) else fn
    try:
        parameters = list(inspect.signature(told).parameters.values())[1:]
    except (TypeError, ValueError):
        parameters = []
    named = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [each.name for each in parameters if each.kind in named][: len(args)]
    return names if len(names) == len(args) else _numbered("input", len(args))


def _check(
    names: Sequence[str], args: tuple[Any, ...], platforms: Sequence[str] | None
) -> None:
    if len(names) != len(args) or len(set(names)) != len(names):
        raise ValueError(
            f"export: the model has {len(args)} inputs, and the names are "
            f"{', '.join(map(repr, names))}; give each its own"
        )
    check_platforms(platforms)


def check_platforms(platforms: Sequence[str] | None) -> None:
    """Refuse names of platforms that JAX writes no programs for.

    Raises:
        ValueError: one is unknown, or there is none; those that are known are named.
    """
    known = ", ".join(PLATFORMS)
    if platforms is not None and not platforms:
        raise ValueError(f"export: no platform is named; there are {known}")
    for platform in platforms or ():
        if platform not in PLATFORMS:
            raise ValueError(
                f"export: there is no platform {platform!r}; there are {known}"
            )


def _description(program: jax.export.Exported, names: Sequence[str]) -> Description:
    args, _ = jax.tree.unflatten(program.in_tree, program.in_avals)
    outputs = jax.tree.unflatten(program.out_tree, program.out_avals)
    named = zip(names, args, strict=True)
    inputs = [spec for name, arg in named for spec in _specs(name, arg)]
    if isinstance(outputs, tuple | list):
        numbered = zip(_numbered("output", len(outputs)), outputs, strict=True)
        given = [spec for name, out in numbered for spec in _specs(name, out)]
    else:
        given = _specs("" if isinstance(outputs, dict) else "output", outputs)
    code = bytes(program.mlir_module_serialized)

    def called(kernel: str) -> bool:
        return re.search(rb"%b(?!\w)" % kernel.encode(), code) is not None

    return Description(
        inputs=tuple(inputs),
        outputs=tuple(given),
        platforms=tuple(program.platforms),
        kernels=tuple(filter(called, _native.HANDLERS)),
        layout=_native.LAYOUT,
        jcompress=__version__,
        jax=jax.__version__,
    )


def _specs(name: str, tree: Any) -> list[ArraySpec]:
    """Of each array in an argument, called by its name and its place in it."""
    found = []
    for path, aval in tree_flatten_with_path(tree)[0]:
        place = keystr(path, simple=True, separator="/")
        shape = tuple(n if isinstance(n, int) else str(n) for n in aval.shape)
        full = "/".join(part for part in (name, place) if part)
        found.append(ArraySpec(name=full, shape=shape, dtype=aval.dtype.name))
    return found


def _numbered(name: str, count: int) -> list[str]:
    return [name] if count == 1 else [f"{name}{n}" for n in range(count)]


def with_open_batch(shapes: Any) -> Any:
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
