"""A model on its way through a recipe, and what its trainings learn from."""

import dataclasses
import functools
import os
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jcompress.leaves import named_leaves
from jcompress.pruning import Pattern
from jcompress.quantization import Quantize, Weights
from jcompress.rules import Rules
from jcompress.sensitivity.candidates import only
from jcompress.shrinking import Plan
from jcompress.sites import Sites, find_sites
from jcompress.statistics import SecondMoments, observe
from jcompress.tensors import is_compressed

Arguments = tuple[Any, ...]

Loss = Callable[[Any, Any], Any]
"""`(outputs, targets) -> loss`, a scalar, or one or more for each example."""

Tell = Callable[[str, int, int, str], None]
"""`(training, parts that are done, all parts, how it went)`."""


class Curve(NamedTuple):
    """How a training went.

    Attributes:
        name: "train" or "distil", with a number from the second one on.
        steps: how many there were.
        ends: after how many of them each number of `losses` was taken.
        losses: by name, the mean since the number before; "total" is their weighted
            sum, which was minimized.
        seconds: that it took, compilation included.
    """

    name: str
    steps: int
    ends: tuple[int, ...]
    losses: Mapping[str, tuple[float, ...]]
    seconds: float

    def __str__(self) -> str:
        total = self.losses["total"]
        return (
            f"{self.name}: {self.steps} steps, loss {total[0]:.3g} to {total[-1]:.3g}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lessons:
    """What trainings learn from.

    Attributes:
        teacher: `fn(params, *args)`, the model as it was.
        params: its tree.
        batches: pairs of arguments for the model and targets; those of `Work.data`,
            without targets, if there are none.
        loss: of the targets; None if there is none.
        folder: keeps what is trained, to go on after an interruption; or None.
        tell: told how far a training is; or None.
    """

    teacher: Callable[..., Any]
    params: Any
    batches: Sequence[tuple[Arguments, Any]] = ()
    loss: Loss | None = None
    folder: str | os.PathLike[str] | None = None
    tell: Tell | None = None


class Pending(NamedTuple):
    """What will be quantized when the last training is done, and is rounded until then.

    Attributes:
        specs: of each leaf, by its name.
        ranges: as of `jcompress.quantization.quantize`.
        factors: how those of thin factors are stored, by name; a training does not
            round them.
    """

    specs: Mapping[str, Quantize]
    ranges: Mapping[str, Any] | None = None
    factors: Mapping[str, Weights] = types.MappingProxyType({})

    @property
    def rules(self) -> Rules[Quantize]:
        """A rule for each leaf."""
        return [rule for path, spec in self.specs.items() for rule in only(path, spec)]


NOTHING = Pending({})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """A model on its way through a recipe.

    Attributes:
        fn: the function, for dense leaves.
        params: its tree.
        args: an example of what follows the tree.
        data: batches of such arguments, to learn from; none if the user gave none.
        plan: what was shrunk, or None.
        sparse: rules of what is stored without its zeros when all steps are done.
        pruned: the leaves, by name, whose zeros stay zeros.
        trains: whether a later step trains, so that numbers stay floats until then.
        pending: what will be quantized after that.
        lessons: what it learns from; None if nothing is trained.
        curves: how the trainings so far went.
    """

    fn: Callable[..., Any]
    params: Any
    args: Arguments
    data: Sequence[Arguments] = ()
    plan: Plan | None = None
    sparse: tuple[tuple[Any, Pattern], ...] = ()
    pruned: frozenset[str] = frozenset()
    trains: bool = False
    pending: Pending = NOTHING
    lessons: Lessons | None = None
    curves: tuple[Curve, ...] = ()

    @property
    def quantized(self) -> set[str]:
        """The leaves, by name, that are quantized already, or compressed otherwise."""
        named = named_leaves(self.params)
        return {path for path, leaf in named if is_compressed(leaf)} | {
            *self.pending.specs
        }

    @functools.cached_property
    def sites(self) -> Sites:
        """Where the leaves are used."""
        shapes = jax.tree.map(
            lambda leaf: (
                jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
                if is_compressed(leaf)
                else leaf
            ),
            self.params,
            is_leaf=is_compressed,
        )
        return find_sites(self.fn, shapes, *self.args)

    def moments(self, rules: Rules[Any]) -> Mapping[str, Any]:
        """Second moments of the inputs of what the rules take, over all data."""
        observed = observe(self.fn, rules, SecondMoments())
        run = jax.jit(lambda params, *args: observed(params, *args)[1])
        total = None
        for args in self.data or [self.args]:
            found = run(self.params, *args)
            total = found if total is None else total + found
        assert total is not None
        return dict(total)


def as_arguments(inputs: Any) -> Arguments:
    """What follows the tree in a call: a tuple, or a single argument."""
    return inputs if isinstance(inputs, tuple) else (inputs,)
