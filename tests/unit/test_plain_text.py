"""What comes out of files and names is shown on one line, visibly, and never at any length."""

from __future__ import annotations

import logging
import unicodedata

import pytest

from op4ksr_core.errors import OptionError
from op4ksr_core.plain_text import MESSAGE_LIMIT, VALUE_LIMIT, plain, plain_logger


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("photo.jpg", "photo.jpg"),
        ("\u5c71 caf\u00e9 \u6771.png", "\u5c71 caf\u00e9 \u6771.png"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\nb\r\tc\x00", "a\\nb\\r\\tc\\x00"),
        ("x\u202egnp.exe", "x\\u202egnp.exe"),
        ("bad\udcff", "bad\\udcff"),
        ("\u2028", "\\u2028"),
        (12, "12"),
    ],
)
def test_a_value_is_visible_on_one_line(text: object, shown: str) -> None:
    assert plain(text) == shown


def test_every_character_can_be_written_and_stays_on_its_line() -> None:
    shown = plain("".join(map(chr, range(0x11000))), limit=1 << 20)
    shown.encode("utf-8")
    assert len(shown.splitlines()) == 1
    assert not {unicodedata.category(c) for c in shown} & {"Cc", "Cf", "Cs"}


def test_a_long_value_keeps_both_ends_and_says_how_much_is_left_out() -> None:
    shown = plain("a" * 5_000_000 + "z")
    assert len(shown) <= VALUE_LIMIT and shown.startswith("aaa") and shown.endswith("aaz") and "characters" in shown
    assert plain(10**5000) == "(a number of thousands of digits)"


def test_messages_and_log_lines_are_plain(caplog: pytest.LogCaptureFixture) -> None:
    assert str(OptionError("a\x1bb")) == "a\\x1bb" and len(str(OptionError("x" * 10**6))) <= MESSAGE_LIMIT
    with caplog.at_level(logging.INFO):
        plain_logger("op4ksr_core.test").info("%s of %d", "a\nb", 3)
        plain_logger("op4ksr_core.test").warning("100 %")
    assert [record.getMessage() for record in caplog.records] == ["a\\nb of 3", "100 %"]
    assert caplog.records[0].name == "op4ksr_core.test" and caplog.records[0].filename == "test_plain_text.py"
