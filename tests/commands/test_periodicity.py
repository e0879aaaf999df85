"""``periodicity`` and ``suppress`` on files: words, JSON, exit codes, and no traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from op4ksr_core import suppress_periodicity
from op4ksr_core.cli import main as cli
from op4ksr_core.cli.periodicity import ALARMED
from op4ksr_core.images.io import Picture, load_image, save_image, to_8_bit
from op4ksr_core.images.resize import resize
from op4ksr_core.periodicity.artifacts import inject
from op4ksr_core.periodicity.report_picture import HEIGHT, WIDTH


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture
def clean(tmp_path: Path, natural) -> Path:
    path = tmp_path / "clean.png"
    save_image(path, Picture(natural(256, 256, 5)))
    return path


@pytest.fixture
def gridded(tmp_path: Path, natural) -> Path:
    path = tmp_path / "gridded.png"
    save_image(path, Picture(inject(natural(256, 256, 5), "white32", 4.0, seed=1)))
    return path


def test_one_picture_is_one_sentence_and_a_code(clean: Path, gridded: Path, capsys) -> None:
    assert run("periodicity", clean) == 0
    assert "No periodic artifact" in capsys.readouterr().out
    assert run("periodicity", gridded, "--token", 32) == ALARMED
    assert "32 px (1 token)" in capsys.readouterr().out


def test_a_folder_is_a_table_worst_first(clean: Path, gridded: Path, capsys) -> None:
    assert run("periodicity", clean.parent) == ALARMED
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and "score" in lines[0]
    assert "gridded" in lines[1] and "!" in lines[1] and "tile" in lines[1]
    assert "clean.png" in lines[2] and "!" not in lines[2]


def test_json_has_the_reports_names(clean: Path, gridded: Path, capsys) -> None:
    assert run("periodicity", clean, gridded, "--json") == ALARMED
    pictures = json.loads(capsys.readouterr().out)["pictures"]
    assert [Path(p["input"]).name for p in pictures] == ["gridded.png", "clean.png"]
    assert {"score", "false_alarm_rate", "alarm", "period", "kind", "heatmap"} <= set(pictures[0])
    assert pictures[0]["alarm"] and pictures[0]["period"] == [32, 32] and not pictures[1]["alarm"]


def test_the_alarm_level_is_the_callers(gridded: Path, clean: Path) -> None:
    assert run("periodicity", clean, "--alarm", 0.999) in (0, ALARMED)
    assert run("periodicity", gridded, "--alarm", 1e-6) == ALARMED
    assert run("periodicity", gridded, "--alarm", 2) == 1


def test_the_report_is_drawn(gridded: Path, clean: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out.png"
    assert run("periodicity", gridded, "--report", out) == ALARMED
    assert load_image(out).size == (HEIGHT, WIDTH)
    folder = tmp_path / "reports"
    assert run("periodicity", gridded, clean, "--report", folder) == ALARMED
    assert sorted(p.name for p in folder.iterdir()) == ["clean.png", "gridded.png"]


def test_the_report_never_overwrites_the_picture(gridded: Path, capsys) -> None:
    before = gridded.read_bytes()
    assert run("periodicity", gridded, "--report", gridded) == 1
    assert "overwritten" in capsys.readouterr().err and gridded.read_bytes() == before


def test_the_reference_is_never_overwritten(gridded: Path, clean: Path, capsys) -> None:
    before = clean.read_bytes()
    for command, option in (("periodicity", "--report"), ("suppress", "-o")):
        assert run(command, gridded, "--reference", clean, option, clean) == 1
        assert "overwritten" in capsys.readouterr().err and clean.read_bytes() == before


@pytest.mark.slow
def test_references_by_name_or_folder(gridded: Path, clean: Path, tmp_path: Path, natural, capsys) -> None:
    low = tmp_path / "low"
    low.mkdir()
    save_image(low / "gridded.png", Picture(resize(natural(256, 256, 5), 64, 64)))
    assert run("periodicity", gridded, "--reference", low, "--json") == ALARMED
    assert json.loads(capsys.readouterr().out)["pictures"][0]["with_reference"]
    assert run("periodicity", clean, "--reference", low) == 1
    assert "holds no picture named clean" in capsys.readouterr().err
    assert run("periodicity", low / "gridded.png", "--reference", gridded) == 1
    assert "swapped" in capsys.readouterr().err


def test_one_bad_picture_does_not_cost_the_others(gridded: Path, clean: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    assert run("periodicity", tmp_path) == 1
    out, err = capsys.readouterr()
    assert (
        err.count("\n") == 2
        and "bad.png" in err
        and "1 of 3 pictures failed" in err
        and "gridded" in out
        and "clean.png" in out
    )
    assert run("periodicity", tmp_path / "missing.png") == 1
    assert "no such file" in capsys.readouterr().err


def test_suppress_writes_the_cleaned_picture(gridded: Path, natural, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out.png"
    assert run("suppress", gridded, "-o", out) == 0
    assert "Took out" in capsys.readouterr().out
    true = natural(256, 256, 5)
    errors = [float((load_image(path).image - true).square().mean()) for path in (gridded, out)]
    assert errors[1] < 0.4 * errors[0]


def test_suppress_leaves_clean_pictures_and_transparency(natural, tmp_path: Path, capsys) -> None:
    source, out = tmp_path / "in.png", tmp_path / "out.png"
    alpha = torch.rand(1, 1, 128, 128, generator=torch.Generator().manual_seed(0))
    save_image(source, Picture(to_8_bit(natural(128, 128, 5)), alpha))
    assert run("suppress", source, "-o", out, "--json") == 0
    done = json.loads(capsys.readouterr().out)["pictures"][0]
    assert not done["acted"] and done["grey_levels"] == 0
    before, after = load_image(source), load_image(out)
    assert torch.equal(before.image, after.image) and torch.equal(before.alpha, after.alpha)


def depth_of(path: Path) -> int:
    """Bits per colour, from a PNG's header."""
    return path.read_bytes()[24]


