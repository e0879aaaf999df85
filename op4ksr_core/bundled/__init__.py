"""The weights and pictures that come with the pack: package data, so that ``pip install .`` brings them along."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parent

#: The bundled weights; models/README.md is their card.
BUNDLED = _HERE / "models"
BUNDLED_AUTOENCODER = BUNDLED / "op4ksr_small_f16_vae.safetensors"
BUNDLED_FLUX = BUNDLED / "op4ksr_small_flux.safetensors"
BUNDLED_ENLARGER = BUNDLED / "op4ksr_small_enlarger.safetensors"

#: The bundled pictures; samples/README.md says where they are from.
_SAMPLES = _HERE / "samples"
SAMPLE_PHOTO = _SAMPLES / "photo.jpg"
#: By name, for people.
SAMPLES = {"photo": SAMPLE_PHOTO, "photo with a grid": _SAMPLES / "gridded.png"}
