"""The Flux autoencoder, whole: image <-> raw latent, 16x (F16) or, as the special case stride 1, 8x (F8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ImageError
from .bounded import BoundedAutoEncoder
from .layers import AutoEncoderParams, Decoder, Encoder
from .posterior import posterior_mean, posterior_sample
from .strips import OnStrip, StripSettings

__all__ = ["AutoEncoder", "AutoEncoderParams"]


class AutoEncoder(nn.Module):
    """Image <-> raw latent. ``operations`` supplies Conv2d and GroupNorm (torch.nn, or the host's)."""

    def __init__(
        self,
        params: AutoEncoderParams,
        *,
        operations: Any = nn,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(params, operations, device=device, dtype=dtype)
        self.decoder = Decoder(params, operations, device=device, dtype=dtype)
        #: Runs both in strips.
        self.bounded = BoundedAutoEncoder(self.encoder, self.decoder, params)

    @property
    def params(self) -> AutoEncoderParams:
        """The shapes of both halves, those that were given."""
        return self.bounded.params

    @property
    def dtype(self) -> torch.dtype:
        """The weights'."""
        return self.encoder.conv_in.weight.dtype

    @property
    def device(self) -> torch.device:
        """The weights'."""
        return self.encoder.conv_in.weight.device

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """The plain pass, for training: (B, 3, H, W) in [-1, 1] -> raw latent (B, C, H/ratio, W/ratio), mean."""
        return posterior_mean(self.encoder(pixels))

    def decode_pixels(self, latent: Tensor) -> Tensor:
        """The plain pass, for training: raw (B, C, h, w) -> (B, 3, h*ratio, w*ratio), about [-1, 1]."""
        return self.decoder(latent)

    def encode_strips(
        self, pixels: Tensor, on_strip: OnStrip | None = None, *, strips: StripSettings | None = None
    ) -> Tensor:
        """``encode_pixels`` in strips, picture by picture: the same to rounding, in bounded memory."""
        return posterior_mean(self._moments(pixels, lambda strip: strip, on_strip, strips))

    def decode_strips(
        self,
        latent: Tensor,
        on_strip: OnStrip | None = None,
        out: Tensor | None = None,
        *,
        strips: StripSettings | None = None,
    ) -> Tensor:
        """``decode_pixels`` in strips, written as they are done into ``out`` (any device, float dtype) if given."""
        return self.bounded.decode(latent, out, on_strip, strips)

    def _moments(
        self,
        pixels: Tensor,
        prepare: Callable[[Tensor], Tensor],
        on_strip: OnStrip | None,
        strips: StripSettings | None,
    ) -> Tensor:
        return self.bounded.encode(pixels, prepare, self.device, self.dtype, on_strip, strips)

    def encode(
        self,
        image: Tensor,
        on_strip: OnStrip | None = None,
        *,
        strips: StripSettings | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Image (B, 3, H, W), float in [0, 1] -> raw latent (B, C, H/ratio, W/ratio): the posterior's mean.

        With a ``seed`` a sample of the posterior instead, as ``posterior_sample`` draws it.

        Computed in the weights' dtype on the weights' device. A side that is no multiple of the
        ratio is rounded as the convolutions have it; ``upscale`` pads beforehand.
        ``on_strip(done, total)`` runs before each strip and may raise to cancel. strips: how the pass is cut, which
        the result does not show; None: by the free memory. Raises ImageError for another shape, or for sides shorter
        than the ratio; OutOfMemoryError when even the settings that need least fail.
        """
        if image.ndim != 4 or image.shape[1] != 3:
            raise ImageError(f"image: expected (B, 3, H, W), got {tuple(image.shape)}")
        moments = self._moments(image, self._prepared, on_strip, strips)
        return posterior_mean(moments) if seed is None else posterior_sample(moments, seed)

    def _prepared(self, strip: Tensor) -> Tensor:
        """A strip in [0, 1] -> [-1, 1]. Rounded last: bfloat16 would lose half a grey level of the bright tones."""
        exact = torch.promote_types(self.dtype, torch.float32)
        return (strip.to(self.device, exact) * 2 - 1).to(self.dtype)

    def decode(
        self,
        latent: Tensor,
        on_strip: OnStrip | None = None,
        out: Tensor | None = None,
        *,
        strips: StripSettings | None = None,
    ) -> Tensor:
        """Raw latent (B, C, h, w) -> image (B, 3, h*ratio, w*ratio) clamped to [0, 1].

        Computed in the weights' dtype on the weights' device; the result is in ``out`` (any device and
        float dtype) if given, else float32 there, so that no grey levels are lost to bfloat16. ``on_strip``
        and strips as in ``encode``. Raises ImageError for another shape, OutOfMemoryError when even the settings that
        need least fail.
        """
        if latent.ndim != 4 or latent.shape[1] != self.params.latent_channels:
            raise ImageError(f"latent: expected (B, {self.params.latent_channels}, h, w), got {tuple(latent.shape)}")
        pixels = self.decode_strips(latent.to(self.device, self.dtype), on_strip, out, strips=strips)
        return pixels.add_(1).div_(2).clamp_(0, 1)

    def decode_onto(
        self,
        latent: Tensor,
        onto: Tensor,
        weight: float,
        on_strip: OnStrip | None = None,
        *,
        strips: StripSettings | None = None,
    ) -> None:
        """Add ``weight`` times what ``decode`` makes of one raw latent (1, C, h, w) to ``onto``, in place.

        onto: (1, 3, h*ratio, w*ratio) float32, any device. It is added strip by strip, so that the decoded picture
        itself is never held. Raises as ``decode``; ``onto`` is then of no use.
        """
        if len(latent) != 1 or latent.shape[1] != self.params.latent_channels:
            raise ImageError(f"latent: expected (1, {self.params.latent_channels}, h, w), got {tuple(latent.shape)}")
        self.bounded.decode_into(latent.to(self.device, self.dtype), _Added(onto, weight), on_strip, strips)


class _Added:
    """Takes a decoded picture's rows, about [-1, 1] and from top to bottom, and adds each to another's, once.

    Rows that come again, as where strips ran out of memory, were added before.
    """

    def __init__(self, onto: Tensor, weight: float) -> None:
        self.onto, self.weight, self.done = onto, weight, 0

    def __setitem__(self, place: tuple[slice, slice, slice], strip: Tensor) -> None:
        top, bottom = place[2].start, place[2].stop
        first = max(top, self.done)
        if first < bottom:
            rows = strip[:, :, first - top :].to(self.onto.device, torch.float32).add(1).div_(2).clamp_(0, 1)
            self.onto[:, :, first:bottom].add_(rows, alpha=self.weight)
            self.done = bottom
