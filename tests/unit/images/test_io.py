"""Picture files: every mode to RGB and alpha, every damage to one sentence, whole files or none."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from upright import UPRIGHT

from op4ksr_core import ImageError, OutputError
from op4ksr_core.images import io as image_io
from op4ksr_core.images.io import Picture, check_output, from_pil, jpeg_round_trip, load_image, save_image, to_pil


def pixels(height: int = 6, width: int = 9, bands: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, bands), dtype=np.uint8)


def planes(array: np.ndarray) -> Tensor:
    """(H, W, C) uint8 -> (1, C, H, W) in [0, 1]."""
    return torch.from_numpy(array.copy()).permute(2, 0, 1)[None].float() / 255


# --- reading ----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp"])
def test_rgb(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(pixels()).save(path, **({"lossless": True} if suffix == ".webp" else {}))
    picture = load_image(path)
    assert picture.image.dtype == torch.float32 and picture.alpha is None
    assert picture.size == (6, 9)
    assert torch.equal(picture.image, planes(pixels()))


def test_the_name_may_be_a_string_and_the_suffix_anything(tmp_path: Path) -> None:
    path = tmp_path / "photo.backup"
    Image.fromarray(pixels()).save(path, format="PNG")
    assert torch.equal(load_image(str(path)).image, planes(pixels()))


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels()).save(tmp_path / "a.png", exif=exif)
    assert torch.equal(load_image(tmp_path / "a.png").image, planes(UPRIGHT[orientation](pixels())))


def test_exif_orientation_of_a_jpeg(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels(16, 40)).save(tmp_path / "a.jpg", exif=exif)
    assert load_image(tmp_path / "a.jpg").size == (40, 16)


def test_rgba_is_split(tmp_path: Path) -> None:
    rgba = pixels(bands=4)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    picture = load_image(tmp_path / "a.png")
    assert picture.alpha is not None and picture.alpha.shape == (1, 1, 6, 9)
    assert torch.equal(picture.image, planes(rgba[..., :3]))  # colours are not premultiplied
    assert torch.equal(picture.alpha, planes(rgba[..., 3:]))


def test_grey_with_alpha(tmp_path: Path) -> None:
    la = pixels(bands=2)
    Image.merge("LA", [Image.fromarray(la[..., i]) for i in (0, 1)]).save(tmp_path / "a.png")
    picture = load_image(tmp_path / "a.png")
    assert torch.equal(picture.image, planes(la[..., :1]).repeat(1, 3, 1, 1))
    assert picture.alpha is not None and torch.equal(picture.alpha, planes(la[..., 1:]))


def palette_picture() -> Image.Image:
    picture = Image.new("P", (3, 1))
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    for x in range(3):
        picture.putpixel((x, 0), x)
    return picture


def test_palette(tmp_path: Path) -> None:
    palette_picture().save(tmp_path / "a.png")
    picture = load_image(tmp_path / "a.png")
    assert picture.alpha is None
    assert torch.equal(picture.image[0, :, 0], torch.eye(3))


@pytest.mark.parametrize(
    ("transparency", "alpha"), [(1, [1.0, 0.0, 1.0]), (bytes([255, 0, 51]), [1.0, 0.0, 0.2])], ids=["index", "table"]
)
def test_palette_with_transparency(tmp_path: Path, transparency: Any, alpha: list[float]) -> None:
    palette_picture().save(tmp_path / "a.png", transparency=transparency)
    picture = load_image(tmp_path / "a.png")
    assert picture.alpha is not None
    assert picture.alpha.flatten().tolist() == pytest.approx(alpha)
    assert torch.equal(picture.image[0, :, 0], torch.eye(3))


def test_16_bit_grey_keeps_its_range(tmp_path: Path) -> None:
    grey = np.array([[0, 1, 257, 32768, 65534, 65535]], np.uint16)
    Image.fromarray(grey).save(tmp_path / "a.png")
    picture = load_image(tmp_path / "a.png")
    assert picture.alpha is None and picture.image.shape == (1, 3, 1, 6)
    for band in picture.image[0]:
        assert band.flatten().tolist() == pytest.approx((grey[0] / 65535).tolist(), rel=1e-6)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_is_turned_upright_too(tmp_path: Path, suffix: str, dtype: Any) -> None:
    """Pillow garbles a turned grey TIFF that it opens by name (seen in 13.0)."""
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = np.array([[0, 1, 2], [3, 4, 5]], dtype)
    Image.fromarray(grey).save(tmp_path / f"a{suffix}", exif=exif)
    expected = np.rot90(grey, -1) / np.float32(np.iinfo(dtype).max)
    assert torch.equal(load_image(tmp_path / f"a{suffix}").image[0, 0], torch.from_numpy(expected.copy()).float())


def test_float_grey_is_clamped(tmp_path: Path) -> None:
    Image.fromarray(np.array([[-1.0, 0.25, 3.0]], np.float32)).save(tmp_path / "a.tif")
    assert load_image(tmp_path / "a.tif").image[0, 1].tolist() == [[0.0, 0.25, 1.0]]


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    picture = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # red
    picture.save(tmp_path / "a.tif")
    loaded = load_image(tmp_path / "a.tif")
    assert loaded.alpha is None
    assert loaded.image[0, :, 0, 0].tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("mode", ["1", "L"])
def test_grey_and_black_and_white_become_rgb(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (4, 2), 255).save(tmp_path / "a.png")
    picture = load_image(tmp_path / "a.png")
    assert picture.alpha is None and torch.equal(picture.image, torch.ones(1, 3, 2, 4))


def test_lab_has_no_alpha_though_it_has_a_band_a(tmp_path: Path) -> None:
    Image.new("LAB", (4, 2), (255, 128, 128)).save(tmp_path / "a.tif")
    assert load_image(tmp_path / "a.tif").alpha is None


# --- what cannot be read ----------------------------------------------------------------------


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"a\.png: no such file; check"):
        load_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"<html></html>"], ids=["empty", "text", "magic", "html"]
)
def test_not_a_picture(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ImageError, match=r"a\.png: is (no picture|damaged)"):
        load_image(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp"])
@pytest.mark.parametrize("share", [0.2, 0.6, 0.9])
def test_a_picture_cut_short(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(pixels(64, 64)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ImageError, match=rf"a\{suffix}: is (no picture|damaged or cut short)"):
        load_image(path)


def test_a_folder_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(ImageError):
        load_image(tmp_path)


@pytest.mark.parametrize("error", [TypeError("odd tag"), NotImplementedError("odd format"), SyntaxError("broken")])
def test_whatever_pillow_raises_on_damage_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    Image.fromarray(pixels()).save(tmp_path / "a.png")

    def fail(self: Any) -> None:
        raise error

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(ImageError, match=r"a\.png: is damaged"):
        load_image(tmp_path / "a.png")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_random_damage_never_escapes_as_another_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)  # a damaged size may ask for gigabytes
    rng, path = np.random.default_rng(4), tmp_path / f"a{suffix}"
    Image.fromarray(pixels()).save(path)
    content, refused = path.read_bytes(), 0
    for _ in range(200):
        damaged = bytearray(content)
        for _ in range(3):
            damaged[rng.integers(len(damaged))] = rng.integers(256)
        path.write_bytes(bytes(damaged))
        try:
            load_image(path)
        except ImageError:
            refused += 1
    assert refused > 20


def test_a_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(pixels()).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ImageError, match="shrink it first"):
        load_image(tmp_path / "a.png")


# --- writing ----------------------------------------------------------------------------------


def test_png_keeps_every_8_bit_value_and_alpha(tmp_path: Path) -> None:
    rgba = pixels(bands=4)
    picture = Picture(planes(rgba[..., :3]), planes(rgba[..., 3:]))
    save_image(tmp_path / "a.png", picture)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), rgba)
    loaded = load_image(tmp_path / "a.png")
    assert loaded.alpha is not None
    assert torch.equal(loaded.image, picture.image) and torch.equal(loaded.alpha, picture.alpha)


def test_values_are_clamped_and_rounded() -> None:
    values = torch.tensor([-1.0, 0.0, 0.0019, 0.0021, 0.999, 2.0]).expand(1, 3, 1, 6)
    assert np.asarray(to_pil(Picture(values)))[0, :, 0].tolist() == [0, 0, 0, 1, 255, 255]


def test_only_the_first_of_a_batch_is_written() -> None:
    batch = torch.cat([torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)])
    assert not np.asarray(to_pil(Picture(batch))).any()


def test_to_pil_and_back() -> None:
    image = planes(pixels()).to(torch.bfloat16)
    assert torch.equal(from_pil(to_pil(Picture(image))).image, (image.float() * 255).round() / 255)


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".jfif", ".bmp"])
def test_formats_without_transparency_get_the_colours_alone(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    save_image(path, Picture(torch.full((1, 3, 16, 16), 0.5), torch.zeros(1, 1, 16, 16)))
    picture = load_image(path)
    assert picture.alpha is None
    assert (picture.image - 0.5).abs().max() < 0.01


def test_jpeg_keeps_full_chroma(tmp_path: Path) -> None:
    save_image(tmp_path / "a.jpg", Picture(planes(pixels(32, 32))))
    with Image.open(tmp_path / "a.jpg") as opened:
        assert {layer[1:3] for layer in opened.layer} == {(1, 1)}  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["a.xyz", "a", "a.safetensors", "a.psd", "a.cur", "a.fits"])
def test_an_ending_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    for write in (lambda path: save_image(path, Picture(torch.zeros(1, 3, 2, 2))), check_output):
        with pytest.raises(OutputError, match=r"unknown picture format.*end the name in \.png"):
            write(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_no_such_folder(tmp_path: Path) -> None:
    path = tmp_path / "gone" / "a.png"
    for write in (lambda path: save_image(path, Picture(torch.zeros(1, 3, 2, 2))), check_output):
        with pytest.raises(OutputError, match="cannot be written.*choose another folder") as caught:
            write(path)
        assert str(path) in str(caught.value)


def test_a_folder_under_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(OutputError, match="cannot be written"):
        save_image(tmp_path / "file" / "a.png", Picture(torch.zeros(1, 3, 2, 2)))


@pytest.mark.parametrize("bits", [0, 12, 32])
def test_other_bits_than_8_and_16_are_refused(tmp_path: Path, bits: int) -> None:
    with pytest.raises(OutputError, match=rf"a\.png: expected 8 or 16 bits per colour, got {bits}; take one of"):
        save_image(tmp_path / "a.png", Picture(torch.zeros(1, 3, 2, 2)), bits)
    assert not list(tmp_path.iterdir())


def test_check_output_leaves_no_trace(tmp_path: Path) -> None:
    check_output(tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def fail_in_the_middle(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Whoever writes the file, ours or Pillow's, ends with this error after the half."""

    def ours(file: Any, *given: Any) -> None:
        file.write(b"half")
        raise error

    def pillows(self: Any, target: str, **options: Any) -> None:
        Path(target).write_bytes(b"half")
        raise error

    monkeypatch.setattr(image_io, "write_png", ours)
    monkeypatch.setattr(Image.Image, "save", pillows)


