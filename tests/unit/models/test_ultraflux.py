"""UltraFlux natively: our loaders, positions, VAE and schedule against the published implementation's numbers.

They are in data/ultraflux_parity.json, made by host_scripts/ultraflux_reference.py; with $ULTRAFLUX_SOURCE
(a checkout of the published code) they are made anew and compared too.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from host.scripts import ultraflux_reference as reference
from safetensors.torch import save_file
from torch import Tensor

from op4ksr_core import AutoEncoder, Flux, OptionError, Rfr, load_autoencoder, load_flux
from op4ksr_core.models.flux_schedule import ULTRAFLUX_SHIFT, mu_of_shift, mu_of_tokens
from op4ksr_core.models.latent import process_out

PUBLISHED: dict[str, list[float]] = json.loads(
    (Path(__file__).parents[2] / "data" / "ultraflux_parity.json").read_text("utf-8")
)
#: Of the largest magnitude.
TOLERANCE = 1e-4


def error(ours: Tensor, name: str) -> float:
    """Largest difference of the sampled numbers over the published ones' largest magnitude."""
    expected = np.array(PUBLISHED[name])
    got = np.array(reference.sampled(ours))
    assert got.shape == expected.shape and expected.std() > 0.05 * np.abs(expected).max()
    return float(np.abs(got - expected).max() / np.abs(expected).max())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As published: transformer in shards with an index, VAE beside its config.json; diffusers' names."""
    root = tmp_path_factory.mktemp("ultraflux")
    flux, vae = reference.tensors()
    for name in ("transformer", "vae"):
        (root / name).mkdir()
    weight_map: dict[str, str] = {}
    for i in range(2):
        file = f"diffusion_pytorch_model-{i + 1:05}-of-00002.safetensors"
        part = dict(sorted(flux.items())[i::2])
        save_file(part, root / "transformer" / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"weight_map": weight_map}
    (root / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    save_file(vae, root / "vae" / "diffusion_pytorch_model.safetensors")
    (root / "vae" / "config.json").write_text(json.dumps(reference.VAE_CONFIG))
    return root


@pytest.fixture(scope="module")
def flux(folder: Path) -> Flux:
    return load_flux(folder / "transformer")


@pytest.fixture(scope="module")
def vae(folder: Path) -> AutoEncoder:
    """stride from config.json; the shift is assumed for the public widths alone, so here it is said."""
    return load_autoencoder(folder / "vae", shift=1)


def velocity(flux: Flux, latent: Tensor, sigma: float, policy: Any = "ultraflux") -> Tensor:
    given = reference.inputs()
    with torch.no_grad():
        return flux(
            latent,
            torch.tensor([sigma]),
            given["txt"],
            given["vec"],
            torch.tensor([reference.GUIDANCE]),
            rfr=Rfr(policy),
        )


def test_the_transformer_is_the_published_one(flux: Flux) -> None:
    assert error(velocity(flux, reference.inputs()["noise"], 0.6), "velocity") <= TOLERANCE


@pytest.mark.parametrize("policy", ["checkpoint", "ntk"])
def test_other_positions_are_not_its_positions(flux: Flux, policy: str) -> None:
    assert error(velocity(flux, reference.inputs()["noise"], 0.6, policy), "velocity") > 100 * TOLERANCE


def test_the_vae_is_the_published_one(vae: AutoEncoder) -> None:
    given = reference.inputs()
    assert vae.params.stride == 2
    with torch.no_grad():
        assert error(vae.encode_pixels(given["pixels"]), "encoded") <= TOLERANCE
        assert error(vae.decode_pixels(given["raw"]), "decoded") <= TOLERANCE
        assert error(vae.decode_strips(given["raw"]), "decoded") <= TOLERANCE


def test_without_the_shift_it_is_another_decoder(folder: Path) -> None:
    plain = load_autoencoder(folder / "vae", shift=0)
    with torch.no_grad():
        assert error(plain.decode_pixels(reference.inputs()["raw"]), "decoded") > 100 * TOLERANCE


def test_the_schedule_is_what_the_published_settings_do() -> None:
    """Dynamic shifting off, "time_shift" without effect: a fixed shift of 3, whatever mu says."""
    assert reference.shifted_sigmas(reference.STEPS, ULTRAFLUX_SHIFT) == pytest.approx(PUBLISHED["sigmas"], abs=1e-6)
    assert reference.shifted_sigmas(50, ULTRAFLUX_SHIFT) == pytest.approx(PUBLISHED["sigmas_of_50"], abs=1e-6)
    assert reference.shifted_sigmas(50, 4.0) != pytest.approx(PUBLISHED["sigmas_of_50"], abs=1e-2)


def test_text_to_image_end_to_end(flux: Flux, vae: AutoEncoder) -> None:
    """The pipeline's own loop: Euler over those sigmas, then the VAE; 2112 x 64 px."""
    latent = reference.inputs()["noise"]
    sigmas = reference.shifted_sigmas(reference.STEPS, ULTRAFLUX_SHIFT)
    for now, after in zip(sigmas, sigmas[1:], strict=False):
        latent = latent + (after - now) * velocity(flux, latent, now)
    with torch.no_grad():
        image = vae.decode_pixels(process_out(latent))
    assert image.shape == (1, 3, 32 * reference.ROWS, 32 * reference.COLUMNS)
    assert error((image / 2 + 0.5).clamp(0, 1), "image") <= TOLERANCE


def test_mu() -> None:
    assert mu_of_tokens(256) == 0.5 and mu_of_tokens(4096) == pytest.approx(1.15)
    assert mu_of_tokens(16384) == pytest.approx(0.5 + 0.65 * 4.2)
    assert mu_of_shift(3.0) == pytest.approx(1.0986, abs=1e-4)
    for wrong in (lambda: mu_of_tokens(0), lambda: mu_of_shift(0.0)):
        with pytest.raises(OptionError, match="expected"):
            wrong()


@pytest.mark.skipif(not os.environ.get("ULTRAFLUX_SOURCE"), reason="$ULTRAFLUX_SOURCE names no checkout of UltraFlux")
def test_the_published_code_still_gives_these_numbers() -> None:
    pytest.importorskip("diffusers")
    found = reference.published(Path(os.environ["ULTRAFLUX_SOURCE"]), *reference.tensors())
    for name, values in PUBLISHED.items():
        assert found[name] == pytest.approx(values, rel=1e-4, abs=1e-5), name
