"""A training run's config: its sections together, and what they ask of one another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from ..errors import OptionError
from ..models.latent import PATCH
from ..plain_text import plain
from .config_limits import Seed
from .config_paths import fault_of_path
from .config_sections import (
    BUNDLED,
    DataConfig,
    EnlargerConfig,
    LoopConfig,
    LossConfig,
    ModelConfig,
    OutputConfig,
    RfrConfig,
)
from .data.degradation import CLEAN, Degradation

Kind = Literal["autoencoder", "one_step", "lora", "enlarger", "detail"]

#: Kinds that train through no frozen autoencoder: they have no latent steps or cached latents, and need a term on
#: pictures.
NO_LATENTS: tuple[Kind, ...] = ("autoencoder", "enlarger", "detail")

#: Kinds whose batches are small pictures of every factor and strength of damage, by ``enlarger``'s options.
SMALL_PICTURES: tuple[Kind, ...] = ("enlarger", "detail")

#: Width of the border that latent steps leave out, as the encoder saw zeros beyond it: px, one latent pixel at 16x.
RIM = 16


@dataclass(frozen=True)
class TrainConfig:
    """One training run. ``run`` is the folder that it writes.

    Limits of single values are in their types, and checked by ``config_file``, which reads a run's TOML file.
    Raises OptionError for values that do not go together.
    """

    #: How pydantic reads all sections: no unknown keys, no conversions (``true`` is no number), no NaN.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True, "allow_inf_nan": False}

    kind: Kind
    run: str
    seed: Seed = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    enlarger: EnlargerConfig = field(default_factory=EnlargerConfig)
    rfr: RfrConfig = field(default_factory=RfrConfig)
    data: DataConfig = field(default_factory=DataConfig)
    degradation: Degradation = CLEAN
    loss: LossConfig = field(default_factory=LossConfig)
    train: LoopConfig = field(default_factory=LoopConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    @property
    def has_transformer(self) -> bool:
        """Whether the run trains a transformer, through a frozen autoencoder."""
        return self.kind not in NO_LATENTS

    @property
    def linear_steps(self) -> int:
        """``train.linear_steps`` where they apply: for a new autoencoder. One that has a start is no longer linear."""
        return 0 if self.model.start or self.kind != "autoencoder" else self.train.linear_steps

    @property
    def latent_steps(self) -> int:
        """``train.latent_steps`` where they apply: for a transformer."""
        return self.train.latent_steps if self.has_transformer else 0

    @property
    def cache_folder(self) -> Path:
        """Where pictures and pairs that are made once are kept."""
        return Path(self.data.cache) if self.data.cache else Path(self.run) / "cache"

    def __post_init__(self) -> None:
        for conflict in (
            *_path_conflicts(self),
            *_kind_conflicts(self),
            *_detail_conflicts(self),
            *_enlarger_conflicts(self),
            *_section_conflicts(self),
        ):
            raise OptionError(conflict)


def _path_conflicts(config: TrainConfig) -> Iterator[str]:
    """Which texts are no paths on this machine: a recipe opens no address and starts no program."""
    names = {
        "run": config.run,
        "model.start": config.model.start,
        "model.autoencoder": config.model.autoencoder,
        "model.enlarger": config.model.enlarger,
        "data.path": config.data.path,
        "data.cache": config.data.cache,
        "output.sample_folder": config.output.sample_folder,
    }
    if not config.run:
        yield "run: expected a folder's name, got nothing; name one"
    if not config.model.autoencoder and config.kind != "detail":
        yield f'model.autoencoder: expected a file, got nothing; name one, or "{BUNDLED}"'
    if not config.model.enlarger:
        yield f'model.enlarger: expected a file, got nothing; name one, or "{BUNDLED}"'
    for key, value in names.items():
        if (fault := fault_of_path(value)) is not None:
            yield f"{key}: expected a path on this machine, got {plain(value)!r}, {fault}; change it"


def _kind_conflicts(config: TrainConfig) -> Iterator[str]:
    """What the config's kind does not go with, a sentence each."""
    kind, loss = config.kind, config.loss
    if not loss.judges_pictures and not (config.has_transformer and loss.latent):
        yield f'loss: no term that kind "{kind}" has in every step is above 0; give loss.pixel, or another, a weight'
    if loss.diversity and kind == "detail":
        yield 'loss.diversity: is of kinds "one_step" and "lora", and kind is "detail"; set it to 0'
    elif loss.diversity and not config.has_transformer:
        yield f'loss.diversity: looks at a transformer, which kind "{kind}" has none of; set it to 0'
    if config.train.base != "plain" and kind != "lora":
        yield (
            f'train.base: "{config.train.base}" cannot be trained, and kind "{kind}" trains every weight; '
            'set it to "plain", or kind to "lora"'
        )
    if config.data.cached and (not config.has_transformer or config.train.accelerate):
        yield (
            'data.cached: is for kinds "one_step" and "lora" in one process; set it to 0, or train.accelerate to false'
        )
    if kind == "autoencoder" and config.model.part == "decoder" and not config.model.start:
        yield 'model.part: "decoder" keeps an existing encoder; name its file as model.start'
    new = not (config.model.autoencoder if kind == "detail" else config.model.start)
    if kind in ("autoencoder", "detail") and config.model.stride and new:
        yield (
            f"model.stride: is for an existing file, got {config.model.stride}, and a new autoencoder compresses 16x; "
            "set it to 0"
        )
    if kind == "autoencoder" and config.model.part == "none":
        yield 'model.part: "none" leaves kind "autoencoder" nothing to train; choose "all" or "decoder"'
    levels, crop = len(config.model.widths), min(config.data.crops.values())
    if kind == "autoencoder" and not config.model.start and 2 * 2**levels > crop:
        yield (
            f"model.widths: {levels} levels make one latent of {2**levels} px, and crops have {crop} px; "
            "name fewer, or raise data.crop"
        )
    if kind == "lora" and not config.model.start:
        yield 'model.start: kind "lora" needs the model that the LoRA is for; name its file'


