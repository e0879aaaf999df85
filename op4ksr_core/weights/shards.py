"""Which safetensors files make up a model: one, or the shards that an index beside them lists."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import UnsupportedCheckpointError
from ..files import regular_file
from ..plain_text import plain
from .json_text import read_json

#: Names of shard indexes: as transformers and diffusers write them, a variant's name (fp16) at either end or without.
_INDEX = re.compile(r"\.safetensors\.index(\.[\w-]+)?\.json$")

#: Names of shards: ``NAME-00001-of-00003``, with a variant's name before or after the numbers or without.
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})(\.[\w-]+)?\.safetensors$", re.ASCII)


def files_of(path: Path) -> list[Path]:
    """The files to read for a safetensors file, any one shard, a shard index, or a folder that holds one model.

    Raises UnsupportedCheckpointError: no such file, several models in the folder, a shard that no index lists, an
    index that is broken, lists shards that are missing, or names files outside its own folder.
    """
    kind = regular_file(path)
    if kind == "a folder":
        return _files_in(path)
    if kind is not None:
        return [path]  # whoever opens it says what it is
    if _INDEX.search(path.name) or path.name.endswith(".index.json"):
        return _shards(path)
    for index in _indexes(path.parent):
        try:
            belongs = path in _listed(index)
        except UnsupportedCheckpointError:  # another model's broken index, in a folder of many models
            continue
        if belongs:  # any one shard stands for its model
            return _shards(index)
    _refuse_lone_shard(path)
    return [path]


def some_names(names: list[str], count: int = 3) -> str:
    """The first few names in a row, with dots for the others, for an error; each cut to 120 characters."""
    shown = [plain(name) if len(name) <= 120 else f"{plain(name[:117])}..." for name in names[:count]]
    return ", ".join(shown) + (", ..." if len(names) > count else "")


def _files_in(folder: Path) -> list[Path]:
    """Hidden files are passed over: macOS leaves ``._model.safetensors`` beside each file on disks of other systems."""
    try:
        indexes, singles = _indexes(folder), sorted(folder.glob("[!.]*.safetensors"))
    except OSError as error:
        raise UnsupportedCheckpointError(
            folder, f"is a folder that cannot be listed ({error.strerror}); name the file in it"
        ) from error
    if len(indexes) == 1:
        return _shards(indexes[0])
    if len(singles) == 1 and not indexes:
        return files_of(singles[0])
    what = f"{len(indexes)} shard indexes" if len(indexes) > 1 else f"{len(singles)} files"
    raise UnsupportedCheckpointError(
        folder, f"expected one safetensors file or one shard index in this folder, got {what}; name one"
    )


def _indexes(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("[!.]*.json") if _INDEX.search(file.name))


def _refuse_lone_shard(path: Path) -> None:
    """Say of a file that is one of several, by its name, that it alone is no model."""
    found = _SHARD.search(path.name)
    if found is not None and int(found[2]) > 1:
        raise UnsupportedCheckpointError(
            path,
            f"is shard {int(found[1])} of {int(found[2])} of a model, and no shard index beside it lists it; fetch the "
            "model's other files and its .safetensors.index.json into this folder",
        )


def _listed(index: Path) -> list[Path]:
    """The files a shard index names, whether they are there or not; all beside the index."""
    try:
        weight_map = read_json(index)["weight_map"]
        names: set[object] = set(weight_map.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnsupportedCheckpointError(index, f"is no shard index ({plain(error)}); fetch it again") from error
    inside = [name for name in names if isinstance(name, str) and _is_inside(name)]
    if outside := sorted(repr(name) for name in names if name not in inside):
        raise UnsupportedCheckpointError(
            index,
            f"is no shard index (expected the names of files in its own folder, got {some_names(outside)}); "
            "fetch it again",
        )
    return [index.parent / name for name in sorted(inside)]


def _is_inside(name: str) -> bool:
    """Whether it names a file in the same folder, on any system: no separator, drive, stream or control character."""
    return name not in ("", ".", "..") and not any(c in "/\\:" or ord(c) < 32 for c in name)


def _shards(index: Path) -> list[Path]:
    shards = _listed(index)
    if not shards:
        raise UnsupportedCheckpointError(index, "is no shard index (it lists no files); fetch it again")
    faults = [(shard.name, fault) for shard in shards if (fault := regular_file(shard)) is not None]
    if missing := [name for name, fault in faults if fault == "not there"]:
        raise UnsupportedCheckpointError(index, f"its shards {some_names(missing)} are not here; fetch them too")
    if faults:
        name, fault = faults[0]
        raise UnsupportedCheckpointError(index, f"its shard {some_names([name])} is {fault}; fetch it again")
    return shards
