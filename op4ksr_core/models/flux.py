"""The Flux transformer, any depth and width, with the rescalable positions of ``rope``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import ImageError, OptionError
from ..plain_text import plain
from .flux_layers import TIME_CHANNELS, DoubleStreamBlock, LastLayer, MLPEmbedder, SingleStreamBlock, timestep_embedding
from .latent import PATCH, pack, position_ids, unpack
from .rope import FLUX_THETA, RescaledEmbedND, Rfr

OnProgress = Callable[[int, int], None]

#: What of the autoencoder's posterior the transformer is given: its mean, or a sample of it.
Encode = Literal["mean", "sample"]
ENCODES: tuple[Encode, ...] = get_args(Encode)

#: What the model's latents are for: a picture by themselves, or the difference of two decoded ones, which is added to
#: the enlarged input as detail.
Output = Literal["picture", "detail"]
OUTPUTS: tuple[Output, ...] = get_args(Output)

#: Our choice where a file names none: the middle of the flow.
DEFAULT_SIGMA = 0.5
#: FLUX.1-dev's usual guidance, and the host's default.
DEFAULT_GUIDANCE = 3.5
#: The largest that ComfyUI's FluxGuidance takes; far above, the embedding of it overflows.
GUIDANCE_LIMIT = 100
#: Tokens per side that a file may claim. Our choice: 32 px each, so pictures of 3 million px a side.
TOKENS_LIMIT = 100_000


@dataclass(frozen=True)
class FluxParams:
    """Geometry of one transformer. The defaults are FLUX.1-dev's."""

    hidden_size: int = 3072
    num_heads: int = 24
    depth: int = 19
    depth_single_blocks: int = 38
    in_channels: int = 16
    context_in_dim: int = 4096
    vec_in_dim: int = 768
    mlp_ratio: float = 4.0
    guidance_embed: bool = True
    axes_dim: tuple[int, int, int] = (16, 56, 56)
    theta: tuple[float, float] = (FLUX_THETA, FLUX_THETA)

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is no multiple of num_heads {self.num_heads}")
        head = self.hidden_size // self.num_heads
        if sum(self.axes_dim) != head:
            raise ValueError(f"axes_dim {self.axes_dim} sum to {sum(self.axes_dim)}, but a head has {head} channels")
        if any(dim % 2 for dim in self.axes_dim):
            raise ValueError(f"axes_dim must be even, got {self.axes_dim}")


def split_head(head: int) -> tuple[int, int, int]:
    """Flux's split of a head's channels over (text, rows, columns): 1/8, 7/16, 7/16 (16, 56, 56 of 128)."""
    image = head * 7 // 16
    return head - 2 * image, image, image


@dataclass(frozen=True)
class OneStepSettings:
    """The constants a one-step model was trained with; they travel with its weights."""

    sigma: float = DEFAULT_SIGMA
    guidance: float = DEFAULT_GUIDANCE
    #: Prompt embedding (T, context_in_dim) and pooled (vec_in_dim,); None: one zero token, zeros.
    txt: Tensor | None = None
    vec: Tensor | None = None
    #: Tokens per side seen in training; None if unknown.
    train_tokens: int | None = None
    #: How the input is encoded: by the posterior's mean, or by a seeded sample of it.
    encode: Encode = "mean"
    #: Whether its result is the picture, or detail for an enlarged one.
    output: Output = "picture"
    #: How much damage it is recommended to undo, 0 to 1, and the sigma at 1 (None: ``sigma`` at any).
    repair: float = 0.0
    sigma_repair: float | None = None

    def __post_init__(self) -> None:
        check_sigma(self.sigma)
        check_repair(self.repair)
        if self.sigma_repair is not None:
            check_sigma(self.sigma_repair, "sigma_repair")
        if self.output not in OUTPUTS:
            raise OptionError(f"output: expected {' or '.join(OUTPUTS)}, got {plain(self.output)}")
        if self.encode not in ENCODES:
            raise OptionError(f"encode: expected {' or '.join(ENCODES)}, got {plain(self.encode)}")
        if not 0 <= self.guidance <= GUIDANCE_LIMIT:
            raise OptionError(f"guidance: expected 0 to {GUIDANCE_LIMIT}, got {plain(self.guidance)}")
        if self.train_tokens is not None and not 1 <= self.train_tokens <= TOKENS_LIMIT:
            raise OptionError(f"train_tokens: expected 1 to {TOKENS_LIMIT} per side, got {plain(self.train_tokens)}")


def check_sigma(sigma: float, name: str = "sigma") -> float:
    """The sigma itself; OptionError, with the name, unless it is above 0 and at most 1."""
    if not 0 < sigma <= 1:
        raise OptionError(f"{name}: expected above 0 and at most 1, got {plain(sigma)}")
    return sigma


def check_repair(repair: float) -> float:
    """The repair itself; OptionError unless it is from 0 to 1."""
    if not 0 <= repair <= 1:
        raise OptionError(f"repair: expected 0 to 1, got {plain(repair)}")
    return repair


