"""The command line: parses, calls the recipes, and turns errors into exit codes."""

import argparse
import contextlib
import pathlib
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

from jcompress import __version__
from jcompress.cli.messages import FAILED, INTERRUPTED, OK, bad, failed
from jcompress.cli.report import add_report
from jcompress.cli.sensitivity import add_sensitivity
from jcompress.cli.serving import add_serving
from jcompress.cli.stored import add_diff, add_inspect
from jcompress.cli.user_model import add_compress


def main(argv: Sequence[str] | None = None) -> int:
    """Run `jcompress` with the given arguments, by default those of the process.

    Returns:
        The exit code: 0; 1 if a model or an installation is not what it should be, or
        something could not be written; 2 for wrong usage, and for bad input of `run`,
        `verify` and `report`; 3 if `compress` made a metric worse than allowed; 130 if
        interrupted.
    """
    arguments = _parser().parse_args(argv)
    try:
        with _Interrupts() as interrupts:
            code: int = arguments.run(arguments, interrupts.check)
            return code
    except KeyboardInterrupt:
        print(_how_to_resume(arguments), file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jcompress", description="Make a JAX model smaller, and prove it."
    )
    parser.add_argument(
        "--version", action="version", version=f"jcompress {__version__}"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add_compress(commands)
    add_sensitivity(commands)
    add_inspect(commands)
    add_diff(commands)
    add_report(commands)
    add_serving(commands)
    run = commands.add_parser(
        "run",
        **_told(_RUN),
        help="train, compress, save and verify a small network on the digits that come "
        "with jcompress, and compare it with the dense one",
    )
    run.add_argument(
        "--out",
        metavar="DIR",
        type=pathlib.Path,
        help="keep report.json, report.html, the checkpoints and the recipe here",
    )
    run.add_argument(
        "--seed", metavar="N", type=int, help="random seed (default: the recipe's)"
    )
    run.add_argument(
        "--recipe",
        metavar="FILE",
        type=pathlib.Path,
        help="hyperparameters in TOML; what it leaves out is as in the default recipe",
    )
    run.add_argument(
        "--resume", action="store_true", help="continue the interrupted run in DIR"
    )
    run.set_defaults(run=_run)
    verify = commands.add_parser(
        "verify",
        **_told(_VERIFY),
        help="check that the model saved by a run predicts what it did before saving",
    )
    verify.add_argument(
        "dir", metavar="DIR", type=pathlib.Path, help="the --out directory of that run"
    )
    verify.set_defaults(run=_verify)
    doctor = commands.add_parser(
        "doctor",
        **_told(_DOCTOR),
        help="list what is installed and check every kernel on this machine",
    )
    doctor.set_defaults(run=_doctor)
    tune = commands.add_parser(
        "tune",
        **_told(_TUNE),
        help="measure which kernels are fastest on this machine, and store the result",
    )
    tune.add_argument(
        "--output",
        metavar="DIR",
        type=pathlib.Path,
        help="folder for the table; the library reads it if the environment variable "
        "JCOMPRESS_TILES names it (default: the user's own folder)",
    )
    tune.set_defaults(run=_tune)
    return parser


def _told(text: str) -> dict[str, Any]:
    raw = argparse.RawDescriptionHelpFormatter
    return {"description": text, "formatter_class": raw}


_RUN = """\
Train a residual network on the handwritten digits that come with jcompress,
remove channels in two rounds, train it in 4 bits, save it, reload it in a fresh
process, and print both side by side: a minute or two on two cores.

exit codes: 0 done; 1 something could not be written, or the saved model is not
the trained one; 2 wrong usage or input; 130 interrupted: --resume goes on

example:

  $ jcompress run --out digits --seed 1
"""
_VERIFY = """\
Load the model that a run saved, in this process, and compare its predictions
with those that it made before it was saved.

exit codes: 0 they are the same; 1 they are not, or the model is damaged; 2 DIR
holds no run

example:

  $ jcompress verify digits
"""
_DOCTOR = """\
List the packages and the compiled kernels that are here, and run every kernel
on small inputs beside its reference.

exit codes: 0 all is well; 1 a kernel is wrong or missing; 2 wrong usage

example:

  $ jcompress doctor
"""
_TUNE = """\
Measure up to how many rows each kernel beats what XLA compiles, here, and write
a table that the library reads from then on.

exit codes: 0 done; 2 the table cannot be written

example:

  $ jcompress tune --output tiles
"""


def _run(arguments: argparse.Namespace, check: Callable[[], None]) -> int:
    if arguments.resume and arguments.out is None:
        return bad("run: --resume needs --out DIR, the directory of the run")
    # Importing JAX takes a second, which --help and mistakes need not wait for.
    from jcompress import recipes
    from jcompress.checkpoint import CheckpointError
    from jcompress.errors import MismatchError
    from jcompress.recipes.progress import Watched, for_stream

    wrong = (recipes.RecipeError, recipes.FolderError, CheckpointError, MismatchError)

    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(_folder(arguments.out))
            recipe = recipes.open_folder(
                folder,
                recipe=arguments.recipe,
                seed=arguments.seed,
                resume=arguments.resume,
            )
        except (*wrong, OSError, ImportError) as error:
            return bad(error)
        try:
            with for_stream() as shown:
                progress = Watched(shown, check)
                result = recipes.run_main_job(recipe, folder, progress=progress)
        except recipes.VerificationError as error:
            return failed(str(error))
        except wrong as error:
            return bad(error)
        except (OSError, ImportError) as error:
            return failed(f"{error}; {_what_is_kept(arguments)}")
    print(result["table"])
    print(result["verification"])
    if arguments.out is not None:
        print(f"report, checkpoints and recipe: {arguments.out}")
    return OK


def _verify(arguments: argparse.Namespace, check: Callable[[], None]) -> int:
    from jcompress import recipes
    from jcompress.checkpoint import CheckpointError

    try:
        found = recipes.verify(arguments.dir)
    except CheckpointError as error:
        return failed(f"NOT verified: {error}")
    except (recipes.FolderError, OSError, ImportError) as error:
        return bad(error)
    print(found)
    return OK if found.passed else FAILED


def _doctor(arguments: argparse.Namespace, check: Callable[[], None]) -> int:
    from jcompress.cli import doctor

    try:
        found = doctor.examine()
    except ValueError as error:
        return bad(error)
    print(found)
    return OK if found.healthy else FAILED


def _tune(arguments: argparse.Namespace, check: Callable[[], None]) -> int:
    from jcompress.cli import tune
    from jcompress.kernels import _tiles

    try:
        tune.tune(arguments.output or _tiles.user_folder())
    except (OSError, ValueError) as error:
        return bad(error)
    return OK


class _Interrupts:
    """Ctrl-C raises KeyboardInterrupt at once, and again at the next check.

    Python drops an exception that is raised in a callback, for example one that the
    garbage collector calls; the second one makes sure that it ends the run.
    """

    def __init__(self) -> None:
        self.seen = False
        self.previous: Any = None

    def __enter__(self) -> "_Interrupts":
        if threading.current_thread() is threading.main_thread():
            self.previous = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *error: object) -> None:
        if self.previous is not None:
            signal.signal(signal.SIGINT, self.previous)

    def check(self) -> None:
        if self.seen:
            raise KeyboardInterrupt

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.seen = True
        raise KeyboardInterrupt


@contextlib.contextmanager
def _folder(out: pathlib.Path | None) -> Iterator[pathlib.Path]:
    if out is not None:
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="jcompress-") as folder:
        yield pathlib.Path(folder)


def _how_to_resume(arguments: argparse.Namespace) -> str:
    if arguments.command == "compress":
        kept = f"jcompress: interrupted; {arguments.out} is as it was"
        if arguments.resume is None:
            return kept
        return f"{kept}; the same command goes on with {arguments.resume}"
    if arguments.command == "sensitivity" and arguments.resume is not None:
        return (
            f"jcompress: interrupted; the same command goes on with {arguments.resume}"
        )
    if arguments.command != "run":
        return "jcompress: interrupted"
    return f"jcompress: interrupted; {_what_is_kept(arguments)}"


def _what_is_kept(arguments: argparse.Namespace) -> str:
    if arguments.out is None:
        return "nothing is kept; with --out DIR a run can be continued"
    return f"continue with: jcompress run --out {arguments.out} --resume"
