"""Compile functions of any tree, whatever its leaves are besides arrays."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np


class Jitted:
    """`jax.jit` for arguments whose leaves are not all arrays.

    Functions, strings, bools and Python numbers among the leaves, such as the
    activation functions of an Equinox module, are compile-time constants; arrays are
    arguments of the compiled program.

    Args:
        fn: the function to compile.
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        self._fn = fn
        self._programs: list[tuple[Any, tuple[Any, ...], Callable[..., Any]]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program compiled for arguments of this structure."""
        return self.bind(*args, **kwargs)()

    def bind(self, *args: Any, **kwargs: Any) -> Callable[[], Any]:
        """A call of the compiled program with these arguments, ready to be timed.

        Taking the arguments apart costs time in Python, which is spent here.
        """
        flat, structure = jax.tree.flatten((args, kwargs))
        arrays = [x for x in flat if _is_array(x)]
        rest = tuple(None if _is_array(x) else x for x in flat)
        where = [i for i, x in enumerate(flat) if _is_array(x)]
        program = self._program(structure, rest, where)
        return lambda: program(arrays)

    def _program(
        self, structure: Any, rest: tuple[Any, ...], where: list[int]
    ) -> Callable[..., Any]:
        for known, constants, program in self._programs:
            if known == structure and constants == rest:
                return program

        @jax.jit
        def compiled(arrays: list[Any]) -> Any:
            full = list(rest)
            for place, array in zip(where, arrays, strict=True):
                full[place] = array
            args, kwargs = jax.tree.unflatten(structure, full)
            return self._fn(*args, **kwargs)

        self._programs.append((structure, rest, compiled))
        return compiled


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)
