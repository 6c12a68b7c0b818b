"""A long computation in parts, each of which ends with a checkpoint."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jcompress.checkpoint.folder import Path, exists, load, save
from jcompress.checkpoint.manifest import CheckpointError


class Carried(NamedTuple):
    """What a computation in parts came to.

    Attributes:
        state: after the last part.
        values: by name, one number for each part.
        seconds: that the parts took, over all the processes that they were run in.
    """

    state: Any
    values: dict[str, tuple[float, ...]]
    seconds: float


def in_parts(
    part: Callable[[Any, int], tuple[Any, Mapping[str, float]]],
    start: Callable[[], Any],
    *,
    parts: int,
    values: Sequence[str],
    folder: Path | None = None,
    about: Mapping[str, str] | None = None,
    begun: Callable[[int], None] | None = None,
    told: Callable[[int, Mapping[str, float]], None] | None = None,
) -> Carried:
    """Run part after part, and go on after the last one that was finished.

    An interruption, at any moment and in any way, costs no more than the part that it
    falls into; the numbers are the same if a part follows from its state and its
    number alone.

    Args:
        part: `(state, number) -> (state, values)`, for the numbers from 0.
        start: makes the state before the first part; not called, but for its shapes, if
            there is a checkpoint.
        parts: how many there are.
        values: the names of the numbers that a part gives.
        folder: keeps the checkpoint; None for none.
        about: what must be the same to go on, each a short text by what it is about.
        begun: told how many parts were finished before.
        told: told after each part how many are finished, and its values.

    Raises:
        CheckpointError: the folder is damaged, of something else, or about something
            else, which is named.
        ImportError: Orbax is not installed, and there is a folder.
        OSError: a checkpoint cannot be written; the one before is whole.
    """
    about = dict(about or {})
    known = {name: np.full(parts, np.nan) for name in values}
    done, seconds, state = 0, 0.0, None
    if folder is not None and exists(folder):
        _check(folder, about)
        like = {"state": jax.eval_shape(start), "values": known, "about": about}
        found = load(folder, like={**like, "done": done, "seconds": seconds})
        state, done, seconds = found["state"], found["done"], found["seconds"]
        known = {name: np.array(found["values"][name]) for name in values}
    else:
        state = start()
    if begun is not None:
        begun(done)
    for number in range(done, parts):
        began = time.monotonic()
        state, own = part(state, number)
        for name in values:
            known[name][number] = own[name]
        seconds += time.monotonic() - began
        if folder is not None:
            tree = {"state": state, "values": known, "about": about}
            save(folder, {**tree, "done": number + 1, "seconds": seconds})
        if told is not None:
            told(number + 1, own)
    return Carried(state, {n: tuple(x.tolist()) for n, x in known.items()}, seconds)


def _check(folder: Path, about: Mapping[str, str]) -> None:
    """Refuse a checkpoint that is about something else."""
    found = load(folder)
    if not isinstance(found, Mapping) or not {"state", "done"} <= set(found):
        raise CheckpointError(f"{folder} holds no training to go on with")
    kept = found.get("about", {})
    for what, wanted in about.items():
        if kept.get(what) != wanted:
            raise CheckpointError(
                f"{folder} holds a training of another {what}; give another folder, or "
                "remove it"
            )
