"""PNG in bands: what Pillow reads, whatever the number of threads; texts, errors, and how it is joined."""

from __future__ import annotations

import io
import threading
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from op4ksr_core.images.io import Picture, integer_rows, levels, save_image, to_pil
from op4ksr_core.images.png import BAND, PngOptions, combined_adler, filtered, write_png

HEIGHTS = [1, 7, BAND, BAND + 1, 2 * BAND + 9]


def pixels(height: int, width: int = 37, channels: int = 3, kind: type[Any] = np.uint8) -> np.ndarray:
    """Slopes and noise, so that every branch of the filter is taken."""
    generator = np.random.default_rng(height)
    slope = np.add.outer(np.arange(height), np.arange(width))[..., None] % 200
    noisy = slope + generator.integers(0, 50, (height, width, channels))
    return (noisy * (np.iinfo(kind).max // 255)).astype(kind)


def written(values: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    bits = 8 * values.itemsize
    write_png(file, values.shape[:2], values.shape[2], bits, lambda a, b: values[a:b], PngOptions(**options))
    return file.getvalue()


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("height", HEIGHTS)
def test_pillow_reads_every_pixel(height: int, channels: int) -> None:
    values = pixels(height, channels=channels)
    picture = Image.open(io.BytesIO(written(values)))
    assert picture.mode == ("RGB", "RGBA")[channels - 3]
    assert (np.asarray(picture) == values).all()


def test_the_filter_is_the_one_pillow_writes() -> None:
    """In the rows for which Pillow chose Paeth too."""
    values = pixels(40)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG", compress_type=zlib.Z_RLE)
    start = file.getvalue().index(b"IDAT")
    length = int.from_bytes(file.getvalue()[start - 4 : start], "big")
    theirs = np.frombuffer(zlib.decompress(file.getvalue()[start + 4 : start + 4 + length]), np.uint8)
    theirs = theirs.reshape(40, -1)
    rows = theirs[:, 0] == 4
    assert rows.sum() > 5
    assert (filtered(lambda a, b: values[a:b], 0, 40)[rows] == theirs[rows]).all()


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_bytes_do_not_depend_on_the_threads(kind: type[Any]) -> None:
    values = pixels(3 * BAND + 5, kind=kind)
    assert written(values, threads=1) == written(values, threads=5) == written(values)


def test_bands_are_made_at_the_same_time() -> None:
    """Two threads have to meet within two bands' rows, or the barrier breaks."""
    barrier, values = threading.Barrier(2, timeout=20), pixels(2 * BAND)
    met: list[int] = []

    def rows(top: int, bottom: int) -> np.ndarray:
        if top % BAND == 0:
            barrier.wait()
            met.append(top)
        return values[top:bottom]

    write_png(io.BytesIO(), values.shape[:2], 3, 8, rows, PngOptions(threads=2))
    assert sorted(met) == [0, BAND]


@pytest.mark.parametrize("level", [0, 1, 9])
def test_levels_and_strategies_are_zlibs(level: int) -> None:
    values = pixels(BAND + 20)
    data = written(values, level=level, strategy=zlib.Z_DEFAULT_STRATEGY)
    assert (np.asarray(Image.open(io.BytesIO(data))) == values).all()
    assert (len(data) > values.nbytes) == (level == 0)


def test_checksums_of_pieces_make_that_of_the_whole() -> None:
    data = np.random.default_rng(0).integers(0, 256, 200_000, dtype=np.uint8).tobytes()
    for cut in (0, 1, 65_521, 131_072, 199_999, 200_000):
        parts = data[:cut], data[cut:]
        assert combined_adler(*map(zlib.adler32, parts), len(parts[1])) == zlib.adler32(data)


def test_texts_are_read_back() -> None:
    texts = {"prompt": '{"1": "a"}', "remark": "\u9ad8\u6e05"}
    picture: Any = Image.open(io.BytesIO(written(pixels(5), texts=texts)))
    assert picture.text == texts


@pytest.mark.parametrize("where", [0, BAND])
def test_errors_of_the_rows_come_through_and_end_the_threads(where: int) -> None:
    before = threading.active_count()

    def rows(top: int, bottom: int) -> np.ndarray:
        if top >= where:
            raise MemoryError("as if")
        return np.zeros((bottom - top, 4, 3), np.uint8)

    with pytest.raises(MemoryError, match="as if"):
        write_png(io.BytesIO(), (5 * BAND, 4), 3, 8, rows)
    assert threading.active_count() == before


def test_integers_are_rounded_as_pytorch_rounds() -> None:
    """Half levels to even; beyond 0 and 1 cut off; the same for a file and for Pillow."""
    half = (torch.arange(0, 254) + 0.5) / 255
    image = torch.cat((half, torch.tensor([-0.1, 1.2]))).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    wanted = image.clamp(0, 1).mul(255).round().to(torch.uint8)[0].movedim(0, -1).numpy()
    assert (integer_rows(Picture(image), 8)(0, 16) == wanted).all()
    assert (np.asarray(to_pil(Picture(image))) == wanted).all()
    assert image.min() < 0, "the picture itself stays as it is"


def test_half_precision_and_batches(tmp_path: Any) -> None:
    image = torch.rand(2, 3, 9, 8, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float16, torch.bfloat16):
        save_image(tmp_path / "a.png", Picture(image.to(dtype)))
        wanted = image[0].to(dtype).float().mul(255).round().to(torch.uint8).movedim(0, -1).numpy()
        assert (np.asarray(Image.open(tmp_path / "a.png")) == wanted).all()


@pytest.mark.parametrize(("name", "bits"), [("a.png", 8), ("a.png", 16), ("a.webp", 8)])
def test_levels_are_written_as_the_picture_they_are_of(tmp_path: Any, name: str, bits: int) -> None:
    """What a device sends in place of floats; with transparency, which may be floats still."""
    image = 1.1 * torch.rand(1, 3, 9, 8, generator=torch.Generator().manual_seed(0)) - 0.05
    alpha = image[:, :1].clamp(0, 1)
    save_image(tmp_path / name, Picture(image, alpha), bits)
    expected = (tmp_path / name).read_bytes()
    save_image(tmp_path / name, Picture(levels(image, bits), alpha), bits)
    assert (tmp_path / name).read_bytes() == expected
    assert levels(image, bits).max() == 2**bits - 1 and not levels(image, bits).is_floating_point()
