"""The pack's models as methods: files and options, and what their outputs depend on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.methods import Method
from benchmarks.variant_rows import parse_row, read_rows
from benchmarks.variants import REPAIRS, Variant, loaded, old_files, repairing, usual
from op4ksr_core import Flux, OneStepSettings, OptionError, Target, load_autoencoder, load_flux, save_flux, upscale
from op4ksr_core.base import Learned
from op4ksr_core.bundled import BUNDLED_AUTOENCODER, BUNDLED_ENLARGER, BUNDLED_FLUX
from op4ksr_core.images.io import from_array
from op4ksr_core.one_step import OneStepOptions, followed_fidelity
from op4ksr_core.training.data.leaves import picture
from op4ksr_core.weights.enlarger import load_enlarger

LOW = from_array(picture(0, 96, 96))[..., :24, :20]


def test_a_variant_is_upscale_with_its_files_and_options(weights: Variant) -> None:
    autoencoder, flux = load_autoencoder(weights.vae), load_flux(weights.model)
    base = Learned(load_enlarger(BUNDLED_ENLARGER, dtype=torch.float32), "bundled")
    options = OneStepOptions(Target(scale=4), fidelity=0.5, detail=0.5, repair=0.25)
    expected = upscale(LOW, flux, autoencoder, options, base=base)
    variant = replace(weights, enlarger=str(BUNDLED_ENLARGER), fidelity=0.5, detail=0.5, repair=0.25)
    assert torch.equal(variant.method().enlarge(LOW, 4), expected)
    vae_only = upscale(LOW, None, autoencoder, OneStepOptions(Target(scale=3), vae_only=True))
    assert torch.equal(replace(weights, vae_only=True).method().enlarge(LOW, 3), vae_only)


def test_the_enlarger_is_chosen_as_upscale_does(weights: Variant) -> None:
    names = [loaded(weights.vae, weights.model, choice)[2].name for choice in ("auto", "bicubic", "bundled")]
    assert names == ["bicubic", "bicubic", "bundled"]


def test_models_that_add_detail_get_their_base(
    weights: Variant, tmp_path: Path, make_flux: Callable[..., Flux]
) -> None:
    save_flux(tmp_path / "detail.safetensors", make_flux(settings=OneStepSettings(output="detail")))
    own = replace(weights, model=tmp_path / "detail.safetensors")
    assert loaded(own.vae, own.model, own.enlarger)[2].name == "bundled"
    base = load_enlarger(BUNDLED_ENLARGER, dtype=torch.float32)(LOW, 4).detach().clamp(0, 1)
    alone = replace(own, detail=0.0, fidelity=0.0).enlarge(LOW, 4)
    assert torch.allclose(alone, base, atol=1e-6)
    half, full = (replace(own, detail=detail, fidelity=0.0).enlarge(LOW, 4) for detail in (0.5, 1.0))
    assert (half - alone).abs().max() > 1e-3 and not torch.allclose(half, full)


def test_the_key_is_of_contents_and_options_and_not_of_names(weights: Variant, tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(weights.vae.read_bytes())
    assert replace(weights, name="other", vae=copy).key() == weights.key()
    changes = ({"detail": 0.5}, {"repair": 0.0}, {"fidelity": 0.5}, {"vae_only": True}, {"enlarger": "bicubic"})
    changes += ({"vae": BUNDLED_AUTOENCODER}, {"model": BUNDLED_FLUX}, {"enlarger": str(BUNDLED_ENLARGER)})
    keys = {replace(weights, **change).key() for change in changes}  # pyright: ignore
    assert len(keys | {weights.key()}) == len(changes) + 1


def test_the_usual_rows_take_parts_away(weights: Variant) -> None:
    rows = {variant.name: variant for variant in usual(replace(weights, repair=0.25), weights.vae.parent)}
    assert rows["full"] == replace(weights, repair=0.25) and rows["base alone"].detail == 0
    assert rows["full, fidelity 0"].fidelity == 0 and rows["VAE only"].vae_only
    assert rows["v1"] == Variant("v1", *old_files(weights.vae.parent))  # with its own repair


def test_numbers_out_of_range_are_told_before_anything_runs() -> None:
    with pytest.raises(OptionError, match="detail: expected 0 to 2, got 3"):
        Variant("full", detail=3)


def test_an_enlarger_that_is_neither_word_nor_file_is_told(weights: Variant) -> None:
    words = "enlarger: expected auto, bicubic, bundled or a file, got what, which is not there; change it"
    with pytest.raises(OptionError, match=words):
        replace(weights, enlarger="what").method()


def test_one_output_is_finished_by_each_fidelity(weights: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    methods = {method.name: method for method in repairing(replace(weights, enlarger="bundled"))}
    words = [method.columns for method in methods.values()]
    followed = {(row["repair"], row["fidelity"]) for row in words if row["followed"] == "yes"}
    assert followed == {(f"{r:g}", f"{followed_fidelity(1.0, r):g}") for r in REPAIRS}
    assert {row["fidelity"] for row in words} >= {"0", "0.5", "1"}

    runs: list[Variant] = []
    plain = Variant.enlarge

    def counted(self: Variant, low: torch.Tensor, factor: int) -> torch.Tensor:
        runs.append(self)
        return plain(self, low, factor)

    monkeypatch.setattr(Variant, "enlarge", counted)
    variant = replace(weights, enlarger="bundled", detail=0.0)
    for repair in (0.0, 0.5):
        runs.clear()
        own = [method for name, method in methods.items() if name.startswith(f"base alone, repair {repair:g},")]
        outputs = {str(method.columns["fidelity"]): method.enlarge(LOW, 4) for method in own}
        assert len(runs) == 1 and runs[0].detail == 0 and runs[0].repair == repair and runs[0].fidelity == 0
        followed_one = outputs[f"{followed_fidelity(1.0, repair):g}"]
        assert torch.allclose(followed_one, plain(replace(variant, repair=repair), LOW, 4), atol=1e-5)
        assert (outputs["1"] - outputs["0.5"]).abs().max() > 1e-4
        assert (outputs["0.5"] - outputs["0"]).abs().max() > 1e-4
        assert isinstance(own[0], Method)
    assert len({method.key for method in methods.values()}) == len(methods)


def test_another_picture_is_another_run(weights: Variant) -> None:
    method = repairing(replace(weights, enlarger="bundled"))[0]
    other = LOW.flip(-1)
    assert torch.allclose(method.enlarge(LOW, 4).flip(-1), method.enlarge(other, 4), atol=0.2)
    assert not torch.equal(method.enlarge(LOW, 4), method.enlarge(other, 4))


# --- rows -------------------------------------------------------------------------------------


def test_rows_are_read_from_toml_with_files_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "rows.toml"
    path.write_text(
        '[[row]]\nname = "a"\nvae = "x/vae.safetensors"\nenlarger = "e.safetensors"\ndetail = 1\n'
        '[[row]]\nname = "b"\nenlarger = "bicubic"\nvae_only = true\nrepair = 0.5\n',
        "utf-8",
    )
    first, second = read_rows(path)
    enlarger = str(tmp_path / "e.safetensors")
    assert first == Variant("a", tmp_path / "x" / "vae.safetensors", enlarger=enlarger, detail=1.0)
    assert second == Variant("b", enlarger="bicubic", vae_only=True, repair=0.5)
    assert parse_row(["b", "enlarger=bicubic", "vae_only=true", "repair=0.5"]) == second


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"expected \[\[row\]\] tables and nothing else"),
        ("row = 3", r"expected \[\[row\]\] tables and nothing else"),
        ("[[row]]\ndetail = 1", "row 1: needs a name in quotes"),
        ('[[row]]\nname = "a"\nsteps = 1', "row 1: unknown key steps; known are name, vae"),
        ('[[row]]\nname = "a"\ndetail = "1"', "row 1: detail: expected a number, got 1; change it"),
        ('[[row]]\nname = "a"\ndetail = true', "row 1: detail: expected a number, got True; change it"),
        ('[[row]]\nname = "a"\nvae_only = 1', "row 1: vae_only: expected true or false, got 1"),
        ('[[row]]\nname = "a"\nvae = 1', "row 1: vae: expected text in quotes, got 1"),
        ('[[row]]\nname = "a"\nrepair = 2', "row 1: repair: expected"),
        ('[[row]]\nname = "a"\n[[row]]\nname = "a"', "two rows have one name"),
        ("[[row", "is no TOML"),
    ],
)
def test_rows_that_cannot_be_are_told(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "rows.toml"
    path.write_text(text, "utf-8")
    with pytest.raises(OptionError, match=words):
        read_rows(path)


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        (["detail"], "--row a: expected KEY=VALUE, got detail"),
        (["detail=x"], "--row a: detail: is no TOML"),
        (["what=1"], "--row a: unknown key what"),
    ],
)
def test_rows_of_a_command_line_that_cannot_be_are_told(pairs: list[str], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        parse_row(["a", *pairs])
