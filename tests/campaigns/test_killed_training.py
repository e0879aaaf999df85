"""Training killed by kill -9 at twenty random moments, of all kinds: the weights and the log are the unbroken run's."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest
from campaigns.outcomes import Run, Tally, forked
from unit.training.test_trainer import config, folder, rows, same_file  # noqa: F401

from op4ksr_core.cli.main import main
from op4ksr_core.files import is_temporary

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="no fork")]

KILLS, SEED = 20, 17

#: Kinds of runs: the config's kind, and what is special in its sections.
RUNS: dict[str, tuple[str, dict[str, str]]] = {
    "autoencoder": ("autoencoder", {"train": "linear_steps = 2\n"}),
    "one_step": ("one_step", {"data": "workers = 2\n"}),
    "lora": ("lora", {"data": "cached = 4\n"}),
    "enlarger": ("enlarger", {"enlarger": "width = 8\nblocks = 1\n"}),
}


def recipe(folder: Path, name: str, run: str) -> Path:  # noqa: F811
    kind, sections = RUNS[name]
    sections = {**sections, "train": sections.get("train", "") + "threads = 1\n"}
    text = config(folder, "autoencoder" if kind == "enlarger" else kind, run, **sections)
    if kind == "enlarger":
        text = text.replace('kind = "autoencoder"', 'kind = "enlarger"').replace("crop = 64", "crop = 96")
    path = folder / f"{run}.toml"
    path.write_text(text.replace("save_every = 3", "save_every = 2").replace("pictures = 2", "pictures = 12"))
    return path


def trained(path: Path, limit: float = 120.0, resume: bool = False) -> Run:
    return forked(lambda: main(["train", str(path), *(["--resume"] if resume else [])]), limit)


def test_killed_training(folder: Path) -> None:  # noqa: F811
    tally, rng = Tally("killed training"), Random(SEED)
    whole: dict[str, float] = {}
    for name in RUNS:
        ended = trained(recipe(folder, name, f"whole_{name}"))
        assert ended.code == 0, ended.err
        whole[name] = ended.seconds
    for number in range(KILLS):
        name = list(RUNS)[number % len(RUNS)]
        path, run, unbroken = recipe(folder, name, f"run_{number}"), folder / f"run_{number}", folder / f"whole_{name}"
        begun = [
            trained(path, rng.uniform(0, whole[name]), resume=turn > 0) for turn in range(rng.choice([1, 1, 2, 3]))
        ]

        def wrong(run: Path = run, unbroken: Path = unbroken) -> str | None:
            weights = sorted(p.name for p in (unbroken / "checkpoints").glob("*_*.safetensors"))
            if sorted(p.name for p in (run / "checkpoints").glob("*_*.safetensors")) != weights:
                return "other files of weights"
            if not all(same_file(run / "checkpoints" / n, unbroken / "checkpoints" / n) for n in weights):
                return "other weights"
            if [row["step"] for row in rows(run)] != [row["step"] for row in rows(unbroken)]:
                return f"the log's rows are {[row['step'] for row in rows(run)]}"
            losses = [[row["loss"] for row in rows(folder)] for folder in (run, unbroken)]
            left = [str(p) for p in run.rglob("*") if is_temporary(p.name)]
            return "other losses in the log" if losses[0] != losses[1] else f"left behind: {left}" if left else None

        assert all(once.code in (None, 0) for once in begun), begun
        tally.judge(f"{number} {name} {[once.seconds for once in begun]}", trained(path, resume=True), wrong)
    tally.close()
