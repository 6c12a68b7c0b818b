"""`jcompress report`: the page of a folder of results, drawn again."""

import json

import pytest
import sample_reports as reports

from jcompress.cli import main

pytestmark = pytest.mark.once


def write(folder, report, name="report.json"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(report))
    return folder


@pytest.mark.parametrize("make", [reports.of_compress, reports.of_run, reports.whole])
def test_the_page_is_drawn_beside_the_report(tmp_path, capsys, make):
    folder = write(tmp_path / "out", make())
    (folder / "report.html").write_text("old")
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
    first = (folder / "report.html").read_bytes()
    assert first.startswith(b"<!doctype html>")
    assert main(["report", str(folder)]) == 0
    assert (folder / "report.html").read_bytes() == first
    assert {f.name for f in folder.iterdir()} == {"report.json", "report.html"}


def test_a_rejected_compression_has_a_page_of_its_own(tmp_path, capsys):
    report = reports.of_compress(accepted=False, max_drop=0.01)
    folder = write(tmp_path / "out", report, "rejected.json")
    assert main(["report", str(folder)]) == 0
    assert "Not published" in (folder / "rejected.html").read_text()
    write(folder, reports.of_compress())
    capsys.readouterr()
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out.count(".html\n") == 2


BAD = {
    "absent": (None, "absent: there is no such folder"),
    "empty": ("", "has no report.json; give a folder that `jcompress compress` or"),
    "text": ("[", "report.json is damaged: Expecting value"),
    "binary": (b"\xff\x00", "report.json is damaged"),
    "deep": ("[" * 100_000, "report.json is damaged"),
    "list": ("[1]", "report.json is damaged: it holds no object"),
    "none": ("{}", "has schema None; this version of jcompress reads 2"),
    "old": ('{"schema": 1}', "has schema 1; this version of jcompress reads 2"),
    "newer": ('{"schema": 3}', "has schema 3; this version of jcompress reads 2; upd"),
    "compress": (
        '{"schema": 2, "command": "compress"}',
        "has schema 2; this version of jcompress reads 1; update it",
    ),
    "part": ('{"schema": 2}', "the report is damaged: it has no 'dense'"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_report_is_told_in_one_line(tmp_path, capsys, name):
    content, message = BAD[name]
    folder = tmp_path / name
    if content is not None:
        folder.mkdir()
    if content:
        data = content if isinstance(content, bytes) else content.encode()
        (folder / "report.json").write_bytes(data)
        (folder / "report.html").write_text("old")
    assert main(["report", str(folder)]) == 2
    out, said = capsys.readouterr()
    assert out == ""
    assert said.count("\n") == 1
    assert message in said
    if content:
        assert (folder / "report.html").read_text() == "old"


def test_one_damaged_report_of_two_leaves_both_pages(tmp_path, capsys):
    folder = write(tmp_path / "out", reports.of_compress())
    (folder / "rejected.json").write_text("{")
    assert main(["report", str(folder)]) == 2
    assert not (folder / "report.html").exists()


def test_a_page_that_cannot_be_written_is_an_error(tmp_path, capsys):
    folder = write(tmp_path / "out", reports.of_compress())
    (folder / "report.html").mkdir()
    assert main(["report", str(folder)]) == 1
    assert "report.html" in capsys.readouterr().err
    assert not list(folder.glob("*.tmp"))


def test_the_help_fits_80_columns(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["report", "--help"])
    assert caught.value.code == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
