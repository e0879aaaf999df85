"""The report: alarms on what was injected, quiet on what was not, periods found by search."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from op4ksr_core import ImageError, OptionError, measure_periodicity
from op4ksr_core.images.io import jpeg_round_trip, to_8_bit
from op4ksr_core.images.resize import resize
from op4ksr_core.periodicity.artifacts import inject, random_tile, real_texture, tiled
from op4ksr_core.periodicity.block_steps import block_map
from op4ksr_core.periodicity.calibration import ALONE, STRETCH, WITH_REFERENCE, calibration_of, false_alarm_rate, fit
from op4ksr_core.periodicity.evidence import gather_evidence
from op4ksr_core.periodicity.meter import KIND_OF, _kind_and_period, grey_plane, measure_each
from op4ksr_core.periodicity.statistic import Statistic
from op4ksr_core.periodicity.thresholds import ALARM_RATE


@pytest.fixture(scope="module")
def scenes(natural) -> list[Tensor]:
    return [to_8_bit(natural(320, 384, seed)) for seed in (3, 4, 5, 6)]


def with_period(picture: Tensor, period: tuple[float, float], grey_levels: float) -> Tensor:
    """A white tile of any period, as resizing makes it: drawn with whole periods, then enlarged a little."""
    height, width = picture.shape[-2:]
    tall, wide = (max(4, int(p * 0.8)) for p in period)
    tile = random_tile(max(tall, wide), False, torch.Generator().manual_seed(0))[:tall, :wide]
    size = (round(height * tall / period[0]), round(width * wide / period[1]))
    rows, columns = (torch.arange(n, dtype=torch.float32) for n in size)
    field = resize(tiled(tile, *torch.meshgrid(rows, columns, indexing="ij"))[None, None], height, width)
    return to_8_bit(picture + (field - field.mean()) / field.std() * grey_levels / 255)


# --- alarms -----------------------------------------------------------------------------------


def test_clean_scenes_raise_no_alarm(scenes) -> None:
    for picture in scenes:
        assert not measure_periodicity(picture).alarm
        assert not measure_periodicity(picture, resize(picture, 80, 96)).alarm


@pytest.mark.parametrize(
    ("kind", "grey_levels", "named", "period"),
    [
        ("white32", 2, "tile", (32, 32)),
        ("pink16", 2, "tile", (16, 16)),
        ("pink8", 2, "tile", (8, 8)),
        ("mult32", 3, "tile", (32, 32)),
        ("region32", 4, "tile", (32, 32)),
        ("pink64", 4, "tile", (64, 64)),
        ("white24", 2, "tile", (24, 24)),
        ("block32", 8, "blocks", (32, 32)),
    ],
)
def test_injected_artifacts_are_found_and_named(scenes, kind, grey_levels, named, period) -> None:
    picture = to_8_bit(inject(scenes[0], kind, grey_levels, seed=1))
    for reference in (None, resize(scenes[0], 80, 96)):
        report = measure_periodicity(picture, reference)
        assert report.alarm and report.kind == named and report.score > 2
        assert report.period == pytest.approx(period, rel=0.03)


def test_a_comb_has_a_period_on_one_axis_only(scenes) -> None:
    line = random_tile(20, False, torch.Generator().manual_seed(0))[0]
    standing = to_8_bit(scenes[0] + 3 / 255 * line.repeat(20)[:384])
    lying = to_8_bit(scenes[0] + 3 / 255 * line.repeat(16)[:320, None])
    assert measure_periodicity(standing).kind == measure_periodicity(lying).kind == "comb"
    assert measure_periodicity(standing).period == (None, pytest.approx(20, rel=0.03))
    assert measure_periodicity(lying).period == (pytest.approx(20, rel=0.03), None)


@pytest.mark.parametrize(
    "period", [(5, 5), (11, 11), (18.5, 18.5), (27.3, 27.3), (41, 41), (57, 57), (80, 80), (20, 28)]
)
def test_any_period_is_found_by_search(scenes, period) -> None:
    report = measure_periodicity(with_period(scenes[1], period, 6))
    assert report.alarm and report.kind == "tile"
    assert report.period == pytest.approx(period, rel=0.03)


def test_more_of_it_scores_higher(scenes) -> None:
    scores = [measure_periodicity(to_8_bit(inject(scenes[2], "white32", a, 1))).score for a in (0, 1, 2, 4)]
    assert scores == sorted(scores) and scores[0] < 2 < scores[1] < scores[3]


def test_what_the_reference_has_too_is_not_blamed() -> None:
    wall = to_8_bit(real_texture(320, 384, 32, seed=2))
    assert measure_periodicity(wall).alarm
    assert not measure_periodicity(wall, to_8_bit(resize(wall, 80, 96))).alarm


def test_jpeg_is_reported_apart(scenes) -> None:
    reports = [measure_periodicity(jpeg_round_trip(picture, 60)) for picture in scenes]
    assert not any(report.alarm for report in reports)
    assert {report.kind for report in reports} == {"jpeg"}
    assert all(report.period == (8, 8) and report.jpeg_grid > 4 for report in reports)
    assert all(measure_periodicity(picture).jpeg_grid < 4 for picture in scenes)


def test_a_weak_tile_of_8_px_is_not_taken_for_jpeg(scenes) -> None:
    tile = random_tile(8, False, torch.Generator().manual_seed(3)).repeat(40, 48)
    report = measure_periodicity(to_8_bit(scenes[1] + tile * 0.7 / 255))
    assert report.kind == "tile" and report.period == pytest.approx((8, 8), rel=0.03)


def test_blocks_have_a_map_too(scenes) -> None:
    spoilt = scenes[3].clone()
    spoilt[..., 192:] = inject(scenes[3], "block32", 12, 1)[..., 192:]
    report = measure_periodicity(to_8_bit(spoilt))
    assert report.kind == "blocks"
    assert float(report.heatmap[..., 7:].mean()) > 3 * float(report.heatmap[..., :5].mean())


def test_the_heat_is_where_it_is(scenes) -> None:
    spoilt = scenes[3].clone()
    spoilt[..., 192:] = inject(scenes[3], "white32", 4, 1)[..., 192:]
    heat = measure_periodicity(to_8_bit(spoilt)).heatmap
    assert heat.shape == (1, 1, 10, 12) and float(heat.min()) >= 0 and float(heat.max()) == 1
    assert float(heat[..., 8:].mean()) > 0.9 and float(heat[..., :4].mean()) < 0.3
    assert not measure_periodicity(scenes[3]).heatmap.any()


# --- what must not matter ---------------------------------------------------------------------


def test_float_and_8_bit_agree(scenes) -> None:
    spoilt = inject(scenes[0], "white32", 3, seed=1)
    exact, rounded = measure_periodicity(spoilt), measure_periodicity(to_8_bit(spoilt))
    assert rounded.score == pytest.approx(exact.score, rel=0.1)
    assert (rounded.kind, rounded.period) == (exact.kind, exact.period)


@pytest.mark.parametrize("shift", [(1, 0), (5, 11), (16, 16)])
def test_a_shift_leaves_the_score_alone(scenes, shift) -> None:
    spoilt = to_8_bit(inject(scenes[0], "white32", 3, seed=1))
    whole = measure_periodicity(spoilt[..., :304, :368])
    moved = measure_periodicity(spoilt[..., shift[0] : shift[0] + 304, shift[1] : shift[1] + 368])
    assert moved.score == pytest.approx(whole.score, rel=0.1) and moved.period == whole.period


@pytest.mark.parametrize("factor", [0.5, 0.25])
def test_brightness_leaves_the_score_alone(scenes, factor: float) -> None:
    spoilt = inject(scenes[0], "white32", 3, seed=1)
    bright, dark = measure_periodicity(spoilt), measure_periodicity(spoilt * factor)
    assert dark.score == pytest.approx(bright.score, rel=0.02) and dark.period == bright.period


def test_one_channel_is_the_grey_picture(scenes) -> None:
    grey = to_8_bit(inject(scenes[0], "white32", 3, seed=1)).mean(1, keepdim=True)
    one, three = measure_periodicity(grey), measure_periodicity(grey.expand(1, 3, -1, -1))
    assert one.alarm and one.score == pytest.approx(three.score, rel=1e-3)


def test_a_batch_is_its_pictures_and_the_report_its_worst(scenes) -> None:
    batch = torch.cat([scenes[1], to_8_bit(inject(scenes[1], "white32", 3, 1)), scenes[2]])
    each = measure_each(batch)
    alone = [measure_periodicity(picture[None]) for picture in batch]
    assert [r.score for r in each] == pytest.approx([r.score for r in alone])
    worst = measure_periodicity(batch)
    assert worst.picture == 1 and worst.alarm and worst.score == max(r.score for r in each)


# --- odd pictures -----------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_flat_pictures_are_clean(value: float) -> None:
    for size in ((16, 16), (100, 100), (300, 260)):
        for reference in (None, torch.full((1, 3, 8, 8), value)):
            report = measure_periodicity(torch.full((1, 3, *size), value), reference)
            assert not report.alarm and report.kind == "none" and math.isfinite(report.score)


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (63, 500)])
def test_tiny_pictures_cannot_be_judged(size, generator) -> None:
    report = measure_periodicity(torch.rand(1, 3, *size, generator=generator))
    assert (report.score, report.false_alarm_rate, report.alarm) == (0, 1, False)
    assert "Too small" in report.verdict


def test_huge_aspects_work(natural) -> None:
    strip = natural(64, 1500, 7)
    assert not measure_periodicity(strip).alarm
    tile = random_tile(16, False, torch.Generator().manual_seed(1)).repeat(4, 94)[:, :1500]
    report = measure_periodicity(strip + tile * 4 / 255)
    assert report.alarm and report.period == pytest.approx((16, 16), rel=0.03)


def test_a_flat_picture_with_a_mesh_is_periodic() -> None:
    report = measure_periodicity(to_8_bit(inject(torch.full((1, 3, 256, 256), 0.4), "white32", 1.0)))
    assert report.alarm and report.period == pytest.approx((32, 32))


@pytest.mark.parametrize(
    ("image", "reference", "said"),
    [
        (torch.full((1, 3, 80, 80), torch.nan), None, "NaN"),
        (torch.zeros(1, 3, 80, 80), torch.full((1, 3, 20, 20), torch.inf), "reference: holds NaN"),
        (torch.zeros(3, 80, 80), None, "expected"),
        (torch.zeros(1, 4, 80, 80), None, "expected"),
        (torch.zeros(1, 3, 0, 80), None, "expected"),
        (torch.zeros(1, 3, 80, 80, dtype=torch.uint8), None, "255"),
        (torch.zeros(1, 3, 80, 80), torch.zeros(1, 3, 81, 20), "swapped"),
        (torch.zeros(3, 3, 80, 80), torch.zeros(2, 3, 20, 20), "2 pictures for 3"),
    ],
)
def test_what_cannot_be_measured_is_said(image, reference, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        measure_periodicity(image, reference)


def test_rates_and_tokens_must_make_sense() -> None:
    with pytest.raises(OptionError, match="alarm rate"):
        measure_periodicity(torch.zeros(1, 3, 80, 80), alarm_rate=0)
    with pytest.raises(OptionError, match="token"):
        measure_periodicity(torch.zeros(1, 3, 80, 80), token=0)


# --- the report's words -----------------------------------------------------------------------


def test_tokens_and_words(scenes) -> None:
    spoilt = to_8_bit(inject(scenes[0], "white32", 3, 1))
    report = measure_periodicity(spoilt, token=16)
    assert report.tokens == (2, 2) and "32 px (2 tokens)" in report.verdict
    assert measure_periodicity(spoilt).tokens == (None, None)


def test_the_alarm_is_where_the_caller_wants_it(scenes) -> None:
    assert measure_periodicity(scenes[0]).alarm_rate == ALARM_RATE == 0.01
    report = measure_periodicity(scenes[0], alarm_rate=0.999)
    assert report.alarm == (report.false_alarm_rate <= 0.999)
    spoilt = to_8_bit(inject(scenes[0], "white32", 3, 1))
    assert measure_periodicity(spoilt, alarm_rate=1e-9).alarm


def test_a_report_is_json(scenes) -> None:
    fields = json.loads(json.dumps(measure_periodicity(scenes[0]).as_dict(), allow_nan=False))
    assert {"score", "false_alarm_rate", "alarm", "period", "kind", "heatmap"} <= set(fields)
    assert len(fields["heatmap"]) == 10 and len(fields["heatmap"][0]) == 12


# --- calibration ------------------------------------------------------------------------------


def test_rate_and_score_are_one_thing() -> None:
    assert false_alarm_rate(2.0) == pytest.approx(0.01) and false_alarm_rate(0) == 1
    for with_reference in (False, True):
        calibration, tile = calibration_of(with_reference), Statistic("tile", 0.0, 32)
        scores = [calibration.score({tile: s}) for s in (0.0, 3.0, 4.0, 9.0)]
        assert scores == sorted(scores) and scores[1] < scores[3]
    assert calibration_of(True) is WITH_REFERENCE and calibration_of(False) is ALONE


def test_every_statistic_that_is_made_has_its_place_in_the_table_and_a_kind(scenes) -> None:
    plane = grey_plane(scenes[0][0])
    for reference, calibration in ((None, ALONE), (plane, WITH_REFERENCE)):
        statistics = gather_evidence(plane, reference).statistics
        assert list(calibration.scores(statistics)) == statistics, "the order decides between equals"
        assert len({(s.family, s.axis, s.period) for s in statistics}) == len(statistics) == 29
        made = {(s.family, s.period) for s in statistics}
        assert made == {(family, period) for family, periods in calibration.table.items() for period in periods}
        assert {s.family for s in statistics} == set(KIND_OF)
        assert all((s.axis is not None) == (s.family in ("lines", "lines_power")) for s in statistics)


def test_what_the_table_does_not_know_has_no_score() -> None:
    tile, unknown = Statistic("tile", ALONE.table["tile"][32][0], 32), Statistic("tile_all", 3.0, 8)
    assert ALONE.scores([tile, unknown]) == {tile: 0}


@pytest.mark.parametrize(
    ("loud", "expected"),
    [
        (Statistic("lines", 0.0, 16, "rows"), ("comb", (16, None))),
        (Statistic("lines_power", 0.0, 8, "columns"), ("comb", (None, 8))),
        (Statistic("block", 0.0, 64), ("blocks", (64, 64))),
        (Statistic("tile", 0.0, 16), ("tile", (16, 16))),
        (Statistic("tile_all", 0.0, 64), ("tile", (32, 32))),
        (Statistic("tile_local", 0.0, 32), ("tile", (32, 32))),
    ],
)
def test_the_loudest_statistic_names_kind_and_period(scenes, loud: Statistic, expected) -> None:
    """But for "tile_all", which says that there is a tile, and not of which period."""
    evidence = gather_evidence(grey_plane(scenes[0][0]))
    quiet = dict.fromkeys((replace(s, z=0.0) for s in evidence.statistics), 0.0)
    assert loud in quiet
    scores = quiet | {Statistic("tile", 0.0, 32): 0.1, loud: 9.0}
    assert _kind_and_period(True, scores, evidence) == expected


def test_fit_finds_an_exponential_tail(generator) -> None:
    values = -torch.rand(4000, generator=generator).log() * 2
    samples = [[Statistic("tile", float(v), 32)] for v in values]
    found = fit(samples, [str(i // 10) for i in range(len(samples))])
    u, b = found.table["tile"][32]
    assert u == pytest.approx(2 * math.log(10), rel=0.1) and b == pytest.approx(2, rel=0.15)
    assert found.scale == pytest.approx(STRETCH, rel=0.15)
    assert found.start == pytest.approx((2 * math.log(5) - u) / b, abs=0.15)


@pytest.mark.parametrize("box", [(150, 350, 200, 500), (80, 420, 0, 700)])
def test_a_black_frame_changes_nothing(natural, box: tuple[int, int, int, int]) -> None:
    """Its windows hold the rounding of floats alone, which may look like anything at all; its edge is one step."""
    top, bottom, left, right = box
    inner = natural(bottom - top, right - left, 5)
    picture = torch.zeros(1, 3, 500, 700)
    picture[..., top:bottom, left:right] = inner
    for given in (to_8_bit(picture), picture * 0.999 + 1e-7 * torch.rand(picture.shape)):
        report = measure_periodicity(given)
        assert not report.alarm and report.heatmap.shape[-2:] == (16, 22)
    assert measure_periodicity(to_8_bit(picture)).score == measure_periodicity(to_8_bit(inner)).score
    low = to_8_bit(resize(picture, 125, 175))
    assert not measure_periodicity(to_8_bit(picture), low).alarm


def test_a_black_hole_changes_nothing(natural) -> None:
    """As space between clouds: no frame, and its windows too hold the rounding of floats alone."""
    picture = natural(640, 640, 3)
    picture[..., 100:540, 100:540] = 0
    low = resize(picture, 160, 160).clamp(0, 1)
    low[..., 28:132, 28:132] = 0
    noise = 1e-7 * torch.rand(picture.shape, generator=torch.Generator().manual_seed(0))
    for given in (picture, picture * 0.999 + noise):
        assert not measure_periodicity(given).alarm and not measure_periodicity(given, low).alarm


def test_the_heat_lies_inside_the_frame(natural) -> None:
    picture = torch.zeros(1, 3, 640, 960)
    picture[..., 160:480, 320:960] = inject(natural(320, 640, 5), "white32", 6.0)
    heat = measure_periodicity(to_8_bit(picture)).heatmap[0, 0]
    assert float(heat[:4].max()) == float(heat[:, :9].max()) == 0 and float(heat[6:14, 11:].mean()) > 0.5


def test_half_precision_is_no_infinity() -> None:
    assert measure_periodicity(torch.full((1, 3, 512, 512), 0.5).half()).score == 0


def test_a_reference_of_another_shape_is_refused(natural) -> None:
    image = natural(200, 300, 5)
    with pytest.raises(ImageError, match="50x50 px has another shape than the image, 300x200 px"):
        measure_periodicity(image, image[..., :50, :50])
    for height, width in ((34, 50), (5, 8), (50, 77)):  # sides are rounded, and a little stretching passes
        assert measure_periodicity(image, resize(image, height, width).clamp(0, 1)).with_reference
    with pytest.raises(ImageError, match="80x50 px has another shape"):
        measure_periodicity(image, resize(image, 50, 80).clamp(0, 1))


def test_one_edge_is_no_grid_and_narrow_noise_is_none(generator) -> None:
    dot = torch.zeros(1, 1, 300, 300)
    dot[..., 150, 140] = 1
    assert not measure_periodicity(dot).alarm
    assert sum(measure_periodicity(torch.rand(1, 1, 64, 3000, generator=generator)).alarm for _ in range(6)) <= 1


@pytest.mark.parametrize("levels", [6.0, 12.0])
def test_the_heat_of_blocks_does_not_fall_as_they_get_stronger(natural, levels: float) -> None:
    report = measure_periodicity(to_8_bit(inject(natural(512, 512, 5), "block32", levels, 1)))
    assert report.kind == "blocks" and float(report.heatmap.max()) > 0.9


def test_less_than_rounding_is_no_mesh() -> None:
    """A flat picture of floats, a mesh of a fiftieth of a grey level on it: nobody can see that."""
    tile = random_tile(16, False, torch.Generator().manual_seed(0)).repeat(16, 16)
    tile = (tile - tile.min()) / (tile.max() - tile.min())
    faint, seen = (measure_periodicity(0.5 + (tile * levels / 255)[None, None]) for levels in (0.02, 1.0))
    assert faint.score == 0 and not faint.alarm and faint.kind == "none" and seen.alarm


@pytest.mark.parametrize("period", [32, 64])
def test_the_heat_of_blocks_is_of_their_period(scenes, monkeypatch, period: int) -> None:
    asked: list[int] = []

    def recorded(plane: Tensor, period: int, cells: tuple[int, int]) -> Tensor:
        asked.append(period)
        return block_map(plane, period, cells)

    monkeypatch.setattr("op4ksr_core.periodicity.meter.block_map", recorded)
    offsets = torch.randn(21, 25, generator=torch.Generator().manual_seed(1))
    blocks = offsets.repeat_interleave(period, 0).repeat_interleave(period, 1)[:320, :384]
    report = measure_periodicity(to_8_bit(scenes[0] + blocks * 12 / 255))
    assert report.kind == "blocks" and asked == [period] == [report.period[0]]
