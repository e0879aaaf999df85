"""alpha / rank, wherever a LoRA's file states it, and what is said of a statement that cannot be used."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_merge import merge
from safetensors.torch import save_file
from torch import Tensor

from op4ksr_core import Flux, UnsupportedCheckpointError
from op4ksr_core.weights.header import read_header
from op4ksr_core.weights.inspect import inspect_file
from op4ksr_core.weights.lora_parts import lora_contents

MakeFlux = Callable[..., Flux]
QUERY, KEY = ("transformer.transformer_blocks.0.attn.to_q", "transformer.transformer_blocks.0.attn.to_k")
WEIGHT = "double_blocks.0.img_attn.qkv.weight"


def factors(base: str, rank: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(rank)
    up, down = torch.randn(64, rank, generator=generator), torch.randn(rank, 64, generator=generator)
    return {f"{base}.lora_B.weight": up, f"{base}.lora_A.weight": down}


def adapter(**values: Any) -> dict[str, str]:
    return {"lora_adapter_metadata": json.dumps(values)}


def scale_of(path: Path, make_flux: MakeFlux, base: str = QUERY) -> float:
    """What the merge multiplied the product of the factors by, measured on the weights."""
    plain, merged = make_flux(), make_flux()
    merge(merged, path)
    rows = slice(0, 64) if base == QUERY else slice(64, 128)
    tensors = {name: tensor for name, tensor in lora_contents(read_header(path)).read()[base].items()}
    product = tensors["up"].float() @ tensors["down"].float()
    change = (merged.get_parameter(WEIGHT) - plain.get_parameter(WEIGHT))[rows]
    scale = float((change * product).sum() / (product * product).sum())
    assert torch.allclose(change, scale * product, atol=1e-4)
    return scale


@pytest.mark.parametrize(
    ("metadata", "scale"),
    [
        ({}, 1.0),
        ({"format": "pt", "ss_network_dim": "4"}, 1.0),
        (adapter(**{"transformer.r": 4, "transformer.lora_alpha": 8}), 2.0),
        (adapter(**{"transformer.r": 4, "transformer.lora_alpha": 8, "r": 4, "lora_alpha": 1}), 2.0),
        (adapter(**{"text_encoder.r": 2, "text_encoder.lora_alpha": 64}), 1.0),
        (adapter(r=4, lora_alpha=10), 2.5),
        (adapter(r="4", lora_alpha=" 10 "), 2.5),
        (adapter(lora_alpha=8), 2.0),
        (adapter(r=4, lora_alpha=None), 1.0),
        (adapter(r=4), 1.0),
        (adapter(r=4, lora_alpha=8, use_rslora=True), 8 / math.sqrt(4)),
        (adapter(r=4, lora_alpha=8, use_rslora=False), 2.0),
        (adapter(r=4, lora_alpha=8, alpha_pattern={"to_q": 6}), 1.5),
        (adapter(r=4, lora_alpha=8, alpha_pattern={"^transformer_blocks.0.attn.to_q": 6}), 1.5),
        (adapter(r=4, lora_alpha=8, alpha_pattern={"o_q": 6, "to_v": 1}), 2.0),
        (adapter(r=16, lora_alpha=8, rank_pattern={"attn.to_q": 4}), 2.0),
        (adapter(r=4, lora_alpha=8, alpha_pattern={r".*to_q": 6}), 1.5),
        (adapter(r=4, lora_alpha=8, alpha_pattern={r"to_[kv]$": 1, r"to_(k|q)$": 6}), 1.5),
        (adapter(r=4, lora_alpha=8, alpha_pattern={r"^transformer_blocks\.\d+\.attn\.to_q$": 6}), 1.5),
        (adapter(r=4, lora_alpha=8, alpha_pattern={r"blocks\.\d+\.attn\.to_q": 6}), 2.0),
        (adapter(r=16, lora_alpha=8, rank_pattern={r"single_.*": 8, r"transformer_blocks.[0-9]+.attn.to_\w": 4}), 2.0),
        ({"lora_alpha": "8", "r": "4"}, 2.0),
        ({"lora_alpha": "8", "rank": "4"}, 2.0),
        ({"transformer.lora_alpha": "64", "transformer.r": "4"}, 16.0),
        ({"network_alpha": "2"}, 0.5),
        ({"alpha": "8", "rank": "4"}, 2.0),
        ({"alpha": "a first test"}, 1.0),
        ({"ss_network_alpha": "16.0", "ss_network_dim": "4"}, 4.0),
        ({"ss_network_alpha": "Dynamic", "ss_network_dim": "Dynamic"}, 1.0),
        ({"ss_network_alpha": "None"}, 1.0),
        ({"ss_network_alpha": "0", "ss_network_dim": "4"}, 1.0),
        ({**adapter(r=4, lora_alpha=8), "ss_network_alpha": "1", "lora_alpha": "2"}, 2.0),
        ({"lora_alpha": "2", "ss_network_alpha": "1"}, 0.5),
    ],
    ids=str,
)
def test_the_metadata_states_the_scale(
    tmp_path: Path, make_flux: MakeFlux, metadata: dict[str, str], scale: float
) -> None:
    path = tmp_path / "l.safetensors"
    save_file(factors(QUERY), path, metadata)
    assert scale_of(path, make_flux) == pytest.approx(scale, rel=1e-5)
    assert inspect_file(path)["scales"] == [scale]


def test_the_modules_own_alpha_wins_and_odd_metadata_beside_it_does_not_matter(
    tmp_path: Path, make_flux: MakeFlux
) -> None:
    path = tmp_path / "l.safetensors"
    for alpha in (torch.tensor(12.0), torch.tensor([12], dtype=torch.int64), torch.tensor(12.0, dtype=torch.bfloat16)):
        save_file({**factors(QUERY), f"{QUERY}.alpha": alpha}, path, {"lora_adapter_metadata": "{", "lora_alpha": "?"})
        assert scale_of(path, make_flux) == pytest.approx(3.0, rel=1e-5)
    both = {**factors(QUERY), **factors(KEY), f"{QUERY}.alpha": torch.tensor(12.0)}
    save_file(both, path, adapter(r=4, lora_alpha=8))
    assert scale_of(path, make_flux) == pytest.approx(3.0, rel=1e-5)
    assert scale_of(path, make_flux, KEY) == pytest.approx(2.0, rel=1e-5)
    assert inspect_file(path)["scale_from"] == "tensors named .alpha; else metadata lora_adapter_metadata"


def test_a_rank_of_its_own_divides_its_own_alpha(tmp_path: Path, make_flux: MakeFlux) -> None:
    path = tmp_path / "l.safetensors"
    patterns = {"alpha_pattern": {"attn.to_k": 6}, "rank_pattern": {"attn.to_k": 2}}
    save_file({**factors(QUERY), **factors(KEY, 2)}, path, adapter(r=4, lora_alpha=8, **patterns))
    assert scale_of(path, make_flux) == pytest.approx(2.0, rel=1e-5)
    assert scale_of(path, make_flux, KEY) == pytest.approx(3.0, rel=1e-5)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        (adapter(r=4, lora_alpha="much"), "lora_alpha is wrong: expected a number above 0, got 'much'"),
        (adapter(r=4, lora_alpha=float("nan")), "got 'nan'"),
        (adapter(r=4, lora_alpha=float("inf")), "got 'inf'"),
        (adapter(r=4, lora_alpha=-8), "got '-8'"),
        (adapter(r=4, lora_alpha=0), "got '0'"),
        (adapter(r=4, lora_alpha=True), "got 'True'"),
        (adapter(r=4, lora_alpha=[8]), "got 'list'"),
        (adapter(r=4, lora_alpha="9" * 5000), "expected a number above 0"),
        (adapter(r=4, lora_alpha="\x1b[2J"), r"got '\x1b[2J'"),
        (adapter(r=0, lora_alpha=8), "metadata r is wrong"),
        (adapter(r=8, lora_alpha=8), "states rank 8 and its tensors have 4"),
        (adapter(r=4, lora_alpha=8, use_rslora="perhaps"), "use_rslora is wrong: expected true or false"),
        (adapter(r=4, lora_alpha=8, use_rslora=[]), "expected true or false"),
        (adapter(r=4, lora_alpha=8, alpha_pattern=["to_q"]), "alpha_pattern is wrong: expected a JSON object"),
        (adapter(r=4, lora_alpha=8, alpha_pattern={"to_q": "x"}), "alpha_pattern is wrong"),
        (adapter(r=4, lora_alpha=8, alpha_pattern={"(t*)*o_q": 1}), "simple regular expressions, got (t*)*o_q"),
        (adapter(r=4, lora_alpha=8, alpha_pattern={".*.*.*to_q": 1}), "simple regular expressions"),
        (adapter(r=4, lora_alpha=8, alpha_pattern={"(t|t)" * 30: 1}), "simple regular expressions"),
        (adapter(r=4, lora_alpha=8, alpha_pattern={"to_[q": 1}), "simple regular expressions"),
        ({"lora_adapter_metadata": "{"}, "cannot be read as JSON"),
        ({"lora_adapter_metadata": "[]"}, "is no JSON object"),
        ({"lora_adapter_metadata": "[" * 100_000}, "nested too deeply"),
        ({"lora_adapter_metadata": '{"lora_alpha": ' + "9" * 5000 + "}"}, "cannot be read as JSON"),
        ({"lora_adapter_metadata": '{"lora_alpha": 1, "lora_alpha": 2}'}, "holds lora_alpha twice"),
        ({"lora_alpha": "nan"}, "metadata lora_alpha is wrong"),
        ({"lora_alpha": "8", "r": "four"}, "metadata r is wrong"),
        ({"lora_alpha": "8", "r": "16"}, "states rank 16"),
        ({"ss_network_alpha": "1e400"}, "metadata ss_network_alpha is wrong"),
        ({"ss_network_alpha": "8", "ss_network_dim": "32"}, "states rank 32"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_scale_that_cannot_be_used_is_one_sentence(
    tmp_path: Path, make_flux: MakeFlux, metadata: dict[str, str], words: str
) -> None:
    path = tmp_path / "l.safetensors"
    save_file(factors(QUERY), path, metadata)
    texts: list[str] = []
    for use in (lambda: merge(make_flux(), path), lambda: inspect_file(path)):
        with pytest.raises(UnsupportedCheckpointError) as caught:
            use()
        texts.append(str(caught.value))
    assert texts[0] == texts[1] and words in texts[0]
    assert texts[0].startswith(f"{path}: ") and texts[0].isprintable() and len(texts[0]) < 700


def test_diffusers_writes_what_is_read(tmp_path: Path, make_flux: MakeFlux) -> None:
    """Its own writer of LoRA files, with PEFT's config as its training scripts pass it."""
    mixin = pytest.importorskip("diffusers.loaders").FluxLoraLoaderMixin
    layers = {name.removeprefix("transformer."): tensor for name, tensor in factors(QUERY).items()}
    config = {"r": 4, "lora_alpha": 6, "use_rslora": False, "alpha_pattern": {}, "rank_pattern": {}}
    try:
        mixin.save_lora_weights(tmp_path, layers, transformer_lora_adapter_metadata=config)
    except ImportError as error:  # PEFT is not here
        pytest.skip(str(error))
    path = tmp_path / "pytorch_lora_weights.safetensors"
    assert "transformer.lora_alpha" in read_header(path).metadata["lora_adapter_metadata"]
    assert scale_of(path, make_flux) == pytest.approx(1.5, rel=1e-5)


