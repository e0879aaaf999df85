"""16-bit PNG encoded and decoded in plain Python from the specification: what our writer and reader are held to."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import torch

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def deep(height: int = 7, width: int = 5, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 65536, (height, width, channels), dtype=np.uint16)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def paeth(a: int, b: int, c: int) -> int:
    p = a + b - c
    pa, pb, pc = abs(p - a), abs(p - b), abs(p - c)
    return a if pa <= pb and pa <= pc else b if pb <= pc else c


def predictor(kind: int, a: int, b: int, c: int) -> int:
    return (0, a, b, (a + b) // 2, paeth(a, b, c))[kind]


def filtered(pixels: np.ndarray, kind: int) -> bytes:
    """Scanlines of (H, W, C) uint16 by one filter, in plain Python."""
    step = 2 * pixels.shape[2]
    above = bytes(pixels.shape[1] * step)
    out = bytearray()
    for line in pixels.astype(">u2"):
        row = line.tobytes()
        out.append(kind)
        for i, value in enumerate(row):
            a, c = (row[i - step], above[i - step]) if i >= step else (0, 0)
            out.append((value - predictor(kind, a, above[i], c)) % 256)
        above = row
    return bytes(out)


def unfiltered(content: bytes, height: int, width: int, channels: int) -> np.ndarray:
    step, length = 2 * channels, width * channels * 2
    above, rows = bytes(length), bytearray()
    for y in range(height):
        start = y * (length + 1)
        kind, row = content[start], bytearray(content[start + 1 : start + 1 + length])
        for i in range(length):
            a, c = (row[i - step], above[i - step]) if i >= step else (0, 0)
            row[i] = (row[i] + predictor(kind, a, above[i], c)) % 256
        rows += row
        above = bytes(row)
    return np.frombuffer(bytes(rows), ">u2").reshape(height, width, channels).astype(np.uint16)


def encoded(pixels: np.ndarray, kind: int = 0, extra: bytes = b"", adam7: bool = False) -> bytes:
    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, int(adam7))
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    parts = [pixels[y::dy, x::dx] for y, x, dy, dx in passes] if adam7 else [pixels]
    content = b"".join(filtered(part, kind) for part in parts if part.size)
    return SIGNATURE + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b"")


def planes(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.astype(np.float32) / 65535).permute(2, 0, 1)[None]


def png(
    samples: np.ndarray, bits: int, kind: int, extra: bytes = b"", after: bytes = b"", adam7: bool = False
) -> bytes:
    """(H, W, channels) whole numbers of ``bits`` -> an unfiltered PNG of colour type ``kind``; extra: before IDAT."""
    height, width = samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, int(adam7))
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    parts = [samples[y::dy, x::dx] for y, x, dy, dx in passes] if adam7 else [samples]
    lines = b"".join(b"\0" + packed(row, bits) for part in parts if part.size for row in part)
    return (
        SIGNATURE + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(lines)) + after + chunk(b"IEND", b"")
    )


def packed(row: np.ndarray, bits: int) -> bytes:
    """One row (W, channels) -> its bytes."""
    if bits == 16:
        return row.astype(">u2").tobytes()
    if bits == 8:
        return row.astype(np.uint8).tobytes()
    digits = row.reshape(-1).astype(np.uint8)[:, None] >> np.arange(bits - 1, -1, -1) & 1
    return np.packbits(digits.reshape(-1)).tobytes()
