"""A hundred run folders with one thing spoilt in each: what is resumed from it is right, or refused in one sentence."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from campaigns.outcomes import Tally, command
from safetensors import safe_open
from safetensors.torch import save_file
from unit.training.test_trainer import StoppedError, config, folder, killed_at, rows, same_file, train  # noqa: F401

from op4ksr_core.training.config_file import parse_config
from op4ksr_core.training.trainer import Trainer

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="no fork")]

Spoil = Callable[[Path], None]

STATE, LOG, CONFIG = "checkpoints/state.safetensors", "log.csv", "config.toml"
POOL, PAIRS = "cache/leaves*.npy", "cache/pairs*.safetensors"


def content(data: bytes) -> Spoil:
    """Other content."""
    return lambda path: path.write_bytes(data)


def changed(change: Callable[[bytes], bytes]) -> Spoil:
    return lambda path: path.write_bytes(change(path.read_bytes()))


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_circle(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


#: What may happen to any file.
ANYTHING: dict[str, Spoil] = {
    "empty": content(b""),
    "NULs": changed(lambda data: b"\0" * len(data)),
    "NULs at the end": changed(lambda data: data[: len(data) // 2] + b"\0" * (len(data) - len(data) // 2)),
    "cut": changed(lambda data: data[: len(data) // 2]),
    "a byte more": changed(lambda data: data + b"\xff"),
    "a picture": content(b"\x89PNG\r\n\x1a\n" + b"\0" * 100),
    "a pickle": content(b"\x80\x04\x95" + b"\0" * 100),
    "a folder": a_folder,
    "a pipe": a_pipe,
    "a circle": a_circle,
}


def tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Spoil:
    """A safetensors file with other tensors."""

    def spoil(path: Path) -> None:
        with safe_open(path, framework="pt") as opened:
            found = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
            metadata = opened.metadata()
        change(found)
        save_file(found, path, metadata)

    return spoil


def facts(change: Callable[[str], str]) -> Spoil:
    """A state with other facts in its header."""

    def spoil(path: Path) -> None:
        data = path.read_bytes()
        size = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + size])
        header["__metadata__"]["op4ksr.state"] = change(header["__metadata__"]["op4ksr.state"])
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])

    return spoil


def first(found: dict[str, torch.Tensor], start: str) -> str:
    return next(name for name in sorted(found) if name.startswith(start) and found[name].ndim)


def _all(found: dict[str, torch.Tensor], start: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    name = first(found, start)
    found[name] = change(found[name])


def without(found: dict[str, torch.Tensor], name: str) -> None:
    del found[name]


def fact(key: str, value: str) -> Spoil:
    """A state with this JSON as one of its facts."""
    return facts(lambda text: json.dumps({**json.loads(text), key: "@"}).replace('"@"', value))


def states() -> Iterator[tuple[str, Spoil]]:
    for start in ("model.", "ema.", "optimizer."):
        yield f"{start} missing", tensors(lambda found, s=start: without(found, first(found, s)))
        yield f"{start} nan", tensors(lambda found, s=start: _all(found, s, lambda t: t * float("nan")))
        yield f"{start} int", tensors(lambda found, s=start: _all(found, s, lambda t: t.to(torch.int64)))
        yield f"{start} half", tensors(lambda found, s=start: _all(found, s, lambda t: t.half()))
        yield f"{start} shape", tensors(lambda found, s=start: _all(found, s, lambda t: t.flatten()[:1].clone()))
    yield "moment of nothing", tensors(lambda found: found.update({"optimizer.x.exp_avg": torch.zeros(1)}))
    yield "moment far away", tensors(lambda found: found.update({"optimizer.999999999.step": torch.zeros(())}))
    yield "no facts", facts(lambda text: "{}")
    yield "facts cut", facts(lambda text: text[:-5])
    yield "facts a list", facts(lambda text: "[1, 2]")
    yield "facts deep", facts(lambda text: "[" * 100_000)
    for key in ("step", "seconds", "ema_steps"):
        for value in ("null", "-1", '"3"', "1e400", "NaN", "9" * 5000, "true"):
            yield f"{key} {value[:9]}", fact(key, value)


def logs() -> Iterator[tuple[str, Spoil]]:
    yield "torn row", changed(lambda data: data[:-9])
    yield "a NUL", changed(lambda data: data.replace(b"\n2,", b"\n\x00,"))
    yield "digits", changed(lambda data: data.replace(b"\n2,", b"\n" + b"9" * 5000 + b","))
    yield "a row cut short", changed(lambda data: data.replace(b"\n2,", b"\n2\n2,"))
    yield "a field of 200,000", changed(lambda data: data.replace(b"\n2,", b"\n2," + b"1" * 200_000))
    yield "a quote", changed(lambda data: data.replace(b"\n2,", b'\n"2,'))
    yield "BOM", changed(lambda data: b"\xef\xbb\xbf" + data)
    yield "UTF-16", changed(lambda data: data.decode().encode("utf-16"))


def arrays() -> Iterator[tuple[str, Spoil]]:
    yield "objects", lambda path: np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    yield "floats", lambda path: np.save(path, np.load(path).astype(np.float32))
    yield "fewer", lambda path: np.save(path, np.load(path)[:1])
    yield "Fortran", lambda path: np.save(path, np.asfortranarray(np.load(path)))
    yield "deep header", content(b"\x93NUMPY\x01\x00" + struct.pack("<H", 60_000) + b"(" * 60_000)


def pairs() -> Iterator[tuple[str, Spoil]]:
    yield "nan", tensors(lambda found: _all(found, "high.0", lambda t: t * float("nan")))
    yield "missing", tensors(lambda found: without(found, "low.1"))
    yield "float pictures", tensors(lambda found: _all(found, "picture.0", lambda t: t.float()))
    yield "shape", tensors(lambda found: _all(found, "low.0", lambda t: t[..., :1].clone()))


CASES = [
    *[(STATE, name, spoil) for name, spoil in (*ANYTHING.items(), *states())],
    *[(LOG, name, spoil) for name, spoil in (*ANYTHING.items(), *logs())],
    *[(CONFIG, name, spoil) for name, spoil in ANYTHING.items()],
    *[(POOL, name, spoil) for name, spoil in (*ANYTHING.items(), *arrays())],
    *[(PAIRS, name, spoil) for name, spoil in (*ANYTHING.items(), *pairs())],
]


def test_spoilt_runs(folder: Path) -> None:  # noqa: F811
    """A run killed after 3 of 4 steps, its state at 2: where nothing refuses, the unbroken run's weights come out."""
    text = config(folder, "lora", data="cached = 4\n", train="threads = 1\n").replace(
        "save_every = 3", "save_every = 2"
    )
    text = text.replace("steps = 6", "steps = 4")
    recipe, run, kept = folder / "recipe.toml", folder / "run", folder / "kept"
    whole = train(text.replace('/run"', '/whole"'))
    recipe.write_text(text)
    with pytest.raises(StoppedError):
        Trainer(parse_config(text), text, False, killed_at(3)).run()
    shutil.copytree(run, kept)
    tally = Tally("spoilt run folders")

    def wrong() -> str | None:
        steps = [row["step"] for row in rows(run)]
        if not same_file(run / whole.relative_to(folder / "whole"), whole):
            return "other weights"
        return None if steps == list("01234") else f"the log's rows are {steps}"

    for place, name, spoil in CASES:
        shutil.rmtree(run)
        shutil.copytree(kept, run)
        (path,) = run.glob(place)
        spoil(path)
        tally.judge(f"{place}: {name}", command(["train", recipe, "--resume"]), wrong)
    tally.close()