def test_the_model_answers_as_diffusers_with_peft_does(
    tmp_path: Path, make_diffusers_flux: Any, make_flux: MakeFlux
) -> None:
    """The same file, loaded by diffusers with PEFT into its own class, and merged here."""
    pytest.importorskip("peft")
    theirs = make_diffusers_flux(num_layers=1)
    theirs.save_pretrained(tmp_path / "model")
    patterns = {"alpha_pattern": {"transformer_blocks.0.attn.to_k": 6}, "rank_pattern": {"attn.to_k": 2}}
    config = {"r": 4, "lora_alpha": 8, "use_rslora": True, "target_modules": ["attn.to_q", "attn.to_k"], **patterns}
    path = tmp_path / "l.safetensors"
    save_file(
        {**factors(QUERY), **factors(KEY, 2)}, path, adapter(**{f"transformer.{k}": v for k, v in config.items()})
    )
    from op4ksr_core import load_flux

    ours = load_flux(tmp_path / "model")
    merge(ours, path)
    theirs.load_lora_adapter(str(tmp_path), weight_name=path.name, prefix="transformer")
    theirs.fuse_lora()
    attention = theirs.transformer_blocks[0].attn
    weights = [getattr(part, "base_layer", part).weight for part in (attention.to_q, attention.to_k, attention.to_v)]
    assert torch.allclose(ours.get_parameter(WEIGHT), torch.cat(weights), atol=1e-5)
