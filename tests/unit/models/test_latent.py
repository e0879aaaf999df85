"""Packing, positions and the two constants between autoencoder and transformer."""

from __future__ import annotations

import torch

from op4ksr_core.models.latent import pack, position_ids, process_in, process_out, unpack


def test_a_token_is_a_2x2_patch_channel_by_channel(generator: torch.Generator) -> None:
    latent = torch.randn(2, 16, 6, 10, generator=generator)
    tokens = pack(latent)
    assert tokens.shape == (2, 15, 64)
    patch = latent[1, :, 2:4, 6:8]  # row 1, column 3
    assert torch.equal(tokens[1, 1 * 5 + 3], patch.reshape(64))


def test_unpack_undoes_pack(generator: torch.Generator) -> None:
    latent = torch.randn(2, 16, 6, 10, generator=generator)
    assert torch.equal(unpack(pack(latent), 3, 5), latent)


def test_process_in_is_fluxs_shift_and_scale_and_process_out_its_inverse() -> None:
    raw = torch.tensor([-3.0, 0.0, 0.1159, 2.0], dtype=torch.float64)
    expected = torch.tensor([-3.1159, -0.1159, 0.0, 1.8841], dtype=torch.float64) * 0.3611
    torch.testing.assert_close(process_in(raw), expected, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(process_out(process_in(raw)), raw, rtol=1e-12, atol=1e-12)


def test_positions_count_rows_and_columns_and_leave_text_at_zero() -> None:
    ids = position_ids(3, 2, 4)
    assert ids.shape == (1, 11, 3) and ids.dtype == torch.float32
    assert not ids[0, :3].any()
    assert ids[0, 3:].tolist() == [[0.0, row, column] for row in range(2) for column in range(4)]
