"""Photos by methods: rows, what is kept on the disk, and photos that fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks import measure as module
from benchmarks.measure import Cache, Photos, measure
from benchmarks.methods import PLAIN, Method, bicubic
from benchmarks.summary import complete
from op4ksr_core import ImageError
from op4ksr_core.images.io import load_image
from op4ksr_core.images.metrics import psnr
from op4ksr_core.images.resize import resize

pytestmark = pytest.mark.usefixtures("without_piq")


def counting(key: str = "counting") -> tuple[Method, list[Tensor]]:
    given: list[Tensor] = []

    def enlarge(low: Tensor, factor: int) -> Tensor:
        given.append(low)
        return bicubic(low, factor)

    return Method("counting", key, enlarge, {"repair": "0.5"}), given


def test_a_row_for_each_photo_damage_and_method(photos: list[Path]) -> None:
    rows, status = measure(Photos(photos, ("clean", "jpeg50")), [PLAIN["bicubic"], counting()[0]], Cache(None))
    assert status == 0 and len(rows) == 2 * 2 * 2
    assert [(row["photo"], row["degradation"], row["method"]) for row in rows[:3]] == [
        ("photo0", "clean", "bicubic"),
        ("photo0", "clean", "counting"),
        ("photo0", "jpeg50", "bicubic"),
    ]
    high = load_image(photos[1]).image[..., :128, :100]
    low = (resize(high, 32, 25).clamp(0, 1) * 255).round() / 255
    enlarged = (resize(low, 128, 100).clamp(0, 1) * 255).round() / 255
    assert rows[4]["psnr"] == pytest.approx(psnr(enlarged, high)) and rows[4]["set"] == "photos"
    assert rows[5]["repair"] == "0.5" and rows[5]["psnr"] == rows[4]["psnr"] and rows[5]["core_s_per_mp"] > 0
    assert rows[6]["psnr"] < rows[4]["psnr"]


def test_what_is_kept_is_not_computed_again(photos: list[Path], tmp_path: Path) -> None:
    method, given = counting()
    first = measure(Photos(photos), [method], Cache(tmp_path / "scores"))
    assert len(given) == 3  # a corner of the first, before the clock runs, and both
    assert given[0].shape == (1, 3, 16, 16)
    assert measure(Photos(photos), [method], Cache(tmp_path / "scores")) == first and len(given) == 3
    other, again = counting("other files")
    measure(Photos(photos), [method, other], Cache(tmp_path / "scores"))
    assert len(given) == 3 and len(again) == 3


@pytest.mark.parametrize("damage", ["", "[1]", '{"counting": '])
def test_what_cannot_be_read_counts_as_not_kept(photos: list[Path], tmp_path: Path, damage: str) -> None:
    method, given = counting()
    first = measure(Photos(photos), [method], Cache(tmp_path / "scores"))
    for path in (tmp_path / "scores").iterdir():
        path.write_text(damage, "utf-8")
    again = measure(Photos(photos), [method], Cache(tmp_path / "scores"))
    assert len(given) == 6
    assert [row["psnr"] for row in again[0]] == [row["psnr"] for row in first[0]]


def test_other_pixels_code_or_scores_are_measured_anew(
    photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, given = counting()
    run: Callable[..., object] = lambda **more: measure(Photos(photos), [method], Cache(tmp_path / "scores"), **more)  # noqa: E731
    run()
    Image.open(photos[0]).transpose(Image.Transpose.ROTATE_180).save(photos[0])
    run()
    assert len(given) == 3 + 2
    run(more={"more": lambda output, low, high: {"more": 1.0}})
    assert len(given) == 5 + 3
    monkeypatch.setattr(module, "code_key", lambda: "changed")
    run()
    assert len(given) == 8 + 3


def test_a_run_that_is_stopped_goes_on_where_it_was(photos: list[Path], tmp_path: Path) -> None:
    method, given = counting()

    def stopping(low: Tensor, factor: int) -> Tensor:
        if len(given) > 1:
            raise KeyboardInterrupt
        return method.enlarge(low, factor)

    with pytest.raises(KeyboardInterrupt):
        measure(Photos(photos), [Method("stops", "same", stopping)], Cache(tmp_path / "scores"))
    rows, _ = measure(Photos(photos), [Method("goes on", "same", method.enlarge)], Cache(tmp_path / "scores"))
    assert len(rows) == 2 and len(given) == 4  # a corner, and the second photo alone


def test_a_photo_that_fails_costs_no_other(
    photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, small = tmp_path / "photos" / "bad.png", tmp_path / "photos" / "small.png"
    bad.write_bytes(b"no picture")
    Image.new("RGB", (63, 200)).save(small)

    def fails(low: Tensor, factor: int) -> Tensor:
        if low.shape[-1] == 25 and low.shape[-2] == 32 and not torch.equal(low, first):
            raise ImageError("this one not")
        return bicubic(low, factor)

    first = module.damaged(load_image(photos[0]).image[..., :128, :100], 4, "clean", photos[0])
    methods = [PLAIN["bicubic"], Method("fails", "fails", fails)]
    rows, status = measure(Photos([bad, *photos, small]), methods, Cache(tmp_path / "scores"))
    told = capsys.readouterr().err
    assert status == 1 and {row["photo"] for row in rows} == {"photo0"}
    assert "bad.png: is no picture" in told and "small.png: is under 64 px a side" in told
    assert "this one not" in told and "3 of 4 pictures failed" in told and "Traceback" not in told
    rows, status = measure(Photos(photos), methods[:1], Cache(tmp_path / "scores"))
    assert status == 0 and len(complete(rows)) == 2


def test_a_method_that_makes_another_size_is_told(photos: list[Path]) -> None:
    with pytest.raises(ImageError, match="twice: made 50x64 px, expected 100x128 px; leave the method out"):
        measure(Photos(photos[:1]), [Method("twice", "twice", lambda low, factor: bicubic(low, 2))], Cache(None))