@pytest.mark.parametrize("name", ["out.jpg", "out.bmp"])
def test_suppress_tells_that_transparency_is_lost(natural, tmp_path: Path, capsys, name: str) -> None:
    save_image(tmp_path / "in.png", Picture(natural(64, 64, 3), torch.full((1, 1, 64, 64), 0.5)))
    assert run("suppress", tmp_path / "in.png", "-o", tmp_path / name) == 0
    assert f"{name}: this format holds no transparency; end the name in .png to keep it" in capsys.readouterr().err


def test_suppress_keeps_16_bits(natural, tmp_path: Path, capsys) -> None:
    """Every sample is what the cleaned picture rounds to in 16 bits, the low byte too."""
    source, out = tmp_path / "in.png", tmp_path / "out.png"
    spoilt = inject(natural(256, 256, 5), "white32", 4.0, seed=1)
    save_image(source, Picture(spoilt, spoilt[:, :1]), 16)
    assert run("suppress", source, "-o", out) == 0 and "Took out" in capsys.readouterr().out
    before, after = load_image(source), load_image(out)
    expected = suppress_periodicity(before.image).mul(65535).round()
    found = after.image.mul(65535).round()
    assert depth_of(out) == 16 and torch.equal(found, expected) and torch.equal(before.alpha, after.alpha)
    low = found.int() & 255
    assert torch.bincount(low.flatten(), minlength=256).min() > 0 and not torch.equal(low, found.int() >> 8)


@pytest.mark.slow
def test_suppress_writes_8_bits_where_there_are_no_more(gridded: Path, natural, tmp_path: Path) -> None:
    """8-bit colours in a 16-bit file hold no more than 8; other formats than PNG hold 8 of 16."""
    deep, wide = tmp_path / "deep.png", tmp_path / "wide.png"
    save_image(wide, Picture(load_image(gridded).image), 16)
    save_image(deep, Picture(inject(natural(256, 256, 5), "white32", 4.0, seed=1)), 16)
    for source in (gridded, wide):
        assert run("suppress", source, "-o", tmp_path / "out.png") == 0
        assert depth_of(tmp_path / "out.png") == 8
    assert run("suppress", deep, "-o", tmp_path / "out.bmp") == 0
    expected = suppress_periodicity(load_image(deep).image).mul(255).round()
    assert torch.equal(load_image(tmp_path / "out.bmp").image.mul(255).round(), expected)


def test_suppress_keeps_16_bits_that_only_the_transparency_has(natural, tmp_path: Path) -> None:
    source, out = tmp_path / "in.png", tmp_path / "out.png"
    alpha = torch.rand(1, 1, 128, 128, generator=torch.Generator().manual_seed(0))
    save_image(source, Picture(to_8_bit(natural(128, 128, 5)), alpha), 16)
    assert run("suppress", source, "-o", out) == 0
    before, after = load_image(source), load_image(out)
    assert torch.equal(before.image, after.image) and torch.equal(before.alpha, after.alpha)


def test_suppress_never_overwrites_its_input(gridded: Path, capsys) -> None:
    before = gridded.read_bytes()
    assert run("suppress", gridded, "-o", gridded) == 1
    assert "overwritten" in capsys.readouterr().err and gridded.read_bytes() == before


def test_suppress_says_what_is_wrong_with_the_strength(gridded: Path, tmp_path: Path, capsys) -> None:
    assert run("suppress", gridded, "-o", tmp_path / "out.png", "--strength", 2) == 1
    assert "strength" in capsys.readouterr().err and not (tmp_path / "out.png").exists()
