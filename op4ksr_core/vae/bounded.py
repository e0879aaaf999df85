"""Any autoencoder of LDM's layout in strips that fit the free memory; leaner ones where they ran out of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ImageError, OptionError
from ..machine import explain_out_of_memory, free_memory, is_out_of_memory, release_memory
from .estimate import Stage, choose_strips
from .layers import AutoEncoderParams
from .retry import Result, recovering
from .strip_maps import ReadWeights, own_weights
from .strips import OnStrip, Rows, StripSettings, decode_picture, encode_picture


class BoundedAutoEncoder:
    """An encoder and a decoder, ours or any of the same layout (the host's own), run in strips.

    It holds no weights. ``free_memory(device)`` (bytes, None if unknown), ``release_memory()``,
    ``is_oom(error)`` and ``read_weights`` may be a host's; without the last, modules whose weights a host changes as it
    casts them are refused.
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
        read_weights: ReadWeights = own_weights,
    ) -> None:
        self.encoder, self.decoder = encoder, decoder
        self.read_weights = read_weights
        self.params = params or read_params(encoder, decoder)
        self._checked = params is None
        self._check_patches()
        self.free_memory, self.release_memory, self.is_oom = free_memory, release_memory, is_oom

    def params_of(self, stage: Stage) -> AutoEncoderParams:
        """The geometry of the half that the stage runs; some VAEs have a smaller decoder."""
        return self.params if stage == "decode" else replace(self.params, widths=_widths(self.encoder.down))

    def encode(
        self,
        pixels: Tensor,
        prepare: Callable[[Tensor], Tensor],
        device: torch.device,
        dtype: torch.dtype,
        on_strip: OnStrip | None = None,
        strips: StripSettings | None = None,
    ) -> Tensor:
        """Pixels (B, 3, H, W), anywhere -> the encoder's output (B, 2 C, h, w): mean, then log variance.

        prepare: a strip of the pixels -> the same in [-1, 1], in ``dtype`` on ``device``. strips: None: by the free
        memory. Raises ImageError for sides shorter than the ratio, OutOfMemoryError when even the settings that need
        least fail, OptionError if the modules were changed so that strips would be wrong.
        """
        height, width = pixels.shape[2:]
        check_size(height, width, self.params.ratio)
        self._check()
        settings = strips or self._chosen("encode", height, width, device, dtype)

        def encode_one(one: Tensor) -> Tensor:
            def run(settings: StripSettings) -> Tensor:
                return encode_picture(
                    self.encoder, height, lambda a, b: prepare(one[:, :, a:b]), settings, on_strip, self.read_weights
                )

            return self._run("encode", run, settings, height, width)

        with torch.no_grad(), explain_out_of_memory("VAE encode", self.is_oom):
            return torch.cat([encode_one(one) for one in pixels.split(1)])

    def decode(
        self,
        latent: Tensor,
        out: Tensor | None = None,
        on_strip: OnStrip | None = None,
        strips: StripSettings | None = None,
    ) -> Tensor:
        """Raw latent (B, C, h, w) -> (B, 3, H, W), about [-1, 1], each strip written as it is done.

        out: where to, any device and float dtype; None: a new tensor beside the latent, float32 at least. strips:
        None: by the free memory. Raises OutOfMemoryError when even the settings that need least fail, OptionError as
        ``encode``.
        """
        height, width = (length * self.params.ratio for length in latent.shape[2:])
        self._check()
        exact = torch.promote_types(latent.dtype, torch.float32)
        result = len(latent) * 3 * height * width * exact.itemsize if out is None else 0
        settings = strips or self._chosen("decode", height, width, latent.device, latent.dtype, beside=result)
        with torch.no_grad(), explain_out_of_memory("VAE decode", self.is_oom):
            if out is None:
                out = latent.new_empty((len(latent), 3, height, width), dtype=exact)
            for one, place in zip(latent.split(1), out.split(1), strict=True):
                self._decode_one(one, place, settings, on_strip)
        return out

    def decode_into(
        self, latent: Tensor, out: Rows, on_strip: OnStrip | None = None, strips: StripSettings | None = None
    ) -> None:
        """As ``decode``, one raw latent (1, C, h, w), into anything that takes rows.

        Where strips ran out of memory it begins again, so that rows may be written twice: the same to rounding.
        """
        height, width = (length * self.params.ratio for length in latent.shape[2:])
        self._check()
        settings = strips or self._chosen("decode", height, width, latent.device, latent.dtype)
        with torch.no_grad(), explain_out_of_memory("VAE decode", self.is_oom):
            self._decode_one(latent, out, settings, on_strip)

    def _decode_one(self, latent: Tensor, out: Rows, settings: StripSettings, on_strip: OnStrip | None) -> None:
        def run(settings: StripSettings) -> None:
            decode_picture(self.decoder, latent, settings, out, on_strip, self.read_weights)

        self._run("decode", run, settings, *(length * self.params.ratio for length in latent.shape[2:]))

    def _check(self) -> None:
        """Modules of others may have been changed since: circular padding, hooks, patches."""
        if self._checked:
            read_params(self.encoder, self.decoder)
            self._check_patches()

    def _check_patches(self) -> None:
        """What changes a weight as it is cast is in the host's reading of it, and in no other."""
        if self._checked and self.read_weights is own_weights:
            changed = (getattr(m, name, ()) for half in (self.encoder, self.decoder) for m in half.modules()
                       for name in ("weight_function", "bias_function"))  # fmt: skip
            _demand(not any(changed), _CHANGED)

    def _chosen(
        self, stage: Stage, height: int, width: int, device: torch.device, dtype: torch.dtype, beside: int = 0
    ) -> StripSettings:
        return choose_strips(self.params_of(stage), stage, height, width, dtype, self.free_memory(device), beside)

    def _run(
        self, stage: Stage, run: Callable[[StripSettings], Result], settings: StripSettings, height: int, width: int
    ) -> Result:
        what = f"VAE {stage} of {width}x{height} px"
        return recovering(run, settings, what, self.release_memory, self.is_oom)


