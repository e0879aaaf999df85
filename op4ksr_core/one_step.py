"""One step from a photo to its large version. The only orchestrator: CLI, nodes and benchmark call it.

Steps (our choice where the paper's abstract is silent): enlarge to the target size (bicubic, or another ``Base``),
mirror to whole tokens and a margin, encode, ``z_hr = z_lr - sigma * v(z_lr, sigma)``, decode, crop, colour fix,
back-projection. The margin is the autoencoder's alone: the transformer does not see it. Models whose output is
"detail" give ``base + detail * (decode(z_hr) - decode(z_lr))``.
No noise is added; the enlarged input stands in for x_t of the rectified flow at one fixed sigma.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from .base import Base, Bicubic
from .errors import ImageError, OptionError
from .images.alpha import shrink_visible, visible_colors
from .images.color import BACK_PROJECTIONS, COLOR_FIXES, ColorFix, back_project, color_fix
from .images.metrics import check_finite_output, is_finite, luma
from .images.resize import Target, mirror_frame, picture_bytes, resize
from .machine import give_back_memory
from .models.flux import Flux, FluxParams, OnProgress, Output, check_repair, check_sigma, sigma_at
from .models.latent import MARGIN, PATCH, process_in, process_out
from .models.rope import Rfr, parse_theta
from .pieces import Pieces, in_pieces
from .plain_text import plain, plain_logger
from .vae.autoencoder import AutoEncoder, AutoEncoderParams
from .vae.estimate import StripPlan
from .weights.enlarger import choose_base

log = plain_logger(__name__)


@dataclass(frozen=True)
class OneStepOptions:
    """What the user may choose. ``fidelity`` in [0, 1]: how exactly the result, shrunk, equals the input.

    seed: of the sample that models are given which were trained on one of the posterior; picture i of a batch takes
    ``seed`` + i. Other models do not see it.
    pieces: the windows that the transformer runs over; None: the whole picture in one pass.
    detail: in [0, 2], how much of what the model makes is added to the enlarged picture. 0: nothing, and neither VAE
    nor transformer runs; 1: as trained, which of models whose output is "picture" is the decoded picture itself.
    repair: in [0, 1], how much damage to undo; None: as the model's file recommends. Given to what enlarges, to the
    transformer as its sigma (``sigma_at``; a sigma that is asked for wins), and to ``followed_fidelity``.
    """

    target: Target = field(default_factory=lambda: Target(scale=4))
    color: ColorFix = "wavelet"
    fidelity: float = 1.0
    vae_only: bool = False
    seed: int = 0
    pieces: Pieces | None = None
    detail: float = 1.0
    repair: float | None = None

    def __post_init__(self) -> None:
        if self.color not in COLOR_FIXES:
            raise OptionError(f"color: expected one of {', '.join(COLOR_FIXES)}; got {self.color!r}")
        if not 0 <= self.fidelity <= 1:
            raise OptionError(f"fidelity: expected 0 to 1, got {self.fidelity}")
        if not 0 <= self.detail <= 2:
            raise OptionError(f"detail: expected 0 to 2, got {self.detail}")
        if self.repair is not None:
            check_repair(self.repair)


#: The repair from which nothing is back-projected. Our choice, measured on eight photos damaged in three ways: from
#: 0.25 on, fidelity 0 is best in PSNR, SSIM and HaarPSI, since back-projection brings the damage back.
UNPROJECTED = 0.25


def followed_fidelity(fidelity: float, repair: float) -> float:
    """How exactly the result, shrunk, is its input where damage is undone, which the input has: less with repair."""
    return fidelity * max(0.0, 1 - repair / UNPROJECTED)


#: Copies of the output picture alive at most in one of the picture steps (enlarge, fix_colors, finish). As counted.
PICTURES_AT_ONCE = 5


@dataclass(frozen=True)
class Frame:
    """The output's place, (height, width) in px, inside its mirrored frame, whose margin is ``margin`` px wide.

    tokens: px per token and side, of which a frame has whole ones.
    """

    height: int
    width: int
    tokens: int
    margin: int

    @property
    def nbytes(self) -> int:
        """Of one output picture in float32."""
        return picture_bytes(self.height, self.width)

    def cut(self, framed: Tensor) -> Tensor:
        """The output's place in a framed picture, as a view."""
        return framed[..., self.margin : self.margin + self.height, self.margin : self.margin + self.width]


AnyStages = TypeVar("AnyStages", bound="Stages")


