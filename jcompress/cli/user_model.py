"""The command `compress`: a model of the user's own."""

import argparse
import json
import re
from collections.abc import Callable
from typing import Any

from jcompress.cli.messages import MISTAKES, OK, WORSE, bad, refused, say
from jcompress.cli.parsing import (
    add_command,
    add_json,
    add_path,
    add_sources,
    number,
    shown,
)

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
  validation        the metric on other data: a search looks at this one, so
                    that the metric stays unseen (may be left out)
  training          a list of pairs (inputs, targets), batches that the steps
                    train and distil learn from; without it distil learns from
                    the calibration data
  loss              loss(outputs, targets) of such a batch: a number, or one or
                    more for each example; for train, and distil with a weight

--recipe is a TOML file with a table [[step]] for each step, in their order:
  [[step]]
  kind = "sparse"   # w8, w4, w8a8, nm, sparse, half_width, svd, train, distil
  sparsity = 0.8    # and the arguments of jcompress.sparse(...), and so on

  [[step]]
  kind = "distil"   # learns from the model as it was
  steps = 500
  learning_rate = 2e-3
  optimizer = { name = "adamw", weight_decay = 1e-4 }
Zeros stay zeros in train and distil, and what a step before them quantizes is
rounded in them. "recover" of half_width is given as "FILE.py:NAME", beside the
recipe. Without a recipe there is one step, w8a8; or what a search finds.

--budget searches: each leaf and width is tried in several forms, as
"jcompress sensitivity" shows, and the mix is taken whose outputs on the
calibration data differ least within
  500kB, 2MB, 1GiB  bytes of the stored model
  200k-mults        multiplications with weights for one example; or
                    1.5M-mults, 2G-mults
  3ms, 200us, 1s    a call on the example, measured here
With a recipe of train and distil alone, these train what was found.
--max-drop without a recipe searches, too: alone for the fewest bytes, with a
budget within both. --resume FILE keeps what was measured and goes on with it;
with a recipe that trains --resume DIR keeps that and what was trained.

DIR gets report.json; report.html, which draws it; model, which
jcompress.load(DIR + "/model", model, x) reads; and model.jax, a program that
runs without the model's code in a process that has imported jcompress.kernels.
It appears when it is complete. What an earlier run wrote there is replaced,
anything else stays untouched.

exit codes: 0 done; 1 the results cannot be written; 2 wrong usage or input, or
a budget that cannot be met; 3 the metric became worse by more than --max-drop,
or no mix met the budget, and the report of the best is DIR/rejected.json

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

  $ jcompress compress --model model.py:build \\
      --data model.py:batches --out small
"""


def add_compress(commands: Any) -> None:
    """Add the command to the parser's."""
    parser = add_command(
        commands,
        "compress",
        compress,
        help="compress a model of your own: two functions in a Python file say which",
        description=_HELP,
    )
    add_sources(parser)
    add_path(parser, "--recipe", metavar="FILE", help="steps in TOML")
    parser.add_argument(
        "--budget",
        metavar="N",
        type=parse_budget,
        help="search for what fits into 2MB, 1.5M-mults or 3ms",
    )
    add_path(parser, "--out", metavar="DIR", required=True, help="the results")
    parser.add_argument(
        "--max-drop",
        metavar="X",
        type=number(float, 0),
        help="publish no model if the metric becomes worse by more than this; without "
        "--recipe, search for one that does not",
    )
    add_path(
        parser,
        "--resume",
        metavar="PATH",
        help="keep what is measured in this file, or trained in this folder, and go on "
        "with it",
    )
    add_json(parser, "the report as JSON")
    parser.add_argument("--quiet", action="store_true", help="print errors only")


def compress(arguments: argparse.Namespace, check: Callable[[], None]) -> int:
    """Run the command; `check` raises if it was interrupted."""
    searches = arguments.budget is not None or arguments.max_drop is not None
    if arguments.resume is not None and arguments.recipe is None and not searches:
        return bad(
            "compress: --resume goes on with a search or a training; give --budget N, "
            "or a --recipe that trains"
        )
    # Importing JAX takes a second, which --help and wrong usage need not wait for.
    from jcompress.budget import Budget
    from jcompress.recipes import Source, compress_files

    budget = None
    if arguments.budget is not None:
        kind, amount = arguments.budget
        budget = Budget(**{kind: amount})
    (model, build), (data, batches) = arguments.model, arguments.data
    try:
        with shown(arguments, check) as progress:
            outcome = compress_files(
                Source(path=model, name=build),
                Source(path=data, name=batches),
                arguments.out,
                recipe=arguments.recipe,
                max_drop=arguments.max_drop,
                budget=budget,
                resume=arguments.resume,
                progress=progress,
            )
    except MISTAKES as error:
        return refused(error)
    report = outcome.report
    if arguments.json:
        print(json.dumps(report, indent=2))
    elif not arguments.quiet:
        if report["search"] is not None:
            print(f"{report['search']['table']}\n\n{report['search']['found']}\n")
        print(f"{report['changes']}\n\n{report['table']}")
    if not outcome.accepted:
        say(
            f"{_rejected(report)}; no model is published, the report is "
            f"{arguments.out / 'rejected.json'}"
        )
        return WORSE
    if not arguments.json and not arguments.quiet:
        print(f"report, model and exported program: {arguments.out}")
    return OK


def _rejected(report: dict[str, Any]) -> str:
    """Why no model is published."""
    metric, search, most = report["metric"], report["search"], report["max_drop"]
    reasons = []
    if search is not None and search["budget"] is not None:
        kind, amount = search["budget"]["kind"], search["budget"]["amount"]
        if search["cost"] > amount:
            unit, times = ("ms", 1e3) if kind == "seconds" else (kind, 1)
            reasons.append(
                f"no mix takes {amount * times:.6g} {unit} or less, the nearest "
                f"{search['cost'] * times:.4g}"
            )
    above = metric is not None and most is not None and metric["drop"] > most
    if metric is not None and (above or not reasons):
        limit = f"more than {most:g}" if above else "and by too much in the search"
        reasons.append(
            f"{metric['name']} went from {metric['dense']:.6g} to "
            f"{metric['compressed']:.6g}, worse by {metric['drop']:.4g}, {limit}"
        )
    return "; ".join(reasons)


_UNITS = {
    "B": ("bytes", 1.0),
    "kB": ("bytes", 1e3),
    "KB": ("bytes", 1e3),
    "MB": ("bytes", 1e6),
    "GB": ("bytes", 1e9),
    "KiB": ("bytes", 2.0**10),
    "MiB": ("bytes", 2.0**20),
    "GiB": ("bytes", 2.0**30),
    "k-mults": ("multiplications", 1e3),
    "M-mults": ("multiplications", 1e6),
    "G-mults": ("multiplications", 1e9),
    "us": ("seconds", 1e-6),
    "ms": ("seconds", 1e-3),
    "s": ("seconds", 1.0),
}


def parse_budget(text: str) -> tuple[str, float]:
    """A kind of budget and its amount, out of 2MB, 1.5M-mults or 3ms."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([A-Za-z-]+)", text, re.ASCII)
    if found is None or found[2] not in _UNITS or not float(found[1]):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no budget; write bytes (500kB, 2MB, 1GiB), multiplications "
            "(1.5M-mults) or the time of a call (3ms)"
        )
    kind, times = _UNITS[found[2]]
    return kind, float(found[1]) * times
