"""What a weights file is, and whether it will work, as plain values."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import OptionError
from ..images.io import load_image
from ..models.enlarger import Enlarger
from ..models.flux import Flux, FluxParams, OneStepSettings
from ..vae.autoencoder import AutoEncoder, AutoEncoderParams
from .checkpoint import check_tensors, load_autoencoder
from .description import describe_autoencoder, describe_flux
from .enlarger import describe_enlarger
from .header import PROMPT_KEYS, Header, encoder_part, read_header, without_encoder
from .lora import describe_lora
from .lora_parts import LoraContents, lora_contents, target_of
from .probe import probe, verdict
from .sr_lora import SrLora, describe_sr_lora, is_published
from .vae_lora import encoder_contents


def inspect_file(path: str | Path, photo: str | Path | None = None) -> dict[str, Any]:
    """Everything ``inspect`` prints, JSON-ready. ``photo``: round-trip it at every stride and shift.

    Raises UnsupportedCheckpointError where the file is none that we run, with what it is instead.
    """
    if is_published(Path(path)):
        _refuse_probe(path, photo, "lora")
        return {"file": str(path), "kind": "lora", **_one_step(describe_sr_lora(path))}
    header = read_header(path)
    _refuse_probe(path, photo, header.kind)
    report: dict[str, Any] = {
        "file": str(path),
        "shards": [file.name for file in header.files] if len(header.files) > 1 else [],
        "kind": header.kind,
        "layout": without_encoder(header).layout_name,
        "dtype": header.dtype,
        "tensors": len(header.shapes),
        "metadata": header.metadata,
    }
    if header.kind == "lora":
        return report | _lora(header)
    report |= _enlarger(header) if header.kind == "enlarger" else _geometry(header)
    if photo is not None:
        image = load_image(photo).image
        fits = probe(load_autoencoder(header), image)
        fit = verdict(fits)
        report["probe"] = [asdict(fit) for fit in fits]
        report["probe_says"] = None if fit is None else {"stride": fit.stride, "shift": fit.shift}
    return report


def _refuse_probe(path: str | Path, photo: str | Path | None, kind: str) -> None:
    if photo is not None and kind in ("lora", "transformer", "enlarger"):
        raise OptionError(f"--probe: {path} is of kind {kind}; only a VAE can be probed with a photo")


def _lora(header: Header) -> dict[str, Any]:
    """What any LoRA changes, how strongly, and what is left out; a one-step LoRA's constants too."""
    own = without_encoder(header)
    if not own.names or encoder_part(header) is not None or all(key in header.shapes for key in PROMPT_KEYS):
        return _one_step(describe_sr_lora(header))
    describe_lora(own)
    return _changes(lora_contents(own)) | {"usable": "yes: with a LoRA loader, on the model it was trained for"}


def _one_step(found: SrLora) -> dict[str, Any]:
    """Both halves of a one-step LoRA, its constants, and where they are from."""
    contents, settings = lora_contents(found.transformer), found.settings
    mergeable = (
        found.origin == "OP4KSR" and found.encoder is None and all(m.computed for m in contents.modules.values())
    )
    merged = ", or merged, with 'convert --merge-lora'" if mergeable else ""
    prompt = "" if found.has_prompt else " and a CONDITIONING, as it carries no prompt embedding"
    return {
        "origin": found.origin,
        **_changes(contents),
        "vae_encoder": None
        if found.encoder is None
        else {**_changes(encoder_contents(found.encoder)), "target": "a VAE's encoder"},
        "theta": None if found.theta is None else list(found.theta),
        **_constants(settings),
        "prompt_embedding": found.has_prompt,
        "why": found.why,
        "usable": f"yes: with Load SR LoRA{prompt}, on the model it was trained for{merged}",
    }


def _constants(settings: OneStepSettings) -> dict[str, Any]:
    """What a one-step model was trained with, but its prompt."""
    names = ("sigma", "guidance", "encode", "output", "repair", "sigma_repair", "train_tokens")
    return {name: getattr(settings, name) for name in names}


def _changes(contents: LoraContents) -> dict[str, Any]:
    return {
        "changes": contents.kinds,
        "modules": len(contents.modules),
        "ranks": contents.ranks,
        "scales": sorted({round(scale, 6) for scale in contents.scales.values()}),
        "scale_from": contents.source,
        "target": target_of(contents),
        "left_out": [*contents.left_out, *contents.unknown],
    }


def _enlarger(header: Header) -> dict[str, Any]:
    """An enlarger's geometry, its tensors checked."""
    _, params = describe_enlarger(header)
    check_tensors(Enlarger(params, device="meta"), header, header.layout())
    return {"dims": asdict(params), "usable": "yes: 'upscale --enlarger FILE'"}


def _geometry(header: Header) -> dict[str, Any]:
    found = describe_flux(header) if header.kind == "transformer" else describe_autoencoder(header)
    if isinstance(found.params, FluxParams):
        check_tensors(Flux(found.params, device="meta"), header, header.layout(), found.quantized)
        settings = found.settings
        assert settings is not None
        extra = {
            **_constants(settings),
            "prompt_embedding": "op4ksr.txt" in header.shapes,
        }
    else:
        assert isinstance(found.params, AutoEncoderParams)
        check_tensors(AutoEncoder(found.params, device="meta"), header, header.layout())
        extra = {"ratio": found.params.ratio}
    usable = "in ComfyUI alone: its weights are quantized with scales" if found.quantized else "yes"
    assumed = list(found.assumed)
    return {"dims": asdict(found.params), **extra, "why": found.why, "assumed": assumed, "usable": usable}
