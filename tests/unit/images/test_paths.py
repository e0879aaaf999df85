"""Inputs and outputs; more of it is in test_cli."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from op4ksr_core import OptionError, OutputError
from op4ksr_core.images.io import Picture, save_image
from op4ksr_core.images.paths import MADE_HERE, Places, gather, keep_apart, output_paths


def test_folders_give_their_pictures_in_order(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "note.txt"):
        (tmp_path / name).touch()
    assert [p.name for p in gather([tmp_path])] == ["a.JPG", "b.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(OptionError, match="no pictures"):
        gather([tmp_path / "empty"])


def test_outputs_are_never_inputs(tmp_path: Path) -> None:
    source = tmp_path / "a.png"
    source.touch()
    assert output_paths([source], tmp_path / "b.png") == [(source, tmp_path / "b.png")]
    with pytest.raises(OutputError, match="overwritten"):
        output_paths([source], source)
    with pytest.raises(OutputError, match="overwritten"):
        keep_apart([(source, tmp_path / "." / "a.png")])


def test_an_output_that_is_the_input_under_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a hard link; and on a disk that ignores case, where photo.png is photo.PNG."""
    source = tmp_path / "photo.PNG"
    source.touch()
    os.link(source, tmp_path / "other.png")
    with pytest.raises(OutputError, match=r"other\.png: is the input itself and would be overwritten; choose another"):
        output_paths([source], tmp_path / "other.png")
    assert output_paths([source], tmp_path / "photo.png")
    monkeypatch.setattr(os.path, "samefile", lambda a, b: str(a).lower() == str(b).lower())
    for output in (tmp_path / "photo.png", tmp_path):
        with pytest.raises(OutputError, match=r"photo\.png: is the input itself and would be overwritten"):
            output_paths([source], output)


def test_outputs_that_differ_only_in_how_an_accent_is_written(tmp_path: Path) -> None:
    """One file on macOS."""
    with pytest.raises(OutputError, match=r"would both become .*\.png; rename one"):
        output_paths([tmp_path / "\u00e9.jpg", tmp_path / "e\u0301.webp"], tmp_path / "out")


def test_what_is_read_beside_the_inputs_is_not_overwritten(tmp_path: Path) -> None:
    source, reference = tmp_path / "a.jpg", tmp_path / "lr" / "a.png"
    reference.parent.mkdir()
    reference.touch()
    os.link(reference, tmp_path / "other.png")
    for output in (reference, reference.parent, tmp_path / "other.png"):
        with pytest.raises(OutputError, match=r"is the input .*a\.png and would be overwritten; choose another"):
            output_paths([source], output, [reference])
    assert output_paths([source], tmp_path / "out.png", [reference])


def test_outputs_that_differ_only_in_case(tmp_path: Path) -> None:
    sources = [tmp_path / "A.jpg", tmp_path / "a.jpg"]
    with pytest.raises(OutputError, match=r"a\.jpg and .*A\.jpg would both become a\.png; rename one"):
        output_paths(sources, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need a privilege on Windows")
def test_outputs_are_not_inputs_behind_links(tmp_path: Path) -> None:
    """A link is written through: what it leads to is what would be overwritten."""
    first, second, out = tmp_path / "first.jpg", tmp_path / "second.png", tmp_path / "out"
    out.mkdir()
    first.touch()
    second.touch()
    (out / "first.png").symlink_to(second)
    with pytest.raises(OutputError, match=r"first\.png: is the input .*second\.png and would be overwritten"):
        output_paths([first, second], out)
    (out / "second.png").symlink_to(out / "first.png")
    with pytest.raises(OutputError, match=r"would both become second\.png"):
        output_paths([first, second], out)


def test_the_same_picture_twice(tmp_path: Path) -> None:
    source = tmp_path / "a.jpg"
    source.touch()
    with pytest.raises(OutputError, match="would both become"):
        output_paths([source, source], tmp_path / "out")


def test_a_picture_of_ours_is_known_whatever_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow opens none above a limit that a host may set."""
    output = tmp_path / "a.png"
    save_image(output, Picture(torch.zeros(1, 3, 20, 20)), texts=MADE_HERE)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with Places([(tmp_path / "b.jpg", output)], named=False).reserved(output):
        pass
    save_image(output, Picture(torch.zeros(1, 3, 20, 20)), texts={"Software": "another"})
    with (
        pytest.raises(OutputError, match="not from here"),
        Places([(tmp_path / "b.jpg", output)], named=False).reserved(output),
    ):
        pass
