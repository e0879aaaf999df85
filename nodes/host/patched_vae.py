"""A native VAE with changed weights, by the host's patcher on a clone: other uses of the same file do not see them."""

from __future__ import annotations

import copy
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import comfy.lora
import comfy.sd
from torch import Tensor

from ...op4ksr_core.errors import OptionError
from ...op4ksr_core.weights.shards import some_names
from .exact_vae import check_vae, with_ways_of


class PatchedVAE(comfy.sd.VAE):
    """A VAE whose patcher has patches; it comes before the class of the VAE that was given.

    The host leaves patched weights in a model until another patcher of the same model is loaded. What reads weights
    without loading them (Save VAE, Save Checkpoint) would find those of the branch that ran last: so each pass puts
    them back.
    """

    def encode(self, *args: Any, **kwargs: Any) -> Tensor:
        with self._patched():
            return super().encode(*args, **kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> Tensor:
        with self._patched():
            return super().decode(*args, **kwargs)

    def encode_tiled(self, *args: Any, **kwargs: Any) -> Tensor:
        with self._patched():
            return super().encode_tiled(*args, **kwargs)

    def decode_tiled(self, *args: Any, **kwargs: Any) -> Tensor:
        with self._patched():
            return super().decode_tiled(*args, **kwargs)

    @contextmanager
    def _patched(self) -> Generator[None, None, None]:
        try:
            yield
        finally:
            self.patcher.detach()

    def get_sd(self) -> dict[str, Tensor]:
        """The weights as this VAE computes with them: what Save VAE writes."""
        state: dict[str, Tensor] = dict(super().get_sd())
        for key, (given, *patches) in self.patcher.get_key_patches().items():
            if patches:
                weight: Tensor = given[0]
                changed = comfy.lora.calculate_weight(patches, weight.float().clone(), key)
                state[key] = changed.to(weight.dtype)
        return state


def encoder_shapes(vae: Any) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the weights of a VAE's encoder. Raises OptionError for a VAE that the host cannot patch."""
    check_vae(vae)
    if not isinstance(vae, comfy.sd.VAE):
        raise OptionError(
            f"VAE: is a {type(vae).__name__} of another node pack, whose weights ComfyUI cannot patch; connect Flux's "
            "own VAE from Load VAE"
        )
    state: dict[str, Tensor] = vae.patcher.model.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items() if name.startswith("encoder.")}
    if "encoder.conv_in.weight" not in shapes:
        raise OptionError(
            f"VAE: is a {type(vae.first_stage_model).__name__} without an encoder of Flux's kind; connect Flux's own "
            "VAE (ae.safetensors)"
        )
    return shapes


def patched_vae(vae: Any, changes: Mapping[str, Tensor], strength: float) -> Any:
    """The same VAE plus strength * change of each named weight; it shares the weights, and ``vae`` stays as it is.

    Raises OptionError where the host takes none for a weight.
    """
    clone = vae.patcher.clone()
    taken = clone.add_patches({name: ("diff", (change,)) for name, change in changes.items()}, strength)
    if left := sorted(changes.keys() - set(taken)):
        raise OptionError(f"VAE: has no {some_names(left)}, which the LoRA changes; connect the VAE it was trained on")
    patched = copy.copy(vae)
    patched.patcher = clone
    patched.__class__ = with_ways_of(PatchedVAE, type(vae))
    return patched
