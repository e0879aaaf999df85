"""The sigma that fits a run's data: the rule by hand, the published search, and the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from unit.training.test_trainer import config, folder  # noqa: F401 - folder is a fixture

from op4ksr_core import OptionError, load_autoencoder, load_flux
from op4ksr_core.cli.main import main
from op4ksr_core.models.flux_schedule import FLUX_STEPS, MAX_SHIFT, nearest_step, sigma_of_time
from op4ksr_core.training import sigma as sigma_module
from op4ksr_core.training.config_file import parse_config
from op4ksr_core.training.data.batches import Batches
from op4ksr_core.training.data.sources import open_source
from op4ksr_core.training.sigma import Suggestion, sigma_of_error, suggest_sigma
from op4ksr_core.training.tasks.choose import make_task
from op4ksr_core.weights.checkpoint import save_autoencoder


def published_schedule() -> list[float]:
    """Sigma of t = 0 to 999: a line from 0 to 1, shifted by FLUX.1-dev's mu for 4,096 tokens."""
    line = torch.linspace(0, 1, 1000, dtype=torch.float64)
    growth = torch.tensor(1.15, dtype=torch.float64).exp()
    return (growth / (growth + 1 / line - 1)).tolist()


def published_search(pairs: list[tuple[Tensor, Tensor]]) -> int:
    """The t whose ratio of signal to noise differs least, by the mean of absolute differences, from the pairs'."""
    sigmas = published_schedule()
    costs: list[float] = []
    for sigma in sigmas[1:]:  # t = 0 has no noise, and no ratio
        differences = []
        for low, high in pairs:
            power = float(high.square().mean())
            noised = power * (1 - sigma) ** 2 / sigma**2
            differences.append(abs(noised - power / float((low - high).square().mean())))
        costs.append(sum(differences) / len(differences))
    return 1 + costs.index(min(costs))


def made(errors: list[float], powers: list[float]) -> tuple[Suggestion, list[tuple[Tensor, Tensor]]]:
    """Seeded latents whose error's root mean square and whose power are as told, and what is suggested for them."""
    generator = torch.Generator().manual_seed(7)
    pairs: list[tuple[Tensor, Tensor]] = []
    for error, power in zip(errors, powers, strict=True):
        high, away = (torch.randn(1, 16, 8, 8, dtype=torch.float64, generator=generator) for _ in range(2))
        high, away = (t / t.square().mean().sqrt() for t in (high, away))
        pairs.append((power**0.5 * high + error * away, power**0.5 * high))
    found = Suggestion(tuple(e**2 for e in errors), tuple(powers), None)
    return found, pairs


def test_the_schedule_is_the_published_one() -> None:
    ours = [sigma_of_time(t / FLUX_STEPS, MAX_SHIFT) for t in range(1, FLUX_STEPS + 1)]
    assert ours == pytest.approx(published_schedule()[1:], abs=1e-12)
    assert ours[243] == pytest.approx(0.5051, abs=1e-4) and ours[294] == pytest.approx(0.5696, abs=1e-4)
    assert [nearest_step(s) for s in (0.5051, 0.5696, 1.0, 0.0)] == [244, 295, 999, 1]
    with pytest.raises(OptionError, match="^time: expected above 0 and at most 1, got 0$"):
        sigma_of_time(0, MAX_SHIFT)


@pytest.mark.parametrize("error", [0.05, 0.3, 1.0, 4.0])
def test_the_rule_sets_both_ratios_of_signal_to_noise_equal(error: float) -> None:
    s = sigma_of_error(error)
    assert (1 - s) ** 2 / s**2 == pytest.approx(1 / error**2)
    assert sigma_of_error(0) == 0


def test_pairs_that_err_alike_have_the_sigma_of_the_published_search() -> None:
    found, pairs = made([0.9, 0.9, 0.9], [0.5, 1.0, 2.0])
    assert nearest_step(found.sigma) == nearest_step(found.published) == published_search(pairs)


def test_pairs_that_differ_have_a_mean_error_above_what_the_published_search_finds() -> None:
    """One bad pair raises the mean error, and not the median; powers weight the median alone."""
    found, pairs = made([0.4, 0.5, 0.6, 0.7, 3.0], [1.0, 1.0, 1.0, 1.0, 1.0])
    assert nearest_step(found.published) == published_search(pairs)
    assert found.published == pytest.approx(0.6 / 1.6) and found.quantile(0.5) == pytest.approx(0.6 / 1.6)
    mean = ((0.4**2 + 0.5**2 + 0.6**2 + 0.7**2 + 9) / 5) ** 0.5
    assert found.sigma == pytest.approx(mean / (1 + mean)) and found.sigma - found.published > 0.2

    found, pairs = made([0.4, 0.5, 0.6, 0.7, 3.0], [1.0, 1.0, 1.0, 9.0, 1.0])
    assert found.published == pytest.approx(0.7 / 1.7) and nearest_step(found.published) == published_search(pairs)
    assert found.sigma == pytest.approx(mean / (1 + mean)) and found.quantile(0.5) == pytest.approx(0.6 / 1.6)


def test_a_small_sigma_is_pasted_as_what_it_is() -> None:
    """A recipe's is above 0."""
    last = made([1e-6], [1.0])[0].text().splitlines()[-1]
    config = parse_config(f'kind = "one_step"\nrun = "r"\n[model]\n{last.partition("[model]")[2].strip()}')
    assert config.model.sigma == pytest.approx(1e-6, rel=1e-3)