class Stages(ABC):
    """The steps of a run, wherever they are done: in the core, or under a host's memory manager.

    ``ratio`` is image px per latent px. Pictures are float32 in [0, 1], and every step returns them on the device of
    the picture it was given. Steps that take long report (done, total) to ``tell``, and let through what it raises:
    that is how a run is cancelled. ``strips``: how the autoencoder's passes are cut; a stage not named is decided by
    the free memory when it runs.
    """

    ratio: int
    strips: StripPlan = {}
    #: Of the sample that ``encode`` draws, where the model was trained on one.
    seed: int = 0
    #: What enlarges the picture before the one step.
    base: Base = Bicubic()
    #: What the model's latents are for, and how much damage it undoes, 0 to 1: at first what its file recommends.
    output: Output = "picture"
    repair: float = 0.0

    def with_seed(self: AnyStages, seed: int) -> AnyStages:
        """The same steps, with this seed."""
        return self._with("seed", seed)

    def with_repair(self: AnyStages, repair: float) -> AnyStages:
        """The same steps, undoing so much damage, 0 to 1."""
        return self._with("repair", repair)

    def with_strips(self: AnyStages, strips: StripPlan) -> AnyStages:
        """The same steps, with these strips: those of the plan that was logged."""
        return self._with("strips", strips)

    def _with(self: AnyStages, name: str, value: Any) -> AnyStages:
        if value == getattr(self, name):
            return self
        stages = copy(self)
        setattr(stages, name, value)
        return stages

    def enlarge(self, low: Tensor, frame: Frame, tell: OnProgress) -> Tensor:
        """Input (1, 3, h, w) -> its enlargement by ``base`` in a mirrored frame."""
        enlarged = self.base.enlarge(low, frame.height, frame.width, self.repair, tell)
        return mirror_frame(enlarged, frame.tokens, frame.margin)

    @abstractmethod
    def encode(self, image: Tensor, tell: OnProgress) -> Tensor:
        """Image (1, 3, H, W), sides multiples of the ratio -> raw latent (1, C, H / ratio, W / ratio), any device."""

    @abstractmethod
    def transform(self, raw: Tensor, tell: OnProgress) -> Tensor:
        """Raw latent of the enlarged picture -> that of the sharp one, of the same shape (1, C, h, w)."""

    @abstractmethod
    def decode(self, raw: Tensor, tell: OnProgress) -> Tensor:
        """Raw latent (1, C, h, w) -> image (1, 3, h * ratio, w * ratio), any device and float dtype."""

    def add_decoded(self, raw: Tensor, onto: Tensor, weight: float, tell: OnProgress) -> None:
        """Add ``weight`` times what ``decode`` makes to a picture of its size, in place."""
        onto.add_(self.decode(raw, tell).to(onto.device, torch.float32), alpha=weight)

    def fix_colors(self, decoded: Tensor, enlarged: Tensor, frame: Frame, kind: ColorFix, factor: float) -> Tensor:
        """Two framed pictures -> the decoded one without its frame, in the other's colours. factor: the enlargement."""
        return color_fix(frame.cut(decoded), frame.cut(enlarged), kind, factor)

    def finish(self, output: Tensor, low: Tensor, frame: Frame, fidelity: float, tell: OnProgress) -> Tensor:
        """The result: an output that, shrunk, is the input ``low``, as exactly as ``fidelity`` in [0, 1] asks."""
        tell(0, BACK_PROJECTIONS)
        result = back_project(output, low, fidelity, on_round=lambda done: tell(done, BACK_PROJECTIONS)).clamp(0, 1)
        tell(BACK_PROJECTIONS, BACK_PROJECTIONS)
        return result


