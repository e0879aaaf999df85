"""Attention: the same in one kernel and in chunks of queries; which of the two runs, by device and head."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pretend_cuda import pretending
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from op4ksr_core.models import attention as module
from op4ksr_core.models.attention import QUERY_CHUNK, attention, is_fused

#: The head of the VAE's middle, and more tokens than two chunks.
WIDE, TOKENS = 512, 2 * QUERY_CHUNK + 100


@pytest.fixture
def queries(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many queries each call of PyTorch's attention was given."""
    seen: list[int] = []

    def counted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen.append(q.shape[2])
        return q

    monkeypatch.setattr(module.F, "scaled_dot_product_attention", counted)
    return seen


def answering(answer: bool) -> Callable[[object], bool]:
    return lambda params: answer


def test_chunks_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 50, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    whole = (q @ k.mT / 8**0.5).softmax(-1) @ v
    torch.testing.assert_close(attention(q, k, v), whole)
    monkeypatch.setattr(module, "is_fused", lambda q, k, v: False)
    monkeypatch.setattr(module, "QUERY_CHUNK", 16)
    torch.testing.assert_close(attention(q, k, v), whole)


@pytest.mark.parametrize("head", [64, WIDE])
def test_the_cpus_kernel_gets_all_at_once(queries: list[int], head: int) -> None:
    q = torch.empty(1, 1, TOKENS, head)
    attention(q, q, q)
    assert queries == [TOKENS]


@pytest.mark.parametrize("kind", ["mps", "xpu"])
@pytest.mark.parametrize("head", [8, WIDE])
def test_where_no_fused_kernel_is_known_queries_come_in_chunks(queries: list[int], kind: str, head: int) -> None:
    """On Apple's GPUs PyTorch stores the whole matrix, whatever the head."""
    with pretending(kind):
        q = torch.zeros(1, 1, TOKENS, head, device=kind)
        attention(q, q, q)
    assert queries == [QUERY_CHUNK, QUERY_CHUNK, 100]


@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize("efficient", [True, False])
def test_on_cuda_pytorch_is_asked(monkeypatch: pytest.MonkeyPatch, flash: bool, efficient: bool) -> None:
    monkeypatch.setattr(torch.backends.cuda, "can_use_flash_attention", answering(flash))
    monkeypatch.setattr(torch.backends.cuda, "can_use_efficient_attention", answering(efficient))
    with FakeTensorMode():
        q = torch.empty(1, 24, TOKENS, 128, device="cuda", dtype=torch.bfloat16)
        assert is_fused(q, q, q) is (flash or efficient)


def test_pytorch_2_4_is_asked_in_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def params(q: Tensor, k: Tensor, v: Tensor, mask: None, dropout: float, causal: bool) -> str:
        return "2.4"

    monkeypatch.setattr(torch.backends.cuda, "SDPAParams", params)
    monkeypatch.setattr(torch.backends.cuda, "can_use_flash_attention", answering(False))
    monkeypatch.setattr(torch.backends.cuda, "can_use_efficient_attention", lambda given: given == "2.4")
    with FakeTensorMode():
        q = torch.empty(1, 1, TOKENS, WIDE, device="cuda")
        assert is_fused(q, q, q)


def test_channels_that_do_not_lie_side_by_side_are_attended_to_in_chunks() -> None:
    """PyTorch's CPU kernel takes no such tensors, and the whole matrix would be stored."""
    lying = torch.rand(1, 1, 8, 2000).transpose(2, 3)
    dense = lying.contiguous()
    assert is_fused(dense, dense, dense) and not is_fused(dense, lying, dense)
    assert torch.allclose(attention(lying, lying, lying), attention(dense, dense, dense), atol=1e-6)
