"""`in_parts`: a computation that goes on after its last checkpoint."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jcompress import checkpoint

pytestmark = pytest.mark.once


def double(state: Any, number: int) -> tuple[Any, Mapping[str, float]]:
    return {"x": 2 * state["x"] + number}, {"sum": float(state["x"].sum())}


def start() -> Any:
    return {"x": jnp.arange(3, dtype=jnp.float32)}


def run(folder: Any = None, part: Any = double, **more: Any) -> checkpoint.Carried:
    given: dict[str, Any] = {"parts": 4, "values": ("sum",), "folder": folder, **more}
    return checkpoint.in_parts(part, start, **given)


def test_it_goes_on_after_the_last_part_that_was_finished(
    tmp_path: pathlib.Path,
) -> None:
    whole = run()
    # By hand: x -> 2 x + n.
    np.testing.assert_array_equal(whole.state["x"], [11, 27, 43])
    assert whole.values == {"sum": (3.0, 6.0, 15.0, 36.0)}
    begun: list[int] = []
    told: list[tuple[int, Any]] = []
    done: list[int] = []

    def fails(state: Any, number: int) -> Any:
        done.append(number)
        if number == 2 and len(done) == 3:
            raise KeyboardInterrupt
        return double(state, number)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a", fails, begun=begun.append)
    found = run(
        tmp_path / "a",
        fails,
        begun=begun.append,
        told=lambda n, own: told.append((n, own)),
    )
    assert done == [0, 1, 2, 2, 3]
    assert begun == [0, 2]
    assert told == [(3, {"sum": 15.0}), (4, {"sum": 36.0})]
    assert found.values == whole.values
    np.testing.assert_array_equal(found.state["x"], whole.state["x"])
    assert run(tmp_path / "a", pytest.fail).values == whole.values
    assert found.seconds > 0


def test_what_is_of_something_else_is_refused(tmp_path: pathlib.Path) -> None:
    run(tmp_path / "a", about={"model": "one", "recipe": "two"})
    with pytest.raises(checkpoint.CheckpointError, match="training of another recipe"):
        run(tmp_path / "a", about={"model": "one", "recipe": "three"})
    checkpoint.save(tmp_path / "b", start())
    with pytest.raises(checkpoint.CheckpointError, match="holds no training"):
        run(tmp_path / "b")
    with pytest.raises(checkpoint.CheckpointError, match="sum"):
        run(tmp_path / "a", parts=5, about={"model": "one"})
