"""The command line: parses, calls the recipes, and turns errors into exit codes."""

import argparse
import contextlib
import pathlib
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

from jcompress import __version__

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run `jcompress` with the given arguments, by default those of the process.

    Returns:
        The exit code: 0, 1 if a model or an installation is not what it should be, 2
        for bad input, 130 if interrupted.
    """
    arguments = _parser().parse_args(argv)
    try:
        with _Interrupts() as interrupts:
            if arguments.command == "run":
                return _run(arguments, interrupts)
            commands = {"verify": _verify, "doctor": _doctor, "tune": _tune}
            return commands[arguments.command](arguments)
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
    run = commands.add_parser(
        "run",
        help="compress a small network on the embedded digits, from training to proof",
    )
    run.add_argument(
        "--out",
        metavar="DIR",
        type=pathlib.Path,
        help="keep report.json, the checkpoints and the recipe here",
    )
    run.add_argument("--seed", metavar="N", type=int, help="replaces the recipe's (0)")
    run.add_argument(
        "--recipe",
        metavar="FILE",
        type=pathlib.Path,
        help="hyperparameters in TOML; what it leaves out is as in the default recipe",
    )
    run.add_argument(
        "--resume", action="store_true", help="continue the interrupted run in DIR"
    )
    verify = commands.add_parser(
        "verify", help="check that a saved model predicts what it did when it was made"
    )
    verify.add_argument("dir", metavar="DIR", type=pathlib.Path)
    commands.add_parser(
        "doctor", help="say what is installed, and whether it works on this machine"
    )
    tune = commands.add_parser(
        "tune", help="measure which kernels are the fastest on this machine's device"
    )
    tune.add_argument(
        "--output",
        metavar="DIR",
        type=pathlib.Path,
        help="write the table here, to be used if JCOMPRESS_TILES names DIR",
    )
    return parser


def _run(arguments: argparse.Namespace, interrupts: "_Interrupts") -> int:
    if arguments.resume and arguments.out is None:
        return _bad("run: --resume needs --out DIR, the directory of the run")
    # Importing JAX takes a second, which --help and mistakes need not wait for.
    from jcompress import recipes
    from jcompress.checkpoint import CheckpointError
    from jcompress.errors import MismatchError
    from jcompress.recipes.progress import Watched, for_stream

    bad = (recipes.RecipeError, recipes.FolderError, CheckpointError, MismatchError)

    try:
        with _folder(arguments.out) as folder:
            recipe = recipes.open_folder(
                folder,
                recipe=arguments.recipe,
                seed=arguments.seed,
                resume=arguments.resume,
            )
            with for_stream() as shown:
                progress = Watched(shown, interrupts.check)
                result = recipes.run_main_job(recipe, folder, progress=progress)
    except recipes.VerificationError as error:
        print(f"jcompress: {error}", file=sys.stderr)
        return FAILED
    except (*bad, OSError, ImportError) as error:
        return _bad(str(error))
    print(result["table"])
    print(result["verification"])
    if arguments.out is not None:
        print(f"report, checkpoints and recipe: {arguments.out}")
    return OK


def _verify(arguments: argparse.Namespace) -> int:
    from jcompress import recipes
    from jcompress.checkpoint import CheckpointError

    try:
        found = recipes.verify(arguments.dir)
    except CheckpointError as error:
        print(f"NOT verified: {error}", file=sys.stderr)
        return FAILED
    except (recipes.FolderError, OSError, ImportError) as error:
        return _bad(str(error))
    print(found)
    return OK if found.passed else FAILED


def _doctor(arguments: argparse.Namespace) -> int:
    from jcompress.cli import doctor

    try:
        found = doctor.examine()
    except ValueError as error:
        return _bad(str(error))
    print(found)
    return OK if found.healthy else FAILED


def _tune(arguments: argparse.Namespace) -> int:
    from jcompress.cli import tune
    from jcompress.kernels import _tiles

    try:
        tune.tune(arguments.output or _tiles.user_folder())
    except (OSError, ValueError) as error:
        return _bad(str(error))
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
    if arguments.command != "run":
        return "jcompress: interrupted"
    if arguments.out is None:
        return (
            "jcompress: interrupted, and nothing is kept; with --out DIR a run can be "
            "continued"
        )
    return (
        "jcompress: interrupted; continue with: "
        f"jcompress run --out {arguments.out} --resume"
    )


def _bad(message: str) -> int:
    line = " ".join(message.split())
    print(f"jcompress: {line}", file=sys.stderr)
    return BAD_INPUT
