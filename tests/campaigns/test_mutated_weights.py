"""500 mutated weights files, each through a command or a loader: right, refused in one sentence, or a fault.

What a run that succeeds has made is compared with what the file's bytes say, read without any library, and for a
merged LoRA with the formula by hand. A file of a few kB may take no more than a gigabyte.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from campaigns.outcomes import Run, Tally, forked
from campaigns.weights_draft import Draft, raw_tensors
from safetensors.torch import load_file, save_file
from torch import Tensor

from op4ksr_core import Op4ksrError, load_autoencoder, load_flux
from op4ksr_core.cli.main import main
from op4ksr_core.models.enlarger import Enlarger, EnlargerParams
from op4ksr_core.weights.enlarger import load_enlarger

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="needs fork and RLIMIT_AS")]

COUNT, SEED, ROOM = 500, 17, 2**30
LOAD: dict[str, Callable[[Path], Any]] = {"vae": load_autoencoder, "flux": load_flux, "enlarger": load_enlarger}
USES = {
    "vae": ("inspect", "convert", "load"),
    "flux": ("inspect", "convert", "diffusers", "load"),
    "enlarger": ("inspect", "load"),
    "lora": ("inspect", "convert", "merge", "merge"),
}
ALL = frozenset({"inspect", "convert", "diffusers", "load", "merge"})
BUILT = frozenset({"inspect", "convert", "diffusers", "load"})
MERGED = frozenset({"merge"})
NONE: frozenset[str] = frozenset()
LORA, QKV = "lora_unet_double_blocks_0_img_attn_qkv", "double_blocks.0.img_attn.qkv.weight"
UP, DOWN, ALPHA = f"{LORA}.lora_up.weight", f"{LORA}.lora_down.weight", f"{LORA}.alpha"

#: PEFT's config -> the scale that it states at rank 4; None: it states none that can be used.
ADAPTERS = {
    '{"transformer.r": 4, "transformer.lora_alpha": 8}': 2.0,
    '{"r": 4, "lora_alpha": 2}': 0.5,
    '{"r": 4, "lora_alpha": 8, "use_rslora": true}': 4.0,
    '{"r": 0, "lora_alpha": 8}': None,
    '{"r": 8, "lora_alpha": 8}': None,
    '{"lora_alpha": "x"}': None,
    '{"lora_alpha": NaN}': None,
    '{"lora_alpha": 1e400}': None,
    "[" * 9999: None,
    "5": None,
    "\0": None,
}

#: What a mutation does, and the uses that must refuse the file; the others may take it if they take it rightly.
Mutation = Callable[[Draft, random.Random, str], frozenset[str]]


def some_weight(draft: Draft, rng: random.Random) -> str:
    return rng.choice([name for name in sorted(draft.tensors) if draft.tensors[name].ndim])


# --- of every file ----------------------------------------------------------------------------


def flipped_byte(draft: Draft, rng: random.Random, kind: str) -> frozenset[str]:
    place, bit = rng.random(), 1 << rng.randrange(8)

    def flip(text: bytes) -> bytes:
        at = int(place * len(text))
        return text[:at] + bytes([text[at] ^ bit]) + text[at + 1 :]

    draft.header = flip
    return NONE


def cut(draft: Draft, rng: random.Random, kind: str) -> frozenset[str]:
    share = rng.choice([0.0, 0.001, 0.3, 0.9, 0.999, rng.random()])
    draft.bytes = lambda content: content[: int(share * len(content))]
    return ALL


def tail(draft: Draft, rng: random.Random, kind: str) -> frozenset[str]:
    more = rng.choice([1, 4, 1000])
    draft.bytes = lambda content: content + bytes(more)
    return ALL


def length(draft: Draft, rng: random.Random, kind: str) -> frozenset[str]:
    stated = rng.choice([0, 1, 2**31, 2**40, 2**63, 2**64 - 1, rng.randrange(2**16)])
    draft.bytes = lambda content: stated.to_bytes(8, "little") + content[8:]
    return NONE


def other_content(draft: Draft, rng: random.Random, kind: str) -> frozenset[str]:
    noise = rng.randbytes(300)
    text = rng.choice(
        [b"", b"\0" * 100, noise, b"PK\3\4" + noise, b"\x80\2}q\0.", b"GGUF" + noise, b'{"error": "login"}', b"\x1b[2J",
         b"<!DOCTYPE html><html></html>", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
         b"8\0\0\0\0\0\0\0{"]
    )  # fmt: skip
    draft.bytes = lambda _: text
    return ALL


def no_file(draft: Draft, rng: random.Random, kind: str) -> frozenset[str]:
    def replace(path: Path) -> None:
        path.unlink()
        what = rng.choice(["pipe", "folder", "loop", "gone", "device"])
        if what == "pipe":
            os.mkfifo(path)
        elif what == "folder":
            path.mkdir()
        elif what != "gone":
            path.symlink_to({"loop": path.name, "device": "/dev/zero"}[what])

    draft.place = replace
    return ALL


def dtype(draft: Draft, rng: random.Random, kind: str) -> frozenset[str]:
    name = some_weight(draft, rng)
    draft.tensors[name] = draft.tensors[name].to(rng.choice([torch.int32, torch.int64, torch.bool, torch.complex64]))
    return ALL


def label(draft: Draft, rng: random.Random, kind: str) -> frozenset[str]:
    """The same bytes under another dtype's name."""
    name = some_weight(draft, rng)
    draft.dtypes[name] = rng.choice(["I32", "U32", "F64", "F7", "f32", "", "F4", "F8_E8M0"])
    return ALL


