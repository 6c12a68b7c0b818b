"""Which layer of a student learns from which of its teacher, and what they hand out."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from jcompress.errors import MismatchError
from jcompress.statistics import Input, NamedScope, Output, tap

__all__ = ["Inside", "evenly", "first_layers", "last_layers", "with_values"]

S = TypeVar("S")
T = TypeVar("T")


class Inside(NamedTuple):
    """What a function returns, and values from inside of it.

    Attributes:
        outputs: what the function returns.
        values: one for each place, in their order.
    """

    outputs: Any
    values: tuple[Any, ...]


def with_values(
    fn: Callable[..., Any], places: Sequence[Input | Output | NamedScope]
) -> Callable[..., Inside]:
    """Make a function also return the values that losses on features compare.

    It is `jcompress.statistics.tap` for places that stand for one value each, such as
    the two sides of the pairs that `evenly` makes.

    Args:
        fn: any function of a parameter tree, such as `model.apply`; it is not edited.
        places: where the values are; each matches exactly one.

    Returns:
        A function with the arguments of `fn` that returns an `Inside`. When it is
        traced, before anything is compiled, it raises MismatchError for a place that
        matches nothing (with the nearest names that there are) or several values.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jcompress.distillation.layers import with_values
        >>> from jcompress.statistics import Input
        >>> def model(params, x):
        ...     return jnp.tanh(x @ params["a"]) @ params["b"]
        >>> params = {"a": jnp.zeros((2, 3)), "b": jnp.ones((3, 1))}
        >>> with_values(model, [Input("b")])(params, jnp.ones((1, 2))).values
        (Array([[0., 0., 0.]], dtype=float32),)
    """
    tapped = tap(fn, places)

    @functools.wraps(fn)
    def run(*args: Any, **kwargs: Any) -> Inside:
        outputs, found = tapped(*args, **kwargs)
        for place, each in zip(places, found, strict=True):
            if len(each) > 1:
                raise MismatchError(
                    f"with_values: {place!r} matches {len(each)} values, "
                    f"{', '.join(each)}; name one of them, or use tap"
                )
        return Inside(outputs, tuple(next(iter(each.values())) for each in found))

    return run


def evenly(student: Sequence[S], teacher: Sequence[T]) -> list[tuple[S, T]]:
    """Pair each layer of a student with one of the teacher, evenly spaced to the last.

    Layer m of M, counted from 1, learns from layer m N / M of N, rounded up: of three
    layers and six these are the second, fourth and sixth.

    Args:
        student: its layers, in order: places for `with_values`, or numbers.
        teacher: its layers, at least as many.

    Raises:
        ValueError: no layers, or fewer of the teacher.

    References:
        Jiao et al. 2020, "TinyBERT", section 3.1 (g(m) = m N / M).
    """
    _check("evenly", student, teacher)
    few, many = len(student), len(teacher)
    return [
        (layer, teacher[-(-(number + 1) * many // few) - 1])
        for number, layer in enumerate(student)
    ]


def first_layers(student: Sequence[S], teacher: Sequence[T]) -> list[tuple[S, T]]:
    """Pair the layers of a student with the first of the teacher, one by one.

    Args:
        student: as of `evenly`.
        teacher: as of `evenly`.

    Raises:
        ValueError: as `evenly`.
    """
    _check("first_layers", student, teacher)
    return list(zip(student, teacher, strict=False))


def last_layers(student: Sequence[S], teacher: Sequence[T]) -> list[tuple[S, T]]:
    """Pair the layers of a student with the last of the teacher, one by one.

    With the last layers alone, `last_layers(student[-1:], teacher)`, it is the rule of
    MiniLM.

    Args:
        student: as of `evenly`.
        teacher: as of `evenly`.

    Raises:
        ValueError: as `evenly`.

    References:
        Sun et al. 2019, "Patient Knowledge Distillation for BERT Model Compression",
        section 3.2 (PKD-Last).
    """
    _check("last_layers", student, teacher)
    return list(zip(student, teacher[len(teacher) - len(student) :], strict=True))


def _check(rule: str, student: Sequence[Any], teacher: Sequence[Any]) -> None:
    if not 1 <= len(student) <= len(teacher):
        raise ValueError(
            f"{rule}: {len(student)} layers of the student and {len(teacher)} of the "
            "teacher; the teacher needs at least as many, and the student one"
        )
