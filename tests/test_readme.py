"""Every code block of the README and of the rooms' pages runs."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
BLOCKS = re.findall(
    r"^```(\w+)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S
)
# A block that begins with the name of a file is what the commands expect in it.
NAMED = re.compile(r"# (\w+\.py)\n")
FILES = {m[1]: text for _, text in BLOCKS if (m := NAMED.match(text))}
PYTHON = [
    text for language, text in BLOCKS if language == "python" and not NAMED.match(text)
]
PAGES = sorted((ROOT / "jcompress").glob("*/README.md"))
IN_PAGES = [
    (page.parent.name, text)
    for page in PAGES
    for text in re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.M | re.S)
]
SHELL = [text.strip() for language, text in BLOCKS if language == "sh"]
# Whether something is faster is for the machine to say.
STRICT = [sys.executable, "-W", "error", "-W", "ignore:compress:UserWarning"]
INSTALL = re.compile(r"pip install (\.|'\.\[test\]')( && |$)")


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


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python_block(number: int, tmp_path: pathlib.Path) -> None:
    assert run([*STRICT, "-c", PYTHON[number]], tmp_path)


@pytest.mark.parametrize(("room", "code"), IN_PAGES, ids=[r for r, _ in IN_PAGES])
def test_page(room: str, code: str, tmp_path: pathlib.Path) -> None:
    assert run([*STRICT, "-c", code], tmp_path), room


def test_first_success_takes_ten_lines_at_most() -> None:
    lines = [line for line in PYTHON[0].splitlines() if line.strip()]
    assert len([x for x in lines if not x.startswith(("from ", "import "))]) <= 10


def test_every_language_is_run() -> None:
    assert {language for language, _ in BLOCKS} <= {"python", "sh", "text", "toml"}


@pytest.mark.slow
@pytest.mark.parametrize("command", SHELL)
def test_shell_block(command: str, tmp_path: pathlib.Path) -> None:
    assert INSTALL.match(command) or command.startswith("jcompress "), command
    rest = INSTALL.sub("", command).strip()
    if rest.startswith("pytest"):
        assert "PYTEST_CURRENT_TEST" in os.environ
        return
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    if rest:
        assert run(["sh", "-c", rest], tmp_path)
