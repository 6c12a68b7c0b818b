"""Every command's help has an example, and the examples run, one after the other."""

import re
import shlex
import shutil

import pytest

from jcompress.cli import main
from jcompress.cli.commands import _parser

pytestmark = pytest.mark.once

COMMANDS = _parser()._subparsers._group_actions[0].choices
LONG = {"run", "verify", "tune", "serve"}
"""Those that are tried elsewhere: they take minutes, or do not end."""


def examples(command):
    text = COMMANDS[command].format_help().replace("\\\n", "")
    found = re.findall(r"^  \$ (.*)$", text, re.M)
    return [shlex.split(line) for line in found]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_has_one(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    assert "example" in said
    assert "exit codes: 0 " in said
    (*_, last) = examples(command)
    assert last[:2] == ["jcompress", command]
    _parser().parse_args(last[1:])  # which would end the process


def test_they_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    help = COMMANDS["compress"].format_help()
    file = help.partition("with a file model.py:\n")[2].partition("  $ ")[0]
    (tmp_path / "model.py").write_text(re.sub("^  ", "", file, flags=re.M))
    order = ["compress", *(c for c in COMMANDS if c not in {"compress", *LONG})]
    # `bench` compares with what `export` writes.
    order.sort(key=lambda command: command == "bench")
    for command in order:
        for line in examples(command):
            if command == "export":
                shutil.copytree("small/model", "checkpoint")
            assert main(line[1:]) == 0, (line, capsys.readouterr().err)
            if command == "compress":
                shutil.copytree("small", "dense", dirs_exist_ok=True)
