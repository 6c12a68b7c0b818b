"""The page of the command line, made from the texts of `jcompress COMMAND --help`."""

import argparse
import pathlib
import sys
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[2]
LIST, TEXTS = "<!-- the list of commands -->", "<!-- the commands -->"
"""What a page writes where they are wanted."""
WIDTH = 80


def parser() -> argparse.ArgumentParser:
    """The parser of this checkout's `jcompress`, whatever is installed."""
    sources = str(ROOT)
    sys.path.insert(0, sources)
    try:
        from jcompress.cli import commands
    finally:
        sys.path.remove(sources)
    return commands._parser()


class Command(NamedTuple):
    """A command.

    Attributes:
        name: what stands behind `jcompress`.
        purpose: what it is for, in a sentence.
        help: what `--help` prints.
    """

    name: str
    purpose: str
    help: str


def read_commands() -> list[Command]:
    """All commands, as the parser has them."""
    whole = parser()
    (choices,) = (
        action
        for action in whole._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    purposes = {each.dest: each.help or "" for each in choices._choices_actions}
    found = []
    for name, command in choices.choices.items():
        command.formatter_class = _narrow(command.formatter_class)
        said = purposes.get(name, "").strip()
        found.append(
            Command(name, said[:1].upper() + said[1:], command.format_help().rstrip())
        )
    return found


def write_list() -> str:
    """A table of the commands."""
    rows = [
        f"| [`jcompress {name}`](#jcompress-{name}) | {purpose} |"
        for name, purpose, _ in read_commands()
    ]
    return "\n".join(["| command | what it does |", "|---|---|", *rows])


def write_texts() -> str:
    """A section for each command with its help."""
    sections = [
        f"## jcompress {name}\n\n{purpose}.\n\n```text\n{help}\n```\n"
        for name, purpose, help in read_commands()
    ]
    return "\n".join(sections)


def _narrow(kind: type[argparse.HelpFormatter]) -> type[argparse.HelpFormatter]:
    """The same format in lines of one width, whatever the terminal, without colours."""

    class Narrow(kind):  # type: ignore[valid-type,misc]
        def __init__(self, prog: str, **kwargs: object) -> None:
            kwargs.pop("width", None)
            super().__init__(prog, width=WIDTH)

        def _set_color(self, color: bool, **kwargs: object) -> None:
            if hasattr(super(), "_set_color"):
                super()._set_color(False)

    return Narrow


def on_page_markdown(markdown: str, **_: object) -> str:
    """Put the commands where the page says."""
    for mark, write in ((LIST, write_list), (TEXTS, write_texts)):
        if mark in markdown:
            markdown = markdown.replace(mark, write())
    return markdown
