"""1,500 recipes with one to three values spoilt: each trains, or is refused in one sentence."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from random import Random
from typing import get_type_hints

import pytest
from campaigns.outcomes import Run, Tally, forked
from unit.training.test_trainer import config, folder  # noqa: F401

from op4ksr_core import Op4ksrError
from op4ksr_core.training.config import TrainConfig
from op4ksr_core.training.config_file import read_config
from op4ksr_core.training.trainer import Trainer

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="no fork")]

RECIPES, SEED = 1500, 17

#: Bytes of memory that a run may ask for: far more than it needs, far less than a wrong one would.
MEMORY = 16 * 2**30

#: What no recipe means, in TOML.
VALUES = [
    *(
        "1e308",
        "-1e308",
        "1e400",
        "-1e400",
        "1e-308",
        "nan",
        "inf",
        "-inf",
        "0",
        "0.0",
        "-1",
        "-0.5",
        "1",
        "2",
        "3",
        "0.5",
    ),
    *(str(2**31), str(2**63), str(2**70), str(10**9), str(10**12), "9" * 400, "9" * 5000, "true", "false"),
    *('""', '"x"', '"0"', '"nan"', "[]", "[1]", "[1, 2, 3]", "[[1, 2], [3, 4]]", "[nan]", "[true]", '["a"]', "{}"),
    *("{a = 1}", "2026-01-01", "07:32:00", "[" * 3 + "]" * 3, "[" * 900 + "]" * 900, f"[{'1,' * 3000}]"),
    *('"http://127.0.0.1:9/a.tar"', '"pipe:touch LEAK"', '"pipe:touch LEAK::a.tar"', '"file:///etc/passwd"', '"a::b"'),
    *("'\\\\host\\share'", '"//host/share"', '"s3://a/b"', '"/dev/zero"', '"/dev/stdin"', '"FIFO"', '"FOLDER"'),
    *(f'"{"a" * 300}"', f'"{"a/" * 3000}"', '"a\\u0000b"', '"\\u001b[2J"', '"bundled"', '"{0..999999999}.tar"'),
    *('"meta"', '"cuda:99"', '"cpu:7"', '"cuda:' + "9" * 40 + '"', '"mkldnn"', '"procedural"', '"shards"', '"folder"'),
]


def keys() -> list[tuple[str, str]]:
    """(section or "", key) of all there are, and a few that there are not."""
    found = [("", "sead"), ("train", "stepz"), ("nowhere", "a"), ("train", '"a b"'), ("data", '"\\u001b"')]
    for name, hint in get_type_hints(TrainConfig).items():
        if is_dataclass(hint):
            found += [(name, f.name) for f in fields(hint)]
        elif not name.startswith("_"):
            found.append(("", name))
    return found


def spoilt(text: str, rng: Random) -> bytes:
    """The recipe with values in the place of others, or with damaged bytes."""
    lines = text.splitlines()
    for section, key in rng.sample(KEYS, rng.choice([1, 1, 1, 2, 3])):
        start = lines.index(f"[{section}]") + 1 if f"[{section}]" in lines else 0 if not section else len(lines)
        if section and f"[{section}]" not in lines:
            lines.append(f"[{section}]")
            start = len(lines)
        end = next((i for i in range(start, len(lines)) if lines[i].startswith("[")), len(lines))
        kept = [line for line in lines[start:end] if line.partition("=")[0].strip() != key]
        lines[start:end] = [*kept, f"{key} = {rng.choice(VALUES)}"]
    data = ("\n".join(lines) + "\n").encode()
    if rng.random() < 0.1:
        place = rng.randrange(len(data))
        damage = [b"\0", b"\xff\xfe", b"\r", b'"', b"[", b"\n[train]\n", b"=" * 3, b"a." * 2000]
        data = rng.choice([data[:place], data[:place] + rng.choice(damage) + data[place:], b"\xef\xbb\xbf" + data])
    return data


KEYS = keys()


def recipe_of(folder: Path, kind: str) -> str:  # noqa: F811
    """A tiny recipe of one step that is right."""
    more = {"train": "threads = 1\n"}
    if kind == "enlarger":
        more["enlarger"] = "width = 8\nblocks = 1\n"
    text = config(folder, "autoencoder" if kind == "enlarger" else kind, **more)
    if kind == "enlarger":
        text = text.replace('kind = "autoencoder"', 'kind = "enlarger"').replace("crop = 64", "crop = 96")
    return text.replace("steps = 6", "steps = 1").replace("warmup = 2", "")


KINDS = ("autoencoder", "one_step", "lora", "enlarger")


def tried(recipe: Path) -> Run:
    """As the command, but that a run has two steps at most, and two cached crops: a disk may have room for 10^9."""

    def work() -> int:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        try:
            found = read_config(recipe)
            short = [f"train.{k}={min(2, getattr(found.train, k))}" for k in ("steps", "linear_steps", "latent_steps")]
            short += [f"data.pictures={min(2, found.data.pictures)}", f"data.cached={min(2, found.data.cached)}"]
            if max(found.train.steps, found.data.cached) > 2:
                found = read_config(recipe, [short[0], *(s.replace("=2", "=1") for s in short[1:])])
            Trainer(found, "").run()
        except Op4ksrError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        return 0

    return forked(work)


def test_mutated_recipes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.chdir(folder)
    os.mkfifo(folder / "FIFO")
    (folder / "FOLDER").mkdir()
    tally, rng = Tally("mutated recipes"), Random(SEED)
    before = {*folder.iterdir(), folder / "run", folder / "recipe.toml"}
    for number in range(RECIPES):
        text = recipe_of(folder, KINDS[number % 4])
        recipe = folder / "recipe.toml"
        recipe.write_bytes(spoilt(text, rng))
        try:
            read_config(recipe)
        except Op4ksrError as error:
            run = Run(1, "", f"error: {error}\n", 0.0)
        except Exception as error:
            tally.fault(f"recipe {number}", repr(error))
            continue
        else:
            run = tried(recipe)
        tally.judge(f"recipe {number}: {recipe.read_text(errors='replace')[:3000] if run.fault() else ''}", run)
        for extra in set(folder.iterdir()) - before:
            shutil.rmtree(extra) if extra.is_dir() else extra.unlink()
            if "LEAK" in extra.name:
                tally.fault(f"recipe {number}", "a program was started")
        shutil.rmtree(folder / "run", ignore_errors=True)
    tally.close()
