"""``benchmark host``: the same upscale in a running ComfyUI, with its own memory manager, seen from outside."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import torch
from PIL import Image

from op4ksr_core.errors import Op4ksrError, OptionError

from ..pipeline import fact_rows, photo
from ..tables import FACTOR, Row
from .host_client import HostClient, Run, RunFailedError

log = logging.getLogger(__name__)

#: GB that the whole pipeline shall take at 4096 px at most: by what is named.
AIMS = {"weights in fp8": 16.0, "weights offloaded": 8.0}
AIM_SIDE = 4096


@dataclass(frozen=True)
class HostSettings:
    """What to run there: files as its dropdowns name them."""

    model: str
    vae: str
    weight_dtype: str = "default"
    sides: tuple[int, ...] = (2048, 4096, 8192)
    repeats: int = 3
    #: TorchCompileModel behind the model's loader.
    compiled: bool = False
    #: How the VAE's strips are chosen: auto, fast, lean, tiny.
    memory: str = "auto"

    def __post_init__(self) -> None:
        for side in self.sides:
            if side < FACTOR:
                raise OptionError(
                    f"benchmark host: expected sides from {FACTOR} px up, got {side}; name the output's sides"
                )


def graph(settings: HostSettings, image: str, side: int, turn: int, vae_only: bool = False) -> dict[str, Any]:
    """A prompt: loaders, the one-step node, and a thumbnail of its picture in place of a PNG, which takes seconds.

    turn: makes the one-step node's inputs new, so that it runs again; its picture stays the same.
    """
    step = {
        **{"image": ["1", 0], "model": ["4" if settings.compiled else "3", 0], "vae": ["2", 0]},
        **{"target": "long edge", "pixels": side, "factor": float(FACTOR), "megapixels": 16.0},
        **{"color_fix": "wavelet", "fidelity": 1.0, "vae_only": vae_only, "sigma": 0.0, "guidance": -1.0},
        "max_megapixels": round(68.0 + 0.1 * turn, 1),
    }
    vae = {"vae_name": settings.vae, "compression": "auto", "shift": "auto", "memory": settings.memory}
    model = {"model_name": settings.model, "weight_dtype": settings.weight_dtype}
    small = {"image": ["5", 0], "upscale_method": "nearest-exact", "width": 64, "height": 64, "crop": "disabled"}
    nodes: dict[str, tuple[str, dict[str, Any]]] = {
        "1": ("LoadImage", {"image": image}),
        "2": ("OP4KSR_LoadF16VAE", vae),
        "3": ("OP4KSR_LoadFluxSR", model),
        "5": ("OP4KSR_OneStepUpscale", step),
        "6": ("ImageScale", small),
        "7": ("PreviewImage", {"images": ["6", 0]}),
    }
    if settings.compiled:
        nodes["4"] = ("TorchCompileModel", {"model": ["3", 0], "backend": "inductor"})
    return {node: {"class_type": kind, "inputs": inputs} for node, (kind, inputs) in nodes.items()}


#: How hosts tell that memory ran out.
_OUT_OF_MEMORY = ("out of memory", "OutOfMemory", "Allocation on device", "OOM")


@dataclass
class HostRuns:
    """The runs at one side; ``failed`` in place of those that never came."""

    side: int
    before: int
    first: Run | None = None
    loaded: list[Run] = field(default_factory=list[Run])
    vae_only: list[Run] = field(default_factory=list[Run])
    failed: str = ""

    def all(self) -> list[Run]:
        """In order."""
        return [*([self.first] if self.first else []), *self.loaded, *self.vae_only]


def measure_host(
    client: HostClient, settings: HostSettings, tell: Callable[[list[HostRuns]], None] = lambda runs: None
) -> list[HostRuns]:
    """Every side: a run from nothing, ``repeats`` with everything loaded, ``repeats`` without the transformer.

    ``tell`` gets what there is after each side. Running out of memory is a row; raises OptionError as the client
    does, and Op4ksrError for a run that fails otherwise.
    """
    done: list[HostRuns] = []
    turn = 0
    for side in settings.sides:
        image = client.upload(f"op4ksr_benchmark_{side // FACTOR}.png", _picture(side // FACTOR))
        client.free()
        own = HostRuns(side, client.in_use()[0])
        done.append(own)
        try:
            for number in range(1 + 2 * settings.repeats):
                turn += 1
                vae_only = number > settings.repeats
                log.info("host: %d px, run %d%s", side, number + 1, ", VAE only" if vae_only else "")
                run = client.run(graph(settings, image, side, turn, vae_only))
                if number == 0:
                    own.first = run
                else:
                    (own.vae_only if vae_only else own.loaded).append(run)
        except RunFailedError as error:
            if not any(words in str(error) for words in _OUT_OF_MEMORY):
                raise Op4ksrError(
                    f"{client.server}: the run of {side} px failed in {error}; see ComfyUI's log"
                ) from error
            own.failed = f"out of memory: {str(error)[:160]}".replace("|", "/")
        finally:
            tell(done)
    return done


def _picture(side: int) -> bytes:
    """The bundled photo as a PNG of that side."""
    levels = photo(side, torch.device("cpu"))[0].mul(255).round().byte().permute(1, 2, 0)
    buffer = BytesIO()
    Image.fromarray(levels.contiguous().numpy()).save(buffer, "PNG")
    return buffer.getvalue()


# --- tables -----------------------------------------------------------------------------------


def host_tables(stats: dict[str, Any], settings: HostSettings, runs: Sequence[HostRuns]) -> dict[str, list[Row]]:
    """Settings, seconds and bytes by side, seconds by node, the aims in memory."""
    tables = {
        "Settings": fact_rows(_told(stats, settings)),
        "By the output's side": [_side_row(own) for own in runs],
    }
    if nodes := list(_node_rows(runs)):
        tables["Seconds by node"] = nodes
    tables[f"Aims in memory, {AIM_SIDE // FACTOR} -> {AIM_SIDE} px with 12 B"] = list(_aim_rows(runs))
    return tables


def _told(stats: dict[str, Any], settings: HostSettings) -> dict[str, str]:
    system, device = stats["system"], stats["devices"][0]
    what = "the card's memory in use, by anybody"
    if device["type"] == "cpu":
        what = "the machine's RAM in use, by anybody: this host runs on the CPU and has no VRAM"
    return {
        "ComfyUI": str(system.get("comfyui_version", "unknown")),
        "flags": " ".join(system.get("argv", [])[1:]) or "none",
        "host's torch": str(system.get("pytorch_version", "unknown")),
        "device": f"{device.get('name', 'unknown')} ({device['vram_total'] / 1e9:.1f} GB)",
        "model file": f"{settings.model}, weight_dtype {settings.weight_dtype}",
        "VAE file": f"{settings.vae}, memory {settings.memory}",
        "torch.compile": "TorchCompileModel" if settings.compiled else "no",
        "s": "seconds of the whole graph by the server's own clock; the picture is shrunk, not saved",
        "first s": "after /free: files read, models loaded, and compiled where that is asked for",
        "VAE only s": "the same without the transformer; the difference is the transformer's",
        "GB": f"{what}, above what was in use before the first run; the highest of looks every few hundredths of a "
        "second, so a lower bound",
        "torch GB": "what PyTorch's allocator held for tensors then (0 where the host does not say)",
    }


def _side_row(own: HostRuns) -> Row:
    row: Row = {"px": own.side, "outcome": own.failed or "done"}
    loaded, alone = ([run.seconds for run in group] for group in (own.loaded, own.vae_only))
    row["first s"] = own.first.seconds if own.first else ""
    row |= {"s": statistics.median(loaded), "min": min(loaded), "max": max(loaded)} if loaded else {}
    row |= {} if loaded else {"s": "", "min": "", "max": ""}
    row["VAE only s"] = statistics.median(alone) if alone else ""
    row["transformer s"] = row["s"] - row["VAE only s"] if loaded and alone else ""
    peak = _peak(own)
    row |= {"GB": "" if peak is None else peak / 1e9, "GB before": own.before / 1e9}
    return row | {"torch GB": max((run.most_torch_bytes for run in own.all()), default=0) / 1e9}


def _peak(own: HostRuns) -> int | None:
    """Bytes above what was in use before, in the runs that came to their end."""
    return max(run.most_bytes for run in own.all()) - own.before if own.all() and not own.failed else None


def _node_rows(runs: Sequence[HostRuns]) -> Iterator[Row]:
    for own in runs:
        groups = {"first": [own.first] if own.first else [], "loaded": own.loaded, "VAE only": own.vae_only}
        for name, group in groups.items():
            for node in dict.fromkeys(node for run in group for node in run.nodes):
                seconds = [run.nodes[node] for run in group if node in run.nodes]
                yield {"px": own.side, "runs": name, "node": node, "s": statistics.median(seconds), "of": len(seconds)}


def _aim_rows(runs: Sequence[HostRuns]) -> Iterator[Row]:
    """The peak against each aim; which of them this run is about, its flags and its model's dtype say."""
    peak = next((_peak(own) for own in runs if own.side == AIM_SIDE), None)
    for what, aim in AIMS.items():
        verdict = (
            "not measured" if peak is None else "within" if peak <= aim * 1e9 else f"{peak / aim / 1e9 - 1:.0%} above"
        )
        yield {"aim": what, "GB at most": aim, "GB": "" if peak is None else peak / 1e9, "verdict": verdict}
