"""What a training run is told: one TOML file -> frozen dataclasses, every unknown key refused by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .degradation import CLEAN, Degradation
from .enlarger_config import EnlargerConfig
from .errors import OptionError
from .frozen import Base
from .latent import PATCH
from .ranges import ABOVE_0, DECAY, FROM_0, FROM_1, FROM_32, SHARE, check_ranges
from .rope import FLUX_TRAIN_TOKENS, Policy, Rfr

Kind = Literal["autoencoder", "one_step", "lora", "enlarger"]

#: Kinds that train no transformer: they have no latent steps, grids or cached latents, and need a term on pictures.
NO_TRANSFORMER: tuple[Kind, ...] = ("autoencoder", "enlarger")

#: Width of the border that latent steps leave out, as the encoder saw zeros beyond it: px, one latent pixel at 16x.
RIM = 16

#: In place of a file name: the weights that come with the pack.
BUNDLED = "bundled"


@dataclass(frozen=True)
class ModelConfig:
    """What is trained. Geometry is used for a new model only; with ``start`` the file has its own."""

    #: Weights to go on from: a file, "bundled", or "" for a new model (kind lora needs one).
    start: str = ""
    #: The frozen autoencoder of kinds one_step and lora: a file or "bundled".
    autoencoder: str = BUNDLED
    #: Of an autoencoder: train all of it, or the decoder alone. A transformer trained for the old one fits that still.
    part: Literal["all", "decoder"] = "all"
    widths: tuple[int, ...] = (24, 48, 96, 96)
    norm_groups: int = 6
    layers_per_block: int = 2
    mid_attention: bool = False
    hidden_size: int = 256
    num_heads: int = 2
    depth: int = 1
    depth_single_blocks: int = 2
    context_in_dim: int = 64
    vec_in_dim: int = 32
    prompt_tokens: int = 4
    #: Noise level of the one step, in (0, 1]; None: the start file's, or 0.5.
    sigma: float | None = None
    #: Tokens per side that the model is trained for; written into its file, and larger pictures are warned of.
    train_tokens: int = 128
    lora_rank: int = 16
    lora_alpha: float = 16.0
    #: The blocks' linear layers that get an adapter, by the last word of their names.
    lora_targets: tuple[str, ...] = ("qkv", "proj", "0", "2", "linear1", "linear2")

    def __post_init__(self) -> None:
        sizes = ("layers_per_block", "norm_groups", "hidden_size", "num_heads", "depth", "context_in_dim", "vec_in_dim")
        numbers = ("widths", *sizes, "prompt_tokens", "train_tokens", "lora_rank")
        check_ranges("model", self, {FROM_1: numbers, FROM_0: ("depth_single_blocks",)})
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
class RfrConfig:
    """RFR for the run: resolved once into numbers, which are written into the trained file."""

    policy: Policy = "checkpoint"
    #: One number, or rows and columns (policy "theta").
    theta: tuple[float, ...] = ()
    turns: float = 0.5
    tokens: tuple[int, ...] = (128,)
    train_tokens: int = FLUX_TRAIN_TOKENS

    def rfr(self) -> Rfr:
        """The policy that ``rope`` takes. Raises OptionError for numbers that it refuses."""
        theta = (self.theta[0], self.theta[-1]) if self.theta else None
        return Rfr(self.policy, theta, self.turns, (self.tokens[0], self.tokens[-1]), self.train_tokens)

    def __post_init__(self) -> None:
        if len(self.theta) > 2 or len(self.tokens) not in (1, 2):
            raise OptionError(
                f"rfr: expected one or two numbers for theta and for tokens, got {self.theta} and {self.tokens}"
            )
        self.rfr()


@dataclass(frozen=True)
class DataConfig:
    """Where pictures come from, and how they are cut."""

    source: Literal["procedural", "folder", "shards"] = "procedural"
    #: The folder (searched through), or the shards: "a/{000..009}.tar".
    path: str = ""
    #: Procedural: how many pictures are made beforehand and of what side, px; 0: a new one for each crop.
    pictures: int = 480
    picture_side: int = 512
    #: Folder that keeps them; "" is the run's own. Several runs of one seed may share it.
    cache: str = ""
    #: Side of a crop, px, a multiple of 32. From the share ``late_from`` of the steps on, another side and batch.
    crop: int = 96
    late_from: float = 1.0
    late_crop: int = 160
    late_batch: int = 4
    #: Share of the crops taken at twice the side and shrunk.
    shrunk: float = 0.5
    #: Processes that make batches; 0: they are made by the training's own process.
    workers: int = 0
    #: Of a transformer: how many crops are made, damaged and encoded once and kept in the cache; 0: new ones each step.
    cached: int = 0

    def __post_init__(self) -> None:
        for name in ("crop", "late_crop"):
            side = getattr(self, name)
            if side < 32 or side % 32:
                raise OptionError(f"data.{name}: expected a multiple of 32 px (one token), got {side}")
        check_ranges(
            "data",
            self,
            {
                FROM_0: ("pictures", "workers"),
                FROM_1: ("late_batch",),
                FROM_32: ("picture_side",),
                SHARE: ("late_from", "shrunk"),
            },
        )
        if self.cached < 0 or (self.cached and self.late_from < 1):
            raise OptionError(
                f"data.cached: expected 0 or more, and no later crops beside it, got {self.cached}; "
                "set it to 0, or data.late_from to 1"
            )
        if self.source != "procedural" and not self.path:
            raise OptionError(f"data.path: source {self.source!r} needs one; name a folder, or shards")


@dataclass(frozen=True)
class LossConfig:
    """Weights of the loss's terms; 0 leaves a term out. All but ``latent`` look at pictures in [-1, 1]."""

    pixel: float = 1.0
    pixel_kind: Literal["l1", "l2", "charbonnier"] = "l1"
    #: Distance of the differences between neighbouring pixels, across and down.
    gradient: float = 0.5
    #: Distance of the spectra, at several scales.
    frequency: float = 0.0
    latent: float = 0.1
    latent_kind: Literal["l1", "l2", "charbonnier"] = "l1"
    #: L_AP, the paper's periodicity loss (``losses``).
    periodicity: float = 0.0
    #: Share of each term on pictures that is taken of the output after back-projection (fidelity 1).
    projected: float = 0.0
    #: L_AP's margin over chance, in standard errors; and the width of the border it leaves out, px, whole tokens.
    periodicity_margin: float = 0.0
    periodicity_border: int = 32
    perceptual: float = 0.0
    perceptual_kind: Literal["gmsd", "ms_gmsd", "haarpsi", "ssim", "lpips", "dists"] = "gmsd"
    adversarial: float = 0.0
    #: Share of the run after which the adversarial term begins to count.
    adversarial_from: float = 0.5

    @property
    def sees_pictures(self) -> bool:
        """Whether any term looks at the decoded picture; without one a transformer's run decodes nothing."""
        return self.judges_pictures or bool(self.adversarial)

    @property
    def judges_pictures(self) -> bool:
        """Whether a term on pictures counts from the first step on, as the adversarial one does not."""
        names = ("pixel", "gradient", "frequency", "periodicity", "perceptual")
        return any(getattr(self, name) for name in names)

    def __post_init__(self) -> None:
        weights = ("pixel", "gradient", "frequency", "latent", "periodicity", "perceptual", "adversarial")
        numbers = (*weights, "periodicity_margin", "periodicity_border")
        check_ranges("loss", self, {FROM_0: numbers, SHARE: ("projected", "adversarial_from")})


