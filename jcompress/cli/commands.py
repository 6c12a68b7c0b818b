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
from jcompress.cli.messages import (
    FAILED,
    INTERRUPTED,
    MISTAKES,
    OK,
    bad,
    failed,
    refused,
)
from jcompress.cli.parsing import add_command, add_path
from jcompress.cli.report import add_report
from jcompress.cli.sensitivity import add_sensitivity
from jcompress.cli.serving import add_serving
from jcompress.cli.stored import add_diff, add_inspect
from jcompress.cli.user_model import add_compress


def main(argv: Sequence[str] | None = None) -> int:
    """Run `jcompress` with the given arguments, by default those of the process.

    Returns:
        The exit code: 0; 1 if a check failed (`verify`, `doctor`, a model that fails),
        or something could not be written; 2 for wrong usage and wrong input; 3 if
        `compress` made a metric worse than allowed; 130 if interrupted.
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
    run = add_command(
        commands,
        "run",
        _run,
        help="train, compress, save and verify a small network on the digits that come "
        "with jcompress, and compare it with the dense one",
        description=_RUN,
    )
    add_path(
        run,
        "--out",
        metavar="DIR",
        help="keep report.json, report.html, the checkpoints and the recipe here",
    )
    run.add_argument(
        "--seed", metavar="N", type=int, help="random seed (default: the recipe's)"
    )
    add_path(
        run,
        "--recipe",
        metavar="FILE",
        help="hyperparameters in TOML; what it leaves out is as in the default recipe",
    )
    run.add_argument(
        "--resume", action="store_true", help="continue the interrupted run in DIR"
    )
    verify = add_command(
        commands,
        "verify",
        _verify,
        help="check that the model saved by a run predicts what it did before saving",
        description=_VERIFY,
    )
    add_path(verify, "dir", metavar="DIR", help="the --out directory of that run")
    add_command(
        commands,
        "doctor",
        _doctor,
        help="list what is installed and check every kernel on this machine",
        description=_DOCTOR,
    )
    tune = add_command(
        commands,
        "tune",
        _tune,
        help="measure which kernels are fastest on this machine, and store the result",
        description=_TUNE,
    )
    add_path(
        tune,
        "--output",
        metavar="DIR",
        help="folder for the table; the library reads it if the environment variable "
        "JCOMPRESS_TILES names it (default: the user's own folder)",
    )
    return parser


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

exit codes: 0 done; 1 the table cannot be written; 2 wrong usage or input

example:

  $ jcompress tune --output tiles
"""


def _run(arguments: argparse.Namespace, check: Callable[[], None]) -> int:
    if arguments.resume and arguments.out is None:
        return bad("run: --resume needs --out DIR, the directory of the run")
    # Importing JAX takes a second, which --help and mistakes need not wait for.
    from jcompress import recipes
    from jcompress.recipes.progress import Watched, for_stream

    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(_folder(arguments.out))
            recipe = recipes.open_folder(
                folder,
                recipe=arguments.recipe,
                seed=arguments.seed,
                resume=arguments.resume,
            )
        except MISTAKES as error:
            return bad(error)
        try:
            with for_stream() as shown:
                progress = Watched(shown, check)
                result = recipes.run_main_job(recipe, folder, progress=progress)
        except recipes.VerificationError as error:
            return failed(str(error))
        except OSError as error:
            return failed(f"{error}; {_what_is_kept(arguments)}")
        except (ValueError, ImportError) as error:
            return bad(error)
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
    except MISTAKES as error:
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

    folder = arguments.output or _tiles.user_folder()
    if folder.exists() and not folder.is_dir():
        return bad(f"tune: {folder} is a file, not a directory")
    try:
        tune.tune(folder)
    except (OSError, ValueError) as error:
        return refused(error)
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
