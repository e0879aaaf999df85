"""The commands ``repair`` and ``compare``, ``smooth`` and ``crops``, on tiny models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks import crops, smooth
from benchmarks.ablation import mesh, smooth_picture
from benchmarks.commands import main as cli
from benchmarks.methods import BASE, PLAIN, Method, bicubic
from benchmarks.variants import Variant
from op4ksr_core import ImageError
from op4ksr_core.training.data.leaves import picture

Report = dict[str, list[dict[str, object]]]


def tables(folder: Path, kind: str) -> Report:
    return json.loads((folder / f"{kind}.json").read_text("utf-8"))["tables"]


def files(weights: Variant) -> list[str]:
    return ["--vae", str(weights.vae), "--model", str(weights.model)]


@pytest.mark.slow
@pytest.mark.usefixtures("without_piq", "without_meter")
def test_repair_has_a_row_for_each_strength_and_fidelity(photos: list[Path], tmp_path: Path, weights: Variant) -> None:
    words = ["repair", str(photos[0]), "--degradation", "noise10", "--enlarger", "bundled"]
    words += [*files(weights), "--old", str(weights.vae.parent), "-o", str(tmp_path)]
    assert cli.main(words) == 0
    rows = tables(tmp_path, "repair")["x4, noise10"]
    assert [row["method"] for row in rows[:3]] == ["bicubic", BASE, "v1"]
    kinds = {(str(row["method"]).partition(",")[0], row["repair"], row["followed"]) for row in rows[3:]}
    assert not any("core_s_per_mp" in row for row in rows)  # one run computes for several rows
    strengths = ("0", "0.25", "0.5", "0.75", "1")
    assert kinds == {(n, r, f) for n in ("base alone", "full") for r in strengths for f in ("yes", "no")}
    base = [row["psnr"] for row in rows if str(row["method"]).startswith("base") and row["fidelity"] == "0"]
    assert len(set(base)) == 5


@pytest.mark.usefixtures("without_piq")
def test_compare_takes_rows_of_a_file_and_of_the_command_line(
    photos: list[Path], tmp_path: Path, weights: Variant, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.toml"
    named = f'vae = "{weights.vae.as_posix()}"\nmodel = "{weights.model.as_posix()}"\n'
    rows.write_text(f'[[row]]\nname = "a"\n{named}', "utf-8")
    words = ["compare", str(photos[0]), "--rows", str(rows)]
    words += ["--row", "b", f"vae={weights.vae}", f"model={weights.model}", "detail=0", "-o", str(tmp_path)]
    assert cli.main(words) == 0
    found = {row["method"]: row["psnr"] for row in tables(tmp_path, "compare")["x4, clean"]}
    assert list(found) == ["bicubic", BASE, "a", "b"]
    assert all("core_s_per_mp" in row for row in tables(tmp_path, "compare")["x4, clean"])
    assert found["b"] == pytest.approx(found[BASE]) and found["a"] != found["b"]  # "b" is bicubic, finished
    assert cli.main(["compare", str(photos[0]), "-o", str(tmp_path)]) == 1
    assert "no rows; name a file with --rows, or one with --row" in capsys.readouterr().err


# --- smooth pictures --------------------------------------------------------------------------


@pytest.mark.parametrize("period", [4, 16, 32])
def test_a_mesh_is_measured_at_its_period(period: int) -> None:
    high = smooth_picture(0, 384)
    tile = torch.zeros(period, period)
    tile[: period // 2, : period // 2] = 1
    tile = (tile - tile.mean()) / tile.std() * (0.5 / 255)
    meshed = high + tile.repeat(384 // period, 384 // period)
    assert mesh(meshed, high, period) > 0.2 > 0.02 > mesh(high + 0.002 * torch.rand(high.shape), high, period)


@pytest.mark.slow
def test_smooth_rows_have_every_combination_and_see_a_mesh(
    weights: Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smooth, "SIDE", 128)
    monkeypatch.setattr(smooth, "COUNT", 2)
    words = ["smooth", *files(weights), "--enlarger", "bundled", "--details", "0", "1", "--repairs", "0", "0.5"]
    assert cli.main([*words, "-o", str(tmp_path)]) == 0
    rows = tables(tmp_path, "smooth")["Smooth pictures, x4"]
    assert rows[0]["method"] == "bicubic" and len(rows) == 1 + 2 * 2 * 2
    assert {(row["detail"], row["repair"], row["fidelity"]) for row in rows[1:]} == {
        (d, r, f) for d in ("0", "1") for r in ("0", "0.5") for f in ("0", "1")
    }
    assert rows[5]["alarms"] == 2  # of weights that nobody trained
    assert all(row["worst"] == max(row[f"mesh of {p}"] for p in (4, 16, 32)) for row in rows)  # pyright: ignore

    def meshed(self: Variant, low: Tensor, factor: int) -> Tensor:
        tile = torch.zeros(4, 4)
        tile[:2, :2] = 4 / 255
        return bicubic(low, factor) + tile.repeat(low.shape[-2], low.shape[-1])

    monkeypatch.setattr(Variant, "enlarge", meshed)
    row = smooth.smooth_rows(weights, 4, (1,), (0,))[1]
    assert row["mesh of 4"] > 1 and row["worst"] == row["mesh of 4"]


# --- crops ------------------------------------------------------------------------------------


def drawn(path: Path, side: int = 320) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(picture(1, side, side)).save(path)
    return path


def test_crops_show_the_same_piece_of_each(tmp_path: Path) -> None:
    """The lower row's views are a third of the place, three times as large; the last is the photo's own pixels."""
    path = drawn(tmp_path / "set" / "a.png")
    sheet = np.asarray(crops.draw_crops(path, [PLAIN["bicubic"], PLAIN[BASE]], "hard"))
    step, top = crops.VIEW + crops.GAP, crops.WORDS
    assert sheet.shape == (top + 2 * step, 3 * step + crops.GAP, 3)
    views = [sheet[top : top + crops.VIEW, crops.GAP + i * step :][:, : crops.VIEW] for i in range(3)]
    nears = [sheet[top + step :, crops.GAP + i * step :][: crops.VIEW, : crops.VIEW][1::3, 1::3] for i in range(3)]
    pixels = np.asarray(Image.open(path))
    assert _place(pixels, views[2]) is not None
    at = _place(pixels, nears[2])
    assert at is not None
    assert not np.array_equal(views[0], views[1]) and not np.array_equal(nears[0], nears[1])


def _place(whole: np.ndarray, piece: np.ndarray) -> tuple[int, int] | None:
    """Where a piece lies in a picture."""
    height, width = piece.shape[:2]
    for top in range(whole.shape[0] - height + 1):
        for left in range(whole.shape[1] - width + 1):
            if np.array_equal(whole[top, left], piece[0, 0]) and np.array_equal(
                whole[top : top + height, left : left + width], piece
            ):
                return top, left
    return None


@pytest.mark.slow
def test_the_piece_is_where_the_model_gains_or_loses_most(tmp_path: Path) -> None:
    path = drawn(tmp_path / "set" / "a.png", 640)

    def lopsided(low: Tensor, factor: int) -> Tensor:
        output = bicubic(low, factor)
        output[..., :96, :96] = 0
        output[..., -96:, -96:] = torch.from_numpy(picture(1, 640, 640)).permute(2, 0, 1)[None, :, -96:, -96:] / 255
        return output

    at: list[tuple[int, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crops, "_sheet", lambda views, place: at.append(place))
        for place in ("worst", "best"):
            crops.draw_crops(path, [Method("lopsided", "", lopsided)], place)
    assert max(at[0]) < 96 and min(at[1]) > 640 - 2 * 96


def test_photos_too_small_are_told_and_cost_no_other(
    tmp_path: Path, weights: Variant, capsys: pytest.CaptureFixture[str]
) -> None:
    small = drawn(tmp_path / "set" / "small.png", 280)
    with pytest.raises(ImageError, match="under 288 px a side, too small to show"):
        crops.draw_crops(small, [PLAIN["bicubic"]], "hard")
    drawn(tmp_path / "set" / "large.png")
    words = ["crops", str(tmp_path / "set"), *files(weights), "--base", "--old", str(weights.vae.parent)]
    assert cli.main([*words, "--out", str(tmp_path / "out")]) == 1
    written = list((tmp_path / "out").iterdir())
    assert [path.name for path in written] == ["set_large.jpg"] and written[0].stat().st_size < 500_000
    assert "small.png: is under 288 px" in capsys.readouterr().err


def test_photos_are_chosen_evenly() -> None:
    paths = [Path(str(i)) for i in range(7)]
    assert crops.chosen(paths, 3) == [Path("0"), Path("2"), Path("4")] and crops.chosen(paths, 9) == paths
