"""Every code block of the README and of the rooms' pages runs."""

import pathlib
import re

import pytest
from pages import Block, python_blocks, read_blocks, run_command, run_python

ROOT = pathlib.Path(__file__).parent.parent
README = ROOT / "README.md"
PYTHON = python_blocks(README)
IN_PAGES = [
    (page.parent.name, block)
    for page in sorted((ROOT / "jcompress").glob("*/README.md"))
    for block in python_blocks(page)
]
SHELL = [b.text.strip() for b in read_blocks(README) if b.language == "sh"]


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python_block(number: int, tmp_path: pathlib.Path) -> None:
    assert all(run_python([PYTHON[number]], tmp_path))


@pytest.mark.parametrize(("room", "block"), IN_PAGES, ids=[r for r, _ in IN_PAGES])
def test_page(room: str, block: Block, tmp_path: pathlib.Path) -> None:
    assert all(run_python([block], tmp_path)), room


def test_first_success_takes_ten_lines_at_most() -> None:
    lines = [line for line in PYTHON[0].text.splitlines() if line.strip()]
    assert len([x for x in lines if not x.startswith(("from ", "import "))]) <= 10


def test_every_language_is_run() -> None:
    known = {"python", "sh", "text", "toml"}
    assert {block.language for block in read_blocks(README)} <= known


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_to_files(name: str) -> None:
    page = ROOT / name
    found = re.findall(r"\]\(([^)#\s:]+)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in found if not (page.parent / link).exists()]
    assert found
    assert not missing


@pytest.mark.slow
@pytest.mark.parametrize("command", SHELL)
def test_shell_block(command: str, tmp_path: pathlib.Path) -> None:
    run_command(command, README, tmp_path)
