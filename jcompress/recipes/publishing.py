"""A folder of results that appears when it is complete, or not at all."""

import contextlib
import pathlib
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator

from jcompress.recipes.folder import FolderError


def check_place(
    folder: pathlib.Path,
    *,
    known: Collection[str],
    is_own: Callable[[pathlib.Path], bool],
) -> None:
    """Refuse a folder that holds something else than an earlier result.

    Args:
        folder: where a result is to be.
        known: the names that a result consists of.
        is_own: whether a folder with such names is a result.

    Raises:
        FolderError: it is a file, or holds something else; it is named.
    """
    if not folder.exists():
        for above in folder.absolute().parents:
            if above.exists():
                if not above.is_dir():
                    raise FolderError(f"{above} is a file, not a directory")
                return
    if not folder.is_dir():
        raise FolderError(f"{folder} is a file, not a directory")
    entries = sorted(entry.name for entry in folder.iterdir())
    strange = [name for name in entries if name not in known]
    if strange or (entries and not is_own(folder)):
        raise FolderError(
            f"{folder} is not empty and stays untouched: it holds "
            f"{(strange or entries)[0]!r}, which is no earlier result of this command"
        )


@contextlib.contextmanager
def published(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Fill a temporary folder that takes a folder's place when the block ends.

    It lies beside its place. If the block raises, it is removed, and what stood at its
    place stays.

    Args:
        folder: the place.

    Raises:
        OSError: something cannot be written or renamed.
    """
    place = folder.resolve()
    place.parent.mkdir(parents=True, exist_ok=True)
    mark = secrets.token_hex(4)
    draft = place.with_name(f".{place.name}.{mark}.tmp")
    draft.mkdir()
    try:
        yield draft
        _exchange(draft, place, place.with_name(f".{place.name}.{mark}.old"))
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _exchange(draft: pathlib.Path, place: pathlib.Path, old: pathlib.Path) -> None:
    try:
        if place.exists():
            place.rename(old)
        draft.rename(place)
    except BaseException:
        if old.exists() and not place.exists():
            old.rename(place)
        raise
    shutil.rmtree(old, ignore_errors=True)
