"""Any autoencoder of LDM's layout within the memory there is: strips that fit, thriftier ones if they did not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .autoencoder_layers import AutoEncoderParams
from .errors import OptionError
from .machine import free_memory, release_memory
from .memory import Result, Stage, choose_strips, is_out_of_memory, out_of_memory_told, recovering
from .strips import OnStrip, StripSettings, decode_picture, encode_picture

#: Which settings each stage shall run with; a stage that is not named is decided by the free memory.
StripWish = Mapping[Stage, StripSettings]


class BoundedAutoEncoder:
    """An encoder and a decoder, ours or any of the same layout (the host's own), run in strips.

    It holds no weights. ``free_memory(device)`` (bytes, None if unknown), ``release_memory()`` and
    ``is_oom(error)`` may be a host's.
    """

    def __init__(
        self,
        encoder: Any,
        decoder: Any,
        params: AutoEncoderParams | None = None,
        *,
        free_memory: Callable[[torch.device], int | None] = free_memory,
        release_memory: Callable[[], None] = release_memory,
        is_oom: Callable[[BaseException], bool] = is_out_of_memory,
    ) -> None:
        self.encoder, self.decoder = encoder, decoder
        self.params = params or read_params(encoder, decoder)
        self.free_memory, self.release_memory, self.is_oom = free_memory, release_memory, is_oom
        self.wish: StripWish = {}

    def encode(
        self,
        pixels: Tensor,
        prepare: Callable[[Tensor], Tensor],
        device: torch.device,
        dtype: torch.dtype,
        on_strip: OnStrip | None = None,
    ) -> Tensor:
        """Pixels (B, 3, H, W), anywhere -> the encoder's output (B, 2 C, h, w): mean, then log variance.

        prepare: a strip of the pixels -> the same in [-1, 1], in ``dtype`` on ``device``.
        Raises OutOfMemoryError when even the thriftiest way fails.
        """

        def encode_one(one: Tensor) -> Tensor:
            def run(settings: StripSettings) -> Tensor:
                height = one.shape[2]
                return encode_picture(self.encoder, height, lambda a, b: prepare(one[:, :, a:b]), settings, on_strip)

            return self._run("encode", run, one.shape[2], one.shape[3], device, dtype)

        with out_of_memory_told("VAE encode", self.is_oom):
            return torch.cat([encode_one(one) for one in pixels.split(1)])

    def decode(self, latent: Tensor, out: Tensor | None = None, on_strip: OnStrip | None = None) -> Tensor:
        """Raw latent (B, C, h, w) -> (B, 3, H, W), about [-1, 1], each strip written as it is done.

        out: where to, any device and float dtype; None: a new tensor beside the latent. Raises
        OutOfMemoryError when even the thriftiest way fails.
        """
        height, width = (length * self.params.ratio for length in latent.shape[2:])
        with out_of_memory_told("VAE decode", self.is_oom):
            if out is None:
                out = latent.new_empty((len(latent), 3, height, width))
            for one, place in zip(latent.split(1), out.split(1), strict=True):

                def run(settings: StripSettings, one: Tensor = one, place: Tensor = place) -> None:
                    decode_picture(self.decoder, one, settings, place, on_strip)

                self._run("decode", run, height, width, latent.device, latent.dtype)
        return out

    def _run(
        self,
        stage: Stage,
        run: Callable[[StripSettings], Result],
        height: int,
        width: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> Result:
        settings = self.wish.get(stage)
        if settings is None:
            settings = choose_strips(self.params, stage, height, width, dtype, self.free_memory(device))
        what = f"VAE {stage} of {width}x{height} px"
        return recovering(run, settings, what, self.release_memory, self.is_oom)


def read_params(encoder: Any, decoder: Any) -> AutoEncoderParams:
    """The geometry of two modules, read off them. Raises OptionError unless strips can run them exactly."""
    try:
        blocks = [block for level in (*encoder.down, *decoder.up) for block in level.block]
        blocks += [block for part in (encoder, decoder) for block in (part.mid.block_1, part.mid.block_2)]
        for level in (*encoder.down, *decoder.up):
            _demand(not len(getattr(level, "attn", ())), "has attention between its blocks")
        for block in blocks:
            _demand(not hasattr(block, "conv_shortcut"), "has 3x3 shortcuts")
            _demand(all(_plain_conv(conv) for conv in (block.conv1, block.conv2)), "has other convolutions")
            _demand(all(isinstance(norm, nn.GroupNorm) for norm in (block.norm1, block.norm2)), "has other norms")
        for part in (encoder, decoder):
            _demand(_plain_conv(part.conv_out), "has other convolutions")
            _demand(isinstance(part.norm_out, nn.GroupNorm), "has other norms")
        _demand(not getattr(decoder, "tanh_out", False) and not getattr(decoder, "give_pre_end", False), "has a tanh")
        stride = encoder.conv_in.stride[0]
        _demand(stride == getattr(decoder, "stride", 1), "was changed to 16x by another node pack")
        _demand(not decoder.conv_out._forward_pre_hooks, "was changed by another node pack")
        widths = tuple(int(level.block[0].conv1.out_channels) for level in decoder.up)
        _demand(len(encoder.down) == len(widths), "has an encoder unlike its decoder")
        return AutoEncoderParams(
            widths=widths,
            layers_per_block=len(encoder.down[0].block),
            latent_channels=int(decoder.conv_in.in_channels),
            norm_groups=int(decoder.norm_out.num_groups),
            mid_attention=hasattr(decoder.mid, "attn_1"),
            stride=stride,
            shift=getattr(decoder, "shift", 0),
        )
    except (AttributeError, TypeError, IndexError, ValueError) as error:
        raise OptionError(f"VAE: {_NOT_OURS.format('has other layers')} ({error})") from error


_NOT_OURS = "{}, so it cannot run in exact strips; choose a Flux-type picture VAE, or leave this node out"


def _demand(condition: bool, otherwise: str) -> None:
    if not condition:
        raise OptionError(f"VAE: {_NOT_OURS.format(otherwise)}")


def _plain_conv(conv: Any) -> bool:
    return isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3) and conv.padding == (1, 1) and conv.groups == 1
