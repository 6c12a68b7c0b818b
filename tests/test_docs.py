"""Every code block of the documentation runs, and every page and namespace is in it."""

import importlib
import importlib.util
import pathlib
import re
import tomllib
import types

import pytest
from pages import Block, python_blocks, read_blocks, run_command, run_python

import jcompress

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
# The blocks of a tutorial belong together; others each stand for themselves.
TUTORIALS = [p for p in PAGES if p.parent.name == "tutorials" and python_blocks(p)]
ALONE = [
    pytest.param(block, id=f"{page.relative_to(DOCS)}:{block.line}")
    for page in PAGES
    if page not in TUTORIALS
    for block in python_blocks(page)
]
WITH_COMMANDS = [
    page for page in PAGES if any(b.language == "sh" for b in read_blocks(page))
]


LONG = ("language-model", "text-encoder")


@pytest.mark.once
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(
            page, id=page.stem, marks=[pytest.mark.slow] if page.stem in LONG else []
        )
        for page in TUTORIALS
    ],
)
def test_tutorial(page: pathlib.Path, tmp_path: pathlib.Path) -> None:
    blocks = python_blocks(page)
    said = run_python(blocks, tmp_path)
    silent = [b.line for b, text in zip(blocks, said, strict=True) if not text.strip()]
    assert not silent


@pytest.mark.parametrize("block", ALONE)
def test_block(block: Block, tmp_path: pathlib.Path) -> None:
    assert all(run_python([block], tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_COMMANDS, ids=[p.stem for p in WITH_COMMANDS])
def test_commands(page: pathlib.Path, tmp_path: pathlib.Path) -> None:
    readme = ROOT / "README.md"
    elsewhere = [b.text for b in read_blocks(readme) if b.language == "sh"]
    for block in read_blocks(page):
        command = block.text.strip()
        # What the tests of the README run is not run again, unless of files of a page.
        again = "model.py" not in command and any(command in one for one in elsewhere)
        if block.language == "sh" and not again:
            run_command(command, page, tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=[str(p.relative_to(DOCS)) for p in PAGES])
def test_page(page: pathlib.Path) -> None:
    text = page.read_text()
    languages = {block.language for block in read_blocks(page)}
    assert text.startswith("# ")
    assert languages <= {"python", "sh", "text", "toml"}
    # A block that is indented would not be run.
    assert not re.search(r"^[ \t]+```", text, re.M)
    # Nothing is fetched from elsewhere.
    assert not re.search(r"!\[[^\]]*\]\(https?:|<(img|script|link)\b", text)


def test_every_page_is_in_the_navigation() -> None:
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    named = set(re.findall(r"[\w/-]+\.md", nav))
    assert named == {page.relative_to(DOCS).as_posix() for page in PAGES}


def test_every_namespace_is_in_the_reference() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    inner = re.compile(r"jcompress\.(cli|fusion|tracing)\b")
    packages = [
        name
        for name in settings["tool"]["setuptools"]["packages"]
        if not inner.match(name)
    ]
    wanted = {*packages, *(f"jcompress.{name}" for name in jcompress._NAMESPACES)}
    assert set(_hook("reference").find_namespaces()) == wanted


def test_every_name_of_a_namespace_is_in_the_reference() -> None:
    reference = _hook("reference")
    for namespace, file in reference.find_namespaces().items():
        module = importlib.import_module(namespace)
        named = set(reference.public_names(file))
        missing = {n for n in named if not hasattr(module, n)}
        forgotten = {
            name
            for name in getattr(module, "__all__", vars(module))
            if not name.startswith("_")
            and getattr(vars(module)[name], "__module__", "") == namespace
        }
        assert not missing, namespace
        assert forgotten <= named, namespace


def test_the_page_of_the_command_line_has_every_command() -> None:
    text = _hook("command_line").write_texts()
    commands = re.findall(r"^## jcompress (\w+)$", text, re.M)
    assert {"compress", "diff", "doctor", "inspect", "run", "tune", "verify"} <= {
        *commands
    }
    for name in commands:
        assert f"usage: jcompress {name} " in text
    assert "\x1b" not in text


@pytest.mark.parametrize("mark", ["LIST", "TEXTS"])
def test_the_page_of_the_command_line_is_filled(mark: str) -> None:
    hook = _hook("command_line")
    page = (DOCS / "command-line.md").read_text()
    assert getattr(hook, mark) in page
    assert "jcompress inspect" in hook.on_page_markdown(page)
    assert getattr(hook, mark) not in hook.on_page_markdown(page)


def test_names_in_the_tables_of_other_libraries_exist() -> None:
    known = {"None", "adamw", "export"}
    for package in _hook("reference").find_namespaces():
        known |= set(vars(importlib.import_module(package)))
    page = (DOCS / "guides" / "moving.md").read_text()
    rows = [line.split("|")[2] for line in page.splitlines() if line.startswith("| ")]
    spans = [span for row in rows for span in re.findall(r"`([^`]+)`", row)]
    named = {
        name.rpartition(".")[2]
        for span in spans
        for name in re.findall(r"(?<![\w\"=.])([A-Za-z_][\w.]*)(?=\(|$)", span)
    }
    assert len(named) > 40
    assert named - known <= {"ISOMORPHIC", "sparsity"}  # a member and an argument


def test_links_to_other_files_of_the_repository() -> None:
    relink = _hook("repository").relink
    room = "jcompress/quantization/README.md"
    assert relink("[a](../rounding/README.md#b)", room, "rooms/quantization.md") == (
        "[a](rounding.md#b)"
    )
    assert relink("[a](../../docs/start.md)", room, "rooms/quantization.md") == (
        "[a](../start.md)"
    )
    assert relink("[the recipe](recipes/default.toml)", "jcompress/x.md", "x.md") == (
        "the recipe (`jcompress/recipes/default.toml`)"
    )
    same = "[a](https://example.org/x) and [b](#c) and ![d](e.svg)"
    assert relink(same, room, "rooms/quantization.md") == same


def _hook(name: str) -> types.ModuleType:
    file = DOCS / "_hooks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"docs_{name}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
