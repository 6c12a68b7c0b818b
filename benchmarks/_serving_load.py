"""Load for a server on this machine: a fixed number of clients, each with one request
in flight; bounded in requests and in seconds."""

import asyncio
import io
import json
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Served(NamedTuple):
    """What one load came to.

    Attributes:
        rate: requests a second.
        seconds: of each request.
    """

    rate: float
    seconds: list[float]


def request(tokens: np.ndarray, mask: np.ndarray) -> bytes:
    """A request of one row, as bytes on the wire; the answer is asked for as .npy."""
    inputs = {"tokens": [tokens.tolist()], "mask": [mask.tolist()]}
    body = json.dumps({"inputs": inputs}).encode()
    head = (
        "POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        "Content-Type: application/json\r\n"
        f"Accept: application/x-npy\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def answers(port: int, requests: Sequence[bytes]) -> np.ndarray:
    """The outputs of requests, one after the other: [N, C]."""

    async def ask() -> list[np.ndarray]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        found = [
            np.load(io.BytesIO(await _exchange(reader, writer, each)))
            for each in requests
        ]
        writer.close()
        return found

    return np.concatenate(asyncio.run(ask()))


def load(
    port: int, requests: Sequence[bytes], *, clients: int, count: int, most: float
) -> Served:
    """Send `count` requests from so many clients, for `most` seconds at most.

    Raises:
        RuntimeError: an answer is an error.
    """
    seconds: list[float] = []

    async def client(numbers: "list[int]", until: float) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while numbers and time.perf_counter() < until:
            number = numbers.pop()
            began = time.perf_counter()
            await _exchange(reader, writer, requests[number % len(requests)])
            seconds.append(time.perf_counter() - began)
        writer.close()

    async def all_clients() -> float:
        numbers = list(range(count))
        began = time.perf_counter()
        await asyncio.gather(*(client(numbers, began + most) for _ in range(clients)))
        return time.perf_counter() - began

    spent = asyncio.run(all_clients())
    return Served(len(seconds) / spent, seconds)


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sent: bytes
) -> bytes:
    writer.write(sent)
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    size = int(head.partition("content-length:")[2].partition("\r\n")[0])
    body = await reader.readexactly(size)
    if " 200 " not in head.partition("\r\n")[0]:
        raise RuntimeError(f"{head.partition(chr(13))[0]}: {body.decode()}")
    return body
