"""What enlarges before the one step: sizes, strips, heads, networks of others, memory, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Conv2d, Module
from torch.nn import functional as F

from op4ksr_core import Op4ksrError, OptionError, OutOfMemoryError
from op4ksr_core import base as bases
from op4ksr_core.base import ALIGN, Base, Bicubic, Foreign, Learned, footprint
from op4ksr_core.images.metrics import luma
from op4ksr_core.images.resize import resize
from op4ksr_core.machine import AllocationTracker
from op4ksr_core.models.enlarger import Enlarger, EnlargerParams
from op4ksr_core.weights.enlarger import choose_base

Network = Callable[[Tensor], Tensor]


def quiet(done: int, total: int) -> None:
    """No progress."""


@pytest.fixture(scope="module")
def enlarger() -> Enlarger:
    torch.manual_seed(1)
    return Enlarger(EnlargerParams(width=8, blocks=2)).eval().requires_grad_(False)


@pytest.fixture
def small_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few px at once that tests' small pictures are cut."""
    monkeypatch.setattr(bases, "PIXELS_AT_ONCE", 2000)
    monkeypatch.setattr(bases, "LEARNED_PIXELS", 0)


class Network4(Module):
    """Any network: two convolutions, a head for a factor; ``channels`` in and out. Looks 3 px far."""

    def __init__(self, factor: int, channels: int = 3) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.factor, self.seen = factor, list[tuple[int, int]]()
        self.first = Conv2d(channels, 8, 5, padding=2)
        self.head = Conv2d(8, channels * factor**2, 3, padding=1)

    def forward(self, low: Tensor) -> Tensor:
        self.seen.append((low.shape[-2], low.shape[-1]))
        return F.pixel_shuffle(self.head(F.relu(self.first(low))), self.factor) + 0.3


def foreign(factor: int = 4, channels: int = 3) -> Foreign:
    return Foreign(Network4(factor, channels), factor, "net", channels=channels)


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


def enlarged_by(enlarger: Enlarger, low: Tensor, factor: int, repair: float) -> Tensor:
    """What ``Learned`` gives at a head's own size: with repair the mean of the picture's four mirrored ways."""
    if not repair:
        return enlarger(low, factor).clamp(0, 1)

    def beside_its_mirror(low: Tensor) -> Tensor:
        return ((enlarger(low, factor, repair) + enlarger(low.flip(-1), factor, repair).flip(-1)) / 2).clamp(0, 1)

    return (beside_its_mirror(low) + beside_its_mirror(low.flip(-2)).flip(-2)) / 2


