"""The page of a report that was written before, drawn again."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from jcompress.evidence import ReportError, draw_page
from jcompress.recipes import user_report
from jcompress.recipes.folder import (
    PAGE,
    REPORT,
    SCHEMA,
    FolderError,
    Path,
    one_line,
    write_whole,
)
from jcompress.recipes.user_folder import REJECTED, REJECTED_PAGE

_PAGES = ((REPORT, PAGE), (REJECTED, REJECTED_PAGE))


def redraw(folder: Path) -> list[pathlib.Path]:
    """Draw the reports of a folder again, each beside its JSON file.

    Args:
        folder: the results of `jcompress compress` or `jcompress run`, of this or of an
            earlier version.

    Returns:
        The pages that were written, each as a whole.

    Raises:
        FolderError: there is no report, or it is damaged or of another schema; nothing
            is written.
        OSError: a page cannot be written.
    """
    home = pathlib.Path(folder)
    if not home.is_dir():
        raise FolderError(f"{home}: there is no such folder")
    pages = {
        home / page: _drawn(home / report)
        for report, page in _PAGES
        if (home / report).exists()
    }
    if not pages:
        raise FolderError(
            f"{home} has no {REPORT}; give a folder that `jcompress compress` or "
            "`jcompress run` wrote with --out"
        )
    for page, content in pages.items():
        write_whole(page, content)
    return list(pages)


def _drawn(path: pathlib.Path) -> bytes:
    try:
        report = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise FolderError(f"{path} is damaged: {one_line(error)}") from error
    if not isinstance(report, Mapping):
        raise FolderError(f"{path} is damaged: it holds no object")
    _check_schema(path, report)
    try:
        return draw_page(report).encode()
    except ReportError as error:
        raise FolderError(f"{path}: {error}") from error


def _check_schema(path: pathlib.Path, report: Mapping[str, Any]) -> None:
    known = user_report.SCHEMA if report.get("command") == "compress" else SCHEMA
    schema = report.get("schema")
    if schema == known:
        return
    newer = isinstance(schema, int) and schema > known
    raise FolderError(
        f"{path} has schema {schema!r}; this version of jcompress reads {known}"
        + ("; update it" if newer else "")
    )
