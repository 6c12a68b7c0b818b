"""What the main job does, as a value: read from TOML and checked before any work."""

import dataclasses
import importlib.resources
import math
import os
import tomllib
import types
import typing
from collections.abc import Mapping
from typing import Any

from jcompress.recipes.data import load_digits


class RecipeError(ValueError):
    """A recipe that cannot be carried out; the message is one line."""


def _require(holds: bool, key: str, value: object, wanted: str) -> None:
    if not holds:
        raise RecipeError(f"recipe: {key} must be {wanted}, not {value!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """The network: `jcompress.recipes.models.ResidualCNN`.

    Attributes:
        widths: channels of each residual block, one to four of them.
    """

    widths: tuple[int, ...]

    def __post_init__(self) -> None:
        good = 1 <= len(self.widths) <= 4 and all(1 <= w <= 1024 for w in self.widths)
        wanted = "one to four numbers from 1 to 1024"
        _require(good, "model.widths", list(self.widths), wanted)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """One training with AdamW.

    Attributes:
        epochs: passes over the training images.
        batch_size: images of one step.
        learning_rate: the highest; reached after an epoch, followed by a cosine to 0.
        weight_decay: decoupled, as in AdamW.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float

    def check(self, section: str) -> None:
        """Refuse what cannot be trained; `section` names it in the message."""
        most = len(load_digits().train)
        _require(self.epochs >= 1, f"{section}.epochs", self.epochs, "at least 1")
        good = 1 <= self.batch_size <= most
        wanted = f"from 1 to {most}, the number of training images"
        _require(good, f"{section}.batch_size", self.batch_size, wanted)
        good = 0 < self.learning_rate < math.inf
        wanted = "above 0 and finite"
        _require(good, f"{section}.learning_rate", self.learning_rate, wanted)
        good = 0 <= self.weight_decay < math.inf
        wanted = "at least 0 and finite"
        _require(good, f"{section}.weight_decay", self.weight_decay, wanted)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shrinking:
    """How the network becomes narrower before the student is trained.

    Attributes:
        keep: fraction of the parameters that stays, in (0, 1).
        rounds: rounds of choosing channels and recovering.
        multiple: numbers of channels are rounded up to a multiple of this.
    """

    keep: float
    rounds: int
    multiple: int

    def __post_init__(self) -> None:
        wanted = "between 0 and 1 (the fraction of the parameters that stays)"
        _require(0 < self.keep < 1, "shrinking.keep", self.keep, wanted)
        _require(self.rounds >= 1, "shrinking.rounds", self.rounds, "at least 1")
        good = self.multiple >= 1
        _require(good, "shrinking.multiple", self.multiple, "at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pruning:
    """Magnitude pruning of the blocks while the student is trained.

    Attributes:
        sparsity: fraction removed of each convolution of the blocks, in [0, 1); 0 for
            none. The zeros are stored: this saves nothing by itself.
        epochs: epochs over which it rises from 0, from the start of the training.
        every: steps between two choices of what is removed.
    """

    sparsity: float
    epochs: int
    every: int

    def __post_init__(self) -> None:
        good = 0 <= self.sparsity < 1
        wanted = "at least 0 and below 1 (the fraction removed)"
        _require(good, "pruning.sparsity", self.sparsity, wanted)
        _require(self.epochs >= 1, "pruning.epochs", self.epochs, "at least 1")
        _require(self.every >= 1, "pruning.every", self.every, "at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantization:
    """Integers for the student's weights, with one scale for each output channel.

    Attributes:
        weight_bits: bits of a weight, 2 to 8.
        edge_bits: bits of the first convolution and of the classifier, 2 to 8.
    """

    weight_bits: int
    edge_bits: int

    def __post_init__(self) -> None:
        for key in ("weight_bits", "edge_bits"):
            bits = getattr(self, key)
            _require(2 <= bits <= 8, f"quantization.{key}", bits, "from 2 to 8")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation:
    """What the student learns from the teacher (Hinton et al. 2015).

    Attributes:
        temperature: softens both distributions; above 0.
        weight: of the softened targets, in [0, 1]; the labels have the rest.
    """

    temperature: float
    weight: float

    def __post_init__(self) -> None:
        good = 0 < self.temperature < math.inf
        wanted = "above 0 and finite"
        _require(good, "distillation.temperature", self.temperature, wanted)
        good = 0 <= self.weight <= 1
        _require(good, "distillation.weight", self.weight, "from 0 to 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """How speed is measured.

    Attributes:
        batch_sizes: images of one call; one measurement for each.
        rounds: repetitions, at least 5.
    """

    batch_sizes: tuple[int, ...]
    rounds: int

    def __post_init__(self) -> None:
        sizes = self.batch_sizes
        good = all(1 <= size <= 4096 for size in sizes) and len(set(sizes)) == len(
            sizes
        )
        wanted = "one or more different numbers from 1 to 4096"
        _require(bool(sizes) and good, "latency.batch_sizes", list(sizes), wanted)
        _require(self.rounds >= 5, "latency.rounds", self.rounds, "at least 5")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the result of the main job.

    Attributes:
        seed: of the initial weights and of the order of the data; not negative.
        model: the network.
        teacher: training of the dense teacher.
        shrinking: how narrow the network becomes.
        recovery: training after each round of that.
        student: training of the student, which starts as the narrow network.
        pruning: what is removed from the student meanwhile.
        quantization: how the student's weights are rounded meanwhile.
        distillation: what it learns from the teacher meanwhile.
        latency: how the speed of both is measured.

    Raises:
        RecipeError: a value is out of range; the message names its key.
    """

    seed: int
    model: Model
    teacher: Training
    shrinking: Shrinking
    recovery: Training
    student: Training
    pruning: Pruning
    quantization: Quantization
    distillation: Distillation
    latency: Timing

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**31, "seed", self.seed, "from 0 to 2147483647")
        self.teacher.check("teacher")
        self.recovery.check("recovery")
        self.student.check("student")
        most = self.student.epochs
        wanted = f"at most student.epochs ({most})"
        # A schedule that removes nothing does not limit the training.
        good = self.pruning.sparsity == 0 or self.pruning.epochs <= most
        _require(good, "pruning.epochs", self.pruning.epochs, wanted)


Path = str | os.PathLike[str]


def read_recipe(path: Path | None = None, *, seed: int | None = None) -> Recipe:
    """Read a recipe and check it.

    Args:
        path: a TOML file; keys that it leaves out are those of `default.toml`, which
            is also taken for None.
        seed: replaces the recipe's.

    Raises:
        RecipeError: the file cannot be read, is no TOML, has an unknown key, a value of
            a wrong type or one out of range.
    """
    home = importlib.resources.files("jcompress.recipes")
    values = tomllib.loads((home / "default.toml").read_text())
    if path is not None:
        values = _merged(values, named_values(path), "")
    if seed is not None:
        values["seed"] = seed
    recipe = _built(Recipe, values, "")
    assert isinstance(recipe, Recipe)
    return recipe


def named_values(path: Path) -> dict[str, Any]:
    """The values that a recipe file itself names, unchecked.

    Raises:
        RecipeError: the file cannot be read or is no TOML.
    """
    try:
        with open(path, "rb") as stream:
            return tomllib.load(stream)
    except OSError as error:
        why = error.strerror or str(error)
        raise RecipeError(f"recipe: cannot read {os.fspath(path)!r}: {why}") from error
    except ValueError as error:
        what = " ".join(str(error).split())
        raise RecipeError(f"recipe: {os.fspath(path)!r} is no TOML: {what}") from error


def write_recipe(recipe: Recipe) -> str:
    """The recipe as TOML, every key of it; `read_recipe` reads it back."""
    values = dataclasses.asdict(recipe)
    lines = [f"seed = {values.pop('seed')}"]
    for section, entries in values.items():
        lines += ["", f"[{section}]"]
        for key, value in entries.items():
            shown = list(value) if isinstance(value, tuple) else value
            lines.append(f"{key} = {shown!r}")
    return "\n".join(lines) + "\n"


def differences(first: Recipe, second: Recipe) -> list[str]:
    """The keys in which two recipes differ, each as `key (first, second)`."""
    a, b = _flat(dataclasses.asdict(first)), _flat(dataclasses.asdict(second))
    return [f"{key} ({a[key]}, {b[key]})" for key in a if a[key] != b[key]]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _merged(
    default: Mapping[str, Any], given: Mapping[str, Any], prefix: str
) -> dict[str, Any]:
    merged = dict(default)
    for key, value in given.items():
        if key not in default:
            known = ", ".join(default)
            raise RecipeError(
                f"recipe: unknown key {prefix + key!r}; known here: {known}"
            )
        if isinstance(default[key], Mapping):
            _require(isinstance(value, Mapping), prefix + key, value, "a table")
            merged[key] = _merged(default[key], value, f"{prefix}{key}.")
        else:
            merged[key] = value
    return merged


def _built(kind: type, values: Mapping[str, Any], prefix: str) -> Any:
    hints = typing.get_type_hints(kind)
    return kind(
        **{
            key: _built(hints[key], value, f"{prefix}{key}.")
            if isinstance(value, Mapping)
            else _typed(hints[key], value, prefix + key)
            for key, value in values.items()
        }
    )


def _typed(kind: type | types.GenericAlias, value: Any, key: str) -> Any:
    def is_int(x: Any) -> bool:
        return isinstance(x, int) and not isinstance(x, bool)

    if kind is int:
        _require(is_int(value), key, value, "a whole number")
        return value
    if kind is float:
        _require(is_int(value) or isinstance(value, float), key, value, "a number")
        return float(value)
    good = isinstance(value, list) and all(map(is_int, value))
    _require(good, key, value, "a list of whole numbers")
    return tuple(value)
