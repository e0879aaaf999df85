"""The campaign: every step is a row whatever becomes of it, and what was found is in the report at any time."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import campaign
from benchmarks.gpu.campaign import ROOT, STEPS, Campaign, Step, main

#: A step in one file: STEP.py seconds status words..., which reports its words, waits and ends.
FAKE = """
import json, sys, time
seconds, status, *words = sys.argv[1:-6]
report = sys.argv[-1]
for count in range(len(words)):
    open(report + "x", "w").write(json.dumps({"answer": words[count], "tables": {"t": [{"n": count}]}}))
    import os; os.replace(report + "x", report)
time.sleep(float(seconds))
sys.stderr.write("why | it failed\\n")
sys.exit(int(status))
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """fake(name, "seconds status words", limit) -> a step that does so."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "fake_step.py").write_text(FAKE, "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "code"))
    monkeypatch.setattr(campaign, "GLANCE", 0.05)
    return lambda name, words, limit=30.0: Step(name, "?", f"fake_step {words}", limit)


def run(folder: Path, steps: list[Step], minutes: float = 1.0) -> dict[str, Any]:
    options = argparse.Namespace(device="cpu", geometry="small", minutes=minutes, output=folder / "out")
    (folder / "reports").mkdir()
    Campaign(options, steps, ["--device", "cpu"]).run(folder / "reports")
    return json.loads((folder / "out" / "gpu.json").read_text("utf-8"))


@pytest.mark.slow
def test_steps_that_fail_or_take_too_long_are_rows_with_what_they_had_found(tmp_path: Path, fake: Any) -> None:
    steps = [
        fake("fails", "0 3 half"),
        fake("hangs", "60 0 some more", 1.0),
        fake("silent", "0 1"),
        fake("well", "0 0 all"),
    ]
    found = run(tmp_path, steps)
    rows = {row["step"]: row for row in found["tables"]["Steps"]}
    assert rows["fails"]["outcome"] == "failed (3): why / it failed" and rows["fails"]["answer"] == "half"
    assert rows["hangs"]["outcome"] == "stopped after 1 s" and rows["hangs"]["answer"] == "more"
    assert rows["silent"]["answer"] == "" and rows["well"]["outcome"] == "done"
    assert found["tables"]["hangs: t"] == [{"n": 1}] and "silent: t" not in found["tables"]
    assert found["kind"] == "gpu" and found["command"] == "run.sh --device cpu"


@pytest.mark.slow
def test_no_step_is_begun_without_time_and_none_outlasts_what_is_left(
    tmp_path: Path, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaign, "LEAST", 0.8)
    began = time.monotonic()
    found = run(tmp_path, [fake("hangs", "60 0"), fake("after", "0 0")], minutes=1 / 60)
    assert time.monotonic() - began < 20
    assert [row["outcome"] for row in found["tables"]["Steps"]] == ["stopped after 1 s", "no time left"]


@pytest.mark.slow
def test_the_report_grows_while_a_step_runs(tmp_path: Path, fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def look(self: Campaign) -> Path:
        seen.append(f"{self.rows[0]['outcome']} {self.rows[0]['answer']}")
        return Path()

    monkeypatch.setattr(Campaign, "write", look)
    options = argparse.Namespace(device="cpu", geometry="small", minutes=1.0, output=tmp_path)
    Campaign(options, [fake("a", "1 0 word")], []).run(tmp_path)
    assert "running word" in seen and seen[-1] == "done word"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="process groups, /proc")
def test_children_of_a_step_are_ended_with_it(tmp_path: Path, fake: Any) -> None:
    code = tmp_path / "code" / "fake_step.py"
    code.write_text(
        "import subprocess, sys, pathlib, time\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(child.pid))\n"
        "time.sleep(60)\n"
    )
    run(tmp_path, [fake("hangs", "", 1.5)])
    status = Path("/proc") / (tmp_path / "pid").read_text() / "status"
    end = time.monotonic() + 10
    while status.exists() and "State:\tZ" not in status.read_text() and time.monotonic() < end:
        time.sleep(0.05)
    assert not status.exists() or "State:\tZ" in status.read_text()


def test_every_step_is_a_module_that_takes_the_campaigns_options() -> None:
    for module in sorted({step.command.split()[0] for step in STEPS}):
        assert (ROOT / Path(*module.split("."))).with_suffix(".py").is_file(), module
    assert len({step.name for step in STEPS}) == len(STEPS)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_script_runs_from_any_folder_and_names_its_options(tmp_path: Path) -> None:
    command = ["bash", str(ROOT / "benchmarks" / "gpu" / "run.sh"), "--only", "tests", "--minutes", "0"]
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path / "out")}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 1 and "no time left" in ran.stdout, ran.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"gpu.json", "gpu.md"}


@pytest.mark.slow
def test_the_whole_campaign_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All steps, small: the plumbing."""
    code = main(["--device", "cpu", "--geometry", "small", "--minutes", "5", "-o", str(tmp_path)])
    told = capsys.readouterr()
    assert code == 0, told.out[:3000]
