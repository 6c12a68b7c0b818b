"""Code blocks of Markdown pages, run as the reader of the page would run them."""

import ast
import dataclasses
import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
# Whether something is faster is for the machine to say.
STRICT = [sys.executable, "-W", "error", "-W", "ignore:compress:UserWarning"]
INSTALL = re.compile(r"pip install (\.|'\.\[\w+\]')( && |$)")
OPTIONAL = ("keras", "onnxruntime")
"""What a block may need that the extra `test` does not install."""

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
# A block that begins with the name of a file is what the commands expect in it.
_NAMED = re.compile(r"# (\w+\.(?:py|toml))\n")
_END = "\x1e"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """A code block.

    Attributes:
        language: what stands behind its fence.
        text: the code.
        line: the number of its first line in the page.
    """

    language: str
    text: str
    line: int

    @property
    def file(self) -> str | None:
        """The file that it is, if it says so in its first line."""
        found = _NAMED.match(self.text)
        return found[1] if found else None


def read_blocks(page: pathlib.Path) -> list[Block]:
    """The code blocks of a page, in their order."""
    text = page.read_text()
    return [
        Block(
            language=found[1],
            text=found[2],
            line=text.count("\n", 0, found.start(2)) + 1,
        )
        for found in _BLOCK.finditer(text)
    ]


def python_blocks(page: pathlib.Path) -> list[Block]:
    """Those that run."""
    blocks = read_blocks(page)
    return [b for b in blocks if b.language == "python" and b.file is None]


def files_of(page: pathlib.Path) -> dict[str, str]:
    """The files that the page's commands expect, and what is in them."""
    return {b.file: b.text for b in read_blocks(page) if b.file is not None}


def run(code: list[str], folder: pathlib.Path) -> str:
    """Run a command as a user does: from elsewhere, with JAX's own settings but one."""
    env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "PYTHONPATH")}
    env["JAX_PLATFORMS"] = "cpu"
    # Most of the time is that of the compiler.
    env["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    env["PATH"] = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    done = subprocess.run(code, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_python(blocks: list[Block], folder: pathlib.Path) -> list[str]:
    """Run blocks one after the other as one program; what each of them prints.

    The program's lines have the numbers of the page's, so that an error tells where.
    """
    for block in blocks:
        for module in imported(block.text) & set(OPTIONAL):
            if importlib.util.find_spec(module) is None:
                pytest.skip(f"{module} is not installed")
    lines: list[str] = []
    for block in blocks:
        lines += [""] * (block.line - 1 - len(lines))
        lines += [*block.text.splitlines(), f"print({_END!r}, end='')"]
    program = folder / "page.py"
    program.write_text("\n".join(lines))
    return run([*STRICT, str(program)], folder).split(_END)[:-1]


def imported(code: str) -> set[str]:
    """The packages that a program imports."""
    names: list[str] = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
    return {name.partition(".")[0] for name in names}


def run_command(command: str, page: pathlib.Path, folder: pathlib.Path) -> None:
    """Run a shell block of a page beside the files that the page names.

    What an earlier block of the page left in the folder is still there. The packages
    are installed already, and the tests are running.
    """
    known = command.startswith(("jcompress ", "python "))
    assert INSTALL.match(command) or known, command
    rest = INSTALL.sub("", command).strip()
    if rest.startswith(("pytest", "mkdocs")):
        assert "PYTEST_CURRENT_TEST" in os.environ
        return
    for name, content in files_of(page).items():
        (folder / name).write_text(content)
    if rest:
        assert run(["sh", "-ec", rest], folder)
