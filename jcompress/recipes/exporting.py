"""A saved model of the user's own, read again and written as a program."""

import pathlib
from collections.abc import Sequence

from jcompress import checkpoint
from jcompress.models import Compressed, load
from jcompress.recipes.folder import FolderError
from jcompress.recipes.user_code import Source, UserCode, named_errors
from jcompress.recipes.user_data import read_data
from jcompress.recipes.user_folder import MODEL
from jcompress.serving import ProgramError
from jcompress.serving.layout import unpacked


def check_target(path: pathlib.Path) -> None:
    """Refuse a place for a program where something else is, or nothing can be.

    Raises:
        FolderError: it is a folder or a file of another kind, or its folder is absent.
    """
    if path.is_dir():
        raise FolderError(f"{path} is a folder; --out names a file")
    if not path.absolute().parent.is_dir():
        raise FolderError(f"{path}: there is no folder {path.absolute().parent}")
    if path.exists():
        try:
            unpacked(path.read_bytes(), str(path))
        except ProgramError as error:
            raise FolderError(
                f"{path} is no exported program and stays untouched; remove it, or "
                "give another --out"
            ) from error


def load_files(folder: pathlib.Path, model: Source, data: Source) -> Compressed:
    """Read a compressed model, with the code of the user's files.

    Args:
        folder: what `jcompress compress` or `Compressed.save` wrote.
        model: a function without arguments that returns the model, with any weights.
        data: a function without arguments that returns a dict with `example`.

    Raises:
        UserCodeError: a file cannot be used.
        CheckpointError: the folder holds no model, or one of another shape.
        ImportError: the extra `checkpoint` is not installed.
    """
    checkpoint.require_orbax()
    if not folder.is_dir():
        raise FolderError(f"{folder}: there is no such folder")
    if (folder / MODEL).is_dir():
        folder = folder / MODEL
    with UserCode() as code:
        build, batches = code.load(model), code.load(data)
        found = read_data(batches, data)
        with named_errors(model.path, str(model)):
            built = build()
        with named_errors(model.path, f"{model}: {folder} cannot be loaded"):
            return load(folder, built, found.example)


def write_file(
    small: Compressed,
    path: pathlib.Path,
    *,
    portable: bool,
    platforms: Sequence[str] | None,
    names: Sequence[str] | None,
) -> bool:
    """Export it, for any batch if the model can be traced so.

    Returns:
        Whether the program takes batches of any size.
    """
    if names is not None and len(names) != len(small.args):
        raise ValueError(
            f"the model has {len(small.args)} inputs, and --inputs names {len(names)}"
        )
    try:
        small.export(path, portable=portable, platforms=platforms, names=names)
        return True
    except ValueError:
        small.export(
            path, portable=portable, platforms=platforms, names=names, any_batch=False
        )
        return False
