"""The host's VAE and MODEL as the core's ``Stages``; pictures and progress between the two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.samplers
import comfy.utils
import torch
from torch import Tensor

from ...op4ksr_core.base import Base, Bicubic
from ...op4ksr_core.errors import OptionError
from ...op4ksr_core.images.color import ColorFix
from ...op4ksr_core.models.flux import OnProgress, sigma_at
from ...op4ksr_core.one_step import PICTURES_AT_ONCE, Frame, Stages
from ...op4ksr_core.plain_text import plain, plain_logger
from .exact_vae import ExactVAE, can_sample, check_vae, is_oom, running
from .model import ENCODER_ATTACHMENT, check_conditioning, check_flow, prompt_conditioning, settings_of
from .values import check_latent, refusal

log = plain_logger(__name__)

#: Bytes that must be free on the device over those that pictures need there.
_ROOM = 1.2


def image_to_core(image: Tensor, name: str = "IMAGE") -> Tensor:
    """ComfyUI's IMAGE (B, H, W, 1, 3 or 4) -> (B, 3, H, W). Raises OptionError, with the name, for another shape."""
    if image.ndim != 4 or image.shape[-1] not in (1, 3, 4):
        raise OptionError(
            f"{name}: expected (batch, height, width, 3) or 4 channels, got {plain(tuple(image.shape))}; "
            "check the node before"
        )
    return image[..., :3].movedim(-1, 1).expand(-1, 3, -1, -1)


def image_to_host(image: Tensor) -> Tensor:
    """(B, 3, H, W) -> the host's IMAGE (B, H, W, 3), contiguous."""
    return image.movedim(1, -1).contiguous()


class OneStepSampler(comfy.samplers.Sampler):
    """One call of the model on the latent as it is: no noise, x0 = x - sigma v.

    Where a mask (1 = change) is given, the latent stays what it is outside it.
    """

    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Tensor,
        latent_image: Tensor,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        if sigmas.ndim != 1:
            raise refusal("SIGMAS", "a row of numbers", sigmas)
        latents = model_wrap.inner_model.latent_format
        check_latent(latent_image, latents.latent_channels, (latents.latent_dimensions + 2,))
        result = model_wrap(latent_image, sigmas[0] * latent_image.new_ones(len(latent_image)), **extra_args)
        if denoise_mask is not None:
            result = torch.lerp(latent_image, result, denoise_mask.to(result.dtype))
        if callback is not None:
            callback(0, result, latent_image, 1)
        return result


