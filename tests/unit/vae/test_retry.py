"""What happens when strips run out of memory: leaner ones, the same picture, and nothing held on to."""

import errno
import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from safetensors import SafetensorError

from op4ksr_core.errors import OutOfMemoryError
from op4ksr_core.machine import AllocationTracker, explain_out_of_memory
from op4ksr_core.vae.autoencoder import AutoEncoder, AutoEncoderParams
from op4ksr_core.vae.retry import recovering
from op4ksr_core.vae.strips import MEMORY_MODES, MemoryMode, StripSettings

TINY = AutoEncoderParams(widths=(8, 16), layers_per_block=1, norm_groups=4)


class Allocations:
    """Raises out of memory at the n-th tensor that an operation makes, ``times`` times in all."""

    def __init__(self, at: int, times: int) -> None:
        self.at, self.times, self.count = at, times, 0

    def tracker(self) -> AllocationTracker:
        outer = self

        class Raising(AllocationTracker):
            def _count(self, tensor: torch.Tensor) -> None:
                super()._count(tensor)
                outer.count += 1
                if outer.count >= outer.at and outer.times > 0:
                    outer.times -= 1
                    raise torch.OutOfMemoryError("injected: out of memory")

        return Raising()


@pytest.fixture(scope="module")
def model() -> AutoEncoder:
    torch.manual_seed(0)
    return AutoEncoder(TINY).requires_grad_(False)


def stages(model: AutoEncoder) -> dict[str, Callable[[], torch.Tensor]]:
    pixels = torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(1))
    latent = torch.randn(1, 16, 12, 16, generator=torch.Generator().manual_seed(2))
    strips = StripSettings()
    return {
        "encode": lambda: model.encode_strips(pixels, strips=strips),
        "decode": lambda: model.decode_strips(latent, strips=strips),
    }


@pytest.mark.parametrize("every", [11, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("stage", ["encode", "decode"])
@pytest.mark.slow
def test_out_of_memory_at_every_allocation_is_recovered(model: AutoEncoder, stage: str, every: int) -> None:
    run = stages(model)[stage]
    plain = run()
    counter = Allocations(10**9, 0)
    with counter.tracker():
        run()
    assert counter.count > 200
    outside = 0
    for at in range(1, counter.count + 1, every):
        with Allocations(at, 1).tracker() as tracker:
            try:
                result = run()
            except OutOfMemoryError as error:  # the result itself, which no mode makes smaller
                assert f"VAE {stage}: out of memory; ask for a smaller target" in str(error)
                outside += 1
                continue
        assert torch.allclose(result, plain, atol=1e-5)
        del result
        if tracker.live:
            gc.collect()
        assert tracker.live == 0, f"memory is held after recovering at allocation {at}"
    assert outside <= 2
    assert torch.equal(run(), plain)


@pytest.mark.parametrize("stage", ["encode", "decode"])
def test_when_nothing_helps_it_is_one_sentence_and_the_next_run_works(model: AutoEncoder, stage: str) -> None:
    run = stages(model)[stage]
    plain = run()
    with (
        Allocations(5, 100).tracker() as tracker,
        pytest.raises(OutOfMemoryError, match=f"VAE {stage} of 64x48 px: out of memory even"),
    ):
        run()
    gc.collect()
    assert tracker.live == 0
    assert torch.equal(run(), plain)


@pytest.mark.parametrize("stage", ["encode", "decode"])
@pytest.mark.parametrize("mode", MEMORY_MODES)
def test_cancel_at_every_strip(model: AutoEncoder, stage: str, mode: MemoryMode) -> None:
    class CancelError(Exception):
        pass

    given = torch.rand(1, 3, 48, 64) if stage == "encode" else torch.randn(1, 16, 12, 16)
    call = model.encode_strips if stage == "encode" else model.decode_strips
    count = 0

    def counted(done: int, of: int) -> None:
        nonlocal count
        count += 1
        if count == stop:
            raise CancelError

    stop, strips = 0, StripSettings(8, mode)
    plain = call(given, counted, strips=strips)
    total = count
    for stop in range(1, total + 1):
        count = 0
        with pytest.raises(CancelError):
            call(given, counted, strips=strips)
        assert count == stop
    stop = 0
    assert torch.equal(call(given, counted, strips=strips), plain)
    assert total > 10


def test_a_failed_try_is_let_go_before_the_next() -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def run(settings: StripSettings) -> str:
        assert all(ref() is None for ref in held), "the failed try's tensor still lives"
        tensor = torch.zeros(10)
        held.append(weakref.ref(tensor))
        if len(held) < 3:
            raise torch.OutOfMemoryError("out of memory")
        return settings.mode

    assert recovering(run, StripSettings(), "test") == "tiny"
    assert len(held) == 3


def test_what_was_done_is_told_in_one_line_and_memory_is_released(caplog: pytest.LogCaptureFixture) -> None:
    tried: list[StripSettings] = []
    released: list[int] = []

    def run(settings: StripSettings) -> str:
        tried.append(settings)
        if len(tried) < 3:
            raise torch.OutOfMemoryError("out of memory")
        return "done"

    assert recovering(run, StripSettings(), "VAE decode", lambda: released.append(len(tried))) == "done"
    assert released == [1, 2]
    (record,) = caplog.records
    told = record.getMessage()
    assert told.count("\n") == 0
    assert told.startswith("VAE decode: out of memory with fast, strips of 64 rows, lean, strips of 64 rows; done with")
    assert told.endswith("tiny, strips of 64 rows")


def test_a_run_that_fits_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    assert recovering(lambda settings: settings.rows, StripSettings(), "test") == 64
    assert not caplog.records


def test_other_errors_are_not_retried() -> None:
    calls = []

    def run(settings: StripSettings) -> None:
        calls.append(settings)
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        recovering(run, StripSettings(), "test")
    assert len(calls) == 1


def test_out_of_memory_elsewhere_is_told_in_one_sentence() -> None:
    sentence = r"photo\.png: out of memory; ask for a smaller target"
    with pytest.raises(OutOfMemoryError, match=sentence), explain_out_of_memory("photo.png"):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(RuntimeError, match="shapes"), explain_out_of_memory("photo.png"):
        raise RuntimeError("shapes do not match")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("could not create a primitive"),
        RuntimeError("could not create a memory object"),
        RuntimeError("unable to mmap 12 bytes from file <a.safetensors>: Cannot allocate memory (12)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("not enough memory: you tried to allocate 9 bytes."),
        RuntimeError("std::bad_alloc"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        SafetensorError("Error while opening: Cannot allocate memory (os error 12)"),
    ],
    ids=repr,
)
def test_memory_runs_out_with_many_faces(error: Exception) -> None:
    def run(settings: StripSettings) -> str:
        if settings.mode == "fast":
            raise error
        return settings.mode

    assert recovering(run, StripSettings(), "VAE decode") == "lean"
    with pytest.raises(OutOfMemoryError, match=r"a\.png: out of memory"), explain_out_of_memory("a.png"):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("could not create a primitive descriptor for a convolution"),
        RuntimeError("unable to mmap 12 bytes from file <a>: No such device (19)"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "out of memory.png"),
        ValueError("out of memory"),
    ],
    ids=repr,
)
def test_what_is_something_else_is_not_taken_for_it(error: Exception) -> None:
    with pytest.raises(type(error)), explain_out_of_memory("a.png"):
        raise error
