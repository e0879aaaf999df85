"""Text out of files, names and prompts as it may be shown: nothing in it moves a cursor, and none is endless."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Mapping
from typing import Any

#: Characters of one value (a name, a tensor's key, a number's digits) that are shown in a message. Our choice.
VALUE_LIMIT = 200

#: Characters of a whole message. Our choice: room for a sentence, a long path and a list of names.
MESSAGE_LIMIT = 2000

#: Unicode categories that are no text to look at: control, format (as those that turn the direction), surrogate,
#: private use, unassigned, and the separators of lines and paragraphs.
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def plain(value: object, limit: int = VALUE_LIMIT) -> str:
    """``str(value)`` on one line of visible characters, at most about ``limit`` of them.

    Others are written as Python escapes (``\\x1b``, ``\\udc80``); of a longer text the middle is left out, and how much
    is said. A number of too many digits to be written has none here but a word for it. Use it for every value that
    comes out of a file, a name or a prompt and goes into a message.
    """
    try:
        text = str(value)
    except ValueError:  # an int of more than 4,300 digits
        text = "(a number of thousands of digits)"
    if len(text) > limit:
        kept = max(1, limit // 2 - 20)
        text = f"{text[:kept]} ... ({len(text) - 2 * kept:,} characters) ... {text[-kept:]}"
    return text if text.isascii() and text.isprintable() else "".join(map(_visible, text))


def plain_message(text: object) -> str:
    """``plain`` for a whole message."""
    return plain(text, MESSAGE_LIMIT)


def _visible(character: str) -> str:
    if unicodedata.category(character) not in _HIDDEN:
        return character
    return character.encode("unicode_escape").decode("ascii")


class PlainLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger whose messages are ``plain_message``: in the host's log and on a terminal alike."""

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """As ``logging.Logger.log``; the message is formatted here, if it is wanted at all."""
        if self.isEnabledFor(level):
            values: Any = args[0] if len(args) == 1 and isinstance(args[0], Mapping) and args[0] else args
            kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
            self.logger.log(level, "%s", plain_message(str(msg) % values if args else str(msg)), **kwargs)


def plain_logger(name: str) -> PlainLogger:
    """The module's logger: ``log = plain_logger(__name__)``."""
    return PlainLogger(logging.getLogger(name), {})
