"""Pages that stand elsewhere in the repository, and links from pages to its files.

The pages of rooms, the measurements and the changes are written where they belong; the
site shows them, too. A link to a file of the repository leads to its page if it has
one, and otherwise becomes the name of the file.
"""

import pathlib
import posixpath
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = pathlib.Path(__file__).parents[2]
ROOMS = {
    "quantization": "Quantization: which method when",
    "pruning": "Pruning: which when",
    "distillation": "Distillation: which loss when",
    "ensembles": "Ensembles",
}
INNER_ROOMS = {
    "execution": "Running compressed leaves",
    "fusion": "Fusion",
    "rounding": "Adding to quantization",
    "tracing": "Tracing",
}
SHOWN = {
    "benchmarks/README.md": "measurements.md",
    "jcompress/CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
    **{f"jcompress/{room}/README.md": f"rooms/{room}.md" for room in ROOMS},
    **{f"jcompress/{room}/README.md": f"rooms/{room}.md" for room in INNER_ROOMS},
}
"""Files of the repository and where the site has them."""
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")


def relink(markdown: str, source: str, page: str) -> str:
    """Links of a text that stands at `source` in the repository, for the site's page.

    Args:
        markdown: the text.
        source: its file, from the repository's root.
        page: its page, from the root of the site's sources.
    """

    def replaced(match: re.Match[str]) -> str:
        text, target = match[1], match[2]
        path, hash, anchor = target.partition("#")
        if not path or ":" in path:
            return match[0]
        file = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        shown = SHOWN.get(file)
        if shown is None and file.startswith("docs/"):
            shown = file.removeprefix("docs/")
        if shown is not None:
            found = posixpath.relpath(shown, posixpath.dirname(page) or ".")
            return f"[{text}]({found}{hash}{anchor})"
        if not (ROOT / file).exists():
            return match[0]  # wrong, which mkdocs will say
        plain = text.strip("`")
        return f"`{file}`" if plain == file else f"{text} (`{file}`)"

    return LINK.sub(replaced, markdown)


def on_config(config: "MkDocsConfig") -> "MkDocsConfig":
    """Add the pages to the navigation."""
    assert config.nav is not None
    guides: list[Any] = next(x["Guides"] for x in config.nav if "Guides" in x)
    guides += [{title: f"rooms/{room}.md"} for room, title in ROOMS.items()]
    inner = [{title: f"rooms/{room}.md"} for room, title in INNER_ROOMS.items()]
    config.nav.append({"Measurements": "measurements.md"})
    config.nav.append(
        {
            "Project": [
                {"Contributing": "contributing.md"},
                {"Changes": "changes.md"},
                *inner,
            ]
        }
    )
    return config


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Make the pages."""
    # Here, so that the tests read this file where mkdocs is not installed.
    from mkdocs.structure.files import File

    for source, page in SHOWN.items():
        text = relink((ROOT / source).read_text(), source, page)
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, *, page: "Page", **_: object) -> str:
    """Mend the links of the site's own pages."""
    uri = page.file.src_uri
    return markdown if page.file.generated_by else relink(markdown, f"docs/{uri}", uri)
