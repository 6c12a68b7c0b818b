"""Functions out of Python files of the user's, and errors that name the line."""

import contextlib
import dataclasses
import difflib
import functools
import importlib.util
import pathlib
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

from jcompress.recipes.folder import one_line


class UserCodeError(ValueError):
    """A file of the user's cannot be used; the message is one line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A name in a Python file, written `FILE.py:NAME`.

    Attributes:
        path: the file.
        name: the name.
    """

    path: pathlib.Path
    name: str

    def __str__(self) -> str:
        return f"{self.path}:{self.name}"


class UserCode:
    """The Python files of one run, each of which is imported once.

    A file finds its neighbours as if it were started by itself: its folder is on the
    path of modules, from `load` until the end of the `with` block, which also forgets
    the modules of that folder.
    """

    def __init__(self) -> None:
        self._before = set(sys.modules)
        self._modules: dict[pathlib.Path, ModuleType] = {}
        self._folders: list[str] = []

    def __enter__(self) -> "UserCode":
        return self

    def __exit__(self, *error: object) -> None:
        for folder in self._folders:
            with contextlib.suppress(ValueError):
                sys.path.remove(folder)
        folders = {place.parent for place in self._modules}
        for name in set(sys.modules) - self._before:
            file = getattr(sys.modules[name], "__file__", None)
            if file is not None and pathlib.Path(file).parent in folders:
                del sys.modules[name]

    def load(self, source: Source) -> Callable[..., Any]:
        """The function of a file.

        Raises:
            UserCodeError: the file is not there or cannot be imported, has no such
                name, or it is no function.
        """
        module = self._module(source.path)
        if not hasattr(module, source.name):
            raise UserCodeError(
                f"{source.path} has no {source.name!r}"
                + nearest(source.name, _functions(module))
            )
        found = getattr(module, source.name)
        if not callable(found):
            raise UserCodeError(
                f"{source} is no function but {type(found).__name__}; write "
                f"'def {source.name}(): ...' that returns it"
            )
        return found  # type: ignore[no-any-return]

    def _module(self, path: pathlib.Path) -> ModuleType:
        place = path.resolve()
        if place in self._modules:
            return self._modules[place]
        if not place.is_file():
            raise UserCodeError(f"{path}: there is no such file")
        name = f"_jcompress_{len(self._modules)}_{place.stem}"
        spec = importlib.util.spec_from_file_location(name, place)
        if spec is None or spec.loader is None:
            raise UserCodeError(f"{path} is no Python file: its name must end with .py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        self._modules[place] = module
        folder = str(place.parent)
        if folder not in sys.path:
            sys.path.insert(0, folder)
            self._folders.append(folder)
        with named_errors(path, f"{path} cannot be imported"):
            spec.loader.exec_module(module)
        return module


@contextlib.contextmanager
def named_errors(path: pathlib.Path, what: str) -> Iterator[None]:
    """Say of an error in the user's code which line of the file it came from.

    Raises:
        UserCodeError: in place of whatever the block raises, but interrupts.
    """
    try:
        yield
    except UserCodeError:
        raise
    except (Exception, SystemExit) as error:
        said = one_line(error).removeprefix(f"{type(error).__name__}: ")
        if isinstance(error, SystemExit):
            said = "it ends the process; put that under if __name__ == '__main__':"
        line = _line(error, path.resolve())
        place = "" if line is None else f", line {line}"
        raise UserCodeError(f"{what}{place}: {type(error).__name__}: {said}") from error


def naming_errors(
    function: Callable[..., Any], source: Source, what: str = ""
) -> Callable[..., Any]:
    """A function of the user's whose errors name the line, and `what` it is."""

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        with named_errors(source.path, f"{source}: {what}" if what else str(source)):
            return function(*args)

    return run


def nearest(name: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown name: the nearest, or all that there are.

    Args:
        name: what was given.
        known: what could have been.
    """
    if near := difflib.get_close_matches(name, known, n=1):
        return f"; the nearest is {near[0]!r}"
    return f"; there are {', '.join(known)}" if known else ""


def _functions(module: ModuleType) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", None) == module.__name__
    ]


def _line(error: BaseException, path: pathlib.Path) -> int | None:
    if isinstance(error, SyntaxError):
        return error.lineno
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if pathlib.Path(frame.filename) == path
    ]
    return lines[-1] if lines else None