@dataclass(frozen=True)
class LoopConfig:
    """The loop: steps and batches, the optimizer (AdamW, linear warm-up, fall), the machine, and special steps."""

    steps: int = 1000
    batch: int = 8
    #: Batches whose gradients are added up for one step.
    accumulate: int = 1
    rate: float = 1e-3
    warmup: int = 100
    #: The rate at the last step, as a share of ``rate``.
    final: float = 0.01
    #: How many steps at the end the rate takes to fall (a cosine) after it was held; 0: it falls all the time. A run
    #: whose length is open has ``final = 1`` and ends in a resumed one with more steps, of which the last ones fall.
    decay_steps: int = 0
    weight_decay: float = 1e-3
    #: Gradients whose norm is larger are shortened to it.
    clip: float = 1.0
    #: Decay of the running mean of the weights, which is what is saved.
    ema: float = 0.999
    precision: Literal["fp32", "bf16"] = "bf16"
    #: Of a LoRA: how the frozen model's blocks are held: as ``precision`` says, or in one byte a number (torchao).
    base: Base = "plain"
    #: Recompute activations in the backward pass: less memory, a third more time.
    checkpointing: bool = False
    #: "" is CUDA where there is one, else the CPU.
    device: str = ""
    #: CPU threads; 0 leaves torch's choice.
    threads: int = 0
    #: Several GPUs: ``accelerate launch -m op4ksr_core train CONFIG`` (extra: train).
    accelerate: bool = False
    #: Of an autoencoder: deviation of the noise added to processed latents, so that its decoder learns to bear errors.
    latent_noise: float = 0.05
    #: Of a new autoencoder: how many steps at the beginning train only the linear map through its trunk (linear_start).
    linear_steps: int = 0
    #: The rate of those steps, with its own warm-up and cosine. Their only loss is the mean squared error.
    linear_rate: float = 2e-3
    #: Of a new autoencoder: share of the run after which its latents are scaled to unit deviation. Where there are
    #: linear steps, that is done at the end.
    unit_at: float = 0.7
    #: Of a transformer: how many steps at the beginning use latents alone, cut from those of ``grid_pictures``.
    latent_steps: int = 0
    #: Of a transformer: one step in so many is on a large grid of latents, put together from whole pictures; 0: none.
    grid_every: int = 0
    #: The grids' sides in tokens, taken in turn. 128 are 4096 px.
    grid_tokens: tuple[int, ...] = (64, 128)
    #: How many pictures are encoded for grids and latent steps before the run.
    grid_pictures: int = 64

    def __post_init__(self) -> None:
        rates = ("rate", "linear_rate", "final", "warmup", "decay_steps", "weight_decay")
        amounts = (*rates, "threads", "latent_noise", "grid_every")
        check_ranges(
            "train",
            self,
            {
                FROM_1: ("steps", "batch", "accumulate", "grid_tokens"),
                FROM_0: amounts,
                ABOVE_0: ("clip",),
                SHARE: ("unit_at",),
                DECAY: ("ema",),
            },
        )
        for name in ("linear_steps", "latent_steps"):
            if not 0 <= getattr(self, name) < self.steps:
                raise OptionError(
                    f"train.{name}: expected 0 or more, and fewer than all {self.steps} steps, "
                    f"got {getattr(self, name)}; lower it, or raise train.steps"
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

    log_every: int = 10
    #: Weights and the state to go on from: a crash loses at most this many steps.
    save_every: int = 200
    #: How many files of weights are kept besides the last.
    keep: int = 3
    sample_every: int = 200
    samples: int = 3
    sample_side: int = 256
    #: Folder of the pictures that are shown; "": procedural ones that are never trained on.
    sample_folder: str = ""
    dtype: Literal["fp32", "fp16", "bf16"] = "fp16"
    tensorboard: bool = False

    def __post_init__(self) -> None:
        check_ranges(
            "output",
            self,
            {
                FROM_1: ("log_every", "save_every"),
                FROM_0: ("keep", "sample_every", "samples"),
                FROM_32: ("sample_side",),
            },
        )


@dataclass(frozen=True)
class TrainConfig:
    """One training run. ``run`` is the folder that it writes."""

    kind: Kind
    run: str
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    enlarger: EnlargerConfig = field(default_factory=EnlargerConfig)
    rfr: RfrConfig = field(default_factory=RfrConfig)
    data: DataConfig = field(default_factory=DataConfig)
    degradation: Degradation = CLEAN
    loss: LossConfig = field(default_factory=LossConfig)
    train: LoopConfig = field(default_factory=LoopConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    @property
    def linear_steps(self) -> int:
        """``train.linear_steps`` where they apply: for a new autoencoder. One that has a start is no longer linear."""
        return 0 if self.model.start or self.kind != "autoencoder" else self.train.linear_steps

    @property
    def latent_steps(self) -> int:
        """``train.latent_steps`` where they apply: for a transformer."""
        return 0 if self.kind in NO_TRANSFORMER else self.train.latent_steps

    @property
    def cache_folder(self) -> Path:
        """Where pictures and pairs that are made once are kept."""
        return Path(self.data.cache) if self.data.cache else Path(self.run) / "cache"

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise OptionError(f"seed: expected a whole number from 0 up, got {self.seed}; change it")
        if not self.loss.judges_pictures and (self.kind in NO_TRANSFORMER or not self.loss.latent):
            raise OptionError(
                f'loss: no term that kind "{self.kind}" has in every step is above 0; give loss.pixel, or another, '
                "a weight"
            )
        if self.train.base != "plain" and self.kind != "lora":
            raise OptionError(
                f'train.base: "{self.train.base}" cannot be trained, and kind "{self.kind}" trains every weight; '
                'set it to "plain", or kind to "lora"'
            )
        if self.data.cached and (self.kind in NO_TRANSFORMER or self.train.accelerate):
            raise OptionError(
                'data.cached: is for kinds "one_step" and "lora" in one process; '
                "set it to 0, or train.accelerate to false"
            )
        if self.kind == "autoencoder" and self.model.part == "decoder" and not self.model.start:
            raise OptionError('model.part: "decoder" keeps an encoder that is there; name its file as model.start')
        if self.loss.adversarial and self.train.accelerate:
            raise OptionError("loss.adversarial: works in one process only; set it to 0, or train.accelerate to false")
        if self.latent_steps and not self.loss.latent:
            raise OptionError("train.latent_steps: needs the latents' term; give loss.latent a weight")
        if self.latent_steps and self.data.crop + 2 * RIM > self.data.picture_side:
            raise OptionError(
                f"train.latent_steps: crops of {self.data.crop} px with {RIM} px around them do not fit into pictures "
                f"of {self.data.picture_side} px; lower data.crop or raise data.picture_side"
            )
        if self.kind == "lora" and not self.model.start:
            raise OptionError('model.start: kind "lora" needs the model that the LoRA is for; name its file')
        if self.kind not in NO_TRANSFORMER and self.train.grid_every:
            wrong = [t for t in self.train.grid_tokens if t * PATCH * 16 % self.data.picture_side]
            if wrong:
                raise OptionError(
                    f"train.grid_tokens: {wrong[0]} tokens are no whole number of pictures "
                    f"of {self.data.picture_side} px; change one of the two"
                )
        if self.kind == "enlarger":
            self.enlarger.check_crop("crop", self.data.crop)
            self.enlarger.check_crop("late_crop", self.data.late_crop)
            if self.loss.projected:
                raise OptionError(
                    f'loss.projected: kind "enlarger" has factors of its own, got {self.loss.projected}; set it to 0'
                )
