"""The sections of a training config, one frozen dataclass each: every key, its default and its limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from ..errors import OptionError
from ..models.enlarger import EnlargerParams
from ..models.rope import FLUX_TRAIN_TOKENS, Policy, Rfr
from .config_limits import (
    Amount,
    AtOnce,
    Count,
    Decay,
    Few,
    FewOrNone,
    Natural,
    Positive,
    Rate,
    Share,
    Side,
    Tokens,
    TokenSide,
    Width,
    Within,
)
from .tasks.frozen import Base

#: In place of a file name: the weights that come with the pack.
BUNDLED = "bundled"

Distance = Literal["l1", "l2", "charbonnier"]
LatentDistance = Literal["l1", "l2", "charbonnier", "bands"]
Perceptual = Literal["gmsd", "ms_gmsd", "haarpsi", "ssim", "lpips", "dists", "efficientnet"]


@dataclass(frozen=True)
class ModelConfig:
    """What is trained. Geometry is used for a new model only; with ``start`` the file has its own."""

    #: Weights to start from: a file, "bundled", or "" for a new model (kind lora needs one).
    start: str = ""
    #: The frozen autoencoder of kinds one_step and lora, and the one that kind detail starts from: a file or "bundled";
    #: of kind detail also "", a new one.
    autoencoder: str = BUNDLED
    #: Of kind detail: the frozen enlarger that makes the base, a file or "bundled".
    enlarger: str = BUNDLED
    #: Of the autoencoder's file: 1 (it compresses 8x, as Flux's own) or 2 (16x); 0: as the file says, else 16x.
    stride: Literal[0, 1, 2] = 0
    #: Of an autoencoder: train all of it, or the decoder alone. A transformer trained for the old one fits that still.
    #: Kind detail: that part of the autoencoder beside the transformer, or "none" of it.
    part: Literal["all", "decoder", "none"] = "all"
    widths: Annotated[tuple[Width, ...], Within(min_length=1, max_length=8)] = (24, 48, 96, 96)
    norm_groups: Width = 6
    layers_per_block: Few = 2
    mid_attention: bool = False
    hidden_size: Width = 256
    num_heads: Few = 2
    depth: Few = 1
    depth_single_blocks: FewOrNone = 2
    context_in_dim: Width = 64
    vec_in_dim: Width = 32
    prompt_tokens: AtOnce = 4
    #: Noise level of the one step, in (0, 1]; None: the start file's, or 0.5.
    sigma: Annotated[float, Within(gt=0, le=1)] | None = None
    #: Of kind detail: the noise level where damage is worst; in between it grows with the damage's strength.
    sigma_repair: Annotated[float, Within(gt=0, le=1)] | None = None
    #: Tokens per side that the model is trained for; written into its file, and larger pictures cause a warning.
    train_tokens: Tokens = 128
    lora_rank: Width = 16
    lora_alpha: Annotated[float, Within(ge=-65_536, le=65_536)] = 16.0
    #: The blocks' linear layers that get an adapter, by the last word of their names.
    lora_targets: tuple[str, ...] = ("qkv", "proj", "0", "2", "linear1", "linear2")

    def __post_init__(self) -> None:
        if not self.start and any(width % self.norm_groups for width in self.widths):
            raise OptionError(
                f"model.widths: expected multiples of model.norm_groups ({self.norm_groups}), got {self.widths}; "
                "change one of the two"
            )
        if not self.start and self.hidden_size % (32 * self.num_heads):
            raise OptionError(
                f"model.hidden_size: expected a multiple of 32 channels for each of the {self.num_heads} heads, got "
                f"{self.hidden_size}; change one of the two"
            )


@dataclass(frozen=True)
class EnlargerConfig:
    """A new enlarger's geometry and its batches, of one factor each. With ``model.start`` the file has its own, but for
    ``blocks`` above the file's: then that many, of which the new ones begin as identities."""

    #: Features per pixel, and residual blocks of two convolutions each.
    width: Width = 48
    blocks: Few = 8
    #: Whole numbers, ascending; and how often batches have each, as weights.
    factors: Annotated[tuple[Annotated[int, Within(ge=2, le=16)], ...], Within(min_length=1)] = (2, 3, 4)
    often: tuple[Amount, ...] = (1.0, 1.0, 4.0)
    #: ``degradation.clean`` is the share of pictures that are only shrunk. Share, of the others, that get one round of
    #: damage after shrinking in place of the second-order scheme before it. ``degradation.factor`` has no say.
    simple: Share = 0.5

    def params(self) -> EnlargerParams:
        """The geometry of a new model."""
        return EnlargerParams(self.width, self.blocks, self.factors)

    def __post_init__(self) -> None:
        if len(self.often) != len(self.factors) or not sum(self.often):
            raise OptionError(
                f"enlarger.often: expected a weight for each of the factors {self.factors}, not all of them 0, "
                f"got {self.often}; change one of the two"
            )
        try:
            self.params()
        except ValueError as error:
            raise OptionError(f"enlarger.factors: {error}; change them") from error


