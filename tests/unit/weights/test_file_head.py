"""The first bytes of a weights file: what is no file, no safetensors, or has a header that cannot be believed."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from op4ksr_core import UnsupportedCheckpointError, load_autoencoder, load_flux
from op4ksr_core.cli.main import main
from op4ksr_core.weights.header import read_header
from op4ksr_core.weights.lora import describe_lora

ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
TEXT = json.dumps(ONE)


def write(path: Path, header: str | dict[str, Any], data: bytes = b"\0\0\0\0") -> Path:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def refusal(path: Path) -> str:
    """The one sentence, which every way to read the file gives."""
    texts: set[str] = set()
    for read in (read_header, load_autoencoder, load_flux, describe_lora):
        with pytest.raises(UnsupportedCheckpointError) as caught:
            read(path)
        texts.add(str(caught.value))
    (text,) = texts
    assert text.startswith(f"{path}: ") and text.isprintable() and len(text) < 900
    return text


@pytest.mark.skipif(os.name == "nt", reason="no named pipes")
@pytest.mark.timeout(20)
def test_what_is_no_file_is_said_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Opening a pipe waits for its writer; a device may have no end."""
    pipe, loop = tmp_path / "pipe.safetensors", tmp_path / "loop.safetensors"
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    assert "is a named pipe, and no weights file" in refusal(pipe)
    assert "is a device" in refusal(Path("/dev/zero"))
    assert "is not readable" in refusal(loop)
    assert "is not readable" in refusal(tmp_path / ("x" * 300 + ".safetensors"))
    out = tmp_path / "out.safetensors"
    for arguments in (["inspect", pipe], ["convert", pipe, "-o", out], ["upscale", pipe, "--vae", pipe, "-o", out]):
        assert main([str(argument) for argument in arguments]) == 1
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="no named pipes")
@pytest.mark.timeout(20)
def test_a_config_that_is_a_pipe_does_not_count(tmp_path: Path, make_autoencoder: Any) -> None:
    from op4ksr_core import save_autoencoder
    from op4ksr_core.weights.description import describe_autoencoder

    save_autoencoder(tmp_path / "vae.safetensors", make_autoencoder())
    os.mkfifo(tmp_path / "config.json")
    assert describe_autoencoder(tmp_path / "vae.safetensors").params == make_autoencoder().params


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (f'{{"a":{TEXT},"a":{TEXT}}}', "header: holds a twice"),
        (f'{{"__metadata__":{{"k":"1","k":"2"}},"a":{TEXT}}}', "header: holds k twice"),
        ('{"a":' + "[" * 100_000, "nested too deeply"),
        (f'{{"__metadata__":{{"k":{"[" * 5000 + "]" * 5000}}},"a":{TEXT}}}', "nested too deeply"),
        ('{"a":' + "9" * 5000 + "}", "header: "),
        ('{"a":\xff}', "header: not JSON"),
        ({"__metadata__": {"k": 1}, "a": ONE}, "its metadata k is no text"),
        ({"__metadata__": ["k"], "a": ONE}, "its metadata is no list of names"),
        ({"__metadata__": {"\x1b[2J": None}, "a": ONE}, r"its metadata \x1b[2J is no text"),
        ({"a\0b": ONE}, r"'a\x00b'"),
        ({"a\x1b[2J": ONE}, r"'a\x1b[2J'"),
        ({"double_blocks.\u0663.x": ONE}, "none that a trainer writes"),
        ({"a\ud800": ONE}, r"'a\ud800'"),
        ({"": ONE}, "none that a trainer writes"),
        ({"a": 5}, "expected dtype, shape and data_offsets"),
        ({"a": {**ONE, "data_offsets": [0, "4"]}}, "expected dtype, shape and data_offsets"),
        ({"a": {**ONE, "data_offsets": [0, 10**30]}}, "cut short"),
        ({"a": {**ONE, "data_offsets": [0, 8]}}, "cut short: its tensors take 8 bytes, but 4 are there"),
        ({"a": {**ONE, "dtype": "F7"}}, "unknown variant `F7`"),
        ({"a": {**ONE, "shape": [2**63 - 1, 3]}}, "overflow"),
        ({"a": {**ONE, "shape": [-1]}}, "cannot be read as safetensors"),
        ({"a": {**ONE, "shape": [2]}}, "cannot be read as safetensors"),
        ({"a": {**ONE, "data_offsets": [2, 4]}}, "cannot be read as safetensors"),
    ],
)
def test_a_header_that_cannot_be_believed_is_refused(tmp_path: Path, header: Any, words: str) -> None:
    assert words in refusal(write(tmp_path / "x.safetensors", header))


def test_a_header_longer_than_any_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 2**36) + b"{")
        file.truncate(2**36 + 8)  # sparse: 64 GB that take no room
    assert "has a header of 68,719,476,736 bytes" in refusal(path)


def test_metadata_is_shown_without_what_moves_a_cursor(
    tmp_path: Path, make_autoencoder: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import save_file

    metadata = {"op4ksr.norm_groups": "4", "op4ksr.vae_stride": "2", "\x1b[2Jkey": "a\x1b]0;title\x07\n" + "x" * 10**6}
    save_file(make_autoencoder().state_dict(), tmp_path / "vae.safetensors", metadata)
    for arguments in (["inspect"], ["inspect", "--json"]):
        assert main([*arguments, str(tmp_path / "vae.safetensors")]) == 0
        out = capsys.readouterr().out
        assert "\x1b" not in out and "\x07" not in out
    assert main(["inspect", str(tmp_path / "vae.safetensors")]) == 0
    assert max(map(len, capsys.readouterr().out.split("\n"))) < 1000
    assert main(["convert", str(tmp_path / "vae.safetensors"), "-o", str(tmp_path / "out.safetensors")]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and max(map(len, out.split("\n"))) < 1000