SIZES = [(48, 80), (36, 60), (65, 108), (120, 200), (192, 320), (24, 40), (12, 20), (24, 90), (1, 1), (7, 200)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_all_give_the_size_asked_for(enlarger: Enlarger, size: tuple[int, int]) -> None:
    """x2, 1.5, 2.7, 5, 8, 1, smaller, one side alone, and hardly anything."""
    low = picture(24, 40)
    for base in (Bicubic(), Learned(enlarger, "ours"), foreign(4), foreign(1), foreign(4, channels=1)):
        found = base.enlarge(low, *size, 0.5, quiet)
        assert found.shape == (1, 3, *size) and found.dtype == torch.float32 and found.is_contiguous()
        assert found.min() >= 0 and found.max() <= 1


def test_bicubic_is_the_resize_that_it_was() -> None:
    low = picture(9, 14)
    assert torch.equal(Bicubic().enlarge(low, 30, 33, 1.0, quiet), resize(low, 30, 33).clamp(0, 1))


@pytest.mark.parametrize(
    ("size", "head"),
    [((36, 60), 2), ((48, 80), 2), ((65, 108), 3), ((72, 120), 3), ((73, 120), 4), ((192, 320), 4), ((24, 41), 2)],
    ids=str,
)
def test_the_smallest_head_that_reaches_it(enlarger: Enlarger, size: tuple[int, int], head: int) -> None:
    low, base = picture(24, 40), Learned(enlarger, "ours")
    assert base.head((24, 40), size) == head
    for repair in (0.0, 0.7):
        expected = resize(enlarged_by(enlarger, low, head, repair), *size).clamp(0, 1)
        torch.testing.assert_close(base.enlarge(low, *size, repair, quiet), expected, rtol=0, atol=2e-6)


def test_a_mirrored_picture_is_repaired_to_the_mirrored_result(enlarger: Enlarger, small_strips: None) -> None:
    """Whichever way; without repair it is not."""
    low, base = picture(100, 10), Learned(enlarger, "ours")
    for way in ((-1,), (-2,), (-1, -2)):
        for repair in (0.0, 0.7):
            found, mirrored = (base.enlarge(one, 200, 20, repair, quiet) for one in (low, low.flip(way)))
            assert (repair > 0) == torch.allclose(mirrored.flip(way), found, atol=2e-6)


@pytest.mark.parametrize("size", [(24, 40), (24, 39), (12, 20), (1, 1)], ids=str)
def test_what_grows_on_no_side_is_bicubic(enlarger: Enlarger, size: tuple[int, int]) -> None:
    low = picture(24, 40)
    for base in (Learned(enlarger, "ours"), foreign(2)):
        assert torch.equal(base.enlarge(low, *size, 0.0, quiet), resize(low, *size).clamp(0, 1))
    assert foreign(2).flops((24, 40), size) == 0 and foreign(2).peak_bytes((24, 40), size) == 0


@pytest.mark.parametrize("size", [(24, 40), (12, 20)], ids=str)
def test_damage_is_undone_without_enlarging(enlarger: Enlarger, size: tuple[int, int]) -> None:
    low, base = picture(24, 40), Learned(enlarger, "ours")
    expected = resize(enlarged_by(enlarger, low, 2, 0.7), *size).clamp(0, 1)
    torch.testing.assert_close(base.enlarge(low, *size, 0.7, quiet), expected, rtol=0, atol=2e-6)
    assert base.flops((24, 40), size) and base.peak_bytes((24, 40), size)


def test_nothing_leaves_the_range_whatever_is_resized(enlarger: Enlarger) -> None:
    """Rows as the network makes them, and columns between."""
    low = (torch.rand(1, 3, 100, 10, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    for base in (Learned(enlarger, "ours"), foreign(4)):
        made = base.enlarge(low, 400, 39, 0.0, quiet)
        assert made.min() >= 0 and made.max() <= 1


def test_a_network_of_factor_1_restores_at_any_size() -> None:
    low, base = picture(24, 40), foreign(1)
    made = base.function(low).detach().clamp(0, 1)
    assert torch.equal(base.enlarge(low, 24, 40, 0, quiet), made)
    expected = resize(made, 12, 70).clamp(0, 1)
    torch.testing.assert_close(base.enlarge(low, 12, 70, 0, quiet), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(800, 44), (433, 61), (201, 23), (1608, 44), (201, 1)], ids=str)
def test_strips_are_the_whole(
    enlarger: Enlarger, size: tuple[int, int], small_strips: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tall picture, whose strips are many; others' begin at multiples of 64 px and see 64 px more."""
    low, net = picture(200, 11), Network4(4)
    for base in (Learned(enlarger, "ours"), Foreign(net, 4, "net"), foreign(4, 1)):
        cut = base.enlarge(low, *size, 0.3, quiet)
        with monkeypatch.context() as patch:
            patch.setattr(bases, "PIXELS_AT_ONCE", 10**9)
            patch.setattr(bases, "LEARNED_PIXELS", 10**9)
            whole = base.enlarge(low, *size, 0.3, quiet)
        torch.testing.assert_close(cut, whole, rtol=0, atol=1e-5)
    assert net.seen == [(128, 11), (192, 11), (136, 11), (72, 11), (200, 11)] and ALIGN == 64


def test_odd_halos_begin_at_multiples_too(small_strips: None) -> None:
    """Of a picture whose every pixel knows its row."""
    first: list[int] = []

    def network(low: Tensor) -> Tensor:
        first.append(round(float(low[0, 0, 0, 0]) * 1000))
        return low

    low = (torch.arange(200.0) / 1000).view(1, 1, 200, 1).expand(1, 3, 200, 11).contiguous()
    found = Foreign(network, 1, "net", halo=10).enlarge(low, 200, 11, 0, quiet)
    assert torch.equal(found, low) and first == [0, 64]


def test_brightness_alone_leaves_colours_to_bicubic() -> None:
    low, base = picture(20, 30), foreign(2, 1)
    found, enlarged = base.enlarge(low, 40, 60, 0, quiet), resize(low, 40, 60)
    made = base.function(luma(low)).detach()
    inside = ((found > 0) & (found < 1)).all(1)
    assert inside.float().mean() > 0.3
    torch.testing.assert_close(luma(found)[:, 0][inside], made[:, 0][inside], rtol=0, atol=1e-5)
    difference = (found - enlarged).movedim(1, -1)[inside]
    torch.testing.assert_close(difference, difference[:, :1].expand(-1, 3), rtol=0, atol=1e-5)


def test_progress_runs_up_and_may_cancel(enlarger: Enlarger, small_strips: None) -> None:
    low = picture(200, 11)

    class CancelledError(Exception):
        pass

    for base in (Bicubic(), Learned(enlarger, "ours"), foreign(4)):
        told: list[tuple[int, int]] = []
        base.enlarge(low, 400, 22, 0, lambda done, total: told.append((done, total)))  # noqa: B023
        assert told[0][0] == 0 and told[-1][0] == told[-1][1] > 0 and all(a <= b for a, b in pairwise(told))

        def cancel(done: int, total: int) -> None:
            raise CancelledError

        with pytest.raises(CancelledError):
            base.enlarge(low, 400, 22, 0, cancel)


def test_strips_are_halved_where_memory_runs_out(small_strips: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bases, "PIXELS_AT_ONCE", 11 * 512)
    released: list[int] = []
    net = Network4(4)

    def network(low: Tensor) -> Tensor:
        if low.shape[-2] > 250:
            raise RuntimeError("CUDA out of memory. Tried to allocate much")
        return net(low)

    low = picture(600, 11)
    found = Foreign(network, 4, "net", release=lambda: released.append(1)).enlarge(low, 2400, 44, 0, quiet)
    torch.testing.assert_close(found, net(low).detach().clamp(0, 1), rtol=0, atol=2e-6)
    assert len(released) == 2  # 384 rows, 192, 64: 512, 320 and 192 with their halos


def test_what_others_networks_do_wrong_is_a_sentence() -> None:
    low = picture(30, 20)

    def full(strip: Tensor) -> Tensor:
        raise MemoryError

    def broken(strip: Tensor) -> Tensor:
        raise RuntimeError("Padding size should be less than\nthe input")

    with pytest.raises(OutOfMemoryError, match="net.pth: out of memory even .* 64 rows .* 20x30 px; choose"):
        Foreign(full, 2, "net.pth").enlarge(low, 60, 40, 0, quiet)
    with pytest.raises(Op4ksrError, match=r"net.pth: the upscale model fails on 20x30 px \(Padding .* than\); choose"):
        Foreign(broken, 2, "net.pth").enlarge(low, 60, 40, 0, quiet)
    with pytest.raises(Op4ksrError, match=r"to make \(1, 3, 60, 40\) of \(1, 3, 30, 20\), got \(1, 3, 30, 20\)"):
        Foreign(lambda strip: strip, 2, "net.pth").enlarge(low, 60, 40, 0, quiet)
    for made, got in ((None, "NoneType"), ([low], "list"), (low.numpy(), "ndarray"), (low[0], r"\(3, 30, 20\)")):
        network: Any = partial(lambda made, _: made, made)
        with pytest.raises(Op4ksrError, match=rf"to make \(1, 3, 30, 20\) of \(1, 3, 30, 20\), got {got}; choose"):
            Foreign(network, 1, "net.pth").enlarge(low, 60, 40, 0, quiet)
    odd: list[tuple[Any, int]] = [(0, 3), (2, 4), (2, 2), (0.5, 3), (2.5, 3), (float("nan"), 3), (float("inf"), 3)]
    for factor, channels in odd:
        with pytest.raises(OptionError, match="from 1 up that takes 3 channels or 1, got a factor of"):
            Foreign(lambda strip: strip, factor, "net.pth", channels=channels)
    with pytest.raises(OptionError, match="net.pth: halo: expected 0 px or more, got -1"):
        Foreign(lambda strip: strip, 2, "net.pth", halo=-1)


def test_a_network_may_change_and_view_what_it_is_given(small_strips: None) -> None:
    """Its strips share rows, and the input is looked at again when the picture is finished."""

    def network(strip: Tensor) -> Tensor:
        strip.view(-1).mul_(0.5)
        return strip

    low = picture(300, 20)
    before = low.clone()
    found = Foreign(network, 1, "net", halo=8).enlarge(low, 300, 20, 0, quiet)
    assert torch.equal(low, before) and torch.equal(found, before * 0.5)


@pytest.mark.parametrize("size", [(1600, 800), (600, 300), (2500, 1250), (1300, 650)], ids=str)
def test_memory_and_work_are_as_planned(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch, enlarger: Enlarger
) -> None:
    """Beside the input and the result; the plan may promise too much, by at most a half, and never too little."""
    from torch.utils.flop_counter import FlopCounterMode

    monkeypatch.setattr(bases, "PIXELS_AT_ONCE", 200 * 100)
    monkeypatch.setattr(bases, "LEARNED_PIXELS", 200 * 60)
    low, net = picture(400, 200), Network4(4)
    wide = Enlarger(EnlargerParams(width=48, blocks=2)).eval().requires_grad_(False)
    needs = footprint(net)
    candidates: list[Base] = [Learned(wide, "ours"), Foreign(net, 4, "net", footprint=needs)]
    for base, repair in ((candidates[0], 0.0), (candidates[0], 0.5), (candidates[1], 0.5)):
        with AllocationTracker() as memory, FlopCounterMode(display=False) as counter:
            base.enlarge(low, *size, repair, quiet)
        own = memory.peak - 12 * size[0] * size[1]
        peak = base.peak_bytes((400, 200), size, repair)
        assert own <= peak <= 1.51 * own, base.name
        flops = base.flops((400, 200), size, repair)
        assert flops is not None and counter.get_total_flops() == pytest.approx(flops, rel=0.05)
        assert base.peak_bytes((400, 200), size, repair, least=True) <= peak
    assert foreign().flops((400, 200), size) is None


@pytest.mark.parametrize("repair", [0.0, 0.5])
@pytest.mark.parametrize(
    ("params", "size", "scale"),
    [
        (EnlargerParams(48, 11), (256, 1024), 4),  # the last strip is a whole one
        (EnlargerParams(48, 11), (51, 700), 3),  # one strip and a row
        (EnlargerParams(48, 11), (60, 2700), 2),  # wide: the lowest strips there are
        (EnlargerParams(48, 11), (40, 60), 4),  # one strip
        (EnlargerParams(8, 4), (500, 400), 4),
        (EnlargerParams(1, 1, (8,)), (500, 400), 8),
        (EnlargerParams(16, 2, (16,)), (200, 320), 4),
        (EnlargerParams(16, 2, (2,)), (300, 300), 5.5),
    ],
    ids=str,
)
@pytest.mark.slow
def test_the_peak_is_never_more_than_planned(
    params: EnlargerParams, size: tuple[int, int], scale: float, repair: float
) -> None:
    base, out = Learned(Enlarger(params).eval(), "ours"), (round(size[0] * scale), round(size[1] * scale))
    low = picture(*size)
    with AllocationTracker() as memory:
        base.enlarge(low, *out, repair, quiet)
    own = memory.peak - 12 * out[0] * out[1]
    assert own <= base.peak_bytes(size, out, repair) <= 2.5 * own


def test_infinity_is_not_black_or_white(enlarger: Enlarger) -> None:
    low, loud = picture(24, 40), Enlarger(enlarger.params)
    loud.load_state_dict({name: 1e30 * value for name, value in enlarger.state_dict().items()})
    endless = Foreign(lambda strip: torch.full_like(strip, -torch.inf).half(), 1, "net")
    for base in (Learned(loud, "ours"), endless):
        for repair in (0.0, 1.0):
            with pytest.raises(Op4ksrError, match=f"{base.name}: the enlarger's output is not finite"):
                base.enlarge(low, 48, 80, repair, quiet)


def test_free_memory_makes_strips_lower() -> None:
    net = Network4(4)
    needs = footprint(net)
    base = Foreign(net, 4, "net", footprint=needs, free=lambda: 60_000_000)
    low = picture(600, 200)
    base.enlarge(low, 1200, 400, 0, quiet)
    rows = max(height for height, _ in net.seen)
    assert 64 < rows < 600 and base.peak_bytes((600, 200), (1200, 400)) <= 60_000_000
    assert base.peak_bytes((600, 200), (1200, 400)) < Foreign(net, 4, "net", footprint=needs).peak_bytes(
        (600, 200), (1200, 400)
    )


def test_names_choose() -> None:
    bundled = choose_base("bundled", "picture")
    assert isinstance(bundled, Learned) and bundled.name == "bundled" and bundled.weights > 100_000
    assert isinstance(choose_base("auto", "detail"), Learned)
    for choice, output in (("auto", "picture"), ("bicubic", "detail")):
        assert isinstance(choose_base(choice, output), Bicubic)  # pyright: ignore
