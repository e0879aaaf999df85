"""The transformer against diffusers', and what its keywords promise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from op4ksr_core import Flux, FluxParams, ImageError, OneStepSettings, OptionError, Rfr, load_flux

Make = Callable[..., Flux]


def near(ours: Tensor, reference: Tensor, tolerance: float = 1e-5) -> bool:
    """Largest difference within ``tolerance`` of the reference's largest value."""
    assert ours.shape == reference.shape
    return ((ours - reference).abs().max() <= tolerance * reference.abs().max()).item() is True


def inputs(generator: torch.Generator, batch: int = 2, height: int = 6, width: int = 10) -> dict[str, Tensor]:
    return {
        "latent": torch.randn(batch, 16, height, width, generator=generator),
        "sigma": torch.tensor([0.25, 0.75])[:batch],
        "txt": torch.randn(batch, 5, 24, generator=generator),
        "vec": torch.randn(batch, 12, generator=generator),
        "guidance": torch.tensor([3.5, 1.0])[:batch],
    }


# --- parity with diffusers --------------------------------------------------------------------


def diffusers_velocity(model: Any, latent: Tensor, sigma: Tensor, txt: Tensor, vec: Tensor, guidance: Tensor) -> Tensor:
    """diffusers' Flux on a plain latent, packed and unpacked by diffusers' own pipeline."""
    pipeline = pytest.importorskip("diffusers").FluxPipeline
    batch, channels, height, width = latent.shape
    hidden = model(
        hidden_states=pipeline._pack_latents(latent, batch, channels, height, width),
        encoder_hidden_states=txt,
        pooled_projections=vec,
        timestep=sigma,
        img_ids=pipeline._prepare_latent_image_ids(batch, height // 2, width // 2, "cpu", torch.float32),
        txt_ids=torch.zeros(txt.shape[1], 3),
        guidance=guidance if model.config.guidance_embeds else None,
    ).sample
    return pipeline._unpack_latents(hidden, height * 8, width * 8, 8)


@pytest.mark.parametrize("guidance", [False, True], ids=["schnell", "guided"])
@pytest.mark.parametrize("named", ["folder", "index", "shard", "single"])
def test_velocity_equals_diffusers(
    tmp_path: Path, make_diffusers_flux: Callable[..., Any], generator: torch.Generator, guidance: bool, named: str
) -> None:
    reference = make_diffusers_flux(2, guidance_embeds=guidance)
    reference.save_pretrained(tmp_path, max_shard_size="5GB" if named == "single" else "400KB")
    shards = sorted(tmp_path.glob("*-of-*.safetensors"))
    assert len(shards) > 2 or named == "single"
    paths = {
        "folder": tmp_path,
        "index": tmp_path / "diffusion_pytorch_model.safetensors.index.json",
        "shard": shards[1] if shards else None,
        "single": tmp_path / "diffusion_pytorch_model.safetensors",
    }
    path = paths[named]
    assert path is not None
    ours = load_flux(path)
    assert ours.params == FluxParams(
        hidden_size=64,
        num_heads=2,
        depth=2,
        depth_single_blocks=2,
        context_in_dim=24,
        vec_in_dim=12,
        guidance_embed=guidance,
        axes_dim=(4, 14, 14),
    )
    given = inputs(generator)
    assert near(ours(**given), diffusers_velocity(reference, **given))


def test_full_size_is_diffusers_flux_dev() -> None:
    transformer = pytest.importorskip("diffusers").FluxTransformer2DModel
    with torch.device("meta"):
        reference = transformer(guidance_embeds=True)
    ours = Flux(FluxParams(), device="meta")
    count = sum(p.numel() for p in ours.parameters())
    assert count == sum(p.numel() for p in reference.parameters()) == 11_901_408_320


# --- keywords ---------------------------------------------------------------------------------


def test_every_input_matters(make_flux: Make, generator: torch.Generator) -> None:
    model = make_flux(guidance_embed=True)
    given = inputs(generator)
    velocity = model(**given)
    for name, value in given.items():
        assert not near(model(**{**given, name: value * 1.5 + 0.1}), velocity, 1e-4), name


def test_batch_equals_one_by_one(make_flux: Make, generator: torch.Generator) -> None:
    model = make_flux(guidance_embed=True)
    given = inputs(generator)
    singles = [model(**{k: v[i : i + 1] for k, v in given.items()}) for i in range(2)]
    assert near(model(**given), torch.cat(singles))


def test_guidance_defaults_to_the_settings(make_flux: Make, generator: torch.Generator) -> None:
    model = make_flux(settings=OneStepSettings(guidance=2.0), guidance_embed=True)
    given = inputs(generator)
    del given["guidance"]
    assert torch.equal(model(**given), model(**given, guidance=torch.full((2,), 2.0)))
    assert not torch.equal(model(**given), model(**given, guidance=torch.full((2,), 3.5)))


def test_a_model_without_guidance_ignores_it(make_flux: Make, generator: torch.Generator) -> None:
    model = make_flux()
    given = inputs(generator)
    assert torch.equal(model(**given), model(**{**given, "guidance": torch.zeros(2)}))


def test_the_rfr_keyword_holds_for_one_call(make_flux: Make, generator: torch.Generator) -> None:
    model, given, fit = make_flux(), inputs(generator), Rfr("fit")
    own = model(**given)
    rescaled = model(**given, rfr=fit)
    assert not near(rescaled, own, 1e-4)
    assert torch.equal(model(**given), own)
    assert torch.equal(model(**given, rfr=Rfr()), own)


def test_theta_of_the_geometry_is_what_a_theta_policy_gives(make_flux: Make, generator: torch.Generator) -> None:
    given = inputs(generator)
    own, other = make_flux(theta=(46.7, 80.0)), make_flux()
    assert torch.equal(own(**given), other(**given, rfr=Rfr("theta", theta=(46.7, 80.0))))
    assert not near(own(**given), other(**given, rfr=Rfr("theta", theta=(80.0, 46.7))), 1e-4)


def test_positions_are_kept_in_float32_by_a_bf16_model(make_flux: Make, generator: torch.Generator) -> None:
    model = make_flux().to(torch.bfloat16)
    given = {k: v.to(torch.bfloat16) for k, v in inputs(generator).items()}
    tables: list[Tensor] = []
    model.pe_embedder.register_forward_hook(lambda module, args, table: tables.append(table))
    assert model(**given).dtype == torch.bfloat16
    assert tables[0].dtype == torch.float32


def test_progress_counts_every_block(make_flux: Make, generator: torch.Generator) -> None:
    model = make_flux(depth=2, depth_single_blocks=3)
    seen: list[tuple[int, int]] = []
    model(**inputs(generator), on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 5) for i in range(1, 6)]


