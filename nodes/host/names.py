"""Names of files that a prompt gives: made safe, kept inside the output folder, and claimed when they are chosen."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import folder_paths

from ...op4ksr_core.errors import OptionError, OutputError
from ...op4ksr_core.plain_text import plain, plain_logger

log = plain_logger(__name__)

#: %date:FORMAT%, or %date% alone; and what stands for a part of the date, as ComfyUI's page has it.
_DATE, _PART = re.compile(r"%date(?::([^%]*))?%"), re.compile(r"yyyy|yy|MM?|dd?|hh?|mm?|ss?")

#: What a prefix without any name is taken for, as in Save Image.
_DEFAULT = "ComfyUI"

#: Bytes that a file system takes for one name, and of them those that the node itself adds to the last one.
_NAME_BYTES, _TAIL_BYTES = 255, 30

#: Bytes that systems take for a path; folders, one within the other, that are made at most. Our choice, far below it.
_PATH_BYTES, _FOLDERS = 4096, 50

#: Unicode categories that no name needs: control, surrogate, separators of lines and of paragraphs.
_UNSAFE = {"Cc", "Cs", "Zl", "Zp"}

#: Characters that turn the direction of what follows, so that a name looks like another one.
_TURNING = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")

#: What Windows takes for something else than a part of a name, and its devices.
_WINDOWS = re.compile(r'[<>:"|?*]')
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Place:
    """Where a batch is saved. subfolder: within the output folder. start: of each name, where %batch_num% may stand."""

    folder: Path
    subfolder: str
    start: str
    counter: int


def dated(prefix: str, now: datetime) -> str:
    """The prefix with its dates filled in, which ComfyUI's page does for Save Image alone."""
    values = {"y": now.year, "M": now.month, "d": now.day, "h": now.hour, "m": now.minute, "s": now.second}

    def part(found: re.Match[str]) -> str:
        word, value = found.group(), values[found.group()[0]]
        return f"{value % 100:02}" if word == "yy" else f"{value:0{len(word)}}"

    return _DATE.sub(lambda found: _PART.sub(part, found.group(1) or "yyyyMMddhhmmss"), prefix)


def safe_prefix(prefix: str, output: str, windows: bool = os.name == "nt") -> str:
    """A prefix, its dates filled in, as folders and a name that can be written, with "/" between them.

    Characters that no name can or should have become "_"; a name that is too long is cut. output: the folder that all
    is saved in. Raises OptionError for a place outside of it, and for more folders than are made.
    """
    text = prefix.replace("\\", "/")
    if text.count("/") > 10 * _FOLDERS:  # before anything looks at each of them
        raise _too_deep(text)
    if not text.isprintable():
        text = "".join(_safe_character(character) for character in text)
    if os.path.isabs(text):
        text = _relative(text, output)
    *folders, name = os.path.normpath(text).replace("\\", "/").split("/")
    if ".." in folders or name == ".." or os.path.splitdrive(text)[0]:
        raise OptionError(
            f"filename_prefix: '{plain(prefix, 80)}' is outside the output folder; give a name, or folders within it"
        )
    if len(folders) > _FOLDERS:
        raise _too_deep(text)
    parts = [_safe_part(folder, _NAME_BYTES, windows) for folder in folders]
    safe = "/".join([*parts, _safe_part(_DEFAULT if name == "." else name, _NAME_BYTES - _TAIL_BYTES, windows)])
    if len(os.fsencode(output)) + len(safe.encode("utf-8")) + _TAIL_BYTES > _PATH_BYTES:
        raise OptionError("filename_prefix: its folders' names together are too long for a path; shorten them")
    return safe


def _too_deep(text: str) -> OptionError:
    return OptionError(f"filename_prefix: has {text.count('/'):,} folders, at most {_FOLDERS} are made; use fewer")


def _relative(text: str, output: str) -> str:
    """An absolute path as it is seen from the output folder."""
    try:
        return os.path.relpath(text, output)
    except ValueError:  # on another drive of Windows
        return ".."


def _safe_character(character: str) -> str:
    return "_" if unicodedata.category(character) in _UNSAFE or _TURNING.match(character) else character


def _safe_part(part: str, limit: int, windows: bool) -> str:
    """One folder's or file's name, of at most so many bytes."""
    if windows:
        part = _WINDOWS.sub("_", part)
        part = re.sub(r"[. ]+$", "_", part)
        part = f"_{part}" if _DEVICE.fullmatch(part) else part
    return part.encode("utf-8")[:limit].decode("utf-8", "ignore")


def check_prefix(prefix: object) -> bool | str:
    """True, or the sentence that says what to do: for a node's ``validate_inputs``, before anything runs.

    None, where another node will give it, and what is no text at all are left to what checks the node's inputs.
    """
    if not isinstance(prefix, str):
        return True
    try:
        safe_prefix(dated(prefix, datetime.now()), folder_paths.get_output_directory())
    except OptionError as error:
        return str(error)
    return True


def choose_place(prefix: str, width: int, height: int) -> Place:
    """The folder, which is made, and the first number that is free, as Save Image has them.

    Raises OptionError for a prefix that no safe name can be made of, and OutputError for a folder that cannot be used.
    """
    output = folder_paths.get_output_directory()
    wanted = dated(prefix, datetime.now())
    safe = safe_prefix(wanted, output)
    if safe != wanted:
        log.warning("filename_prefix: '%s' is saved as '%s'", plain(wanted, 80), plain(safe))
    folder = os.path.join(output, os.path.dirname(safe))
    if not _is_inside(folder, output):  # through a symbolic link
        raise OptionError(f"filename_prefix: {plain(safe)} leads outside the output folder; choose another folder")
    try:
        folder, start, counter, subfolder, _ = folder_paths.get_save_image_path(safe, output, width, height)
    except OSError as error:
        raise _not_writable(folder, error) from error
    return Place(Path(folder), subfolder, start, counter)


def _is_inside(folder: str, output: str) -> bool:
    real = os.path.realpath(output)
    try:
        return os.path.commonpath([real, os.path.realpath(folder)]) == real
    except ValueError:  # on another drive of Windows
        return False


@contextmanager
def claimed(place: Path, start: str, counter: int, suffix: str = ".png") -> Generator[tuple[Path, int], None, None]:
    """The first free name from this number on, as an empty file that nobody else takes, and its number.

    Inside it is filled; whatever ends that early, a cancel or Ctrl-C too, leaves no empty file behind. Raises
    OutputError where the folder cannot be written to.
    """
    path, number = _claim(place, start, counter, suffix)
    try:
        yield path, number
    except BaseException:  # which goes on
        path.unlink(missing_ok=True)
        raise


def _claim(place: Path, start: str, counter: int, suffix: str) -> tuple[Path, int]:
    while True:
        path = place / f"{start}_{counter:05}_{suffix}"
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            return path, counter
        except FileExistsError:
            counter += 1
        except OSError as error:
            raise _not_writable(path, error) from error


def _not_writable(path: str | Path, error: OSError) -> OutputError:
    reason = error.strerror or type(error).__name__
    return OutputError(f"{plain(path)}: cannot be written ({reason}); choose another filename_prefix")
