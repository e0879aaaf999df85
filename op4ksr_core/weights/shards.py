"""Which safetensors files make up a model: one, or the shards that an index beside them lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import UnsupportedCheckpointError

#: Ends every shard index's name, as transformers and diffusers write them.
_INDEX = ".safetensors.index.json"


def files_of(path: Path) -> list[Path]:
    """The files to read for a safetensors file, any one shard, a shard index, or a folder that holds one model.

    Raises UnsupportedCheckpointError: no such file, several models in the folder, an index that is broken, lists
    shards that are missing, or names files outside its own folder.
    """
    if path.is_dir():
        indexes = sorted(path.glob(f"*{_INDEX}"))
        singles = sorted(path.glob("*.safetensors"))
        if len(indexes) == 1:
            return _shards(indexes[0])
        if len(singles) == 1:
            return singles
        raise UnsupportedCheckpointError(
            path, f"expected one safetensors file or one shard index in this folder, got {len(singles)} files; name one"
        )
    if not path.exists():
        raise UnsupportedCheckpointError(path, "no such file; check the name and the folder")
    if path.name.endswith(".index.json"):
        return _shards(path)
    for index in sorted(path.parent.glob(f"*{_INDEX}")):
        try:
            belongs = path in _listed(index)
        except UnsupportedCheckpointError:  # another model's broken index, in a folder of many models
            continue
        if belongs:  # any one shard stands for its model
            return _shards(index)
    return [path]


def read_json(path: Path) -> Any:
    """The value in a JSON file. ValueError where it is not JSON (or nested too deeply), OSError where unreadable."""
    try:
        return json.loads(path.read_text("utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def some_names(names: list[str], count: int = 3) -> str:
    """The first few names in a row, with dots for the others, for an error; each cut to 120 characters."""
    shown = [name if len(name) <= 120 else f"{name[:117]}..." for name in names[:count]]
    return ", ".join(shown) + (", ..." if len(names) > count else "")


def _listed(index: Path) -> list[Path]:
    """The files a shard index names, whether they are there or not; all beside the index."""
    try:
        weight_map = read_json(index)["weight_map"]
        names: set[object] = set(weight_map.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnsupportedCheckpointError(index, f"is no shard index ({error}); fetch it again") from error
    plain = [name for name in names if isinstance(name, str) and _is_plain(name)]
    if outside := sorted(repr(name) for name in names if name not in plain):
        raise UnsupportedCheckpointError(
            index,
            f"is no shard index (expected the names of files in its own folder, got {some_names(outside)}); "
            "fetch it again",
        )
    return [index.parent / name for name in sorted(plain)]


def _is_plain(name: str) -> bool:
    """Whether it names a file in the same folder, on any system: no separator, drive, stream or control character."""
    return name not in ("", ".", "..") and not any(c in "/\\:" or ord(c) < 32 for c in name)


def _shards(index: Path) -> list[Path]:
    shards = _listed(index)
    if not shards:
        raise UnsupportedCheckpointError(index, "is no shard index (it lists no files); fetch it again")
    try:
        missing = [shard.name for shard in shards if not shard.exists()]
    except OSError as error:  # a name that is too long for the file system, say
        raise UnsupportedCheckpointError(
            index, f"one of its shards cannot be opened ({error.strerror}); fetch it again"
        ) from error
    if missing:
        raise UnsupportedCheckpointError(index, f"its shards {some_names(missing)} are not here; fetch them too")
    return shards