def one_step(latent: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """z_hr = z_lr - sigma v: latent and velocity (B, C, h, w) processed, sigma (B,)."""
    return latent - sigma.view(-1, 1, 1, 1).to(latent.dtype) * velocity


def check_pair(flux: FluxParams, autoencoder: AutoEncoderParams) -> None:
    """Raise OptionError unless the model takes the latents that the autoencoder makes."""
    if flux.in_channels != autoencoder.latent_channels:
        raise OptionError(
            f"the model takes {flux.in_channels} latent channels, but the VAE makes "
            f"{autoencoder.latent_channels}; choose two that belong together"
        )


class CoreStages(Stages):
    """The core's own models. base None: what suits the model, bicubic or the bundled enlarger."""

    def __init__(
        self,
        flux: Flux | None,
        autoencoder: AutoEncoder,
        sigma: float | None = None,
        rfr: Rfr | None = None,
        strips: StripPlan | None = None,
        base: Base | None = None,
    ) -> None:
        if flux is not None:
            check_pair(flux.params, autoencoder.params)
            self.output, self.repair = flux.settings.output, flux.settings.repair
        self.flux, self.autoencoder, self.rfr, self.strips = flux, autoencoder, rfr, strips or {}
        self.asked_sigma = None if sigma is None else check_sigma(sigma)
        self.ratio = autoencoder.params.ratio
        self.base = base or choose_base("auto", self.output, autoencoder.device)

    @property
    def sigma(self) -> float:
        """The one step's: what was asked for, else the model's for this repair; 1 without a model."""
        if self.asked_sigma is not None:
            return self.asked_sigma
        return 1.0 if self.flux is None else sigma_at(self.flux.settings, self.repair)

    def encode(self, image: Tensor, tell: OnProgress) -> Tensor:
        """Image (1, 3, H, W) in [0, 1] -> raw latent (1, C, H / ratio, W / ratio), the VAE's device and dtype.

        The posterior's mean, or its sample by ``seed``, as the model's settings have it. Raises OutOfMemoryError when
        even the strips that need least fail.
        """
        samples = self.flux is not None and self.flux.settings.encode == "sample"
        return self.autoencoder.encode(
            image, tell, strips=self.strips.get("encode"), seed=self.seed if samples else None
        )

    def transform(self, raw: Tensor, tell: OnProgress) -> Tensor:
        """Raw latent (1, C, h, w) -> that of the sharp picture, on the model's device; the same without a model."""
        flux = self.flux
        if flux is None:
            return raw
        with torch.no_grad():
            latent = process_in(raw.to(flux.device, flux.dtype))
            sigma = torch.full((len(latent),), self.sigma, device=flux.device)
            txt, vec = flux.prompt(len(latent))
            velocity = flux(latent, sigma, txt, vec, rfr=self.rfr, on_progress=tell)
            return process_out(one_step(latent, velocity, sigma))

    def decode(self, raw: Tensor, tell: OnProgress) -> Tensor:
        """Raw latent (1, C, h, w) -> image (1, 3, h * ratio, w * ratio), float32 in [0, 1] on the VAE's device.

        Raises OutOfMemoryError when even the strips that need least fail.
        """
        give_back_memory()
        return self.autoencoder.decode(raw, tell, strips=self.strips.get("decode"))

    def add_decoded(self, raw: Tensor, onto: Tensor, weight: float, tell: OnProgress) -> None:
        """As ``Stages.add_decoded``, strip by strip: no second picture is held. Raises as ``decode``.

        On the CPU lean in place of fast strips: ``onto`` is in memory from the start, where a new picture only comes
        to be as it is written, which is after the moment that needs most.
        """
        give_back_memory()
        strips = self.strips.get("decode")
        if strips is not None and strips.mode == "fast" and self.autoencoder.device.type == "cpu":
            strips = replace(strips, mode="lean")
        self.autoencoder.decode_onto(raw, onto, weight, tell, strips=strips)


def upscale(
    image: Tensor,
    flux: Flux | None,
    autoencoder: AutoEncoder,
    options: OneStepOptions | None = None,
    *,
    sigma: float | None = None,
    theta: float | str | tuple[float, float] | None = None,
    rfr: Rfr | None = None,
    strips: StripPlan | None = None,
    alpha: Tensor | None = None,
    base: Base | None = None,
    on_progress: OnProgress | None = None,
) -> Tensor:
    """(B, 3, H, W) float in [0, 1] -> (B, 3, H', W') float32 in [0, 1] on the image's device.

    One forward pass per picture, no patches, unless ``options.pieces`` asks for windows of the latent.
    ``flux`` may be None with ``options.vae_only``.
    sigma and theta (or a whole ``rfr`` policy) override the model's own for this call. strips: how the autoencoder's
    passes are cut (``Plan.strips()``); a stage not named is decided by the free memory when it runs.
    alpha: transparency, (B, 1, H, W) in [0, 1], or fewer, of which the last counts for the rest: colours that it hides
    are replaced by the visible ones around, so that they are not seen at edges (``upscale_alpha`` enlarges it itself).
    A grey picture comes out grey, R = G = B: the luma of what the model makes.
    base: what enlarges the picture before the one step; None: what suits the model, bicubic or the bundled enlarger.
    ``on_progress(done, total)`` runs before each strip and after each block, and may raise to cancel.
    Raises ImageError (NaN, empty, wrong shape), OptionError (target beyond the ceiling, models that do
    not fit together, pieces of no whole tokens), OutOfMemoryError (the VAE's leanest settings failed; torch's
    own may come from the transformer), and Op4ksrError where the model's or the VAE's output is not finite.
    """
    options = options or OneStepOptions()
    if flux is None and not options.vae_only:
        raise OptionError("upscale needs a Flux model; pass one, or set vae_only")
    if theta is not None:
        rfr = Rfr("theta", theta=parse_theta(theta))
    stages = CoreStages(flux, autoencoder, sigma, rfr, strips, base)
    return run(image, stages, options, on_progress, alpha=alpha)


def run(
    image: Tensor,
    stages: Stages,
    options: OneStepOptions,
    on_progress: OnProgress | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
    alpha: Tensor | None = None,
) -> Tensor:
    """``upscale`` over any ``Stages``: the batch picture by picture, each at the size asked for.

    memory_format: of the result; channels_last where a host wants (B, H, W, 3), which then is a view of it. The
    results of a batch lie in one block from the start, and no other copy of them is made.
    """
    check_image(image)
    if alpha is not None:
        check_alpha(alpha)
    height, width = options.target.size(*image.shape[-2:])
    frame = Frame(height, width, stages.ratio * PATCH, stages.ratio * MARGIN)
    if options.pieces is not None:
        options.pieces.in_tokens(stages.ratio)  # refused before anything is computed
    repairing = stages if options.repair is None else stages.with_repair(options.repair)

    def upscaled(index: int) -> Tensor:
        low = image[index : index + 1].float().clamp(0, 1)
        factor = max(height / low.shape[-2], width / low.shape[-1])
        if alpha is not None:
            low = _as_seen(low, alpha[min(index, len(alpha) - 1)][None], height, width)
        meter = _Meter(on_progress, index, len(image), _parts(stages, options))
        return _one_picture(low, frame, factor, repairing.with_seed(options.seed + index), options, meter)

    if len(image) == 1:
        return upscaled(0).contiguous(memory_format=memory_format)
    results = torch.empty((len(image), 3, height, width), device=image.device, memory_format=memory_format)
    for index in range(len(image)):
        results[index] = upscaled(index)[0]
    return results


def _as_seen(low: Tensor, alpha: Tensor, height: int, width: int) -> Tensor:
    """The colours that are seen under alpha (1, 1, h, w), of any size; where they will be shrunk, at that size."""
    if bool((alpha >= 1).all()):
        return low
    weight = upscale_alpha(alpha.to(low.device).clamp(0, 1), *low.shape[-2:])
    seen = visible_colors(low, weight)
    if seen is low or (height, width) == low.shape[-2:] or height > low.shape[-2] or width > low.shape[-1]:
        return seen
    return shrink_visible(low, seen, weight, height, width)


#: Difference of the channels up to which a pixel is grey: less than one level of 16 bits.
_GREY = 1e-5


def _is_grey(image: Tensor) -> bool:
    return all(bool((image[:, 0] - image[:, i]).abs().max() <= _GREY) for i in (1, 2))


def _one_picture(
    low: Tensor, frame: Frame, factor: float, stages: Stages, options: OneStepOptions, meter: _Meter
) -> Tensor:
    enlarged = stages.enlarge(low, frame, meter.part("enlarge"))
    check_finite_output("enlarger", enlarged, f"{plain(stages.base.name)}: ")
    if options.detail or options.vae_only:
        drawn = _drawn(enlarged, stages, options, meter)
        output = stages.fix_colors(drawn, enlarged, frame, options.color, factor)
        del drawn
    else:
        output = frame.cut(enlarged)
    del enlarged
    fidelity = followed_fidelity(options.fidelity, stages.repair)
    if not _is_grey(low):
        return stages.finish(output, low, frame, fidelity, meter.part("finish"))
    output = luma(output).expand(-1, 3, -1, -1).contiguous()
    result = stages.finish(output, low, frame, fidelity, meter.part("finish"))
    result[:, 1:] = result[:, :1]
    return result


def _drawn(enlarged: Tensor, stages: Stages, options: OneStepOptions, meter: _Meter) -> Tensor:
    """The framed picture that VAE and transformer make of the enlarged one, with as much detail as asked for."""
    raw = stages.encode(enlarged, meter.part("encode"))
    check_finite_output("VAE", raw)
    if options.vae_only:
        return _decoded(raw, enlarged, stages, meter.part("decode"))
    changed = None
    if stages.output == "detail":
        before = _decoded(raw, enlarged, stages, meter.part("decode before"))
        changed = torch.sub(enlarged, before, alpha=options.detail, out=before)
    raw = _transform_inner(raw, stages, options.pieces, meter.part("transform"))
    check_finite_output("model", raw)
    if changed is None and options.detail == 1:
        return _decoded(raw, enlarged, stages, meter.part("decode"))
    if changed is None:
        changed = enlarged * (1 - options.detail)
    stages.add_decoded(raw, changed, options.detail, meter.part("decode"))
    check_finite_output("VAE", changed)
    return changed


def _decoded(raw: Tensor, like: Tensor, stages: Stages, tell: OnProgress) -> Tensor:
    """The picture of a raw latent, float32, on the device of another."""
    decoded = stages.decode(raw, tell).to(like.device, torch.float32)
    check_finite_output("VAE", decoded)
    return decoded


def _transform_inner(raw: Tensor, stages: Stages, pieces: Pieces | None, tell: OnProgress) -> Tensor:
    """Run all but the latent's margin through the transformer, and put it back into the margin."""
    inner = (..., slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
    given = raw[inner].contiguous()
    if pieces is None:
        result = stages.transform(given, tell)
    else:
        result = in_pieces(given, stages.transform, pieces, stages.ratio, tell)
    framed = raw.to(result.device, result.dtype, copy=True)
    framed[inner] = result
    return framed


def upscale_alpha(alpha: Tensor, height: int, width: int) -> Tensor:
    """Transparency (B, 1, H, W) in [0, 1], bicubic to (B, 1, height, width): never through the model."""
    return resize(alpha.float(), height, width).clamp(0, 1)


#: A picture with higher values is taken for one that is not in [0, 1]; a resize that overshoots stays below.
_WHITE = 2.0


#: A picture with lower values is taken for one that is not in [0, 1], such as one in [-1, 1]; sharp resizes stay above.
_BLACK = -0.25


def check_image(image: Tensor, name: str = "image") -> None:
    """Raise ImageError unless (B, 3, H, W), not empty, floating point and finite. name: of the input, for messages."""
    if image.ndim != 4 or image.shape[1] != 3:
        raise ImageError(f"{name}: expected (B, 3, H, W), got {tuple(image.shape)}")
    if image.numel() == 0:
        raise ImageError(f"{name}: is empty, {tuple(image.shape)}; check what comes before it")
    if not image.is_floating_point():
        raise ImageError(f"{name}: expected floats from 0 to 1, got {image.dtype}; divide 8-bit values by 255")
    if not is_finite(image):
        raise ImageError(f"{name}: holds NaN or infinite values; check the model or node that made it")
    lowest, largest = (value.item() for value in image.aminmax())
    if largest > _WHITE:
        log.warning("%s: has values up to %g; those above 1 become white, so divide 8-bit values by 255", name, largest)
    if lowest < _BLACK:
        log.warning("%s: has values down to %g; those below 0 become black, so bring it to 0 to 1", name, lowest)


def check_alpha(alpha: Tensor) -> None:
    """Raise ImageError unless (B, 1, H, W), not empty and finite: a transparency, or a mask."""
    if alpha.ndim != 4 or alpha.shape[1] != 1 or alpha.numel() == 0:
        raise ImageError(f"mask: expected one plane per picture, got {tuple(alpha.shape)}; check what comes before it")
    if not is_finite(alpha):
        raise ImageError("mask: holds NaN or infinite values; check the node that made it")


#: Share of each part in the progress, about as in time on a CPU; our choice.
_PARTS = {"enlarge": 5, "encode": 30, "decode before": 45, "transform": 20, "decode": 45, "finish": 5}


def _parts(stages: Stages, options: OneStepOptions) -> dict[str, int]:
    """The share of each part that runs."""
    if options.vae_only:
        without = {"transform", "decode before"}
    elif not options.detail:
        without = {"encode", "transform", "decode before", "decode"}
    else:
        without = set[str]() if stages.output == "detail" else {"decode before"}
    return {name: share for name, share in _PARTS.items() if name not in without}


class _Meter:
    """One ``on_progress(done, total)`` for a whole run, made of the progress of each picture's parts."""

    def __init__(self, on_progress: OnProgress | None, index: int, pictures: int, parts: dict[str, int]) -> None:
        whole = sum(parts.values())
        self.on_progress, self.total = on_progress, whole * pictures
        self.starts: dict[str, tuple[int, int]] = {}
        start = index * whole
        for name, share in parts.items():
            self.starts[name] = (start, share)
            start += share

    def part(self, name: str) -> OnProgress:
        """To be called with a part's own (done, total)."""
        start, share = self.starts[name]

        def tell(done: int, total: int) -> None:
            if self.on_progress:
                self.on_progress(start + share * done // max(1, total), self.total)

        return tell
