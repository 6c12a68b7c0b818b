"""The command `report`: the page of a report, drawn again."""

import argparse
from collections.abc import Callable
from typing import Any

from jcompress.cli.messages import OK, refused
from jcompress.cli.parsing import add_command, add_path

_HELP = """\
Draw report.html from report.json, as `jcompress compress` and `jcompress run`
do: one file without scripts that asks for nothing, with the comparison, the
curves of training, bytes and times by leaf, how times scatter, and what a
search found, each where the report has it. Of a compression that was rejected
it is rejected.html.

exit codes: 0 done; 1 the page cannot be written; 2 wrong usage, or DIR has no
report, or a damaged one, or one of a newer version

example:

  $ jcompress report small
"""


def add_report(commands: Any) -> None:
    """Add the command to the parser's."""
    parser = add_command(
        commands,
        "report",
        report,
        help="draw the page of a folder of results again",
        description=_HELP,
    )
    add_path(parser, "dir", metavar="DIR")


def report(arguments: argparse.Namespace, check: Callable[[], None]) -> int:
    """Run the command."""
    from jcompress.recipes.redrawing import redraw

    try:
        pages = redraw(arguments.dir)
    except (ValueError, OSError) as error:
        return refused(error)
    for page in pages:
        print(page)
    return OK
