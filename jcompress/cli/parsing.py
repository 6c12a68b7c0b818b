"""What the commands' parsers share: how a command is added, and kinds of arguments."""

import argparse
import contextlib
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

Run = Callable[[argparse.Namespace, Callable[[], None]], int]
"""`run(arguments, check)` carries a command out; `check` raises if interrupted."""


def add_command(
    commands: Any, name: str, run: Run, *, help: str, description: str
) -> argparse.ArgumentParser:
    """A parser for a command, whose description is printed as it is."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_path(
    parser: Any, *names: str, metavar: str, required: bool = False, help: str = ""
) -> None:
    """An argument that is a path; its place or its option, by its names."""
    more: dict[str, Any] = {"required": True} if required else {}
    if help:
        more["help"] = help
    parser.add_argument(*names, metavar=metavar, type=pathlib.Path, **more)


def add_sources(parser: Any, *, data: str = "the data and the metric") -> None:
    """The arguments that say which model and which data."""
    for name, what in (("--model", "the model"), ("--data", data)):
        parser.add_argument(
            name,
            metavar="FILE.py:NAME",
            type=source,
            required=True,
            help=f"function that returns {what}",
        )


def add_json(parser: Any, what: str = "JSON") -> None:
    """The option of a command that prints JSON in place of a table."""
    parser.add_argument(
        "--json", action="store_true", help=f"print {what}, and no table"
    )


def source(text: str) -> tuple[pathlib.Path, str]:
    """The file and the name of `FILE.py:NAME`; a type of arguments."""
    file, _, name = text.rpartition(":")
    if not file.endswith(".py") or not name.isidentifier():
        raise argparse.ArgumentTypeError(
            f"{text!r} is not FILE.py:NAME, a Python file and a function in it"
        )
    return pathlib.Path(file), name


def number(kind: type[Any], least: float) -> Callable[[str], Any]:
    """A type of arguments: a number of a kind, at least so much, and finite."""

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = least - 1
        if not least <= value < float("inf"):
            what = "whole number" if kind is int else "number"
            raise argparse.ArgumentTypeError(
                f"{text!r} is no {what} of at least {least}"
            )
        return value

    return read


@contextlib.contextmanager
def shown(arguments: argparse.Namespace, check: Callable[[], None]) -> Iterator[Any]:
    """The progress of a command, which `--quiet` hides.

    What the user's files print goes to the stream of errors: it would mix with the
    result.
    """
    # Importing JAX takes a second, which --help and wrong usage need not wait for.
    from jcompress.recipes.progress import Progress, Watched, for_stream

    progress = Progress() if arguments.quiet else for_stream()
    with progress, contextlib.redirect_stdout(sys.stderr):
        yield Watched(progress, check)