def odd_name(draft: Draft, rng: random.Random, kind: str) -> frozenset[str]:
    odd = rng.choice(["\0", "\x1b[2J", "\n", "\u0663", "\ud800", "\u202e", "\x7f"])
    name = some_weight(draft, rng)
    at = rng.randrange(len(name))
    draft.tensors[name[:at] + odd + name[at:]] = draft.tensors.pop(name)
    return ALL


def block_number(draft: Draft, rng: random.Random, kind: str) -> frozenset[str]:
    number = rng.choice(["999999999", "99999999", "-1", "01", "9" * 5000, "1e9", "0x1", "12"])
    names = {"vae": ["encoder.down.{}.x", "decoder.up.{}.block.0.conv1.weight", "encoder.down.0.block.{}.conv1.weight"],
             "flux": ["double_blocks.{}.x", "single_blocks.{}.linear1.weight"],
             "enlarger": ["body.{}.conv1.weight", "heads.{}.weight"],
             "lora": [UP.replace("_0_", "_{}_"), "transformer.transformer_blocks.{}.x"]}  # fmt: skip
    draft.tensors[rng.choice(names[kind]).format(number)] = torch.zeros(rng.choice([1, 0, 3]))
    return MERGED if kind == "lora" else BUILT


def shape(draft: Draft, rng: random.Random, kind: str) -> frozenset[str]:
    name = some_weight(draft, rng)
    old = list(draft.tensors[name].shape)
    new = rng.choice(
        [[*old, 1], [1, *old], [draft.tensors[name].numel()], [2**40, 0], [0], [], [-1], [2**62, 4], [1] * 70]
    )
    draft.shapes[name] = new
    if 0 in new:
        draft.tensors[name] = draft.tensors[name][:0]
    return NONE if kind == "lora" else BUILT if new != old else NONE


def offsets(draft: Draft, rng: random.Random, kind: str) -> frozenset[str]:
    name = some_weight(draft, rng)
    draft.offsets[name] = rng.choice(
        [[0, 0], [-4, 4], [0, 2**62], [1, 2], ["0", "4"], [4], [], [0, 10**30], [0.0, 4.0]]
    )
    return NONE