@dataclass(frozen=True)
class RfrConfig:
    """RFR for the run: resolved once into numbers, which are written into the trained file."""

    policy: Policy = "checkpoint"
    #: One number, or rows and columns (policy "theta").
    theta: Annotated[tuple[Annotated[float, Within(gt=1, le=1e15)], ...], Within(max_length=2)] = ()
    turns: Annotated[float, Within(ge=1e-6, le=1e6)] = 0.5
    tokens: Annotated[tuple[Tokens, ...], Within(min_length=1, max_length=2)] = (128,)
    train_tokens: Tokens = FLUX_TRAIN_TOKENS

    def rfr(self) -> Rfr:
        """The policy that ``rope`` takes. Raises OptionError for numbers that it refuses."""
        theta = (self.theta[0], self.theta[-1]) if self.theta else None
        return Rfr(self.policy, theta, self.turns, (self.tokens[0], self.tokens[-1]), self.train_tokens)

    def __post_init__(self) -> None:
        self.rfr()


@dataclass(frozen=True)
class DataConfig:
    """Where pictures come from, and how they are cut."""

    source: Literal["procedural", "folder", "shards"] = "procedural"
    #: The folder (with its subfolders), or the shards, local files: "a/{000..009}.tar".
    path: str = ""
    #: Procedural: how many pictures are made beforehand and of what side, px; 0: a new one for each crop.
    pictures: Natural = 480
    picture_side: Side = 512
    #: Folder that keeps them; "" is the run's own. Several runs may share it.
    cache: str = ""
    #: Side of a crop, px, a multiple of 32. From the share ``late_from`` of the steps on, another side and batch.
    crop: TokenSide = 96
    late_from: Share = 1.0
    late_crop: TokenSide = 160
    late_batch: AtOnce = 4
    #: Share of the crops taken at twice the side and shrunk.
    shrunk: Share = 0.5
    #: Processes that make batches; 0: they are made by the training's own process.
    workers: FewOrNone = 0
    #: Of a transformer: how many crops are made, damaged and encoded once and kept in the cache; 0: new ones each step.
    cached: Natural = 0

    @property
    def crops(self) -> dict[str, int]:
        """The sides that crops have in a run, by their keys."""
        return {"crop": self.crop, **({"late_crop": self.late_crop} if self.late_from < 1 else {})}

    def __post_init__(self) -> None:
        if self.cached and self.late_from < 1:
            raise OptionError(
                f"data.cached: expected 0 where crops change later (data.late_from {self.late_from:g}), got "
                f"{self.cached}; set it to 0, or data.late_from to 1"
            )
        if self.source != "procedural" and not self.path:
            raise OptionError(f"data.path: source {self.source!r} needs one; name a folder, or shards")


@dataclass(frozen=True)
class LossConfig:
    """Weights of the loss's terms; 0 leaves a term out. All but ``latent`` and ``diversity`` look at pictures."""

    pixel: Amount = 1.0
    pixel_kind: Distance = "l1"
    #: Distance of the differences between neighbouring pixels, across and down.
    gradient: Amount = 0.5
    #: Distance of the spectra, at several scales.
    frequency: Amount = 0.0
    #: Distance of wavelet bands, each over its natural strength (``tasks.bands``).
    bands: Amount = 0.0
    latent: Amount = 0.1
    latent_kind: LatentDistance = "l1"
    #: Of a transformer: how alike its image tokens are after attention, FluxSR's (``tasks.diversity``).
    diversity: Amount = 0.0
    #: Of kind detail: distance of the base from itself, encoded and decoded.
    reconstruction: Amount = 0.0
    #: Of kind detail: RMS of what the step adds to every token alike, which is a mesh.
    common: Amount = 0.0
    #: L_AP, the paper's periodicity loss (``periodicity.loss``).
    periodicity: Amount = 0.0
    #: Share of each term on pictures that is taken of the output after back-projection (fidelity 1).
    projected: Share = 0.0
    #: L_AP's margin over chance, in standard errors; and the width of the border it leaves out, px, whole tokens.
    periodicity_margin: Amount = 0.0
    periodicity_border: Annotated[int, Within(ge=0, le=16_384)] = 32
    perceptual: Amount = 0.0
    perceptual_kind: Perceptual = "gmsd"
    adversarial: Amount = 0.0
    #: Share of the run after which the adversarial term begins to count.
    adversarial_from: Share = 0.5

    @property
    def sees_pictures(self) -> bool:
        """Whether any term looks at the decoded picture; without one a transformer's run decodes nothing."""
        return self.judges_pictures or bool(self.adversarial)

    @property
    def judges_pictures(self) -> bool:
        """Whether a term on pictures counts from the first step on, as the adversarial one does not."""
        names = ("pixel", "gradient", "frequency", "bands", "periodicity", "perceptual")
        return any(getattr(self, name) for name in names)