def _detail_conflicts(config: TrainConfig) -> Iterator[str]:
    """What kind detail does not go with, and what goes with it alone, a sentence each."""
    model, train = config.model, config.train
    if config.kind != "detail":
        alone = {
            "loss.common": (config.loss.common, "set it to 0"),
            "loss.reconstruction": (config.loss.reconstruction, "set it to 0"),
            "train.oracle_steps": (train.oracle_steps, "set it to 0"),
            "model.sigma_repair": (model.sigma_repair, "leave it out"),
        }
        for key, (value, remedy) in alone.items():
            if value:
                yield f'{key}: is of kind "detail" alone, and kind is "{config.kind}"; {remedy}'
        return
    if model.part != "all" and not model.autoencoder:
        yield f'model.part: "{model.part}" keeps an existing encoder; name its file as model.autoencoder'
    if model.part == "none" and train.oracle_steps:
        yield (
            f"train.oracle_steps: these train the autoencoder alone, of which model.part trains none, got "
            f"{train.oracle_steps}; set it to 0, or change model.part"
        )
    if train.latent_steps:
        yield f'train.latent_steps: kind "detail" has none, got {train.latent_steps}; set it to 0'


def _enlarger_conflicts(config: TrainConfig) -> Iterator[str]:
    """What a run on small pictures of several factors does not go with, a sentence each."""
    kind = config.kind
    if kind not in SMALL_PICTURES:
        return
    data, largest = config.data, config.enlarger.factors[-1]
    for name, side in data.crops.items():
        if side % largest:
            yield (
                f"data.{name}: expected a multiple of {largest} px, the largest of enlarger.factors, "
                f"got {side}; change one of the two"
            )
    if config.loss.projected:
        yield f'loss.projected: kind "{kind}" has factors of its own, got {config.loss.projected}; set it to 0'
    if config.train.accelerate:
        yield f'train.accelerate: kind "{kind}" works in one process only; set it to false'


def _section_conflicts(config: TrainConfig) -> Iterator[str]:
    """Which values of one section do not go with those of another, a sentence each."""
    data, train = config.data, config.train
    if config.loss.adversarial and train.accelerate:
        yield "loss.adversarial: works in one process only; set it to 0, or train.accelerate to false"
    if config.latent_steps and not config.loss.latent:
        yield "train.latent_steps: needs the latents' term; give loss.latent a weight"
    if config.latent_steps and data.crop + 2 * RIM > data.picture_side:
        yield (
            f"train.latent_steps: crops of {data.crop} px with {RIM} px around them do not fit into pictures "
            f"of {data.picture_side} px; lower data.crop or raise data.picture_side"
        )
    uneven = [tokens for tokens in train.grid_tokens if tokens * PATCH * 16 % data.picture_side]
    if config.has_transformer and train.grid_every and uneven:
        yield (
            f"train.grid_tokens: {uneven[0]} tokens are no whole number of pictures "
            f"of {data.picture_side} px; change one of the two"
        )
    for name, side in data.crops.items():
        if data.source == "procedural" and data.pictures and side > data.picture_side:
            yield (
                f"data.{name}: expected at most data.picture_side ({data.picture_side} px), got {side}; "
                "change one of the two"
            )
