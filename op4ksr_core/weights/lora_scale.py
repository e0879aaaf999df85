"""alpha / rank: how strongly a LoRA changes a module, wherever its file says so.

Order of belief: the module's own ``.alpha`` tensor; PEFT's config in the header (``lora_adapter_metadata``, as
diffusers writes it; keys of the transformer before keys without a prefix); plain numbers in the header
(``transformer.lora_alpha`` and ``transformer.r`` as SimpleTuner writes them, or without a prefix); kohya's
``ss_network_alpha`` and ``ss_network_dim``; PEFT's own ``adapter_config.json`` beside a file that is named as PEFT
names its own (what is in a file counts before what lies beside it); and where nothing says so, 1. The first of them
that states an alpha counts. PEFT's scale is alpha / rank, with ``use_rslora`` alpha / sqrt(rank)
(https://huggingface.co/docs/peft/package_reference/lora).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import UnsupportedCheckpointError
from ..plain_text import plain
from .header import Header
from .json_text import parse_json, read_json

_ADAPTER = "lora_adapter_metadata"

#: What PEFT's ``save_pretrained`` writes into a folder: the tensors, and their config.
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"

_PREFIXES = ("transformer.", "", "diffusion_model.", "base_model.model.")

#: Plain header keys, without their prefix: of the alpha, and of the rank that it is divided by. The last of the
#: alphas may mean anything, and counts beside a rank alone.
_ALPHAS = ("lora_alpha", "network_alpha", "alpha")
_RANKS = ("r", "rank", "lora_rank", "network_dim")

#: What kohya's scripts write for an alpha or a rank that is not one number (resized LoRAs), or none.
_UNSTATED = ("", "none", "dynamic")


#: Characters of a module's name that patterns are compared with; Flux's have up to 70.
_LONGEST_NAME = 200


@dataclass(frozen=True)
class StatedScale:
    """What a file's metadata says. source: which of it, in words; rank: None where only the alpha is stated.

    alphas, ranks: of single modules, by PEFT's patterns of their names, before ``alpha`` and ``rank``.
    """

    source: str
    alpha: float
    rank: float | None = None
    alphas: Mapping[str, float] = field(default_factory=dict[str, float])
    ranks: Mapping[str, float] = field(default_factory=dict[str, float])
    root: bool = False

    def of(self, header: Header, base: str, rank: int) -> float:
        """The scale of a module. base: its canonical name; rank: its tensors'. UnsupportedCheckpointError: another."""
        stated = _by_pattern(self.ranks, base, self.rank)
        if stated is not None and stated != rank:
            raise UnsupportedCheckpointError(
                header.path,
                f"its {self.source} states rank {stated:g} and its tensors have {rank} ({plain(base)}), so "
                "its strength is unknown; take the file as its trainer wrote it",
            )
        alpha = _by_pattern(self.alphas, base, self.alpha)
        assert alpha is not None
        return alpha / (math.sqrt(rank) if self.root else rank)


def stated_scale(header: Header) -> StatedScale | None:
    """What the metadata says of alpha and rank; None for nothing.

    Raises UnsupportedCheckpointError where it says it wrongly: no number, not above 0, no JSON.
    """
    return _of_adapter(header) or _of_plain_keys(header) or _of_kohya(header) or _of_peft(header)


def scale_metadata(header: Header) -> dict[str, str]:
    """What a copy of the file must state so that what lies beside the file is not lost; empty for nothing."""
    if _of_adapter(header) or _of_plain_keys(header) or _of_kohya(header) or (found := _of_peft(header)) is None:
        return {}
    config = {"lora_alpha": found.alpha, "r": found.rank, "use_rslora": found.root}
    return {_ADAPTER: json.dumps({**config, "alpha_pattern": found.alphas, "rank_pattern": found.ranks})}


def _of_adapter(header: Header) -> StatedScale | None:
    if (text := header.metadata.get(_ADAPTER)) is None:
        return None
    try:
        config: Any = parse_json(text)
    except ValueError as error:
        raise _wrong(header, f"metadata {_ADAPTER}", f"it cannot be read as JSON ({plain(error)})") from error
    return _of_config(header, f"metadata {_ADAPTER}", "metadata ", config, _PREFIXES)


def _of_peft(header: Header) -> StatedScale | None:
    """From the config that PEFT writes beside its file."""
    file = header.files[0]
    if file.name != PEFT_FILE:
        return None
    try:
        config: Any = read_json(file.parent / PEFT_CONFIG)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _wrong(header, PEFT_CONFIG, f"it cannot be opened ({error.strerror})") from error
    except ValueError as error:
        raise _wrong(header, PEFT_CONFIG, f"it cannot be read as JSON ({plain(error)})") from error
    stated = _of_config(header, f"{PEFT_CONFIG} beside the file", f"{PEFT_CONFIG}: ", config, ("",))
    if stated is None:
        raise _wrong(header, PEFT_CONFIG, "it states no lora_alpha")
    return stated


