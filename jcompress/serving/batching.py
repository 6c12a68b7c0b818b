"""Requests that arrive one by one, run together: dynamic batching on one event loop.

A batch is closed when it is full or when its oldest request has waited long enough. Its
rows are padded to one of a few sizes, each of which was compiled before. While a batch
runs, in a thread of its own, the next one gathers.
"""

import asyncio
import collections
import concurrent.futures
import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np

Arrays = list[np.ndarray]
Run = Callable[[Sequence[np.ndarray]], Arrays]
"""Inputs to outputs, all with the batch as their first axis."""


class Overloaded(Exception):
    """As many rows wait as may wait, or the batcher is closing: try again later."""


class RunError(Exception):
    """The model failed on a request; the message is one line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batching:
    """How requests are put together.

    Attributes:
        sizes: how many rows run at once; a batch is padded to the next of them.
        max_wait: seconds that a request waits for others at most.
        max_waiting: rows that may wait; who comes when there are more is turned away.
    """

    sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    max_wait: float = 2e-3
    max_waiting: int = 256

    def __post_init__(self) -> None:
        if not self.sizes or list(self.sizes) != sorted({*self.sizes}):
            raise ValueError(f"Batching: sizes must ascend, not {self.sizes}")
        if self.sizes[0] < 1:
            raise ValueError(f"Batching: a batch has a row at least, not {self.sizes}")
        if not 0 <= self.max_wait < float("inf"):
            raise ValueError(f"Batching: max_wait is {self.max_wait} seconds")
        if self.max_waiting < self.sizes[-1]:
            raise ValueError(
                f"Batching: {self.max_waiting} rows may wait, fewer than a batch of "
                f"{self.sizes[-1]}"
            )

    @property
    def most(self) -> int:
        """The rows of the largest batch."""
        return self.sizes[-1]

    def size_for(self, rows: int) -> int:
        """The least size that holds so many rows."""
        return next(size for size in self.sizes if size >= rows)


def sizes_up_to(most: int) -> tuple[int, ...]:
    """The powers of two below a size, and the size."""
    return tuple(2**n for n in range(most.bit_length()) if 2**n < most) + (most,)


@dataclasses.dataclass
class Counts:
    """What a batcher has done since it started.

    Attributes:
        requests: answered.
        failed: of them those whose run failed.
        refused: turned away, since too many waited.
        batches: that ran.
        rows: that ran.
        padding: rows that were added to fill batches.
    """

    requests: int = 0
    failed: int = 0
    refused: int = 0
    batches: int = 0
    rows: int = 0
    padding: int = 0


@dataclasses.dataclass(eq=False)
class _Request:
    arrays: Arrays
    rows: int
    arrived: float
    done: asyncio.Future[Arrays]


class Batcher:
    """Puts requests together and runs them; use it as `async with Batcher(...)`.

    The end of the block answers what has been accepted, and accepts nothing more.

    Args:
        run: the model; called from one thread, never twice at a time.
        batching: how requests are put together.
        counts: what it adds to.
    """

    def __init__(
        self, run: Run, batching: Batching, counts: Counts | None = None
    ) -> None:
        self.batching = batching
        self.counts = Counts() if counts is None else counts
        self._run = run
        self._requests: collections.deque[_Request] = collections.deque()
        self._rows = 0
        self._closing = False
        self._wake = asyncio.Event()
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "jcompress-batches")

    async def __aenter__(self) -> "Batcher":
        self._worker = asyncio.create_task(self._work())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._closing = True
        self._wake.set()
        await self._worker
        self._pool.shutdown()

    @property
    def waiting(self) -> int:
        """The rows that wait."""
        return self._rows

    async def submit(self, arrays: Arrays) -> Arrays:
        """The outputs for the inputs of one request, of one row or more.

        Args:
            arrays: the inputs, checked, all with as many rows.

        Raises:
            ValueError: there are more rows than a batch holds, or none.
            Overloaded: too many rows wait, or the batcher is closing.
            RunError: the model failed on them, also without other requests.
        """
        rows = len(arrays[0])
        if not 1 <= rows <= self.batching.most:
            raise ValueError(
                f"the request has {rows} rows; 1 to {self.batching.most} are taken"
            )
        if self._closing:
            raise Overloaded("the server is stopping")
        if self._rows + rows > self.batching.max_waiting:
            self.counts.refused += 1
            raise Overloaded(f"{self._rows} rows wait already; try again later")
        done: asyncio.Future[Arrays] = asyncio.get_running_loop().create_future()
        request = _Request(arrays, rows, time.monotonic(), done)
        self._requests.append(request)
        self._rows += rows
        self._wake.set()
        outputs: Arrays = await done
        return outputs

    async def _work(self) -> None:
        while True:
            while not self._requests:
                if self._closing:
                    return
                await self._woken(None)
            await self._gather()
            if batch := self._take():
                await self._answer(batch)

    async def _gather(self) -> None:
        """Wait until the batch is full, or its oldest request has waited enough."""
        until = self._requests[0].arrived + self.batching.max_wait
        while self._rows < self.batching.most and not self._closing:
            left = until - time.monotonic()
            if left <= 0 or not await self._woken(left):
                return

    async def _woken(self, seconds: float | None) -> bool:
        """Wait for a request, or the end; False if the time is over."""
        self._wake.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return False
        return True

    def _take(self) -> list[_Request]:
        """The oldest requests that fit into a batch; whoever hung up is left out."""
        batch: list[_Request] = []
        rows = 0
        while self._requests and rows + self._requests[0].rows <= self.batching.most:
            request = self._requests.popleft()
            self._rows -= request.rows
            if not request.done.cancelled():
                batch.append(request)
                rows += request.rows
        return batch

    async def _answer(self, batch: list[_Request]) -> None:
        try:
            outputs = await self._together(batch)
        # Whatever the model raises is the answer to a request, and ends no server.
        except Exception as error:
            if len(batch) > 1:
                # One of them may be at fault, and the others are not to suffer.
                for request in batch:
                    await self._answer([request])
                return
            said = " ".join(str(error).split()) or type(error).__name__
            self.counts.failed += 1
            self._finish(batch[0], RunError(f"the model failed: {said}"))
            return
        first = 0
        for request in batch:
            last = first + request.rows
            self._finish(request, [output[first:last] for output in outputs])
            first = last

    def _finish(self, request: _Request, result: Arrays | Exception) -> None:
        self.counts.requests += 1
        if request.done.cancelled():
            return
        if isinstance(result, Exception):
            request.done.set_exception(result)
        else:
            request.done.set_result(result)

    async def _together(self, batch: list[_Request]) -> Arrays:
        rows = sum(request.rows for request in batch)
        size = self.batching.size_for(rows)
        self.counts.batches += 1
        self.counts.rows += rows
        self.counts.padding += size - rows
        arrays = [request.arrays for request in batch]
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self._padded_run, arrays, size)

    def _padded_run(self, requests: Sequence[Arrays], size: int) -> Arrays:
        inputs = [_stacked(parts, size) for parts in zip(*requests, strict=True)]
        outputs = self._run(inputs)
        for output in outputs:
            if output.shape[:1] != (size,):
                raise ValueError(
                    f"an output has the shape {list(output.shape)} for {size} rows"
                )
        return outputs


def _stacked(parts: Sequence[np.ndarray], size: int) -> np.ndarray:
    """One below the other; the last row fills up, since zeros may divide by zero."""
    rows = sum(map(len, parts))
    if rows < size:
        parts = [*parts, np.repeat(parts[-1][-1:], size - rows, axis=0)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