def suggested(folder: Path, kind: str = "one_step", pairs: int = 4, **more: str) -> Suggestion:  # noqa: F811
    return suggest_sigma(parse_config(config(folder, kind, **more)), pairs)


def test_it_is_measured_on_the_runs_own_pairs_in_processed_latents(folder: Path) -> None:  # noqa: F811
    text = config(folder, degradation="factor = [4, 4]\n")
    found = suggest_sigma(parse_config(text), 4)
    task = make_task(parse_config(text))
    source = open_source(task.config.data, task.config.seed, task.config.cache_folder)
    batches = Batches(task.config, source, 0, pairs=True)
    errors, powers = [], []
    autoencoder = load_autoencoder(folder / "vae.safetensors")
    for i in range(2):
        high, low = batches[i]
        raw = [autoencoder.encode_pixels(picture * 2 - 1) for picture in (high, low)]
        z_h, z_l = ((latent - 0.1159) * 0.3611 for latent in raw)
        errors += (z_l - z_h).square().mean((1, 2, 3)).tolist()
        powers += z_h.square().mean((1, 2, 3)).tolist()
    assert found.errors == pytest.approx(errors, rel=1e-5) and found.powers == pytest.approx(powers, rel=1e-5)
    assert found.configured == 0.5


def test_more_damage_asks_for_more_noise(folder: Path) -> None:  # noqa: F811
    little = suggested(folder, degradation="factor = [2, 2]\n")
    much = suggested(folder, degradation="factor = [8, 8]\n")
    assert 0 < little.sigma < much.sigma < 1


def test_another_autoencoder_has_another_sigma(folder: Path, make_autoencoder) -> None:  # noqa: F811
    before = suggested(folder)
    save_autoencoder(folder / "vae.safetensors", make_autoencoder(3, stride=1))
    assert suggested(folder).sigma != pytest.approx(before.sigma, rel=1e-3)


def test_no_transformer_is_loaded_nor_needed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(sigma_module.Files, "flux", lambda *_: pytest.fail("the transformer was loaded"))
    own = load_flux(folder / "flux.safetensors").settings.sigma
    assert suggested(folder, "lora").configured == own
    assert suggested(folder, "lora", model="sigma = 0.25\n").configured == 0.25
    (folder / "flux.safetensors").unlink()
    found = suggested(folder, "lora")
    assert found.configured is None and "what model.start has, which is not here" in found.text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        {"train": "latent_steps = 3\ngrid_pictures = 2\n"},
        {"data": "cached = 4\n"},
        {"data": "workers = 1\n"},
        {"data": "late_from = 0.0\nlate_crop = 96\nlate_batch = 1\n"},
    ],
    ids=["latent steps", "cached", "workers", "late crops"],
)
def test_how_a_run_spares_encoding_changes_nothing(folder: Path, more: dict[str, str]) -> None:  # noqa: F811
    assert suggested(folder, **more).errors == suggested(folder).errors


def test_whole_batches_are_looked_at(folder: Path) -> None:  # noqa: F811
    assert [len(suggested(folder, pairs=pairs).errors) for pairs in (1, 2, 3)] == [2, 2, 4]


@pytest.mark.parametrize(
    ("kind", "more", "told"),
    [
        ("autoencoder", {}, '--suggest-sigma: kind "one_step" or "lora" has a sigma, and this run is of another kind'),
        ("one_step", {"pairs": 0}, "--pairs: expected at least 1, got 0; ask for more"),
    ],
)
def test_what_has_no_sigma_is_told_so(folder: Path, kind: str, more: dict[str, int], told: str) -> None:  # noqa: F811
    with pytest.raises(OptionError) as caught:
        suggested(folder, kind, **more)
    assert str(caught.value) == told


def test_latents_that_are_not_finite_and_pairs_without_error_are_refused(
    folder: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sigma_module, "_mean_squares", lambda latents: [float("nan")] * len(latents))
    with pytest.raises(OptionError, match=r"^model.autoencoder: latents of .*vae.safetensors are not finite; set"):
        suggested(folder)
    monkeypatch.setattr(sigma_module, "_mean_squares", lambda latents: [0.0] * len(latents))
    with pytest.raises(OptionError, match="^data: the degraded pictures have the latents of the sharp ones, .*; name"):
        suggested(folder)


def test_the_command_prints_it_and_trains_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    path = folder / "c.toml"
    path.write_text(config(folder))
    assert main(["train", str(path), "--suggest-sigma", "--pairs", "4"]) == 0
    told = capsys.readouterr().out.splitlines()
    found = suggested(folder)
    assert told[0].split() == ["pairs", "of", "pictures", "4"]
    assert told[-1] == f"for the recipe, in [model]   sigma = {found.sigma:.4g}"
    assert f"t = {nearest_step(found.sigma)} of 999, " in told[-3] and told[-2].endswith(" 0.5000")
    assert main(["train", str(path), "--suggest-sigma", "--pairs", "4", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["sigma"] == found.sigma and report["pairs"] == 4 and report["configured"] == 0.5
    assert not (folder / "run" / "checkpoints").exists() and not (folder / "run" / "log.csv").exists()
    changed = replace(parse_config(config(folder)), run=str(folder / "other"))
    assert suggest_sigma(changed, 4) == found