@dataclass(frozen=True)
class LoopConfig:
    """The loop: steps and batches, the optimizer (AdamW, linear warm-up, fall), the machine, and special steps."""

    steps: Count = 1000
    batch: AtOnce = 8
    #: Batches whose gradients are added up for one step.
    accumulate: AtOnce = 1
    rate: Rate = 1e-3
    warmup: Natural = 100
    #: The rate at the last step, as a share of ``rate``.
    final: Amount = 0.01
    #: How many steps at the end the rate takes to fall (a cosine) after it was held; 0: it falls all the time. A run
    #: whose length is open has more steps than it will take, and ends in a resumed one whose last steps fall.
    decay_steps: Natural = 0
    weight_decay: Amount = 1e-3
    #: Gradients whose norm is larger are shortened to it.
    clip: Positive = 1.0
    #: Decay of the running mean of the weights, which is what is saved.
    ema: Decay = 0.999
    precision: Literal["fp32", "bf16"] = "bf16"
    #: Of a LoRA: how the frozen model's blocks are held: as ``precision`` says, or in one byte a number (torchao).
    base: Base = "plain"
    #: Recompute activations in the backward pass: less memory, a third more time.
    checkpointing: bool = False
    #: "" is CUDA where there is one, else the CPU.
    device: str = ""
    #: CPU threads; 0 leaves torch's choice.
    threads: FewOrNone = 0
    #: Several GPUs: ``accelerate launch -m op4ksr_core train CONFIG`` (extra: train).
    accelerate: bool = False
    #: Of an autoencoder: deviation of the noise added to processed latents, so that its decoder learns to bear errors.
    latent_noise: Amount = 0.05
    #: Of a new autoencoder: how many steps at the beginning train only the linear map through its trunk (linear_start).
    linear_steps: Natural = 0
    #: The rate of those steps, with its own warm-up and cosine. Their only loss is the mean squared error.
    linear_rate: Rate = 2e-3
    #: Of a new autoencoder: share of the run after which its latents are scaled to unit deviation. Where there are
    #: linear steps, that is done at the end.
    unit_at: Share = 0.7
    #: Of kind detail: how many steps at the beginning train the autoencoder alone, to carry detail: its encoder is
    #: shown the sharp picture in the transformer's place.
    oracle_steps: Natural = 0
    #: Of a transformer: how many steps at the beginning use latents alone, cut from those of ``grid_pictures``.
    latent_steps: Natural = 0
    #: Of a transformer: one step in so many is on a large grid of latents, put together from whole pictures; 0: none.
    grid_every: Natural = 0
    #: The grids' sides in tokens, taken in turn. 128 are 4096 px.
    grid_tokens: Annotated[tuple[Tokens, ...], Within(min_length=1)] = (64, 128)
    #: How many pictures are encoded for grids and latent steps before the run.
    grid_pictures: Annotated[int, Within(ge=0, le=65_536)] = 64

    def __post_init__(self) -> None:
        for name in ("linear_steps", "latent_steps", "oracle_steps"):
            if getattr(self, name) >= self.steps:
                raise OptionError(
                    f"train.{name}: expected fewer than all {self.steps} steps, got {getattr(self, name)}; "
                    "lower it, or raise train.steps"
                )
        if (self.grid_every or self.latent_steps) and self.grid_pictures < 1:
            raise OptionError(f"train.grid_pictures: expected at least 1, got {self.grid_pictures}; raise it")
        if self.linear_steps and self.accelerate:
            raise OptionError(
                "train.linear_steps: works in one process only; set it to 0, or train.accelerate to false"
            )


@dataclass(frozen=True)
class OutputConfig:
    """What the run writes, and how often (in steps)."""

    log_every: Count = 10
    #: Weights and the state to resume from: a crash loses at most this many steps.
    save_every: Count = 200
    #: How many files of weights are kept in addition to the last.
    keep: Natural = 3
    sample_every: Natural = 200
    samples: FewOrNone = 3
    sample_side: Annotated[int, Within(ge=32, le=8192)] = 256
    #: Folder of the pictures that are shown; "": procedural ones that are never trained on.
    sample_folder: str = ""
    dtype: Literal["fp32", "fp16", "bf16"] = "fp16"
    tensorboard: bool = False
