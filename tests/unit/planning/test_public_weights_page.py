"""The table of costs in docs/public_weights.md is what the plan says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from op4ksr_core.images.resize import Target
from op4ksr_core.models.flux import FluxParams
from op4ksr_core.pieces import Pieces
from op4ksr_core.planning.geometries import LONGEST_PROMPT
from op4ksr_core.planning.make import Models, make_plan
from op4ksr_core.planning.plan import Machine, Plan, StagePlan
from op4ksr_core.vae.autoencoder import AutoEncoderParams

PAGE = Path(__file__).resolve().parents[3] / "docs" / "public_weights.md"

#: FLUX.1-dev and its own VAE; under ComfyUI on a card that holds any of it, so that strips are the fastest.
MODELS = Models(AutoEncoderParams(stride=1), flux=FluxParams(), text_tokens=LONGEST_PROMPT, train_tokens=64)
MACHINE = Machine("cuda", torch.bfloat16, 10**12, False, False, host=True)


def rows() -> dict[int, list[str]]:
    """px -> the other cells."""
    table = PAGE.read_text("utf-8").split("## Cost")[1].split("\n## ")[0]
    cells = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table.splitlines() if line[:1] == "|"]
    return {int(row[0]): row[1:] for row in cells if row[0].isdigit()}


def planned(side: int, pieces: Pieces | None = None) -> tuple[Plan, dict[str, StagePlan]]:
    models = replace(MODELS, pieces=pieces)
    plan = make_plan((side // 4, side // 4), Target(long_edge=side), models, MACHINE)
    return plan, {stage.name: stage for stage in plan.stages}


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f}" if size < 1e9 else f"{size / 1e9:.1f}"


def work(stage: StagePlan) -> str:
    assert stage.flops
    return f"{stage.flops / 1e15:.2f} PFLOP" if stage.flops < 1e15 else f"{stage.flops / 1e15:.1f} PFLOP"


@pytest.mark.parametrize("side", [1024, 2048, 4096])
def test_each_row_is_the_plans(side: int) -> None:
    plan, whole = planned(side)
    cut, pieces = planned(side, Pieces(1024, 512))
    tokens, transformer, in_pieces, encode, decode = rows()[side]
    assert tokens == f"{plan.tokens[0] * plan.tokens[1]:,}"
    assert transformer == f"{gigabytes(whole['transformer'].peak)} GB, {work(whole['transformer'])}"
    peak = f"{gigabytes(pieces['transformer'].peak)} GB, {cut.pieces} pieces, {work(pieces['transformer'])}"
    assert in_pieces == ("the same" if cut.pieces == 1 else peak)
    assert encode == f"{gigabytes(whole['encode'].peak)} GB"
    by_mode = whole["decode"].by_mode
    assert by_mode and decode == f"{gigabytes(by_mode['fast'])} to {gigabytes(by_mode['tiny'])} GB"


def test_there_is_no_other_row() -> None:
    assert list(rows()) == [1024, 2048, 4096]
