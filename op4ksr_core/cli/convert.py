"""``convert``: one weights file made from others."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import OptionError
from ..plain_text import plain
from ..weights.convert import Conversion, convert
from .console import say, say_json
from .options import parse_lora


def add_convert(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.set_defaults(command=run_convert)
    parser.add_argument("input", type=Path, metavar="IN", help="VAE, transformer (or a shard of it) or LoRA")
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
        help="safetensors with op4ksr.txt and op4ksr.vec (or prompt_embeds and pooled_prompt_embeds)",
    )
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")


def run_convert(options: argparse.Namespace) -> int:
    """Write the file and print what is in it. Returns the exit status, 0."""
    conversion = Conversion(
        layout=options.layout,
        loras=tuple(parse_lora(text, "--merge-lora") for text in options.merge_lora),
        metadata=dict(parse_setting(text) for text in options.set),
        prompt=options.prompt_embedding,
    )
    report = convert(options.input, options.output, conversion)
    if options.json:
        say_json(report)
        return 0
    say(
        f"{plain(report['output'])}: {report['kind']}, {report['layout']} names, {report['tensors']} tensors, "
        f"{report['bytes'] / 1e9:.3f} GB"
    )
    for key, value in report["metadata"].items():
        say(f"  {plain(key)}: {plain(value)}")
    if report["prompt_embedding"]:
        say("  with a prompt embedding")
    if report["unknown"]:
        say("  nothing says its stride: 'inspect --probe PHOTO' tells; write it with --set op4ksr.vae_stride=2 (or 1)")
    return 0


def parse_setting(text: str) -> tuple[str, str]:
    """``op4ksr.key=value``. OptionError if it is none."""
    key, equals, value = text.partition("=")
    if not equals or not key or not value:
        raise OptionError(f"--set {plain(text)}: expected op4ksr.KEY=VALUE, like op4ksr.sigma=0.5")
    return key, value
