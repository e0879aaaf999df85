"""docs/benchmarks.md is made from docs/reports and from nothing else; what a report keeps and what it does not tell."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from benchmarks.commands import main as cli
from benchmarks.page import KINDS, gather_reports, page, read_report, slim, write_slim
from benchmarks.tables import Row, markdown, without_places, write_report, write_text
from op4ksr_core import OptionError, OutputError, __version__

ROOT = Path(__file__).resolve().parents[3]
REPORTS = ROOT / "docs" / "reports"
PAGE = ROOT / "docs" / "benchmarks.md"

REPORT: Row = {
    "kind": "memory",
    "command": "python -m benchmarks memory -o /home/me/out",
    "machine": {"cores": "2"},
    "tables": {"a": [{"x": 0.123456789, "y": None}], "b": [{"z": 1}]},
}


def saved(path: Path, report: object) -> Path:
    path.write_text(json.dumps(report), "utf-8")
    return path


def test_the_page_is_what_the_reports_say_byte_by_byte() -> None:
    """make it again: python -m benchmarks page docs/reports -o docs/benchmarks.md"""
    made = page([read_report(path) for path in gather_reports([REPORTS])])
    assert made.encode("utf-8") == PAGE.read_bytes().replace(b"\r\n", b"\n")


@pytest.mark.parametrize("path", sorted(REPORTS.glob("*.json")), ids=lambda path: path.stem)
def test_kept_reports_are_slim_and_tell_no_places(path: Path) -> None:
    report = read_report(path)
    assert "details" not in report and report["kind"] in KINDS
    assert report["command"] == without_places(shlex.split(report["command"]))
    assert not re.search(r"[\"\s'=](/|~|[A-Za-z]:\\)\w", path.read_text("utf-8"))


def test_links_from_and_to_the_page_lead_somewhere() -> None:
    text = PAGE.read_text("utf-8")
    for name in re.findall(r"\]\(([^)]+)\)", text):
        assert (PAGE.parent / name).is_file(), name
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}  # GitHub's rule
    for other in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]:
        for anchor in re.findall(r"benchmarks\.md#([^)]+)\)", other.read_text("utf-8")):
            assert anchor in anchors, f"{other.name}: {anchor}"


def test_a_report_tells_its_version_and_day_and_no_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", "quality", "/home/me/My Photos/", "-o", str(tmp_path)])
    told = write_report(tmp_path, "quality", {"t": [{"psnr": 1.5}]}, [{"photo": "a"}]).read_text("utf-8")
    report = read_report(tmp_path / "quality.json")
    assert report["kind"] == "quality" and report["version"] == __version__
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", report["date"])
    assert report["command"] == f"python -m benchmarks quality 'My Photos' -o {tmp_path.name}"
    assert f"op4ksr {__version__}, {report['date']}" in told and str(tmp_path) not in told
    assert report["details"] == [{"photo": "a"}]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("/a/b.json", "b.json"),
        ("C:\\a\\b.json", "b.json"),
        ("--vae=/a/b.safetensors", "--vae=b.safetensors"),
        ("photos/set5/", "set5"),
        ("fast:32", "fast:32"),
        ("--theta", "--theta"),
        ("46.7,10000", "46.7,10000"),
        (".", "."),
    ],
)
def test_paths_in_commands_are_cut(word: str, expected: str) -> None:
    assert shlex.split(without_places([word])) == [expected]


def test_version_is_the_projects() -> None:
    assert f'\nversion = "{__version__}"\n' in (ROOT / "pyproject.toml").read_text("utf-8")


def test_a_slim_copy_keeps_every_digit_of_the_tables_asked_for(tmp_path: Path) -> None:
    source = saved(tmp_path / "memory.json", REPORT | {"details": [{"photo": "a"}]})
    copy = tmp_path / "kept" / "copy.json"
    words = ["slim", str(source), "--only", "a", "--note", "older", "-o", str(copy)]
    assert cli.main(words) == 0
    report = read_report(copy)
    assert report["tables"] == {"a": [{"x": 0.123456789, "y": None}]}
    assert report["left_out"] == ["b"] and report["note"] == "older" and "details" not in report
    assert report["command"] == "python -m benchmarks memory -o out"
    assert slim(REPORT)["tables"] == REPORT["tables"] and "left_out" not in slim(REPORT)


def test_the_page_orders_kinds_and_takes_unknown_ones(tmp_path: Path) -> None:
    later = REPORT | {"kind": "some_new_kind", "version": "9.9.9", "date": "2030-01-02"}
    write_slim(tmp_path / "a_new.json", later)
    write_slim(tmp_path / "b_memory.json", slim(REPORT, ["a"], "seen twice"))
    assert cli.main(["page", str(tmp_path), "-o", str(tmp_path / "page.md")]) == 0
    text = (tmp_path / "page.md").read_text("utf-8")
    titles = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert titles == [KINDS["memory"][0], "Some new kind"]
    assert "op4ksr 9.9.9, 2030-01-02" in text and "version and day not recorded" in text
    assert "| 0.1235 |  |" in text and "Left out of this report: b." in text and "Note: seen twice" in text


def test_a_report_without_a_kind_is_of_its_files_name(tmp_path: Path) -> None:
    old = {key: value for key, value in REPORT.items() if key != "kind"}
    assert read_report(saved(tmp_path / "speed.json", old))["kind"] == "speed"


def test_none_is_an_empty_cell() -> None:
    assert markdown([{"a": None, "b": 1.0}]).splitlines()[-1] == "|  | 1 |"


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ([], "no object"),
        ({**REPORT, "command": 3}, "command is missing"),
        ({**REPORT, "command": "python 'x"}, "its command cannot be split into words: No closing quotation"),
        ({**REPORT, "kind": 5}, "kind is something else"),
        ({**REPORT, "left_out": 3}, "left_out is something else"),
        ({**REPORT, "tables": {"a": []}}, "table a has no rows"),
        ({**REPORT, "tables": {"a": [{"x": 1}, {"y": 1}]}}, "different columns"),
    ],
)
def test_what_is_no_report_is_told(tmp_path: Path, broken: object, reason: str) -> None:
    with pytest.raises(OptionError, match=f"no report .*{reason}.*name what"):
        read_report(saved(tmp_path / "x.json", broken))


def test_files_that_cannot_be_read_or_written_are_told(tmp_path: Path) -> None:
    (tmp_path / "cut.json").write_text('{"command": ', "utf-8")
    with pytest.raises(OptionError, match="make it again"):
        read_report(tmp_path / "cut.json")
    with pytest.raises(OptionError, match="check the name"):
        read_report(tmp_path / "none.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(OptionError, match="no reports"):
        gather_reports([tmp_path / "empty"])
    with pytest.raises(OutputError, match="choose another folder"):
        write_text(tmp_path / "cut.json" / "page.md", "")
    with pytest.raises(OptionError, match="--only c: .* it has a, b"):
        slim(REPORT, ["c"])
