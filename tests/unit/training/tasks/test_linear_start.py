"""The autoencoder's linear start: the trunk is affine, and the bent network computes what it did."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from op4ksr_core import OptionError
from op4ksr_core.training.data.leaves import picture
from op4ksr_core.training.tasks.linear_start import begin, bend, paired, trunk_decode, trunk_encode
from op4ksr_core.vae.autoencoder import AutoEncoder, AutoEncoderParams


def new(groups: int, stride: int = 2) -> AutoEncoder:
    torch.manual_seed(3)
    params = AutoEncoderParams((24, 24, 48, 48), norm_groups=groups, mid_attention=False, stride=stride)
    model = AutoEncoder(params)
    begin(model)
    return model


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.stack([torch.from_numpy(picture(i, 96, 96)).permute(2, 0, 1) for i in range(6)]).float() / 255


def through_trunk(model: AutoEncoder, images: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        latent = trunk_encode(model.encoder, images * 2 - 1)
        return latent, trunk_decode(model.decoder, latent)


def through_all(model: AutoEncoder, images: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        latent = model.encode_pixels(images * 2 - 1)
        return latent, model.decode_pixels(latent)


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().mean().sqrt() / b.std())


def test_the_trunk_is_affine(images: Tensor) -> None:
    model = new(2)
    for i, (half, first, second) in enumerate(
        zip(
            through_trunk(model, (images[:3] + images[3:]) / 2),
            through_trunk(model, images[:3]),
            through_trunk(model, images[3:]),
            strict=True,
        )
    ):
        torch.testing.assert_close(half, (first + second) / 2, rtol=1e-4, atol=1e-5, msg=f"part {i}")


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.slow
def test_the_bent_network_computes_what_the_trunk_did(images: Tensor, groups: int, stride: int) -> None:
    model = new(groups, stride)
    latent, decoded = through_trunk(model, images)
    far = through_all(model, images)
    assert min(distance(far[0], latent), distance(far[1], decoded)) > 0.3, "nothing to bend: the test shows nothing"
    for part in (model.encoder, model.decoder):
        torch.nn.init.constant_(part.norm_out.bias, 0.5)
    bend(model, images)
    again = through_all(model, images)
    assert distance(again[0], latent) < 0.03 and distance(again[1], decoded) < 0.06


def test_a_picture_of_little_contrast_keeps_its_scale(images: Tensor) -> None:
    """A norm by the picture's own deviation would stretch it."""
    model = new(1)
    faint = 0.5 + (images[:1] - 0.5) * 0.05
    latent, decoded = through_trunk(model, faint)
    bend(model, images)
    again = through_all(model, faint)
    assert distance(again[0], latent) < 0.06 and distance(again[1], decoded) < 0.12


def test_after_it_everything_learns(images: Tensor) -> None:
    model = new(1)
    bend(model, images)
    for _ in range(2):  # the branches' last convolutions are zero until the first step
        loss = (model.decode_pixels(model.encode_pixels(images * 2 - 1)) - images).square().mean()
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in model.parameters():
                assert p.grad is not None
                p -= 1e-2 * p.grad
    still = [name for name, p in model.named_parameters() if not p.grad.abs().max() > 0]  # pyright: ignore
    assert still == []


def test_twins_cancel_and_leave_room_for_constants() -> None:
    h = torch.randn(2, 24, 3, 3)
    twins = paired(h, 2).unflatten(1, (2, 12))
    assert torch.equal(twins[:, :, :6], -twins[:, :, 6:])
    assert torch.equal(twins[:, :, :5], h.unflatten(1, (2, 12))[:, :, :5]) and not twins[:, :, 5].any()


def test_groups_too_small_for_pairs_are_refused() -> None:
    params = AutoEncoderParams((24, 24, 24, 24), norm_groups=12, mid_attention=False)
    with pytest.raises(OptionError, match=r"fewer model\.norm_groups"):
        begin(AutoEncoder(params))