def _of_config(header: Header, source: str, where: str, config: Any, prefixes: tuple[str, ...]) -> StatedScale | None:
    """PEFT's config, wherever it stands. where: what errors put before a key of it."""
    if not isinstance(config, dict):
        raise _wrong(header, source, "it is no JSON object")
    values: dict[str, Any] = config
    for prefix in prefixes:
        if values.get(f"{prefix}lora_alpha") is None:
            continue

        def key(name: str, prefix: str = prefix) -> tuple[str, Any]:
            return f"{where}{prefix}{name}", values.get(f"{prefix}{name}")

        rank = values.get(f"{prefix}r")
        return StatedScale(
            source,
            _number(header, *key("lora_alpha")),
            None if rank is None else _number(header, *key("r")),
            _pattern(header, *key("alpha_pattern")),
            _pattern(header, *key("rank_pattern")),
            _flag(header, *key("use_rslora")),
        )
    return None


def _of_plain_keys(header: Header) -> StatedScale | None:
    stated = header.metadata
    for prefix in _PREFIXES:
        alpha = next((key for name in _ALPHAS if _says(stated, key := prefix + name)), None)
        rank = next((key for name in _RANKS if _says(stated, key := prefix + name)), None)
        if alpha is not None and (rank is not None or not alpha.endswith(_ALPHAS[2]) or alpha.endswith(_ALPHAS[:2])):
            return StatedScale(
                f"metadata {alpha}",
                _number(header, f"metadata {alpha}", stated[alpha]),
                None if rank is None else _number(header, f"metadata {rank}", stated[rank]),
                root=_flag(header, f"metadata {prefix}use_rslora", stated.get(f"{prefix}use_rslora")),
            )
    return None


def _of_kohya(header: Header) -> StatedScale | None:
    alpha, rank = "ss_network_alpha", "ss_network_dim"
    if not _says(header.metadata, alpha) or re.fullmatch(r"0(\.0)?", header.metadata[alpha]):  # 0: the rank
        return None
    stated = header.metadata
    dim = _number(header, f"metadata {rank}", stated[rank]) if _says(stated, rank) else None
    return StatedScale(f"metadata {alpha}", _number(header, f"metadata {alpha}", stated[alpha]), dim)


def _says(stated: Mapping[str, str], key: str) -> bool:
    return key in stated and stated[key].strip().lower() not in _UNSTATED


def _number(header: Header, key: str, value: object) -> float:
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, (int, float, str)) else float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if not 0 < number < math.inf:
        what = type(value).__name__ if isinstance(value, (list, dict)) else plain(value, 60)
        raise _wrong(header, key, f"expected a number above 0, got '{what}'")
    return number


def _flag(header: Header, key: str, value: object) -> bool:
    words = {"true": True, "1": True, "false": False, "0": False, "none": False}
    found = None if isinstance(value, (list, dict, float)) else words.get(plain(value, 9).strip().lower())
    if found is None:
        raise _wrong(header, key, "expected true or false")
    return found


def _pattern(header: Header, key: str, value: object) -> dict[str, float]:
    """{a module's name, its end after a dot, or a regular expression of either: number}."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _wrong(header, key, "expected a JSON object")
    stated: dict[str, Any] = value
    for pattern in stated:
        if not _is_harmless(pattern):
            raise _wrong(header, key, f"expected names of modules or simple regular expressions, got {plain(pattern)}")
    return {pattern: _number(header, key, n) for pattern, n in stated.items()}


def _is_harmless(pattern: str) -> bool:
    """Whether matching it against a module's name ends soon, whoever wrote it.

    Our choice: in at most 200 characters 2 repetitions, none of them of a group, 2 groups and 16 alternatives.
    """
    counts = ((r"[*+?{]", 2), (r"\(", 2), (r"\|", 16), (r"\)[*+?{]|\\[1-9]|\(\?", 0))
    if len(pattern) > 200 or any(len(re.findall(what, pattern)) > most for what, most in counts):
        return False
    try:
        re.compile(pattern)
    except (re.error, OverflowError):
        return False
    return True


def _by_pattern(patterns: Mapping[str, float], base: str, default: float | None) -> float | None:
    """As PEFT: the first pattern that matches the module's name or its end after a dot."""
    for pattern, number in patterns.items():
        names = (base, *(base[dot.end() :] for dot in re.finditer(r"\.", base)))
        if any(re.fullmatch(pattern, name) for name in names if len(name) <= _LONGEST_NAME):
            return number
    return default


def _wrong(header: Header, key: str, fault: str) -> UnsupportedCheckpointError:
    return UnsupportedCheckpointError(
        header.path, f"its {plain(key)} is wrong: {fault}; its strength is unknown, so fetch it again"
    )
