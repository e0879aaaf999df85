"""The tests marked ``gpu``, by pytest where it is there; those that only ask what ``checks`` asks are left out."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from .step import StepReport, step_parser

TESTS = Path(__file__).resolve().parents[2] / "tests"


class Rows:
    """A pytest plugin: a row for each test as it ends."""

    def __init__(self, report: StepReport) -> None:
        self.report = report

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Called by pytest after a test's set-up, call and tear-down."""
        if report.when != "call" and report.outcome == "passed":
            return
        message = str(report.longrepr[2] if report.skipped else report.longrepr).strip() if report.longrepr else ""
        last = message.splitlines()[-1][:200].replace("|", "/") if message else ""
        row = {
            "test": report.nodeid.replace("|", "/"),
            "outcome": report.outcome,
            "s": report.duration,
            "message": last,
        }
        self.report.add("tests marked gpu", row)


def marked_files() -> list[str]:
    """Of the tests that have a ``gpu`` mark, as paths: so that the others need not be imported."""
    return [str(path) for path in sorted(TESTS.rglob("test_*.py")) if "mark.gpu" in path.read_text("utf-8")]


def main() -> int:
    """The step's command line. Without a test that failed it ends well."""
    options = step_parser("the tests marked gpu").parse_args()
    report = StepReport(options.output)
    if importlib.util.find_spec("pytest") is None:
        report.conclude("left out: pytest is not installed; the step checks asks most of it")
        return 0
    import pytest

    words = ["-q", "-m", "gpu", "-k", "not test_check", "-p", "no:cacheprovider"]
    code = pytest.main([*words, *marked_files()], plugins=[Rows(report)])
    outcomes = [row["outcome"] for rows in report.tables.values() for row in rows]
    report.conclude(", ".join(f"{outcomes.count(name)} {name}" for name in ("passed", "failed", "skipped")))
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
