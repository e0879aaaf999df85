"""What ``--resume`` reads: named tensors and a few facts, checked before anything is taken from them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import OptionError, UnsupportedCheckpointError
from ..files import regular_file
from ..weights.checkpoint import save_tensors
from .checksums import CHECKSUMS, checksums, damaged

#: AdamW's tensors of one parameter: a count, and two means of the parameter's shape.
_MOMENTS = {"step", "exp_avg", "exp_avg_sq"}

#: The largest count that a state may have: above any run's.
_MOST = 10**12


@dataclass(frozen=True)
class Facts:
    """How far a run was: steps, seconds, steps that the running mean has seen; whose run it is; the log's rows.

    rows is None in states that were saved before there was such a fact.
    """

    step: int
    seconds: float
    ema_steps: int
    kind: str
    seed: int
    rows: int | None = None


def save_state(path: Path, tensors: dict[str, Tensor], facts: Facts) -> None:
    """Write both; whole or not at all. Raises OutputError."""
    metadata = {"op4ksr.kind": "state", "op4ksr.state": json.dumps(asdict(facts))}
    save_tensors(path, tensors, {**metadata, CHECKSUMS: checksums(tensors)})


def load_state(path: Path) -> tuple[dict[str, Tensor], Facts]:
    """Tensors on the CPU, and facts. Raises UnsupportedCheckpointError for a damaged file.

    The tensors are copies: what safetensors gives maps the file, which the next save replaces.
    """
    if (other := regular_file(path)) is not None:
        raise _no_state(path, other)
    try:
        with safe_open(path, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118 - no dict
            metadata = opened.metadata() or {}
        facts = _facts(json.loads(metadata["op4ksr.state"]))
        if (name := damaged(tensors, metadata)) is not None:
            raise ValueError(f"the bytes of {name} are not those that were saved")
        return tensors, facts
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RecursionError, RuntimeError) as error:
        raise _no_state(path, f"{type(error).__name__}: {error}") from error


def check_parameters(path: Path, tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raise OptionError for the parameters of another model, UnsupportedCheckpointError for damaged ones.

    Each of ``expected`` must be there as ``model.NAME`` and ``ema.NAME``, in its shape and dtype, and finite.
    """
    shapes = {name: tensor.shape for name, tensor in expected.items()}
    if shapes != {n.removeprefix("model."): t.shape for n, t in tensors.items() if n.startswith("model.")}:
        raise OptionError(f"{path.parent.parent}: its run trains another model; name another run folder")
    for name, parameter in expected.items():
        for full in (f"model.{name}", f"ema.{name}"):
            _check(path, tensors, full, parameter)


def check_judge(path: Path, tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raise UnsupportedCheckpointError unless each of ``expected`` is there as ``judge.NAME``."""
    for name, tensor in expected.items():
        _check(path, tensors, f"judge.{name}", tensor)


def check_moments(path: Path, tensors: dict[str, Tensor], prefix: str, parameters: list[Tensor]) -> None:
    """Raise UnsupportedCheckpointError unless the tensors under ``prefix`` are AdamW's of some of the parameters."""
    found: dict[str, set[str]] = {}
    for name in tensors:
        if name.startswith(prefix + "."):
            index, _, key = name[len(prefix) + 1 :].partition(".")
            found.setdefault(index, set()).add(key)
    known = {str(i): parameter for i, parameter in enumerate(parameters)}
    for index, keys in found.items():
        if index not in known or keys != _MOMENTS:
            raise _no_state(path, f"{prefix}.{index} holds {', '.join(sorted(keys))}")
        for key in keys:
            like = torch.zeros(()) if key == "step" else known[index]
            _check(path, tensors, f"{prefix}.{index}.{key}", like)


def _check(path: Path, tensors: dict[str, Tensor], name: str, like: Tensor) -> None:
    found = tensors.get(name)
    if found is None:
        raise _no_state(path, f"{name} is missing")
    if (found.shape, found.dtype) != (like.shape, like.dtype):
        wanted, got = (f"{tuple(t.shape)} {t.dtype}" for t in (like, found))
        raise _no_state(path, f"{name}: expected {wanted}, got {got}")
    if not bool(torch.isfinite(found).all()):
        raise _no_state(path, f"{name} holds numbers that are not finite")


def _facts(found: Any) -> Facts:
    """The facts in the file's metadata. Raises KeyError and ValueError."""
    if not isinstance(found, dict):
        raise ValueError("its facts are no table")
    facts = Facts(*(found[name] for name in ("step", "seconds", "ema_steps", "kind", "seed")), rows=found.get("rows"))
    counts = (facts.step, facts.ema_steps, facts.seed, *([] if facts.rows is None else [facts.rows]))
    if any(type(count) is not int or count < 0 for count in counts) or max(counts[:2]) > _MOST:
        raise ValueError("a count is no whole number from 0 up")
    if type(facts.seconds) not in (int, float) or not math.isfinite(facts.seconds) or facts.seconds < 0:
        raise ValueError("the seconds are no number from 0 up")
    if type(facts.kind) is not str:
        raise ValueError("the kind is no word")
    return facts


def _no_state(path: Path, reason: str) -> UnsupportedCheckpointError:
    return UnsupportedCheckpointError(path, f"is no state of a run ({reason}); start in another folder")


def pack_optimizer(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """An optimizer's state as named tensors."""
    return dict(_packed(optimizer, prefix))


def _packed(optimizer: torch.optim.Optimizer, prefix: str) -> Iterator[tuple[str, Tensor]]:
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    for i, entry in state.items():
        for name, value in entry.items():
            yield f"{prefix}.{i}.{name}", value.detach() if isinstance(value, Tensor) else torch.tensor(float(value))


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], prefix: str) -> None:
    """The reverse of ``pack_optimizer``; without such tensors the optimizer stays as it is."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix + "."):
            index, _, key = name[len(prefix) + 1 :].partition(".")
            state.setdefault(int(index), {})[key] = tensor
    if state:
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
