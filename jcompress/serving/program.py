"""Run an exported model in a process that has none of its code."""

import functools
import importlib
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import export

from jcompress import __version__
from jcompress.kernels import _native
from jcompress.serving.layout import (
    ArraySpec,
    Description,
    ProgramError,
    check_arrays,
    unpacked,
)

FILE = "model.jax"
"""The name of the program in the folder that `jcompress compress` writes."""


class Program:
    """An exported model, called like the one it was made from.

    Attributes:
        path: the file.
        description: what it takes and gives, and what it needs.
        bytes: the size of the file.
    """

    def __init__(
        self,
        path: pathlib.Path,
        description: Description,
        exported: export.Exported,
        size: int,
    ) -> None:
        self.path, self.description, self.bytes = path, description, size
        self._exported = exported

    @property
    def inputs(self) -> tuple[ArraySpec, ...]:
        """The arrays that it takes, in order."""
        return self.description.inputs

    @property
    def outputs(self) -> tuple[ArraySpec, ...]:
        """The arrays that it gives, in order."""
        return self.description.outputs

    @property
    def batch(self) -> int | str | None:
        """The first size of all inputs and outputs; None if they differ in it."""
        return self.description.batch

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs, in the model's structure; compiled once for each shape.

        Args:
            *args: the arguments that the model was exported with.
            **kwargs: they by name, if each is one array.

        Raises:
            ProgramError: they are not what it takes; nothing is computed.
        """
        if kwargs:
            args = self._by_name(args, kwargs)
        leaves, structure = jax.tree.flatten((args, {}))
        check_arrays(self.inputs, leaves)
        if str(structure) != str(self._exported.in_tree):
            raise ProgramError(
                f"the arguments are nested as {structure}; it takes "
                f"{self._exported.in_tree}"
            )
        return self._run(*args)

    def check(self, arrays: Sequence[Any]) -> None:
        """Refuse arrays that it does not take.

        Raises:
            ProgramError: names the input, what arrived and what is taken.
        """
        check_arrays(self.inputs, arrays)

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs for inputs, both as flat lists of NumPy arrays."""
        return [np.asarray(out) for out in self.call_flat(arrays)]

    def call_flat(self, arrays: Sequence[Any]) -> list[Any]:
        """As `run`, without waiting for the outputs, which are JAX arrays."""
        args, _ = jax.tree.unflatten(self._exported.in_tree, list(arrays))
        return jax.tree.leaves(self._run(*args))

    def describe(self) -> dict[str, Any]:
        """What is known of it, for JSON."""
        return {"bytes": self.bytes, **self.description.to_json()}

    def __str__(self) -> str:
        made = self.description
        inputs, outputs = (
            ", ".join(f"{each.name}: {each}" for each in side)
            for side in (self.inputs, self.outputs)
        )
        return (
            f"{self.path.name}: {inputs} -> {outputs}; {made.kind}, for "
            f"{', '.join(made.platforms)}; {self.bytes:,} bytes"
        )

    @functools.cached_property
    def _run(self) -> Callable[..., Any]:
        return jax.jit(self._exported.call)

    def _by_name(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, ...]:
        names = [each.name for each in self.inputs]
        rest = names[len(args) :]
        if set(rest) != set(kwargs):
            raise ProgramError(
                f"inputs {', '.join(map(repr, kwargs))} arrived by name; it takes "
                f"{', '.join(map(repr, rest))}"
            )
        return (*args, *(kwargs[name] for name in rest))


def open_program(path: str | pathlib.Path) -> Program:
    """Load what `Compressed.export` wrote, without the model's code.

    Args:
        path: the file, or the folder that `jcompress compress` wrote.

    Returns:
        The program; call it like the model.

    Raises:
        ProgramError: the file is cut off, damaged, of another kind or of a newer
            version, for another platform, or needs compiled kernels that are not here.
        ImportError: the package flatbuffers is not installed.
        OSError: it cannot be read.

    Example:
        >>> import tempfile, jax.numpy as jnp, jcompress as jc
        >>> model = (lambda params, x: x @ params["w"], {"w": jnp.eye(64)})
        >>> x = jnp.ones((2, 64))
        >>> small = jc.compress(model, x, jc.w8(), measure=False)
        >>> with tempfile.NamedTemporaryFile(suffix=".jax") as file:
        ...     size = small.export(file.name)
        ...     program = open_program(file.name)
        >>> print(*program.inputs, program.inputs[0].name)
        float32 [b, 64] x
        >>> program(jnp.ones((5, 64))).shape
        (5, 64)
        >>> program(jnp.ones((5, 32)))
        Traceback (most recent call last):
        ...
        jcompress.serving.layout.ProgramError: input 'x' is float32 [5, 32]; it takes \
float32 [b, 64]
    """
    require_flatbuffers()
    path = pathlib.Path(path)
    if path.is_dir() and (path / FILE).is_file():
        path = path / FILE
    data = path.read_bytes()
    program, description = unpacked(data, str(path))
    here = export.default_export_platform()
    if here not in description.platforms:
        raise ProgramError(
            f"{path} is for {', '.join(description.platforms)}, and this process runs "
            f"on {here}; set JAX_PLATFORMS, or export it with platforms=({here!r},)"
        )
    if here == "cpu":
        _check_kernels(str(path), description)
    try:
        exported = export.deserialize(bytearray(program))
        if description.jax != jax.__version__:
            # An older JAX finds what it does not know only when it reads the code.
            exported.mlir_module()
    # The file is whole; what JAX cannot read of it ends in errors of any kind.
    except Exception as error:
        raise ProgramError(
            f"{path} was written with JAX {description.jax}, and JAX {jax.__version__} "
            f"cannot read it: {' '.join(str(error).split())}"
        ) from error
    return Program(path, description, exported, len(data))


def require_flatbuffers() -> None:
    """Refuse to write or read programs without the package that JAX needs for it.

    Raises:
        ImportError: it is not installed; the extra that brings it is named.
    """
    try:
        importlib.import_module("flatbuffers")
    except ImportError as error:
        raise ImportError(
            "exported programs need the package flatbuffers: pip install "
            "'jcompress[serve]' (or [cli])"
        ) from error


def _check_kernels(name: str, description: Description) -> None:
    if not description.kernels:
        return
    unknown = sorted(set(description.kernels) - set(_native.HANDLERS))
    if unknown or description.layout > _native.LAYOUT:
        what = f"the kernels {', '.join(unknown)}" if unknown else "a newer layout"
        raise ProgramError(
            f"{name} was made by a newer version: jcompress {description.jcompress}, "
            f"with {what}; this is jcompress {__version__}; update it"
        )
    if description.layout < _native.LAYOUT:
        raise ProgramError(
            f"{name} was made by an older version, jcompress {description.jcompress}, "
            f"whose kernels jcompress {__version__} has no longer; export it again"
        )
    if why := _native.missing():
        raise ProgramError(
            f"{name} calls compiled kernels, and {why}; a program exported with "
            "portable=True runs without them"
        )
