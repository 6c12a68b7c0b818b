"""The commands `export`, `bench` and `serve`: models as files that run."""

import argparse
import contextlib
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from jcompress.cli.messages import MISTAKES, OK, bad, failed, refused, say
from jcompress.cli.parsing import add_command, add_json, add_path, add_sources, number

_EXPORT = """\
Write a compressed model to one file, with its weights, that runs without the
model's code.

CHECKPOINT is a folder that `jcompress compress` or the method save of a
compressed model wrote. --model and --data name functions without arguments, as
for `jcompress compress`: the model, with any weights, and a dict with
"example". The number of rows of a batch is left open, if the model can be
traced so.

A native program, the default, calls the compiled kernels of jcompress, which
must be installed where it runs. With --portable it needs JAX alone, and is
slower on CPUs:

  jax.export.deserialize(pathlib.Path("model.jax").read_bytes()).call(x)

exit codes: 0 done; 1 it cannot be written; 2 wrong usage or input

example, with the files of `jcompress compress --help`:

  $ jcompress export small --model model.py:build \\
      --data model.py:batches --out model.jax
"""

_BENCH = """\
Time an exported model at several batch sizes; or two of them side by side, on
the same inputs and in alternation, the second over the first.

FILE is what `jcompress export` wrote, or the folder of `jcompress compress`.
Inputs are random; integers are ones.

exit codes: 0 done; 2 wrong usage or input

example:

  $ jcompress bench model.jax small --batches 1,8
"""

_SERVE = """\
Answer requests with an exported model over HTTP. Requests that arrive together
run together, padded to one of a few batch sizes, which are compiled before the
first. SIGTERM and Ctrl-C end it when what has arrived is answered.

  POST /predict   {"inputs": {NAME: nested lists}} as JSON, or .npy for one
                  input and .npz for several (Content-Type application/x-npy);
                  one row or more; the answer is of the same kind
  GET /health     whether it answers
  GET /metadata   inputs, outputs and versions of the model; how requests are
                  put together; how many there were

Answers: 200; 400 for inputs that the model does not take; 413 and 415 for
bodies that are too large or of another kind; 503 when too many rows wait; 500
when the model fails, which is told to this request alone.

It needs the extra: pip install 'jcompress[serve]'

exit codes: 0 ended by SIGTERM or Ctrl-C; 1 the model fails; 2 wrong usage or
input

example:

  $ jcompress serve model.jax --port 8000
"""

_MIXING = 0.05
"""A row that changes by more than this with the rows beside it is worth a word."""


def add_serving(commands: Any) -> None:
    """Add the commands to the parser's."""
    _add_export(commands)
    _add_bench(commands)
    _add_serve(commands)


def _add_export(commands: Any) -> None:
    parser = add_command(
        commands,
        "export",
        export,
        help="write a compressed model to one file that runs",
        description=_EXPORT,
    )
    add_path(parser, "checkpoint", metavar="CHECKPOINT")
    add_sources(parser, data="the example")
    add_path(parser, "--out", metavar="FILE", required=True)
    parser.add_argument(
        "--portable", action="store_true", help="use no compiled kernels of jcompress"
    )
    parser.add_argument(
        "--platforms",
        metavar="A,B",
        type=_names,
        help="cpu, cuda, rocm and tpu (default: the one of this machine)",
    )
    parser.add_argument(
        "--inputs", metavar="A,B", type=_names, help="what the inputs are called"
    )


def _add_bench(commands: Any) -> None:
    parser = add_command(
        commands,
        "bench",
        bench,
        help="time an exported model, or two side by side",
        description=_BENCH,
    )
    add_path(parser, "file", metavar="FILE")
    parser.add_argument("other", metavar="FILE", type=pathlib.Path, nargs="?")
    parser.add_argument(
        "--batches",
        metavar="N,N",
        type=_sizes,
        help="batch sizes (default: 1,8,32, or the only one that the model takes)",
    )
    parser.add_argument(
        "--rounds",
        metavar="N",
        type=number(int, 5),
        default=31,
        help="rounds of timing (default: %(default)s)",
    )
    add_json(parser)


