"""A model behind HTTP: requests are checked, put together, run, and answered."""

import asyncio
import contextlib
import importlib
import json
import signal
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

from jcompress.serving.batching import (
    Batcher,
    Batching,
    Counts,
    Overloaded,
    RunError,
)
from jcompress.serving.layout import ProgramError
from jcompress.serving.payloads import (
    JSON,
    MOST_BYTES,
    NPY,
    UnknownKind,
    read_body,
    write_body,
)
from jcompress.serving.servable import Servable, check_rows

_PATIENCE = 30
"""Seconds that requests in flight get when the server stops."""


def make_app(
    model: Servable, batching: Batching, *, most_bytes: int = MOST_BYTES
) -> Any:
    """The ASGI application of a model: POST /predict, GET /health, GET /metadata.

    Args:
        model: the model, warmed up for the sizes of `batching`.
        batching: how requests are put together; see `check_servable`.
        most_bytes: of a body.

    Returns:
        The application; `app.state.counts` tells what it has done.

    Raises:
        ImportError: the extra `serve` is not installed.
    """
    starlette = _required("starlette.applications")
    routing = _required("starlette.routing")
    batchers: list[Batcher] = []
    counts = Counts()

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        async with Batcher(model.run, batching, counts) as batcher:
            batchers[:] = [batcher]
            yield

    async def predict(request: Any) -> Any:
        body = await _body(request, most_bytes)
        if body is None:
            return _refusal(413, f"the body has more than {most_bytes} bytes")
        kind = request.headers.get("content-type", "")
        wanted = _wanted(request.headers.get("accept", ""), kind)
        try:
            arrays = read_body(body, kind, model.inputs, most_bytes)
            check_rows(model, arrays)
            outputs = await batchers[0].submit(arrays)
        except UnknownKind as error:
            return _refusal(415, error)
        except ValueError as error:
            return _refusal(400, error)
        except Overloaded as error:
            return _refusal(503, error, {"retry-after": "1"})
        except RunError as error:
            return _refusal(500, error)
        try:
            content, kind = write_body(outputs, wanted, model.outputs)
        except ProgramError as error:
            return _refusal(500, error)
        return _response(content, media_type=kind)

    async def health(request: Any) -> Any:
        return _json({"status": "ok", "waiting": batchers[0].waiting})

    async def metadata(request: Any) -> Any:
        return _json(
            {
                "model": model.describe(),
                "batching": {
                    "sizes": list(batching.sizes),
                    "max_wait_ms": batching.max_wait * 1e3,
                    "max_waiting": batching.max_waiting,
                },
                "counts": vars(counts),
            }
        )

    route = routing.Route
    app = starlette.Starlette(
        routes=[
            route("/predict", predict, methods=["POST"]),
            route("/health", health, methods=["GET"]),
            route("/metadata", metadata, methods=["GET"]),
        ],
        lifespan=lifespan,
    )
    app.state.counts = counts
    return app


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens, before work is done for a port that is taken.

    Raises:
        OSError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Where the protocol is not named, asyncio leaves Nagle's algorithm on, and answers
    # wait 40 ms for the client's acknowledgement of their headers.
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
    except OSError as error:
        made.close()
        raise OSError(f"{host}:{port}: {error.strerror or error}") from error
    return made


def serve(app: Any, listening: socket.socket, started: Callable[[], None]) -> None:
    """Answer requests until SIGTERM or SIGINT, and then those that are in flight.

    Args:
        app: what `make_app` gave.
        listening: what `bind` gave.
        started: called when it is ready.

    Raises:
        ImportError: the extra `serve` is not installed.
    """
    uvicorn = _required("uvicorn")
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="on",
        timeout_graceful_shutdown=_PATIENCE,
    )
    server = uvicorn.Server(config)

    def stop(number: int, frame: Any) -> None:
        server.should_exit = True

    # Uvicorn has handlers of its own while it runs, and raises the signal again when
    # it has ended, which is to be a success.
    before = {each: signal.signal(each, stop) for each in _SIGNALS}
    try:
        asyncio.run(_serve(server, listening, started))
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


_SIGNALS = (signal.SIGTERM, signal.SIGINT)


async def _serve(
    server: Any, listening: socket.socket, started: Callable[[], None]
) -> None:
    running = asyncio.create_task(server.serve(sockets=[listening]))
    while not server.started and not running.done():
        await asyncio.sleep(0.01)
    if not running.done():
        started()
    await running


def require_serve() -> None:
    """Refuse to serve without the packages for it.

    Raises:
        ImportError: the extra `serve` is not installed.
    """
    for name in ("starlette.applications", "uvicorn"):
        _required(name)


def _required(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"serving needs the package {name.partition('.')[0]}: pip install "
            "'jcompress[serve]'"
        ) from error


async def _body(request: Any, most: int) -> bytes | None:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            return None
        parts.append(part)
    return b"".join(parts)


def _wanted(accept: str, kind: str) -> str:
    """The kind of the answer: what is asked for, or that of the request."""
    asked = accept.partition(",")[0].partition(";")[0].strip().lower()
    if asked in ("", "*/*"):
        asked = kind.partition(";")[0].strip().lower() or JSON
    return JSON if asked == JSON or "text" in asked else NPY


def _refusal(status: int, error: object, headers: dict[str, str] | None = None) -> Any:
    said = json.dumps({"error": " ".join(str(error).split())}).encode()
    return _response(said, status_code=status, media_type=JSON, headers=headers)


def _json(content: Any) -> Any:
    return _response(json.dumps(content).encode(), media_type=JSON)


def _response(content: bytes, **kwargs: Any) -> Any:
    return importlib.import_module("starlette.responses").Response(content, **kwargs)
