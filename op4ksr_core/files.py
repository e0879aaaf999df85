"""Files that are written whole or not at all: a reader sees the old file or the new one, never a part."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import OutputError
from .signals import before_leaving

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

#: Names of files that are not finished: hidden, of a length that fits everywhere, and no gallery's.
_TEMPORARY = re.compile(r"\.op4ksr-[0-9a-f]{16}\..+")

#: Seconds after which an unfinished file that nobody writes to is taken for what a killed process left: our choice.
_STALE = 24 * 3600.0

#: Unfinished files of this process.
_unfinished: set[Path] = set()

#: Errors of fsync on file systems that do not support it: nothing is wrong with the file.
_CANNOT_FLUSH = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}

#: What is no ordinary file, by its type.
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@contextmanager
def written_whole(path: Path, suffix: str = ".part") -> Generator[Path, None, None]:
    """Gives a temporary file in the same folder, which becomes ``path`` when the block ends without an error.

    After an error it is deleted, and what was at ``path`` is untouched. A symbolic link stays one: the file it points
    to is written. A new file has the mode that the umask leaves, one that is replaced keeps its own, and its owner
    where that is permitted. The content is on the disk before it takes the name, so that a power cut leaves one of the
    two. Raises OSError where the folder cannot be written to or something that is no file is in the place; the caller
    says it in a sentence. suffix: of the temporary file, for writers that go by it.
    """
    target = link_target(path)
    replaced = _replaced(target)
    temporary = target.parent / f".op4ksr-{os.urandom(8).hex()}{suffix}"
    _unfinished.add(temporary)
    try:
        _create(temporary)
        if replaced is not None:  # before there is anything to read in it
            _take_owner_and_mode(temporary, replaced, stat.S_IRUSR | stat.S_IWUSR)
        yield temporary
        _flush(temporary)
        if replaced is not None:
            _take_owner_and_mode(temporary, replaced)
        temporary.replace(target)
        _flush_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)
        _unfinished.discard(temporary)


@contextmanager
def claimed(path: Path) -> Generator[bool, None, None]:
    """Whether ``path`` is this process's to make while the block runs: False where another one makes it.

    A hidden file beside it is locked; a process that was killed holds no lock. Where the file system knows no locks,
    everybody is told True. Raises OSError where the folder cannot be written to.
    """
    target = link_target(path)
    name = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]
    claim = target.parent / f".op4ksr-{name}.claim"
    handle = _locked(claim)
    if handle is None:
        yield False
        return
    try:
        yield True
    finally:
        if sys.platform == "win32":  # where nothing that is open can be deleted
            os.close(handle)
        with suppress(OSError):
            claim.unlink()
        if sys.platform != "win32":
            os.close(handle)


def is_temporary(name: str) -> bool:
    """Whether a file of this name is one that is not finished, or was not when its process was killed."""
    return _TEMPORARY.fullmatch(name) is not None


def remove_unfinished() -> None:
    """Delete what this process has not finished: for its end, where no ``finally`` may have run."""
    for path in list(_unfinished):
        with suppress(OSError):
            path.unlink()


before_leaving(remove_unfinished)


def remove_stale(folder: Path) -> None:
    """Delete what killed processes left in the folder: unfinished files that nobody has written to for a day."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if is_temporary(entry.name) and time.time() - entry.stat().st_mtime > _STALE:
                with suppress(OSError):
                    os.unlink(entry.path)


def write_whole(path: Path, text: str) -> None:
    """Write a text in UTF-8; whole or not at all. Raises OutputError."""
    try:
        with written_whole(path) as temporary:
            temporary.write_bytes(text.encode("utf-8"))
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error


def make_folder(path: Path) -> None:
    """Create the folder if there is none. Raises OutputError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be created ({error.strerror}); choose another folder") from error


def regular_file(path: Path) -> str | None:
    """None for an ordinary file that can be read, else what it is instead, in words for a sentence.

    "a folder", "a named pipe", "a socket", "a device", "not there", or "not readable (...)" with the system's reason.
    Ask before opening what a user names: opening a pipe waits for its writer, and a device may have no end.
    """
    try:
        kind = _KINDS.get(stat.S_IFMT(os.stat(path).st_mode))
        if kind is None:
            os.close(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)))
    except (FileNotFoundError, NotADirectoryError):
        return "not there"
    except OSError as error:  # no rights, a circle of links, a name that is too long, a share that is gone
        return f"not readable ({error.strerror})"
    except ValueError:  # a NUL, or half of a UTF-16 pair
        return "not readable (its name holds characters that no file's can)"
    return kind


def link_target(path: Path) -> Path:
    """The file that writing to ``path`` changes: the path itself, or what the symbolic links lead to, there or not."""
    return Path(os.path.realpath(path))


def same_file(first: Path, second: Path) -> bool:
    """Whether both are one file: by resolved name, or, where both exist, by device and inode.

    On a disk that ignores case photo.PNG and photo.png are one file under two names.
    """
    if link_target(first) == link_target(second):
        return True
    try:
        return os.path.samefile(first, second)
    except OSError:  # one of them is not there
        return False


def _replaced(target: Path) -> os.stat_result | None:
    """What is known of the file that is there; None if there is none. Raises OSError where it is no file."""
    try:
        found = target.stat()
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    if not stat.S_ISREG(found.st_mode):  # a device or a pipe, as /dev/null
        raise OSError(errno.EEXIST, "something that is no ordinary file has this name", str(target))
    return found


def _create(path: Path) -> None:
    """A new empty file with the mode that the umask, or the folder's own list of rights, leaves."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))


def _locked(claim: Path) -> int | None:
    """The handle of the claim, created and locked; None where another process has it."""
    while True:
        handle = os.open(claim, os.O_CREAT | os.O_RDWR, 0o666)
        if not _lock(handle):
            os.close(handle)
            return None
        with suppress(OSError):
            if os.path.samestat(os.fstat(handle), os.stat(claim)):
                return handle
        os.close(handle)  # its holder has deleted it since it was opened


def _lock(handle: int) -> bool:
    """Whether the file could be locked, or cannot be on this file system."""
    try:
        if sys.platform == "win32":
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK)
    return True


def _take_owner_and_mode(path: Path, replaced: os.stat_result, more: int = 0) -> None:
    """Owner, group and mode of the replaced file, and the bits of ``more``; a file system may refuse any of them."""
    if sys.platform != "win32":
        found = path.stat()
        if (found.st_uid, found.st_gid) != (replaced.st_uid, replaced.st_gid):
            with suppress(OSError):
                os.chown(path, replaced.st_uid, replaced.st_gid)
    with suppress(OSError):
        path.chmod(replaced.st_mode & 0o777 | more)


def _flush(path: Path) -> None:
    """Bring the file's content to the disk. Raises OSError where it has no room there."""
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH:
            raise
    finally:
        os.close(handle)


def _flush_folder(folder: Path) -> None:
    """Bring the new name to the disk, where a folder can be opened: not on Windows."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
