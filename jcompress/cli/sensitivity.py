"""The command `sensitivity`: which layers of a model hurt."""

import argparse
import json
from collections.abc import Callable
from typing import Any

from jcompress.cli.messages import MISTAKES, OK, bad, refused
from jcompress.cli.parsing import add_command, add_path, add_sources, shown

_HELP = """\
Which layer hurts: change one weight at a time, and see how far the outputs go.

Each weight is tried in integers of 8, 4 and 3 bits, with 2:4 and 75 % of its
numbers removed, and as two thin factors; each group of coupled axes (channels,
heads, hidden units) at three quarters and half of its width. One compiled
program runs them all. Methods learn from every other calibration batch of
--data, and errors are measured on the rest; or on halves of the example.
An error of 0.01 means that the outputs differ by a hundredth of their mean
square. --model and --data are as of "jcompress compress".

--json FILE writes
  {"candidates": [name], "leaves": {name: [error]}, "bytes": {name: [int]},
   "measure": name}
with null where a form does not suit a leaf. --resume FILE keeps each error as
it comes: after an interruption the same command goes on with them.

exit codes: 0 done; 1 a file cannot be written; 2 wrong usage or input, or FILE
is of another model or of other data

example, with the files of `jcompress compress --help`:

  $ jcompress sensitivity --model model.py:build --data model.py:batches
"""


def add_sensitivity(commands: Any) -> None:
    """Add the command to the parser's."""
    parser = add_command(
        commands,
        "sensitivity",
        sensitivity,
        help="which layer of your own model hurts: errors of each weight and width",
        description=_HELP,
    )
    add_sources(parser)
    add_path(parser, "--json", metavar="FILE", help="write the table as JSON")
    add_path(
        parser,
        "--resume",
        metavar="FILE",
        help="keep the errors as they come, and go on with those",
    )
    parser.add_argument("--quiet", action="store_true", help="print the table only")


def sensitivity(arguments: argparse.Namespace, check: Callable[[], None]) -> int:
    """Run the command; `check` raises if it was interrupted."""
    # Importing JAX takes a second, which --help and wrong usage need not wait for.
    from jcompress.recipes import Source, measure_files
    from jcompress.recipes.folder import write_whole

    for path in (arguments.json, arguments.resume):
        if path is not None and not path.absolute().parent.is_dir():
            return bad(f"sensitivity: there is no folder {path.absolute().parent}")
    (model, build), (data, batches) = arguments.model, arguments.data
    try:
        with shown(arguments, check) as progress:
            table = measure_files(
                Source(path=model, name=build),
                Source(path=data, name=batches),
                resume=arguments.resume,
                progress=progress,
            )
        if arguments.json is not None:
            text = json.dumps(table.to_json(), indent=2, allow_nan=False)
            write_whole(arguments.json, f"{text}\n".encode())
    except MISTAKES as error:
        return refused(error)
    print(f"{table}\n\n{table.heat_map()}")
    return OK
