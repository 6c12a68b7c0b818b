"""The command `compress`: a model of the user's own."""

import argparse
import contextlib
import json
import math
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from jcompress.cli.messages import OK, WORSE, failed, say

_HELP = """\
Compress a model of your own, measure it, and write the result to a folder.

--model names a function without arguments that returns an NNX or Equinox
module, a pair of a Linen module and its variables, a Keras model on JAX, or a
pair of a function and its parameters. It comes with its trained weights.

--data names a function without arguments that returns a dict with
  example           what the model is called with, an array or a tuple of
                    arguments; the time of a call is measured on this batch
  calibration       a list of batches like it; the steps nm, w4 and svd choose
                    better weights with them (may be left out)
  metric            a function of one argument, run: run(x) gives the outputs
                    of a model, and the result is one number (may be left out)
  higher_is_better  True for an accuracy, False for a loss; with a metric

--recipe is a TOML file with a table [[step]] for each step, in their order:
  [[step]]
  kind = "nm"       # w8, w4, w8a8, nm, sparse, half_width or svd
  n = 2             # and the arguments of jcompress.nm(n, m), and so on
  m = 4
"recover" of half_width is given as "FILE.py:NAME", beside the recipe. Without
a recipe there is one step, w8a8.

DIR gets report.json; report.html, which draws it; model, which
jcompress.load(DIR + "/model", model, x) reads; and model.jax, a program that
runs without the model's code in a process that has imported jcompress.kernels.
It appears when it is complete. What an earlier run wrote there is replaced,
anything else stays untouched.

exit codes: 0 done; 1 an error, said in one line; 2 wrong usage; 3 the metric
became worse by more than --max-drop, and the report is DIR/rejected.json

example, with a file model.py:

  import jax

  def model(params, x):
      return jax.nn.relu(x @ params["up"]) @ params["down"]

  def build():
      up, down = jax.random.normal(jax.random.key(0), (2, 64, 64))
      return model, {"up": up, "down": down}

  def batches():
      x = jax.random.normal(jax.random.key(1), (32, 64))
      wanted = model(build()[1], x).argmax(axis=1)
      def accuracy(run):
          return (run(x).argmax(axis=1) == wanted).mean()
      return {"example": x, "metric": accuracy, "higher_is_better": True}

  $ jcompress compress --model model.py:build --data model.py:batches --out small
"""


def add_compress(commands: Any) -> None:
    """Add the command to the parser's."""
    parser = commands.add_parser(
        "compress",
        help="compress a model of your own: two functions in a Python file say which",
        description=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, what in (
        ("--model", "function that returns the model"),
        ("--data", "function that returns the data and the metric"),
    ):
        parser.add_argument(
            name, metavar="FILE.py:NAME", type=source, required=True, help=what
        )
    parser.add_argument(
        "--recipe", metavar="FILE", type=pathlib.Path, help="steps in TOML"
    )
    parser.add_argument(
        "--out", metavar="DIR", type=pathlib.Path, required=True, help="the results"
    )
    parser.add_argument(
        "--max-drop",
        metavar="X",
        type=_drop,
        help="publish no model if the metric becomes worse by more than this",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the report as JSON, and no table"
    )
    parser.add_argument("--quiet", action="store_true", help="print errors only")
    parser.set_defaults(run=compress)


def compress(arguments: argparse.Namespace, check: Callable[[], None]) -> int:
    """Run the command; `check` raises if it was interrupted."""
    # Importing JAX takes a second, which --help and wrong usage need not wait for.
    from jcompress.recipes import Source, compress_files
    from jcompress.recipes.progress import Progress, Watched, for_stream

    (model, build), (data, batches) = arguments.model, arguments.data
    try:
        shown = Progress() if arguments.quiet else for_stream()
        # What the user's files print would mix with the report.
        with shown, contextlib.redirect_stdout(sys.stderr):
            outcome = compress_files(
                Source(path=model, name=build),
                Source(path=data, name=batches),
                arguments.out,
                recipe=arguments.recipe,
                max_drop=arguments.max_drop,
                progress=Watched(shown, check),
            )
    except (ValueError, OSError, ImportError) as error:
        return failed(error)
    report = outcome.report
    if arguments.json:
        print(json.dumps(report, indent=2))
    elif not arguments.quiet:
        print(f"{report['changes']}\n\n{report['table']}")
    if not outcome.accepted:
        metric = report["metric"]
        say(
            f"{metric['name']} went from {metric['dense']:.6g} to "
            f"{metric['compressed']:.6g}, worse by {metric['drop']:.4g}, more than "
            f"{arguments.max_drop:g}; no model is published, the report is "
            f"{arguments.out / 'rejected.json'}"
        )
        return WORSE
    if not arguments.json and not arguments.quiet:
        print(f"report, model and exported program: {arguments.out}")
    return OK


def source(text: str) -> tuple[pathlib.Path, str]:
    """The file and the name of `FILE.py:NAME`; a type of arguments."""
    file, _, name = text.rpartition(":")
    if not file.endswith(".py") or not name.isidentifier():
        raise argparse.ArgumentTypeError(
            f"{text!r} is not FILE.py:NAME, a Python file and a function in it"
        )
    return pathlib.Path(file), name


def _drop(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of at least 0")
    return value
