"""The pages of the reference: one for each public namespace, made from the source.

`mkdocs.yml` names this file among its hooks. Nothing is imported: the names of a
namespace are read from its `__init__.py`, the docstrings by mkdocstrings.
"""

import ast
import pathlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = pathlib.Path(__file__).parents[2]
SOURCES = ROOT / ".cache" / "docs"
INNER = ("cli", "fusion", "leaves", "tracing")
"""What has no names for users; the command has a page of its own."""


def lay_sources() -> None:
    """Put `jcompress` with `kernels` in it into a folder, as an installation has it."""
    package = SOURCES / "jcompress"
    package.mkdir(parents=True, exist_ok=True)
    wanted = {path.name: path for path in (ROOT / "jcompress").iterdir()}
    wanted["kernels"] = ROOT / "kernels"
    # A copy: where this file really is, there the rest of the package is looked for.
    first = wanted.pop("__init__.py")
    for link in package.iterdir():
        if link.name not in wanted or link.resolve() != wanted[link.name]:
            link.unlink()
    (package / first.name).write_text(first.read_text())
    for name, path in wanted.items():
        if not (package / name).exists():
            (package / name).symlink_to(path)


def find_namespaces() -> dict[str, pathlib.Path]:
    """The public namespaces and their files, each after the one that it is in."""
    found = {"jcompress": ROOT / "jcompress" / "__init__.py"}
    for folder, prefix in (
        (ROOT / "jcompress", "jcompress"),
        (ROOT / "kernels", "jcompress.kernels"),
    ):
        for file in folder.rglob("__init__.py"):
            inner = file.parent.relative_to(folder).parts
            if not any(part.startswith("_") for part in inner) and inner != ("native",):
                found[".".join((prefix, *inner))] = file
        if folder.name == "jcompress":
            for file in folder.glob("[!_]*.py"):
                found[f"{prefix}.{file.stem}"] = file
    return {
        name: found[name]
        for name in sorted(found)
        if name.split(".")[1:2] not in [[inner] for inner in INNER]
    }


def public_names(file: pathlib.Path) -> list[str]:
    """What a module offers: its own public names, and those it hands on as they are."""
    names: list[str] = []
    for node in ast.parse(file.read_text()).body:
        match node:
            case ast.ImportFrom() | ast.Import():
                names += [a.name for a in node.names if a.asname == a.name]
            case ast.FunctionDef() | ast.ClassDef():
                names.append(node.name)
            case ast.Assign(targets=[ast.Name(id=name)]):
                names.append(name)
            case ast.AnnAssign(target=ast.Name(id=name)):
                names.append(name)
            case ast.If(test=ast.Name(id="_TYPE_CHECKING")):
                # Namespaces have pages of their own.
                names += [
                    alias.name
                    for inner in node.body
                    if isinstance(inner, ast.ImportFrom) and inner.module != "jcompress"
                    for alias in inner.names
                ]
    return [name for name in names if not name.startswith("_")]


def summary(file: pathlib.Path) -> str:
    """The first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n")[0]


def page_of(namespace: str) -> str:
    """Where the page of a namespace is, among the site's."""
    return f"reference/{namespace}.md"


def write_page(namespace: str, file: pathlib.Path) -> str:
    """The page of a namespace."""
    names = public_names(file)
    members = f"[{', '.join(names)}]" if names else "false"
    return f"# {namespace}\n\n::: {namespace}\n    options:\n      members: {members}\n"


def write_index(namespaces: dict[str, pathlib.Path]) -> str:
    """The list of all namespaces."""
    lines = [
        "# Reference",
        "",
        "Every public namespace. Each name has one home; the dozen names to start with",
        "are also in `jcompress` itself.",
        "",
        "| namespace | what it is for |",
        "|---|---|",
    ]
    for name, file in namespaces.items():
        lines.append(f"| [`{name}`]({name}.md) | {summary(file)} |")
    return "\n".join(lines) + "\n"


def on_startup(**_: Any) -> None:
    """Lay the sources before mkdocstrings looks for the folder."""
    lay_sources()


def on_config(config: "MkDocsConfig") -> "MkDocsConfig":
    """Add the pages to the navigation."""
    pages: list[Any] = ["reference/index.md"]
    sections: dict[str, list[Any]] = {}
    namespaces = find_namespaces()
    for name in namespaces:
        top = ".".join(name.split(".")[:2])
        sections.setdefault(top, []).append(name)
    for top, names in sections.items():
        title = top.removeprefix("jcompress.")
        if len(names) == 1:
            pages.append({title: page_of(top)})
            continue
        inner = [{n.removeprefix(f"{top}."): page_of(n)} for n in names if n != top]
        pages.append({title: [page_of(top), *inner]})
    assert config.nav is not None
    config.nav.append({"Reference": pages})
    return config


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Make the pages."""
    # Here, so that the tests read this file where mkdocs is not installed.
    from mkdocs.structure.files import File

    namespaces = find_namespaces()
    written = {page_of(name): write_page(name, f) for name, f in namespaces.items()}
    written["reference/index.md"] = write_index(namespaces)
    for uri, content in written.items():
        files.append(File.generated(config, uri, content=content))
    return files
