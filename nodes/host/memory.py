"""Whether there is room for what a prompt asks for, before it is taken."""

from __future__ import annotations

import comfy.model_management
import torch

from ...op4ksr_core.errors import OptionError
from ...op4ksr_core.machine import free_memory


def check_room(what: str, nbytes: int, device: torch.device) -> None:
    """Raise OptionError unless the device has so many bytes: the CPU free, a GPU in all, as models can be moved out."""
    on_cpu = device.type == "cpu"
    room = free_memory(device) if on_cpu else int(comfy.model_management.get_total_memory(device))
    if room is not None and nbytes > room:
        raise OptionError(
            f"{what} take {nbytes / 1e9:,.1f} GB, but {device} has {room / 1e9:,.1f} GB; ask for fewer or smaller ones"
        )
