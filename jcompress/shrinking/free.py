"""Axes of a function's arguments and results that may shrink."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jcompress.errors import MismatchError
from jcompress.leaves import path_name
from jcompress.shrinking._cutting import axis_name
from jcompress.tracing.trace import is_array


@dataclasses.dataclass(frozen=True, eq=False)
class ShrinkableAxes:
    """Let axes of a function's arguments or results shrink with the parameters.

    The function itself, as `find_groups` may take it instead of the bare one: an
    embedding's width that is the result, the classes of a head, the features that a
    model reads. Being called, it is the function. `shrunk` of it is a
    `ShrinkableAxes`, too, so that what calls `find_groups` again and again goes on with
    these axes.

    Attributes:
        fn: the function, `fn(variables, *args, **kwargs)`.
        inputs: for arguments behind the tree the axes that may shrink. A positional
            argument is named by its place, `"0"` for the first behind the tree, a
            keyword argument by its keyword; an array in it by the keys behind that
            name, `"0/image"`.
        outputs: the same of results: `"logits"`, `"0"` of a tuple, and `""` if there is
            but one. Axes may be counted from the end.

    Raises:
        TypeError: `inputs` or `outputs` does not give a sequence of axes for each name.
        ValueError: no axis is named.

    Example:
        >>> import jax.numpy as jnp
        >>> from jcompress.shrinking import find_groups
        >>> def embed(params, x):
        ...     return x @ params["w"]
        >>> params = {"w": jnp.ones((3, 4))}
        >>> fixed = find_groups(embed, params, jnp.ones((2, 3)))
        >>> loose = find_groups(
        ...     ShrinkableAxes(embed, outputs={"": [-1]}), params, jnp.ones((2, 3))
        ... )
        >>> len(fixed), [group.name for group in loose]
        (0, ['w:1'])
    """

    fn: Callable[..., Any]
    _: dataclasses.KW_ONLY
    inputs: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)
    outputs: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for kind in ("inputs", "outputs"):
            given = getattr(self, kind)
            named = isinstance(given, Mapping) and all(
                isinstance(axes, Sequence) and not isinstance(axes, str)
                for axes in given.values()
            )
            if not named:
                raise TypeError(
                    f"ShrinkableAxes: {kind} gives axes by name, as in {{'0': [-1]}}, "
                    f"not "
                    f"{given!r}"
                )
        if not any([*self.inputs.values(), *self.outputs.values()]):
            raise ValueError(
                "ShrinkableAxes: name an axis, as in ShrinkableAxes(fn, outputs={'': "
                "[-1]}); without one "
                "use the function as it is"
            )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the function gives."""
        return self.fn(*args, **kwargs)


class Named(NamedTuple):
    """The leaves of a function's arguments behind the tree, with their names."""

    names: list[str]
    leaves: list[Any]
    structure: Any

    @classmethod
    def of(cls, args: Sequence[Any], kwargs: Mapping[str, Any]) -> "Named":
        """Name them, in the order in which a traced function takes them."""
        flat, structure = jax.tree_util.tree_flatten_with_path(
            (tuple(args), dict(kwargs))
        )
        return cls(
            [path_name(path[1:]) for path, _ in flat], [x for _, x in flat], structure
        )

    @property
    def arrays(self) -> list[tuple[str, Any]]:
        """Those that are traced."""
        pairs = zip(self.names, self.leaves, strict=True)
        return [(name, leaf) for name, leaf in pairs if is_array(leaf)]

    def rebuild(self, leaves: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments, with other leaves."""
        args, kwargs = jax.tree_util.tree_unflatten(self.structure, leaves)
        return args, kwargs


def free_axes(
    kind: str,
    wanted: Mapping[str, Sequence[int]],
    shapes: Sequence[tuple[str, tuple[int, ...]]],
) -> list[frozenset[int]]:
    """For each array of these names and shapes the axes that may shrink.

    Raises:
        MismatchError: there is no such array or axis, or it has a single position.
    """
    names = [name for name, _ in shapes]
    for name, axes in wanted.items():
        if name not in names:
            raise MismatchError(
                f"ShrinkableAxes: the function has no {kind} {name!r} that is an "
                f"array; it has "
                f"{', '.join(map(repr, names)) or 'none'}"
            )
        shape = dict(shapes)[name]
        for axis in axes:
            if not -len(shape) <= axis < len(shape) or shape[axis] < 2:
                raise MismatchError(
                    f"ShrinkableAxes: {axis_name(name, axis, kind)} cannot shrink: "
                    f"its shape is "
                    f"{list(shape)}"
                )
    return [
        frozenset(axis % len(shape) for axis in wanted.get(name, ()))
        for name, shape in shapes
    ]