def _add_serve(commands: Any) -> None:
    parser = add_command(
        commands,
        "serve",
        serve,
        help="answer requests with an exported model",
        description=_SERVE,
    )
    add_path(parser, "file", metavar="FILE")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address (default: %(default)s)"
    )
    for name, kind, least, default, what in (
        ("--port", int, 0, 8000, "0 takes any that is free"),
        ("--max-batch", int, 1, 32, "rows that run together at most"),
        ("--max-wait-ms", float, 0, 2.0, "how long a request waits for others"),
        ("--max-waiting", int, 1, 256, "rows that may wait; more are turned away"),
        ("--max-mb", int, 1, 32, "megabytes of a body"),
    ):
        parser.add_argument(
            name,
            metavar="N",
            type=number(kind, least),
            default=default,
            help=f"{what} (default: %(default)s)",
        )


def export(arguments: argparse.Namespace, check: Callable[[], None]) -> int:
    """Run the command; `check` raises if it was interrupted."""
    # Importing JAX takes a second, which --help and wrong usage need not wait for.
    from jcompress.models.programs import check_platforms
    from jcompress.recipes import Source
    from jcompress.recipes.exporting import check_target, load_files, write_file
    from jcompress.serving import open_program

    (model, build), (data, batches) = arguments.model, arguments.data
    try:
        check_platforms(arguments.platforms)
        check_target(arguments.out)
        # What the user's files print is not the command's.
        with contextlib.redirect_stdout(sys.stderr):
            small = load_files(
                arguments.checkpoint,
                Source(path=model, name=build),
                Source(path=data, name=batches),
            )
        check()
        open_batch = write_file(
            small,
            arguments.out,
            portable=arguments.portable,
            platforms=arguments.platforms,
            names=arguments.inputs,
        )
    except (*MISTAKES, TypeError) as error:
        return refused(error)
    if not open_batch:
        say("the model computes with its batch size: the program is for that alone")
    with contextlib.suppress(ValueError):  # it may be for another platform
        print(open_program(arguments.out))
        return OK
    print(f"{arguments.out}: {arguments.out.stat().st_size:,} bytes")
    return OK


def bench(arguments: argparse.Namespace, check: Callable[[], None]) -> int:
    """Run the command."""
    from jcompress.execution import keep_memory
    from jcompress.serving import open_program, time_programs

    keep_memory()
    paths = [path for path in (arguments.file, arguments.other) if path is not None]
    names = [str(path) for path in paths]
    if len(set(names)) < len(names):
        names = [names[0], f"{names[1]} (again)"]
    try:
        programs = dict(zip(names, map(open_program, paths), strict=True))
        fixed = {p.batch for p in programs.values() if isinstance(p.batch, int)}
        batches = arguments.batches or sorted(fixed) or [1, 8, 32]
        found = time_programs(programs, batches, rounds=arguments.rounds, timed=check)
    except MISTAKES as error:
        return bad(error)
    print(json.dumps(found.to_json(), indent=2) if arguments.json else found)
    return OK


def serve(arguments: argparse.Namespace, check: Callable[[], None]) -> int:
    """Run the command."""
    from jcompress.execution import keep_memory
    from jcompress.serving import (
        Batching,
        bind,
        check_servable,
        open_program,
        sizes_up_to,
        warm_up,
    )
    from jcompress.serving import server as http

    most = arguments.max_batch
    keep_memory()
    try:
        http.require_serve()
        model = open_program(arguments.file)
        batching = Batching(
            sizes=sizes_up_to(most),
            max_wait=arguments.max_wait_ms / 1e3,
            max_waiting=max(arguments.max_waiting, most),
        )
        batching = check_servable(model, batching)
        listening = bind(arguments.host, arguments.port)
    except MISTAKES as error:
        return bad(error)
    with listening:
        try:
            mixed = warm_up(model, batching.sizes)
        # Whatever the model raises, the server does not start.
        except Exception as error:
            return failed(f"{arguments.file}: the model fails: {error}")
        check()
        if mixed > _MIXING:
            say(
                f"a row's outputs change by {mixed:.0%} with the rows beside it, so "
                "answers depend on what arrives together"
            )
        app = http.make_app(model, batching, most_bytes=arguments.max_mb << 20)
        host, port = listening.getsockname()[:2]
        place = f"http://{f'[{host}]' if ':' in host else host}:{port}"

        def started() -> None:
            print(f"{model}\nready: {place}/predict", flush=True)

        http.serve(app, listening, started)
    counts = app.state.counts
    print(f"ended: {counts.requests} requests in {counts.batches} batches")
    return OK


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def _sizes(text: str) -> list[int]:
    return [number(int, 1)(part) for part in text.split(",")]
