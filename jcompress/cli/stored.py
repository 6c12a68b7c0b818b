"""The commands `inspect` and `diff`: what files of weights hold."""

import argparse
import json
import math
from collections.abc import Callable
from typing import Any

from jcompress.cli.messages import MISTAKES, OK, bad
from jcompress.cli.parsing import add_command, add_json, add_path

_KINDS = """\
a folder that `jcompress compress`, jcompress.checkpoint.save or the method
save of a compressed model wrote; a safetensors file, or a folder of such; or a
GGUF file"""

_INSPECT = f"""\
List the leaves of a stored model: format, shape, bytes, and the values as a
histogram from the least to the greatest (of a sample, if there are many). The
tensors of a GGUF file are not decoded, and have no histogram.

PATH is
{_KINDS}.

exit codes: 0 done; 2 wrong usage, or it is no such file, or damaged

example:

  $ jcompress inspect small
"""

_DIFF = f"""\
List the leaves in which two stored models differ, with the bytes of both and
the error |A - B| / |A| of the values.

A and B are each
{_KINDS}.

exit codes: 0 done; 2 wrong usage, or one is no such file, or damaged

example:

  $ jcompress diff dense small
"""


def add_inspect(commands: Any) -> None:
    """Add the command to the parser's."""
    parser = add_command(
        commands,
        "inspect",
        inspect,
        help="list what a checkpoint, a safetensors or a GGUF file holds",
        description=_INSPECT,
    )
    add_path(parser, "path", metavar="PATH")
    add_json(parser)


def add_diff(commands: Any) -> None:
    """Add the command to the parser's."""
    parser = add_command(
        commands,
        "diff",
        diff,
        help="list the leaves in which two checkpoints or files differ",
        description=_DIFF,
    )
    add_path(parser, "before", metavar="A")
    add_path(parser, "after", metavar="B")
    add_json(parser)


def inspect(arguments: argparse.Namespace, check: Callable[[], None]) -> int:
    """Run the command."""
    from jcompress.recipes import describe_stored

    try:
        found = describe_stored(arguments.path)
    except MISTAKES as error:
        return bad(error)
    print(json.dumps(found.to_json(), indent=2) if arguments.json else found)
    return OK


def diff(arguments: argparse.Namespace, check: Callable[[], None]) -> int:
    """Run the command."""
    from jcompress.recipes import describe_difference

    try:
        found = describe_difference(arguments.before, arguments.after)
    except MISTAKES as error:
        return bad(error)
    if not arguments.json:
        print(found if len(found) else "no leaf differs")
        return OK
    rows = [
        {
            "name": row.name,
            "before": row.before,
            "after": row.after,
            "bytes_before": row.bytes_before,
            "bytes_after": row.bytes_after,
            "error": _finite(row.error),
        }
        for row in found
    ]
    print(json.dumps({"leaves": rows}, indent=2))
    return OK


def _finite(number: float | None) -> float | None:
    """JSON has no infinity."""
    return number if number is not None and math.isfinite(number) else None
