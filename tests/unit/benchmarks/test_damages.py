"""What photos are made worse by: named, seeded by the photo, and no more than it says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.damages import DAMAGES, damaged, set_of, shrunk
from op4ksr_core.images.io import from_array, jpeg_round_trip
from op4ksr_core.training.data.leaves import picture

PATH = Path("set5/a.png")


def test_each_damage_is_its_own_and_repeats() -> None:
    high = from_array(picture(3, 128, 96))
    lows = {name: damaged(high, 4, name, PATH) for name in DAMAGES}
    for name, low in lows.items():
        assert low.shape == (1, 3, *(side // 4 for side in high.shape[-2:])), name
        assert torch.equal(low, (low * 255).round() / 255) and low.amin() >= 0 and low.amax() <= 1, name
        assert torch.equal(low, damaged(high, 4, name, PATH)), name
    assert torch.equal(lows["clean"], shrunk(high, 4))
    assert torch.equal(lows["jpeg50"], jpeg_round_trip(lows["clean"], 50))
    assert len({low.numpy().tobytes() for low in lows.values()}) == 4


def test_the_noise_is_ten_levels_and_each_photo_has_its_own() -> None:
    grey = torch.full((1, 3, 512, 512), 0.5)
    noise = (damaged(grey, 4, "noise10", PATH) - 0.5) * 255
    assert noise.std().item() == pytest.approx(10, rel=0.03) and abs(noise.mean().item()) < 0.6
    channels = noise[0].flatten(1)
    assert abs(torch.corrcoef(channels)[0, 1].item()) < 0.03
    other = damaged(grey, 4, "noise10", Path("set14/a.png"))
    assert not torch.equal(other, damaged(grey, 4, "noise10", PATH))


def test_the_set_is_the_folder_or_of_hr_the_one_above() -> None:
    assert set_of(PATH) == "set5" and set_of(Path("Syn/HR/a.png")) == "Syn"
