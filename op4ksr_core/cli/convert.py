"""``convert``: one weights file made from others."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from ..errors import OptionError
from ..plain_text import plain
from ..weights.convert import Conversion, convert
from ..weights.prompt import PromptEmbedding, opened
from ..weights.sr_convert import convert_sr_lora
from ..weights.sr_lora import describe_sr_lora
from .console import say, say_json
from .options import parse_lora
from .pickles import SUFFIXES, fluxsr_prompt, read_pickled_prompt

Report = dict[str, Any]


def add_convert(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.set_defaults(command=run_convert)
    parser.add_argument("input", nargs="?", type=Path, metavar="IN", help="VAE, transformer (or a shard of it) or LoRA")
    parser.add_argument(
        "--sr-lora",
        type=Path,
        metavar="FOLDER",
        help="in place of IN: a one-step LoRA as OMGSR-F or FluxSR publish it, to one file with all that belongs to it",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.safetensors", help="one file")
    parser.add_argument(
        "--layout", choices=("bfl", "diffusers"), help="names of the tensors; default: as they are, as a LoRA's stay"
    )
    parser.add_argument(
        "--merge-lora",
        action="append",
        default=[],
        metavar="FILE[:STRENGTH]",
        help="add it to the weights (strength 1); its theta, sigma and prompt come along; may be repeated",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="op4ksr.KEY=VALUE", help="metadata; may be repeated"
    )
    parser.add_argument(
        "--prompt-embedding",
        type=Path,
        metavar="FILE",
        help="safetensors (or .pth, opened without running it) with op4ksr.txt and op4ksr.vec (or prompt_embeds and "
        "pooled_prompt_embeds)",
    )
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")


def run_convert(options: argparse.Namespace) -> int:
    """Write the file and print what is in it. Returns the exit status, 0."""
    report = _shared(options) if options.sr_lora is not None else _converted(options)
    if options.json:
        say_json(report)
        return 0
    what = f"{report['layout']} names" if "layout" in report else f"a one-step LoRA of {report['origin']}"
    size = f"{report['tensors']} tensors, {report['bytes'] / 1e9:.3f} GB"
    say(f"{plain(report['output'])}: {report['kind']}, {what}, {size}")
    for key, value in report["metadata"].items():
        reason = report.get("why", {}).get(key.removeprefix("op4ksr."))
        say(f"  {plain(key)}: {plain(value)}" + (f" ({plain(reason)})" if reason else ""))
    if report.get("changes_vae_encoder"):
        say("  with changes of the VAE's encoder")
    if report["prompt_embedding"]:
        say("  with a prompt embedding")
    elif "origin" in report:
        say("  without a prompt embedding: ComfyUI asks for a CONDITIONING; --prompt-embedding FILE puts one in")
    if report.get("unknown"):
        say("  nothing says its stride: 'inspect --probe PHOTO' tells; write it with --set op4ksr.vae_stride=2 (or 1)")
    return 0


def _converted(options: argparse.Namespace) -> Report:
    if options.input is None:
        raise OptionError("convert: names nothing to convert; give a file, or --sr-lora FOLDER")
    conversion = Conversion(
        layout=options.layout,
        loras=tuple(parse_lora(text, "--merge-lora") for text in options.merge_lora),
        metadata=dict(parse_setting(text) for text in options.set),
        prompt=_prompt(options),
    )
    return convert(options.input, options.output, conversion)


def _shared(options: argparse.Namespace) -> Report:
    given = {"IN": options.input, "--layout": options.layout, "--merge-lora": options.merge_lora}
    if other := [name for name, value in given.items() if value]:
        raise OptionError(f"--sr-lora: stands alone, without {' and '.join(other)}; leave one of them away")
    folder = options.sr_lora if os.path.isdir(options.sr_lora) else options.sr_lora.parent
    prompt = _prompt(options)
    if prompt is None and describe_sr_lora(options.sr_lora).origin == "FluxSR":
        prompt = fluxsr_prompt(folder)
    return convert_sr_lora(options.sr_lora, options.output, dict(map(parse_setting, options.set)), prompt)


def _prompt(options: argparse.Namespace) -> PromptEmbedding | None:
    path: Path | None = options.prompt_embedding
    return read_pickled_prompt(path) if path and path.suffix.lower() in SUFFIXES else opened(path)


def parse_setting(text: str) -> tuple[str, str]:
    """``op4ksr.key=value``. OptionError if it is none."""
    key, equals, value = text.partition("=")
    if not equals or not key or not value:
        raise OptionError(f"--set {plain(text)}: expected op4ksr.KEY=VALUE, like op4ksr.sigma=0.5")
    return key, value
