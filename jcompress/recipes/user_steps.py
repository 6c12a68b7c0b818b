"""Recipes of steps for any model, read from TOML."""

import functools
import inspect
import pathlib
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import optax

from jcompress.models import (
    Step,
    distil,
    half_width,
    nm,
    sparse,
    svd,
    train,
    w4,
    w8,
    w8a8,
)
from jcompress.models.training import Optimizer, Rate
from jcompress.recipes.recipe import Path, RecipeError, named_values
from jcompress.recipes.user_code import Source, UserCode, naming_errors, nearest

KINDS: Mapping[str, Callable[..., Step]] = {
    each.__name__: each
    for each in (w8, w4, w8a8, nm, sparse, half_width, svd, train, distil)
}
"""The steps that a recipe can name; their arguments are those of the functions."""

DEFAULT: tuple[Mapping[str, Any], ...] = ({"kind": "w8a8"},)
"""What is done without a recipe."""


class Steps(NamedTuple):
    """The steps of a recipe.

    Attributes:
        values: each as the recipe says it, for the report.
        steps: each as `jcompress.models.compress` takes it.
    """

    values: tuple[Mapping[str, Any], ...]
    steps: tuple[Step, ...]


def read_steps(path: Path | None, code: UserCode) -> Steps:
    """Read the steps of a recipe and check each.

    Args:
        path: a TOML file with a table `[[step]]` for each step, in their order: `kind`,
            one of `w8`, `w4`, `w8a8`, `nm`, `sparse`, `half_width`, `svd`, `train`,
            `distil`, and the arguments of the function of that name in
            `jcompress.models`. A function, as `recover` of `half_width`, is given as
            "FILE.py:NAME", beside the recipe; an optimizer as a table of its `name` in
            optax and its arguments. None for `DEFAULT`.
        code: imports such functions.

    Raises:
        RecipeError: the file cannot be read, has no step, an unknown key, kind or
            argument, or a value that the step refuses.
        UserCodeError: a function cannot be imported.
    """
    if path is None:
        return _made(DEFAULT, code, pathlib.Path())
    values = named_values(path)
    for key in values:
        if key != "step":
            raise RecipeError(
                f"recipe: unknown key {key!r}; write a table [[step]] for each step"
            )
    given = values.get("step", [])
    if not isinstance(given, list) or not all(isinstance(x, dict) for x in given):
        raise RecipeError("recipe: write [[step]] with two brackets for each step")
    if not given:
        raise RecipeError(
            'recipe: there is no step; write [[step]] and below it kind = "w8"'
        )
    return _made(given, code, pathlib.Path(path).parent)


def _made(
    given: Sequence[Mapping[str, Any]], code: UserCode, folder: pathlib.Path
) -> Steps:
    steps = [
        _step(f"recipe: step {number}", values, code, folder)
        for number, values in enumerate(given, 1)
    ]
    return Steps(values=tuple(given), steps=tuple(steps))


def _step(
    where: str, values: Mapping[str, Any], code: UserCode, folder: pathlib.Path
) -> Step:
    if "kind" not in values:
        raise RecipeError(f"{where} has no kind, one of {', '.join(KINDS)}")
    kind = values["kind"]
    if not isinstance(kind, str) or kind not in KINDS:
        raise RecipeError(
            f"{where}: unknown kind {kind!r}{nearest(str(kind), [*KINDS])}"
        )
    number, where = where, f"{where}, {kind}"
    make, arguments = KINDS[kind], {}
    known = inspect.signature(make).parameters
    hints = typing.get_type_hints(make)
    for name, value in values.items():
        if name == "kind":
            continue
        if name not in known:
            raise RecipeError(
                f"{where}: unknown argument {name!r}" + (nearest(name, [*known]))
            )
        try:
            arguments[name] = _value(value, hints[name], code, folder)
        except _WrongType as error:
            raise RecipeError(
                f"{where}: {name} must be {error}, not {value!r}"
            ) from error
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in arguments:
            raise RecipeError(f"{where} needs the argument {name!r}")
    try:
        return make(**arguments)
    except ValueError as error:
        raise RecipeError(f"{number}: {error}") from error


class _WrongType(Exception):
    """The message says what is wanted."""


def _value(value: Any, hint: Any, code: UserCode, folder: pathlib.Path) -> Any:
    """A value of TOML as the argument of a function with this annotation."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint in (float, float | None, Rate):
        if not number:
            raise _WrongType("a number")
        return float(value)
    if hint is bool:
        if not isinstance(value, bool):
            raise _WrongType("true or false")
        return value
    if hint in (int, int | None):
        if not number or isinstance(value, float):
            raise _WrongType("a whole number")
        return value
    if hint == tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(x, str) for x in value):
            raise _WrongType("a list of strings")
        return tuple(value)
    if hint == Optimizer:
        return _optimizer(value)
    file, colon, name = value.rpartition(":") if isinstance(value, str) else ("",) * 3
    if not colon or not file or not name:
        raise _WrongType("a function, 'FILE.py:NAME'")
    source = Source(path=folder / file, name=name)
    return naming_errors(code.load(source), source)


def _optimizer(value: Any) -> Optimizer:
    """What makes an optimizer of optax: a table of its name and its arguments."""
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise _WrongType('a table with a name of optax, { name = "adamw" }')
    name = value["name"]
    known = [
        each
        for each, made in vars(optax).items()
        if inspect.isfunction(made)
        and not each.startswith(("_", "scale_"))
        and "learning_rate" in inspect.signature(made).parameters
    ]
    if name not in known:
        raise _WrongType(
            f"an optimizer of optax that takes a learning_rate{nearest(name, known)}"
        )
    make = getattr(optax, name)
    arguments = {key: each for key, each in value.items() if key != "name"}
    parameters = [*inspect.signature(make).parameters]
    for key in arguments:
        if key not in parameters[1:]:
            raise _WrongType(
                f"a table of arguments of optax.{name}, which has no {key!r}"
                f"{nearest(key, parameters[1:])}"
            )
    return functools.partial(make, **arguments)