def check_size(height: int, width: int, ratio: int) -> None:
    """Raise ImageError for a picture of which nothing would be left."""
    if min(height, width) < ratio:
        raise ImageError(
            f"image: {width}x{height} px is smaller than one latent pixel ({ratio} px); pad or enlarge it first"
        )


def read_params(encoder: Any, decoder: Any) -> AutoEncoderParams:
    """The geometry of two modules, read off them. Raises OptionError unless strips can run them exactly."""
    try:
        _check_half(encoder, encoder.down)
        _check_half(decoder, decoder.up)
        _demand(not getattr(decoder, "tanh_out", False) and not getattr(decoder, "give_pre_end", False), "has a tanh")
        stride = encoder.conv_in.stride[0]
        _check_conv(encoder.conv_in, stride=stride)
        _check_conv(decoder.conv_in)
        _demand(stride == getattr(decoder, "stride", 1), "was changed to 16x by another node pack")
        _demand(len(encoder.down) == len(decoder.up), "has an encoder unlike its decoder")
        return AutoEncoderParams(
            widths=_widths(decoder.up),
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

_CHANGED = "was changed by another node pack"

#: The parts that strips run, by what they are in; anything beside them would be left out silently.
_KNOWN = {
    "half": {"conv_in", "mid", "up", "down", "norm_out", "conv_out"},
    "mid": {"block_1", "attn_1", "block_2"},
    "level": {"block", "attn", "upsample", "downsample"},
    "block": {"norm1", "conv1", "norm2", "conv2", "nin_shortcut", "dropout", "swish"},
}


def _widths(levels: Any) -> tuple[int, ...]:
    return tuple(int(level.block[0].conv1.out_channels) for level in levels)


def _check_half(half: Any, levels: Any) -> None:
    """An encoder or a decoder: only parts that strips know, and each of them as they run it."""
    _check_parts(half, "half")
    _check_parts(half.mid, "mid")
    blocks = [half.mid.block_1, half.mid.block_2]
    for level in levels:
        _demand(not len(getattr(level, "attn", ())), "has attention between its blocks")
        _check_parts(level, "level")
        blocks += list(level.block)
        if hasattr(level, "upsample"):
            _check_conv(level.upsample.conv)
        if hasattr(level, "downsample"):
            _check_conv(level.downsample.conv, stride=2, padding=0)
    for block in blocks:
        _demand(not hasattr(block, "conv_shortcut"), "has 3x3 shortcuts")
        _check_parts(block, "block")
        for conv in (block.conv1, block.conv2):
            _check_conv(conv)
        if hasattr(block, "nin_shortcut"):
            _check_conv(block.nin_shortcut, kernel=1, padding=0)
        for norm in (block.norm1, block.norm2):
            _check_norm(norm)
    _check_conv(half.conv_out)
    _check_norm(half.norm_out)


def _check_parts(module: Any, kind: str) -> None:
    names = {name for name, part in module._modules.items() if part is not None}
    _demand(names <= _KNOWN[kind], f"has parts of another kind ({', '.join(sorted(names - _KNOWN[kind]))})")
    _check_own_ways(module)


def _check_conv(conv: Any, *, kernel: int = 3, stride: int = 1, padding: int = 1) -> None:
    wanted = ((kernel, kernel), (stride, stride), (padding, padding), (1, 1), 1)
    plain = isinstance(conv, nn.Conv2d) and not list(conv.children())
    plain = plain and (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups) == wanted
    _demand(plain, "has other convolutions")
    _demand(conv.padding_mode == "zeros", "was changed by another node pack (its padding)")
    _check_own_ways(conv)


def _check_norm(norm: Any) -> None:
    _demand(isinstance(norm, nn.GroupNorm), "has other norms")
    _check_own_ways(norm)


def _check_own_ways(module: Any) -> None:
    """Nothing hung onto this one module that calling it would run, and strips would not."""
    own = {"forward", "_conv_forward"} & set(vars(module))
    hooks = module._forward_pre_hooks or module._forward_hooks
    _demand(not (own or hooks), _CHANGED)


def _demand(condition: bool, otherwise: str) -> None:
    if not condition:
        raise OptionError(f"VAE: {_NOT_OURS.format(otherwise)}")
