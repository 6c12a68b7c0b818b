"""Requests put together: sizes, waiting, errors, limits, the end. No network."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from jcompress.serving import Batcher, Batching, Overloaded, RunError, sizes_up_to

pytestmark = pytest.mark.once

FOREVER = 60.0
"""Seconds of waiting that no test lasts."""


def row(*values: float) -> list[np.ndarray]:
    return [np.array(values, np.float32)[:, None]]


class Model:
    """Doubles; fails on a negative number; can be held up."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.go = threading.Event()
        self.go.set()
        self.busy = threading.Event()

    def __call__(self, arrays: Any) -> list[np.ndarray]:
        self.sizes.append(len(arrays[0]))
        self.busy.set()
        assert self.go.wait(FOREVER)
        if (arrays[0] < 0).any():
            raise ArithmeticError("a negative\nnumber")
        return [arrays[0] * np.float32(2)]


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(FOREVER):
        while not true():
            await asyncio.sleep(0.001)


def go(test: Callable[[], Any]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(2 * FOREVER):
            await test()

    asyncio.run(bounded())


def test_a_full_batch_does_not_wait():
    model = Model()

    async def test() -> None:
        async with Batcher(model, Batching(sizes=(1, 4), max_wait=FOREVER)) as batcher:
            found = await asyncio.gather(*(batcher.submit(row(n)) for n in range(4)))
            assert [float(out[0][0, 0]) for out in found] == [0, 2, 4, 6]

    go(test)
    assert model.sizes == [4]


def test_a_single_request_waits_no_longer_than_it_may():
    model = Model()

    async def test() -> None:
        async with Batcher(model, Batching(sizes=(1, 4), max_wait=1e-3)) as batcher:
            (found,) = await batcher.submit(row(3))
            assert found.tolist() == [[6]]

    go(test)
    assert model.sizes == [1]


def test_padding_to_the_next_size():
    model = Model()

    async def test() -> None:
        async with Batcher(model, Batching(sizes=(2, 8), max_wait=1e-3)) as batcher:
            (found,) = await batcher.submit(row(1, 2, 3))
            assert found.tolist() == [[2], [4], [6]]
            (found,) = await batcher.submit(row(5))
            assert found.tolist() == [[10]]
            assert batcher.counts.padding == 5 + 1
            assert batcher.counts.rows == 4

    go(test)
    assert model.sizes == [8, 2]


def test_requests_gather_while_a_batch_runs():
    model = Model()

    async def test() -> None:
        async with Batcher(model, Batching(sizes=(1, 2, 4), max_wait=0.0)) as batcher:
            model.go.clear()
            first = asyncio.create_task(batcher.submit(row(0)))
            await until(model.busy.is_set)
            others = [asyncio.create_task(batcher.submit(row(n))) for n in (1, 2, 3)]
            await until(lambda: batcher.waiting == 3)
            model.go.set()
            await asyncio.gather(first, *others)

    go(test)
    assert model.sizes == [1, 4]


def test_requests_of_several_rows_are_not_split():
    model = Model()

    async def test() -> None:
        async with Batcher(model, Batching(sizes=(4,), max_wait=1e-3)) as batcher:
            found = await asyncio.gather(
                batcher.submit(row(1, 2, 3)), batcher.submit(row(4, 5))
            )
            assert [out[0].ravel().tolist() for out in found] == [[2, 4, 6], [8, 10]]

    go(test)
    assert len(model.sizes) == 2


def test_an_error_is_told_to_its_own_request():
    model = Model()

    async def test() -> None:
        async with Batcher(model, Batching(sizes=(1, 4), max_wait=FOREVER)) as batcher:
            found = await asyncio.gather(
                *(batcher.submit(row(n)) for n in (1, -1, 2, 3)), return_exceptions=True
            )
            assert isinstance(found[1], RunError)
            assert str(found[1]) == "the model failed: a negative number"
            rest = [out[0][0, 0] for out in found if isinstance(out, list)]
            assert rest == [2, 4, 6]
            assert batcher.counts.failed == 1

    go(test)
    assert model.sizes == [4, 1, 1, 1, 1]


def test_outputs_without_the_batch_are_an_error():
    async def test() -> None:
        def run(arrays: Any) -> list[np.ndarray]:
            return [np.zeros((3,), np.float32)]

        async with Batcher(run, Batching(sizes=(1,))) as batcher:
            with pytest.raises(RunError, match=r"the shape \[3\] for 1 rows"):
                await batcher.submit(row(1))

    go(test)


def test_limits():
    model = Model()

    async def test() -> None:
        batching = Batching(sizes=(1, 2), max_wait=0.0, max_waiting=2)
        async with Batcher(model, batching) as batcher:
            for rows in (row(), row(1, 2, 3)):
                with pytest.raises(ValueError, match="rows; 1 to 2 are taken"):
                    await batcher.submit(rows)
            model.go.clear()
            first = asyncio.create_task(batcher.submit(row(0)))
            await until(model.busy.is_set)
            others = [asyncio.create_task(batcher.submit(row(n))) for n in (1, 2)]
            await until(lambda: batcher.waiting == 2)
            with pytest.raises(Overloaded, match="2 rows wait already"):
                await batcher.submit(row(3))
            assert batcher.counts.refused == 1
            model.go.set()
            await asyncio.gather(first, *others)
            await batcher.submit(row(3))

    go(test)


def test_who_hangs_up_is_not_run():
    model = Model()

    async def test() -> None:
        async with Batcher(model, Batching(sizes=(1, 2), max_wait=0.0)) as batcher:
            model.go.clear()
            first = asyncio.create_task(batcher.submit(row(0)))
            await until(model.busy.is_set)
            gone = asyncio.create_task(batcher.submit(row(1)))
            stays = asyncio.create_task(batcher.submit(row(2)))
            await until(lambda: batcher.waiting == 2)
            gone.cancel()
            await asyncio.sleep(0)
            model.go.set()
            await first
            assert (await stays)[0].tolist() == [[4]]

    go(test)
    assert model.sizes == [1, 1]


def test_the_end_answers_what_was_accepted():
    model = Model()

    async def test() -> None:
        async with Batcher(model, Batching(sizes=(8,), max_wait=FOREVER)) as batcher:
            waits = asyncio.create_task(batcher.submit(row(1)))
            await until(lambda: batcher.waiting == 1)
        assert (await waits)[0].tolist() == [[2]]
        with pytest.raises(Overloaded, match="stopping"):
            await batcher.submit(row(1))

    go(test)


def test_sizes():
    assert sizes_up_to(1) == (1,)
    assert sizes_up_to(8) == (1, 2, 4, 8)
    assert sizes_up_to(12) == (1, 2, 4, 8, 12)
    for wrong, words in (
        ({"sizes": ()}, "ascend"),
        ({"sizes": (2, 1)}, "ascend"),
        ({"sizes": (0, 1)}, "a row at least"),
        ({"max_wait": -1.0}, "max_wait"),
        ({"max_waiting": 3}, "fewer than a batch of 32"),
    ):
        with pytest.raises(ValueError, match=words):
            Batching(**wrong)