def test_raising_in_progress_cancels(make_flux: Make, generator: torch.Generator) -> None:
    class CancelError(Exception):
        pass

    def cancel(done: int, total: int) -> None:
        raise CancelError

    with pytest.raises(CancelError):
        make_flux()(**inputs(generator), on_progress=cancel)


# --- prompt -----------------------------------------------------------------------------------


def test_prompt_is_zeros_without_one(make_flux: Make) -> None:
    txt, vec = make_flux().prompt(3)
    assert txt.shape == (3, 1, 24) and not txt.any()
    assert vec.shape == (3, 12) and not vec.any()


def test_prompt_of_the_settings_is_repeated_in_the_weights_dtype(make_flux: Make, generator: torch.Generator) -> None:
    settings = OneStepSettings(txt=torch.randn(4, 24, generator=generator), vec=torch.randn(12, generator=generator))
    model = make_flux(settings=settings).to(torch.bfloat16)
    txt, vec = model.prompt(2)
    assert settings.txt is not None and settings.vec is not None
    assert torch.equal(txt, settings.txt.to(torch.bfloat16).expand(2, 4, 24))
    assert torch.equal(vec, settings.vec.to(torch.bfloat16).expand(2, 12))


# --- wrong input ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(16, 4, 4), (1, 4, 4, 4), (1, 16, 3, 4), (1, 16, 4, 5)], ids=str)
def test_another_latent_shape_is_refused(make_flux: Make, shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match=r"expected \(B, 16, even, even\)"):
        make_flux()(torch.zeros(shape), torch.ones(1), torch.zeros(1, 1, 24), torch.zeros(1, 12))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"hidden_size": 100}, "num_heads"),
        ({"axes_dim": (16, 56, 58)}, "130"),
        ({"axes_dim": (2, 63, 63)}, "even"),
    ],
    ids=str,
)
def test_impossible_geometry_is_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FluxParams(**wrong)


@pytest.mark.parametrize("sigma", [0.0, -0.1, 1.01, float("nan"), float("inf")])
def test_impossible_sigma_is_refused(sigma: float) -> None:
    with pytest.raises(OptionError, match="sigma"):
        OneStepSettings(sigma=sigma)
