"""Inputs and outputs; more of it is in test_cli."""

from __future__ import annotations

from pathlib import Path

import pytest

from op4ksr_core import OptionError, OutputError
from op4ksr_core.images.paths import gather, keep_apart, output_paths


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