class HostStages(Stages):
    """The host's VAE and MODEL as the core's ``Stages``: its memory manager loads and evicts."""

    def __init__(
        self,
        model: Any,
        vae: Any,
        conditioning: list[Any] | None,
        sigma: float | None,
        guidance: float | None,
        base: Base | None = None,
    ) -> None:
        check_flow(model)
        check_vae(vae)
        channels = model.get_model_object("latent_format").latent_channels
        if getattr(vae, "latent_channels", channels) != channels:
            raise OptionError(
                f"VAE: has {vae.latent_channels} latent channels, but the model takes {channels}; "
                "choose a Flux-type VAE (16 channels)"
            )
        if getattr(vae, "latent_dim", 2) != 2:
            raise OptionError("VAE: is a video VAE; choose a Flux-type picture VAE (16 channels)")
        settings = settings_of(model)
        self.model, self.vae = model, in_strips(vae)
        warn_of_plain_encoder(model, vae)
        self.samples = settings.encode == "sample"
        if self.samples and not can_sample(self.vae):
            raise OptionError(
                "VAE: is of a kind that cannot give a seeded sample, which this model was trained on; connect Flux's "
                "own VAE (ae.safetensors)"
            )
        self.settings, self.asked_sigma = settings, sigma
        self.output, self.repair = settings.output, settings.repair
        if base is not None:
            self.base = base
        if conditioning is not None:
            check_conditioning(model, conditioning)
        given = prompt_conditioning(model) if conditioning is None else conditioning
        typed = {} if guidance is None else {"guidance": guidance}
        self.conditioning = [[c, {"guidance": settings.guidance, **extra, **typed}] for c, extra, *_ in given]
        self.ratio = int(vae.spacial_compression_encode())

    @property
    def sigma(self) -> float:
        """The one step's: what was asked for, else the model's for this repair."""
        return sigma_at(self.settings, self.repair) if self.asked_sigma is None else self.asked_sigma

    def encode(self, image: Tensor, tell: OnProgress) -> Tensor:
        if self.samples:
            log.info("VAE encode: a sample of the posterior, as the model was trained on one (seed %d)", self.seed)
        with running(self.strips, tell, self.seed if self.samples else None):
            return self.vae.encode(image.movedim(1, -1))  # a view: the host turns it back, and nothing is copied

    def transform(self, raw: Tensor, tell: OnProgress) -> Tensor:
        guider = comfy.samplers.CFGGuider(self.model)
        guider.inner_set_conds({"positive": self.conditioning})
        guider.set_cfg(1.0)
        sigmas = torch.tensor([self.sigma, 0.0])
        result = guider.sample(torch.zeros_like(raw), raw, OneStepSampler(), sigmas, disable_pbar=True, seed=0)
        tell(1, 1)
        return result.to(raw.device)

    def decode(self, raw: Tensor, tell: OnProgress) -> Tensor:
        with running(self.strips, tell):
            return image_to_core(self.vae.decode(raw))

    def enlarge(self, low: Tensor, frame: Frame, tell: OnProgress) -> Tensor:
        """Bicubic where a GPU has room for the picture; networks come and go by themselves, strip by strip."""
        if not isinstance(self.base, Bicubic):
            return super().enlarge(low, frame, tell)
        return on_free_device(lambda low: super(HostStages, self).enlarge(low, frame, tell), frame, low)

    def fix_colors(self, decoded: Tensor, enlarged: Tensor, frame: Frame, kind: ColorFix, factor: float) -> Tensor:
        def fix(decoded: Tensor, enlarged: Tensor) -> Tensor:
            return super(HostStages, self).fix_colors(decoded, enlarged, frame, kind, factor)

        return on_free_device(fix, frame, decoded, enlarged)

    def finish(self, output: Tensor, low: Tensor, frame: Frame, fidelity: float, tell: OnProgress) -> Tensor:
        def project(output: Tensor, low: Tensor) -> Tensor:
            return super(HostStages, self).finish(output, low, frame, fidelity, tell)

        return on_free_device(project, frame, output, low)


def on_free_device(step: Callable[..., Tensor], frame: Frame, *pictures: Tensor) -> Tensor:
    """``step(*pictures)`` on a GPU that has room for it as it is, where there is one; the result lies where they did.

    ComfyUI keeps pictures in ordinary memory. No model is moved out of the way for them.
    """
    home, device = pictures[0].device, comfy.model_management.get_torch_device()
    need = _ROOM * PICTURES_AT_ONCE * frame.nbytes
    if device.type != "cuda" or comfy.model_management.get_free_memory(device) < need:
        return step(*pictures)
    return with_retreat(step, device, home, *pictures)


def with_retreat(step: Callable[..., Tensor], device: torch.device, home: torch.device, *pictures: Tensor) -> Tensor:
    """``step`` on the device, or at home where that runs out of memory; the result is at home."""
    try:
        return step(*(picture.to(device) for picture in pictures)).to(home)
    except (RuntimeError, MemoryError) as error:  # PyTorch's out of memory is a RuntimeError
        if not is_oom(error):
            raise
        log.info("colours and pixels are fixed on %s: %s is out of memory", home, device)
    comfy.model_management.soft_empty_cache()
    return step(*pictures)


def warn_of_plain_encoder(model: Any, vae: Any) -> None:
    """A MODEL whose LoRA has a half for the VAE, with a VAE that has none: its picture is worse, and nothing shows it.

    No error: the VAE may be one that was saved with the change.
    """
    name = model.get_attachment(ENCODER_ATTACHMENT)
    if name is not None and not any(key.startswith("encoder.") for key in getattr(vae, "patcher", model).patches):
        log.warning(
            "VAE: %s changes the VAE's encoder, and this VAE has no LoRA; connect the VAE of Load SR LoRA", name
        )


def in_strips(vae: Any) -> Any:
    """The VAE in strips, as which it is always exact; itself where it cannot (another kind of VAE)."""
    if isinstance(vae, ExactVAE):
        return vae
    try:
        return ExactVAE.of(vae, {})
    except OptionError as reason:
        log.info("%s; it runs as ComfyUI runs it", reason)
        return vae


def progress_bar() -> Callable[[int, int], None]:
    """A callback (done, total) that moves the node's bar and raises when the user cancels."""
    bar: list[Any] = []

    def on_progress(done: int, total: int) -> None:
        if not bar:
            bar.append(comfy.utils.ProgressBar(total))
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar[0].update_absolute(done, total)

    return on_progress
