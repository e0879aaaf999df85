"""The runs of the ablation: its sizes, the four variants, the sweep of theta, and the training config of each run.

``ablation.run_ablation`` trains and measures what ``jobs`` lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from op4ksr_core.bundled import BUNDLED_AUTOENCODER
from op4ksr_core.errors import OptionError
from op4ksr_core.models.rope import FLUX_THETA, fit_theta, ntk_theta
from op4ksr_core.training.config import (
    DataConfig,
    LoopConfig,
    LossConfig,
    ModelConfig,
    OutputConfig,
    RfrConfig,
    TrainConfig,
)

#: Channels per image axis of a head of 128, and tokens per side of 4096 px: for the thetas below.
DIM, TOKENS = 56, 128

#: What the sweep compares, by name.
THETAS: dict[str, float] = {
    "40000": 40000.0,
    "20520 (ntk, s = 2)": ntk_theta(FLUX_THETA, DIM, 2.0),
    "10000 (Flux)": FLUX_THETA,
    "1000": 1000.0,
    "256": 256.0,
    "100": 100.0,
    "fit, 1 turn": fit_theta(TOKENS, 1.0, DIM),
    "fit, 1/2 turn": fit_theta(TOKENS, 0.5, DIM),
    "16": 16.0,
}

#: The parts of the experiment -> the titles of their tables.
PARTS = {"variants": "RFR and L_AP", "theta": "Theta"}

#: Name -> (RFR, L_AP).
VARIANTS: dict[str, tuple[bool, bool]] = {
    "neither": (False, False),
    "RFR": (True, False),
    "L_AP": (False, True),
    "both": (True, True),
}

#: Whole pictures whose latents the latent steps cut from.
GRID_PICTURES = 96


@dataclass(frozen=True)
class Ablation:
    """The sizes of the experiment. The defaults are for hours on two cores or minutes on a GPU."""

    folder: Path
    steps: int = 1500
    #: Of these, the first on latents alone, which are cheap (no L_AP there: it looks at pictures).
    latent_steps: int = 0
    batch: int = 4
    crop: int = 256
    rate: float = 6e-4
    seeds: tuple[int, ...] = (0, 1, 2)
    sweep_seeds: tuple[int, ...] = (0,)
    hidden: int = 256
    heads: int = 2
    depth: int = 1
    single: int = 2
    pictures: int = 240
    #: Weight of L_AP in the variants that have it.
    periodicity: float = 0.5
    #: Theta of the variants with RFR.
    theta: float = THETAS["fit, 1/2 turn"]
    thetas: dict[str, float] = field(default_factory=lambda: dict(THETAS))
    #: Pictures measured at the training grid, and at the large one of so many tokens (0: not at all).
    measured: int = 24
    large_tokens: int = TOKENS
    large_measured: int = 1
    #: Photos to measure as well, at the training grid; never trained on.
    photos: tuple[Path, ...] = ()
    autoencoder: Path = BUNDLED_AUTOENCODER
    device: str = ""
    precision: str = "bf16"
    threads: int = 0
    workers: int = 0

    def __post_init__(self) -> None:
        amounts = ("large_tokens", "latent_steps", "pictures", "periodicity", "threads", "workers")
        for name, least in {"heads": 1, "large_measured": 1, "crop": 32, **dict.fromkeys(amounts, 0)}.items():
            if not getattr(self, name) >= least:
                raise OptionError(f"ablation.{name}: expected at least {least}, got {getattr(self, name)}; change it")
        if not self.seeds or self.steps < 1 or self.measured < 1:
            raise OptionError(
                "benchmarks ablation: expected at least one seed, one step and one picture, "
                f"got {len(self.seeds)}, {self.steps} and {self.measured}; ask for more"
            )
        if self.hidden // self.heads != 128:
            raise OptionError(
                f"benchmarks ablation: expected heads of 128 channels, got {self.hidden} over {self.heads} heads; "
                "take a hidden size of 128 times the heads"
            )


def config_of(ablation: Ablation, seed: int, theta: float, periodicity: float) -> TrainConfig:
    """One run: nothing but its theta and the weight of L_AP differs from the others of its seed."""
    a = ablation
    name = f"theta_{theta:.5g}" + ("_l_ap" if periodicity else "")
    return TrainConfig(
        kind="one_step",
        run=str(a.folder / "runs" / f"{name}_{seed}"),
        seed=seed,
        model=ModelConfig(
            autoencoder=str(a.autoencoder),
            hidden_size=a.hidden,
            num_heads=a.heads,
            depth=a.depth,
            depth_single_blocks=a.single,
            train_tokens=a.crop // 32,
        ),
        rfr=RfrConfig("theta", (theta,)),
        data=DataConfig(
            pictures=a.pictures,
            picture_side=2 * a.crop if a.latent_steps else max(256, a.crop),
            crop=a.crop,
            shrunk=0.0,
            workers=a.workers,
            cache=str(a.folder / "cache"),
        ),
        loss=LossConfig(periodicity=periodicity),
        train=LoopConfig(
            steps=a.steps,
            latent_steps=a.latent_steps,
            grid_pictures=min(GRID_PICTURES, a.pictures),
            batch=a.batch,
            rate=a.rate,
            warmup=min(100, a.steps // 5),
            precision="bf16" if a.precision == "bf16" else "fp32",
            device=a.device,
            threads=a.threads,
        ),
        output=OutputConfig(save_every=max(1, a.steps // 4), sample_every=0, keep=0, dtype="fp32"),
    )


def jobs(ablation: Ablation, parts: Sequence[str]) -> list[tuple[str, str, TrainConfig]]:
    """(part, name, config) of every row; a run that stands in both parts is the same run."""
    a = ablation
    found: list[tuple[str, str, TrainConfig]] = []
    if "variants" in parts:
        for seed in a.seeds:
            for name, (rfr, l_ap) in VARIANTS.items():
                theta, weight = a.theta if rfr else FLUX_THETA, a.periodicity if l_ap else 0.0
                found.append(("variants", name, config_of(a, seed, theta, weight)))
    if "theta" in parts:
        for seed in a.sweep_seeds:
            for name, theta in a.thetas.items():
                found.append(("theta", name, config_of(a, seed, theta, 0.0)))
    return found