def doubled(draft: Draft, rng: random.Random, kind: str) -> frozenset[str]:
    name = some_weight(draft, rng)
    text = json.dumps({name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    draft.header = lambda header: text[:-1] + b"," + header[1:]
    return ALL


def missing(draft: Draft, rng: random.Random, kind: str) -> frozenset[str]:
    name = some_weight(draft, rng)
    del draft.tensors[name]
    return MERGED if kind == "lora" else BUILT


def more(draft: Draft, rng: random.Random, kind: str) -> frozenset[str]:
    draft.tensors[rng.choice(["extra.weight", "a", "scale_weightless", "x" * 3000])] = torch.zeros(2)
    return MERGED if kind == "lora" else BUILT


def odd_numbers(draft: Draft, rng: random.Random, kind: str) -> frozenset[str]:
    name = some_weight(draft, rng)
    tensor = draft.tensors[name].clone()
    tensor.view(-1)[rng.randrange(tensor.numel())] = rng.choice([float("nan"), float("inf"), -float("inf")])
    draft.tensors[name] = tensor
    return MERGED


def odd_metadata(draft: Draft, rng: random.Random, kind: str) -> frozenset[str]:
    deep: Any = []
    for _ in range(500):
        deep = [deep]
    value = rng.choice([1, None, True, ["a"], {"a": "b"}, 1e308, deep])
    draft.metadata["odd"] = value
    return ALL


def plain_metadata(draft: Draft, rng: random.Random, kind: str) -> frozenset[str]:
    draft.metadata[rng.choice(["\x1b[2J", "training", "op4ksr.training", "format"])] = rng.choice(
        ["\x1b]0;x\x07", "a\nerror: b", "\0", "x" * 100_000, "\u202e", "", "op4ksr"]
    )
    return NONE


def constant(draft: Draft, rng: random.Random, kind: str) -> frozenset[str]:
    keys = ["vae_stride", "norm_groups", "vae_shift"]
    if kind != "vae":
        keys = ["sigma", "rope_theta", "guidance", "train_tokens"]
    odd = ["nan", "inf", "-1", "1e400", "9" * 5000, "two", "", "\x1b[2J", "1,2,3", "[]", "-0.5", "--1", "\u0663x"]
    draft.metadata[f"op4ksr.{rng.choice(keys)}"] = rng.choice(odd)
    return ALL - MERGED if kind in ("vae", "flux") else NONE


def deep_header(draft: Draft, rng: random.Random, kind: str) -> frozenset[str]:
    text = rng.choice(
        [b"[" * 100_000, b'{"a":' * 50_000, b'{"a":' + b"9" * 5000 + b"}", b'{"__metadata__":{"a":' + b"[" * 9999]
    )
    draft.header = lambda _: text
    return ALL


def config(draft: Draft, rng: random.Random, kind: str) -> frozenset[str]:
    def beside(path: Path) -> None:
        file = path.with_name("config.json")
        if rng.random() < 0.15:
            os.mkfifo(file)
            return
        value = rng.choice(
            ["[" * 400 + "]" * 400, "1e400", "-1", "0", "NaN", "9" * 5000, '"two"', "{}", "null", "2.5", '"\\u001b"']
        )
        sizes = '"block_out_channels": [8, 16, 16, 16], "layers_per_block": 1, "latent_channels": 16'
        key = rng.choice(["stride", "norm_num_groups", "block_out_channels", "_class_name"])
        file.write_text(f'{{"_class_name": "AutoencoderKL", {sizes}, "{key}": {value}}}', "utf-8")

    draft.place = beside
    return NONE


# --- of LoRAs ---------------------------------------------------------------------------------


def alpha(draft: Draft, rng: random.Random, kind: str) -> frozenset[str]:
    value, scale = rng.choice(
        [(torch.tensor(8), 2.0), (torch.tensor([2.0]), 0.5), (torch.tensor(-4.0), -1.0),
         (torch.tensor(float("nan")), None),
         (torch.ones(2), None), (torch.tensor(True), None), (torch.zeros(0), None), (torch.tensor(float("inf")), None),
         (torch.tensor(2.0, dtype=torch.float64), 0.5), (torch.ones(1, 1, 2), None), (torch.tensor(1 + 1j), None)]
    )  # fmt: skip
    draft.tensors[ALPHA] = value
    draft.scale = scale or 1.0
    return NONE if scale else MERGED


def stated_alpha(draft: Draft, rng: random.Random, kind: str) -> frozenset[str]:
    del draft.tensors[ALPHA]
    stated: list[tuple[dict[str, str], float | None]] = [
        *(({"lora_adapter_metadata": text}, scale) for text, scale in ADAPTERS.items()),
        ({"lora_alpha": "64", "r": "4"}, 16.0),
        ({"transformer.lora_alpha": "64", "transformer.r": "4"}, 16.0),
        ({"ss_network_alpha": "1", "ss_network_dim": "4"}, 0.25),
        ({"ss_network_alpha": "Dynamic"}, 1.0),
        ({}, 1.0),
        ({"lora_alpha": "-1"}, None),
        ({"lora_alpha": "\x1b[2J"}, None),
        ({"ss_network_alpha": "9" * 5000}, None),
    ]
    metadata, scale = rng.choice(stated)
    draft.metadata, draft.scale = metadata, scale or 1.0
    return NONE if scale else MERGED


def rank(draft: Draft, rng: random.Random, kind: str) -> frozenset[str]:
    up, down = rng.choice([(0, 0), (4, 5), (0, 4), (5, 4), (2**20, 0)])
    draft.tensors[UP], draft.tensors[DOWN] = torch.zeros(192, min(up, 9)), torch.zeros(down, 64)
    if up > 9:
        draft.shapes[UP] = [0, up]
        draft.tensors[UP] = torch.zeros(0)
    return MERGED


def suffix(draft: Draft, rng: random.Random, kind: str) -> frozenset[str]:
    ends = [
        "lora_sideways.weight",
        "dora_scale",
        "lokr_w1",
        "hada_w1_a",
        "lora_magnitude_vector",
        "diff",
        "oft_blocks",
        "a1.weight",
    ]
    draft.tensors[f"{LORA}.{rng.choice(ends)}"] = torch.ones(4, 4)
    return MERGED


def text_encoder(draft: Draft, rng: random.Random, kind: str) -> frozenset[str]:
    base = rng.choice(
        ["lora_te1_text_model_encoder_layers_0_mlp_fc1", "text_encoder.text_model.encoder.layers.0.q", "lora_te2_x"]
    )
    draft.tensors |= {f"{base}.lora_up.weight": torch.ones(8, 2), f"{base}.lora_down.weight": torch.ones(2, 8)}
    return NONE


def large(draft: Draft, rng: random.Random, kind: str) -> frozenset[str]:
    for name in (UP, DOWN):
        draft.tensors[name] = draft.tensors[name] * 1e25
    return MERGED


EVERY: tuple[Mutation, ...] = (
    flipped_byte, flipped_byte, cut, tail, length, other_content, no_file, dtype, label, odd_name, block_number,
    shape, shape, offsets, doubled, missing, more, odd_numbers, odd_metadata, plain_metadata, constant, deep_header,
)  # fmt: skip
OWN: dict[str, tuple[Mutation, ...]] = {
    "vae": (config, config),
    "lora": (alpha, alpha, stated_alpha, stated_alpha, stated_alpha, rank, suffix, text_encoder, large),
}

# --- the campaign -----------------------------------------------------------------------------


def limited(work: Callable[[], int | None]) -> int | None:
    """Within the memory that the process has and a gigabyte."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    room = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    return work()


def load(kind: str, path: Path, out: Path) -> int:
    try:
        state = LOAD[kind](path).state_dict()
    except Op4ksrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, out)
    return 0


def run(kind: str, use: str, path: Path, out: Path, model: Path) -> Run:
    commands = {
        "inspect": ["inspect", path],
        "convert": ["convert", path, "-o", out],
        "diffusers": ["convert", path, "-o", out, "--layout", "diffusers"],
        "merge": ["convert", model, "-o", out, "--merge-lora", path],
    }
    if use == "load":
        return forked(lambda: limited(lambda: load(kind, path, out)))
    return forked(lambda: limited(lambda: main([str(argument) for argument in commands[use]])))


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> str | None:
    if ours.keys() != theirs.keys():
        return f"other tensors: {sorted(ours.keys() ^ theirs.keys())[:3]}"
    for name, tensor in ours.items():
        expected = theirs[name].to(tensor.dtype)
        if tensor.shape != expected.shape or not torch.equal(tensor.nan_to_num(7), expected.nan_to_num(7)):
            return f"{name} is another"
    return None


def wrong(draft: Draft, use: str, refuse: frozenset[str], path: Path, out: Path, model: Path) -> str | None:
    """What is wrong with the outcome of a run that says it went well."""
    if use in refuse:
        return "was taken"
    if use == "inspect":
        return None
    if use == "diffusers":
        return None if out.is_file() else "nothing was written"
    source, made = raw_tensors(model if use == "merge" else path), load_file(out)
    if use == "merge":
        lora = raw_tensors(path)
        source[QKV] = (source[QKV].double() + draft.scale * lora[UP].double() @ lora[DOWN].double()).float()
        if not torch.allclose(made[QKV], source[QKV], atol=1e-4, rtol=1e-4):
            return "merged at another strength"
        source[QKV] = made[QKV]
    return same(made, {name: tensor for name, tensor in source.items() if use != "load" or "op4ksr." not in name})


def drafts(make_flux: Any, make_autoencoder: Any, stir: Any) -> dict[str, Callable[[], Draft]]:
    vae, flux = make_autoencoder().state_dict(), make_flux().state_dict()
    enlarger = stir(lambda: Enlarger(EnlargerParams(width=4, blocks=2, factors=(2, 3))), 0).state_dict()
    generator = torch.Generator().manual_seed(5)
    lora = {UP: torch.randn(192, 4, generator=generator), DOWN: torch.randn(4, 64, generator=generator)}
    known = {"op4ksr.vae_stride": "2", "op4ksr.norm_groups": "4"}
    return {
        "vae": lambda: Draft(dict(vae), dict(known)),
        "flux": lambda: Draft(dict(flux)),
        "enlarger": lambda: Draft(dict(enlarger), {"op4ksr.kind": "enlarger"}),
        "lora": lambda: Draft({**lora, ALPHA: torch.tensor(4.0)}),
    }


@pytest.mark.timeout(900)
def test_mutated_weights(tmp_path: Path, make_flux: Any, make_autoencoder: Any, stir: Any) -> None:
    tally, rng = Tally("mutated weights files"), random.Random(SEED)
    makers = drafts(make_flux, make_autoencoder, stir)
    model = tmp_path / "model.safetensors"
    makers["flux"]().write(model)
    for number in range(COUNT):
        kind = rng.choice([*makers, "lora"])
        use, mutate = rng.choice(USES[kind]), rng.choice([*EVERY, *OWN.get(kind, ())])
        folder = tmp_path / f"{number}"
        folder.mkdir()
        draft, path, out = makers[kind](), folder / "f.safetensors", folder / "out.safetensors"
        refuse = mutate(draft, rng, kind)
        draft.write(path)
        before = {file.name for file in folder.iterdir()}
        ended = run(kind, use, path, out, model)
        case = f"{number} {kind} {mutate.__name__} {use}"
        left = {file.name for file in folder.iterdir()} - before
        if ended.code and left:
            tally.fault(case, f"left {sorted(left)} behind")
        else:
            tally.judge(case, ended, lambda d=draft, u=use, r=refuse, p=path, o=out: wrong(d, u, r, p, o, model))
        shutil.rmtree(folder)
    tally.close()


def test_a_good_file_of_each_kind_goes_well(tmp_path: Path, make_flux: Any, make_autoencoder: Any, stir: Any) -> None:
    """So that a refusal in the campaign is the mutation's."""
    tally, makers = Tally("sound weights files"), drafts(make_flux, make_autoencoder, stir)
    model = tmp_path / "model.safetensors"
    makers["flux"]().write(model)
    for kind, make in makers.items():
        for use in USES[kind]:
            draft, path, out = make(), tmp_path / f"{kind}.safetensors", tmp_path / "out.safetensors"
            draft.write(path)
            ended = run(kind, use, path, out, model)
            assert ended.code == 0, (kind, use, ended)
            tally.judge(f"{kind} {use}", ended, lambda d=draft, u=use, p=path, o=out: wrong(d, u, NONE, p, o, model))
            out.unlink(missing_ok=True)
    tally.close()
