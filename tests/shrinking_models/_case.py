"""A tiny model with the groups that it must have, by hand."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from _models import Model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A model, its groups and the same model at half the widths.

    Attributes:
        name: the builder's name.
        model: the tiny model.
        groups: size of each group, by name, in any order.
        opt_in: the groups that an operation reduces over.
        members: of some groups all axes; `params/` is left out. An axis of which the
            group has only a part is written with the number of its positions in it, as
            in `head/kernel:0(4/16)`.
        native: the model's own class with half the units in every group.
        uncut: the groups of which it keeps all units.
    """

    name: str = ""
    model: Model
    groups: Mapping[str, int]
    opt_in: frozenset[str] = frozenset()
    members: Mapping[str, frozenset[str]] = dataclasses.field(default_factory=dict)
    native: Model | None = None
    uncut: frozenset[str] = frozenset()

    @functools.cached_property
    def variables(self) -> Any:
        """In the host's memory, where cutting compiles nothing."""
        return jax.tree.map(np.asarray, self.model.variables())

    @functools.cached_property
    def inputs(self) -> Any:
        return self.model.inputs(4)


BUILDERS: dict[str, Callable[[], Case]] = {}


def case(builder: Callable[[], Case]) -> Callable[[], Case]:
    """Register a builder; its model is made once."""
    name = builder.__name__

    @functools.cache
    def build() -> Case:
        return dataclasses.replace(builder(), name=name)

    BUILDERS[name] = build
    return build


def params(table: Mapping[str, int]) -> dict[str, int]:
    return {f"params/{name}": size for name, size in table.items()}


def axes(*names: str) -> frozenset[str]:
    return frozenset(names)


def normed(*layers: str) -> Iterable[str]:
    """The axes of a convolution's outputs and of the batch normalization behind it."""
    for layer in layers:
        yield f"{layer}/conv/kernel:3"
        yield from (f"{layer}/norm/{leaf}:0" for leaf in ("scale", "bias"))
        yield from (f"batch_stats/{layer}/norm/{leaf}:0" for leaf in ("mean", "var"))
