"""The table of formats: what is opened by its content, what a format can hold, and the page that shows both."""

from __future__ import annotations

import ast
import io
from pathlib import Path

import numpy as np
import pytest
from files_page import PAGE, page
from PIL import Image

from op4ksr_core import ImageError, OutputError
from op4ksr_core.images import formats
from op4ksr_core.images.formats import FORMATS, IMAGE_SUFFIXES, check_writable_size, format_of_content
from op4ksr_core.images.io import load_image

ROOT = Path(__file__).resolve().parents[3]

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{ 1 pop } loop\n"


def test_the_page_is_made_from_the_table() -> None:
    assert PAGE.read_text("utf-8") == page(), "run python tests/files_page.py"


def test_every_picture_in_the_code_is_opened_as_a_named_format() -> None:
    """Pillow hands content under any name to any of its readers: PostScript to Ghostscript."""
    found = []
    for folder in ("op4ksr_core", "nodes", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Image.open", "PIL.Image.open"):
                    assert "formats" in [word.arg for word in node.keywords], f"{path}: {node.lineno}"
                    found.append(path)
    assert len(found) >= 5


@pytest.mark.parametrize("ending", [".png", ".jpg", ".eps", ".tif"])
@pytest.mark.parametrize("content", [EPS, b"\xc5\xd0\xd3\xc6" + bytes(28) + EPS, b"%PDF-1.4", b"8BPS\0\1" + bytes(99)])
def test_other_formats_are_not_opened_under_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, ending: str
) -> None:
    def started(*_: object, **__: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr("subprocess.Popen.__init__", started)
    path = tmp_path / f"a{ending}"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"is no picture of a kind that is opened here; expected PNG, JPEG, WebP"):
        load_image(path)


@pytest.mark.parametrize("found", FORMATS, ids=lambda found: found.name)
def test_each_format_is_known_by_what_pillow_writes(found: formats.Format) -> None:
    if not formats.can_be_read(found):
        pytest.skip(f"this Pillow has no {found.name}")
    file = io.BytesIO()
    kind = "MPO" if found.name.startswith("MPO") else found.kind
    Image.new("RGB", (9, 8), (200, 100, 50)).save(file, kind)
    known = format_of_content(file.getvalue()[:64], found.endings[0])
    assert known is not None and known.kind == found.kind
    if found.starts:
        assert format_of_content(file.getvalue()[:64], "") is not None


def test_tga_which_begins_like_nothing_goes_by_its_ending(tmp_path: Path) -> None:
    Image.new("RGB", (9, 8), (200, 100, 50)).save(tmp_path / "a.tga")
    assert load_image(tmp_path / "a.tga").size == (8, 9)
    (tmp_path / "a.tga").rename(tmp_path / "a.png")
    with pytest.raises(ImageError, match="no picture of a kind"):
        load_image(tmp_path / "a.png")


def test_a_format_that_pillow_was_built_without_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(Image.OPEN, "GIF")
    (tmp_path / "a.gif").write_bytes(b"GIF89a" + bytes(20))
    with pytest.raises(ImageError, match=r"is GIF, which this Pillow was built without; save it as PNG"):
        load_image(tmp_path / "a.gif")


def test_endings_are_lower_case_and_named_once() -> None:
    assert len(set(IMAGE_SUFFIXES)) == len(IMAGE_SUFFIXES) and all(s == s.lower() for s in IMAGE_SUFFIXES)


@pytest.mark.parametrize(("name", "side"), [("a.jpg", 65500), ("a.webp", 16383), ("a.JPEG", 65500)])
def test_sizes_end_where_the_writers_do(tmp_path: Path, name: str, side: int) -> None:
    check_writable_size(tmp_path / name, 1, side)
    check_writable_size(tmp_path / name, side, 1)
    Image.fromarray(np.zeros((1, side, 3), np.uint8)).save(tmp_path / name)
    for height, width in ((1, side + 1), (side + 1, 1)):
        with pytest.raises(OutputError, match=rf"holds at most {side} px on a side; end the name in \.png"):
            check_writable_size(tmp_path / name, height, width)
    with pytest.raises((OSError, ValueError)):  # as Pillow itself
        Image.fromarray(np.zeros((1, side + 1, 3), np.uint8)).save(tmp_path / f"b{name}")


@pytest.mark.parametrize("name", ["a.bmp", "a.tif"])
def test_files_of_32_bit_offsets_end_at_4_gb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(formats.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2**40}))
    check_writable_size(tmp_path / name, 30000, 30000)
    with pytest.raises(OutputError, match=r"are 4\.8 GB, but (BMP|TIFF) holds at most 4\.3 GB"):
        check_writable_size(tmp_path / name, 40000, 40000)
    check_writable_size(tmp_path / "a.png", 40000, 40000, 4, 16)


def test_a_disk_that_cannot_hold_the_picture_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10_000_000}))
    check_writable_size(tmp_path / "a.bmp", 1000, 1000)
    with pytest.raises(OutputError, match=r"takes at least 12 MB, but the disk has 10 MB left; choose another disk"):
        check_writable_size(tmp_path / "a.bmp", 2000, 2000)
    check_writable_size(tmp_path / "a.png", 2000, 2000)
    with pytest.raises(OutputError, match=r"takes at least 24 MB"):
        check_writable_size(tmp_path / "a.png", 20000, 20000)
