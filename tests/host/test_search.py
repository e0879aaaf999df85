"""Node search: what people type finds us, by the rules of the frontend that belongs to the host.

Read off the frontends 1.27.10 (host 0.3.64), 1.35.9 (0.8.0) and 1.49.6 (0.33.0): they search a node's id,
its name and, the last one alone, its search aliases, each text by itself. All words typed must be in one text, and
none later than 30 characters from its start (a fuzzy search with threshold 0.3 and distance 100).
"""

from __future__ import annotations

from typing import Any

import pytest
from help_pages import translation

pytestmark = pytest.mark.host

UPSCALE, VAE, RFR = "OP4KSR_OneStepUpscale", "OP4KSR_ExactVAE", "OP4KSR_ApplyRFR"
METER, REMOVER = "OP4KSR_PeriodicityDiagnostic", "OP4KSR_SuppressPeriodicity"

#: On every host.
TYPED = {
    "4k": UPSCALE,
    "upscale": UPSCALE,
    "super resolution": UPSCALE,
    "seam": UPSCALE,
    "no seams": VAE,
    "low vram": VAE,
    "grid": METER,
    "stripes": METER,
    "banding": METER,
    "remove grid": REMOVER,
    "rope": RFR,
    "theta": RFR,
    "rfr": RFR,
    "16x vae": "OP4KSR_LoadF16VAE",
    "flux": "OP4KSR_LoadFluxSR",
    "plan": "OP4KSR_Plan",
    "op4ksr": UPSCALE,
}

#: In Chinese the translated name takes the name's place.
TYPED_IN_CHINESE = {
    "\u653e\u5927": UPSCALE,  # enlarge
    "\u8d85\u5206\u8fa8\u7387": UPSCALE,  # super resolution
    "4k": UPSCALE,
    "\u63a5\u7f1d": VAE,  # seam
    "\u4f4e\u663e\u5b58": VAE,  # low VRAM
    "\u7f51\u683c": METER,  # grid
    "\u6761\u7eb9": METER,  # stripes
    "\u8272\u5e26": METER,  # banding
    "rope": RFR,
    "theta": RFR,
}

REACH = 30


def texts(info: dict[str, Any], name: str) -> list[str]:
    return [info["name"], name, *(info.get("search_aliases") or [])]


def finds(words: str, text: str) -> bool:
    return all(0 <= text.lower().find(word) < REACH for word in words.lower().split())


@pytest.mark.parametrize("words", TYPED)
def test_words_find_the_node(host_info: dict[str, Any], words: str) -> None:
    info = host_info[TYPED[words]]
    assert any(finds(words, text) for text in texts(info, info["display_name"])), texts(info, info["display_name"])


@pytest.mark.parametrize("words", TYPED_IN_CHINESE)
def test_chinese_words_find_the_node(host_info: dict[str, Any], words: str) -> None:
    info = host_info[TYPED_IN_CHINESE[words]]
    name = translation(info["name"], "zh")["display_name"]
    assert any(finds(words, text) for text in texts(info, name)), texts(info, name)


def test_every_node_names_the_pack(host_info: dict[str, Any]) -> None:
    for info in host_info.values():
        assert "OP4KSR" in info["display_name"] and "OP4KSR" in translation(info["name"], "zh")["display_name"]