@pytest.mark.parametrize("name", ["a.png", "a.webp"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("odd mode")])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, name: str
) -> None:
    path = tmp_path / name
    save_image(path, Picture(torch.zeros(1, 3, 2, 2)))
    before = path.read_bytes()
    fail_in_the_middle(monkeypatch, error)
    with pytest.raises(OutputError, match=rf"{name}: cannot be written \((No space left on device|odd mode)\)"):
        save_image(path, Picture(torch.ones(1, 3, 2, 2)))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_in_the_files_place(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        save_image(tmp_path / "a.png", Picture(torch.zeros(1, 3, 2, 2)))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("name", ["a.png", "a.webp"])
def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    fail_in_the_middle(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        save_image(tmp_path / name, Picture(torch.ones(1, 3, 2, 2)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bits", [8, 16])
def test_compression_changes_the_size_alone(tmp_path: Path, bits: int) -> None:
    """Photos, here noise on slopes: run lengths alone are about as small as zlib's 6; drawings are not."""
    generator = torch.Generator().manual_seed(0)
    slope = torch.linspace(0.1, 0.8, 300).expand(1, 3, 280, 300)
    noisy = (slope + 0.02 * torch.randn(slope.shape, generator=generator)).clamp(0, 1)
    drawing = (torch.arange(300) // 10 % 2).float().expand(1, 3, 280, 300)
    sizes: dict[tuple[str, int | None], int] = {}
    for name, image in (("noisy", noisy), ("drawing", drawing)):
        seen = []
        for level in (None, 0, 6, 9):
            path = tmp_path / f"{name}{level}.png"
            save_image(path, Picture(image), bits, level)
            sizes[name, level] = path.stat().st_size
            seen.append(load_image(path).image)
        assert all(torch.equal(one, seen[0]) for one in seen)
        assert (seen[0] - image).abs().max() <= 0.5 / (2**bits - 1) + 1e-7  # float32 itself
    assert sizes["noisy", None] < 1.03 * sizes["noisy", 6] < 1.03 * sizes["noisy", 0]
    assert sizes["drawing", 9] < sizes["drawing", None] < sizes["drawing", 0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_alpha_on_another_device_is_brought_beside_the_colours() -> None:
    """As after an upscale on a GPU, of a picture whose transparency stayed where it was."""
    image, alpha, device = torch.rand(1, 3, 4, 5), torch.rand(1, 1, 4, 5), torch.device("cuda")
    assert to_pil(Picture(image.to(device), alpha)).tobytes() == to_pil(Picture(image, alpha)).tobytes()


# --- JPEG, there and back ---------------------------------------------------------------------


@pytest.mark.parametrize("quality", [1, 50, 90])
def test_jpeg_is_pillows_with_half_the_chroma(natural, quality: int) -> None:
    image = natural(99, 136)
    pixels = (image[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling=2)
    assert torch.equal(jpeg_round_trip(image, quality), from_pil(Image.open(buffer)).image)


def test_jpeg_takes_what_is_out_of_range_and_keeps_the_dtype() -> None:
    found = jpeg_round_trip(torch.full((1, 3, 16, 16), 1.5, dtype=torch.float64), 90)
    assert found.dtype == torch.float64 and torch.equal(found, torch.ones_like(found))