def sigma_at(settings: OneStepSettings, repair: float) -> float:
    """The sigma for a repair in [0, 1]: the model's own at 0, its ``sigma_repair`` at 1. Linear between: our choice."""
    if settings.sigma_repair is None:
        return settings.sigma
    return settings.sigma + repair * (settings.sigma_repair - settings.sigma)


class Flux(nn.Module):
    """Velocity of the rectified flow. ``operations`` supplies Linear (torch.nn, or the host's)."""

    def __init__(
        self,
        params: FluxParams,
        settings: OneStepSettings | None = None,
        *,
        operations: Any = nn,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        kw: dict[str, Any] = {"device": device, "dtype": dtype}
        self.params = params
        self.settings = settings or OneStepSettings()
        hidden, heads, ratio = params.hidden_size, params.num_heads, params.mlp_ratio
        tokens = params.in_channels * PATCH * PATCH
        self.pe_embedder = RescaledEmbedND(params.axes_dim, params.theta)
        self.img_in = operations.Linear(tokens, hidden, **kw)
        self.time_in = MLPEmbedder(TIME_CHANNELS, hidden, operations, **kw)
        self.vector_in = MLPEmbedder(params.vec_in_dim, hidden, operations, **kw)
        if params.guidance_embed:
            self.guidance_in = MLPEmbedder(TIME_CHANNELS, hidden, operations, **kw)
        self.txt_in = operations.Linear(params.context_in_dim, hidden, **kw)
        self.double_blocks = nn.ModuleList(
            DoubleStreamBlock(hidden, heads, ratio, operations, **kw) for _ in range(params.depth)
        )
        self.single_blocks = nn.ModuleList(
            SingleStreamBlock(hidden, heads, ratio, operations, **kw) for _ in range(params.depth_single_blocks)
        )
        self.final_layer = LastLayer(hidden, tokens, operations, **kw)

    @property
    def dtype(self) -> torch.dtype:
        """The weights'."""
        return self.img_in.weight.dtype

    @property
    def device(self) -> torch.device:
        """The weights'."""
        return self.img_in.weight.device

    def prompt(self, batch: int) -> tuple[Tensor, Tensor]:
        """The settings' prompt embedding (batch, T, context_in_dim) and pooled (batch, vec_in_dim)."""
        txt, vec = self.settings.txt, self.settings.vec
        if txt is None:
            txt = torch.zeros(1, self.params.context_in_dim)
        if vec is None:
            vec = torch.zeros(self.params.vec_in_dim)
        txt, vec = (t.to(self.device, self.dtype) for t in (txt, vec))
        return txt[None].expand(batch, -1, -1), vec[None].expand(batch, -1)

    def forward(
        self,
        latent: Tensor,
        sigma: Tensor,
        txt: Tensor,
        vec: Tensor,
        guidance: Tensor | None = None,
        *,
        rfr: Rfr | None = None,
        on_progress: OnProgress | None = None,
    ) -> Tensor:
        """Velocity (B, C, h, w) of a processed latent (B, C, h, w), h and w even.

        sigma (B,) in (0, 1]; txt (B, T, context_in_dim), T >= 1; vec (B, vec_in_dim); guidance (B,),
        ignored by a model that is not guidance-distilled. ``rfr`` overrides the positions for this call.
        ``on_progress(done, blocks)`` runs after each block and may raise to cancel.
        Raises ImageError for a latent of another shape.
        """
        if latent.ndim != 4 or latent.shape[1] != self.params.in_channels or any(s % PATCH for s in latent.shape[2:]):
            raise ImageError(f"latent: expected (B, {self.params.in_channels}, even, even), got {tuple(latent.shape)}")
        rows, columns = latent.shape[2] // PATCH, latent.shape[3] // PATCH
        total = len(self.double_blocks) + len(self.single_blocks)
        cond = self.time_in(timestep_embedding(sigma).to(latent.dtype)) + self.vector_in(vec)
        if self.params.guidance_embed:
            if guidance is None:
                guidance = torch.full_like(sigma, self.settings.guidance)
            cond = cond + self.guidance_in(timestep_embedding(guidance).to(latent.dtype))
        img, txt = self.img_in(pack(latent)), self.txt_in(txt)
        embedder = self.pe_embedder if rfr is None else self.pe_embedder.with_rfr(rfr)
        pe = embedder(position_ids(txt.shape[1], rows, columns).to(latent.device))
        for i, block in enumerate(self.double_blocks):
            img, txt = block(img, txt, cond, pe)
            if on_progress:
                on_progress(i + 1, total)
        x = torch.cat((txt, img), dim=1)
        for i, block in enumerate(self.single_blocks):
            x = block(x, cond, pe)
            if on_progress:
                on_progress(len(self.double_blocks) + i + 1, total)
        return unpack(self.final_layer(x[:, txt.shape[1] :], cond), rows, columns)
