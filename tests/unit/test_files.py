"""A file is the old one or the new one, whatever happens while it is written."""

from __future__ import annotations

import errno
import os
import signal
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.page import write_text
from benchmarks.tables import write_report
from op4ksr_core import AutoEncoder, OutputError, save_autoencoder
from op4ksr_core.files import (
    claimed,
    is_temporary,
    make_folder,
    regular_file,
    remove_stale,
    remove_unfinished,
    write_whole,
    written_whole,
)
from op4ksr_core.images.io import Picture, save_image
from op4ksr_core.weights.streamed import Entry, write_safetensors

needs_links = pytest.mark.skipif(os.name == "nt", reason="symbolic links need a privilege on Windows")
needs_modes = pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def write(path: Path, text: str = "new") -> None:
    with written_whole(path) as temporary:
        temporary.write_text(text)


def test_the_new_file_takes_the_old_ones_place(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with written_whole(path, ".txt") as part:
        part.write_text("new")
        assert path.read_text() == "old" and part.suffix == ".txt" and part.parent == tmp_path
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()], ids=["error", "cancelled"])
def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(type(error)), written_whole(path) as part:
        part.write_text("half")
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_the_callers_to_tell(tmp_path: Path) -> None:
    with pytest.raises(OSError), written_whole(tmp_path / "none" / "a.txt"):
        pass


# --- modes ------------------------------------------------------------------------------------


@needs_modes
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_new_file_has_the_mode_that_the_umask_leaves(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write(tmp_path / "a.txt")
    finally:
        os.umask(before)
    assert mode(tmp_path / "a.txt") == 0o666 & ~umask


@needs_modes
@pytest.mark.parametrize("kept", [0o600, 0o644, 0o664, 0o755, 0o400])
def test_a_replaced_file_keeps_its_mode(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    path.chmod(kept)
    with written_whole(path) as temporary:
        assert mode(temporary) & ~0o600 == kept & ~0o600  # what is being written is as private as what was there
        temporary.write_text("new")
    assert mode(path) == kept and path.read_text() == "new"


def test_a_file_system_without_modes_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, mode: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    write(tmp_path / "a.txt", "old")
    monkeypatch.setattr(Path, "chmod", refuse)
    write(tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text() == "new"


# --- links and what is no file ----------------------------------------------------------------


@needs_links
@pytest.mark.parametrize("there", [True, False], ids=["to a file", "dangling"])
def test_a_symbolic_link_is_written_through(tmp_path: Path, there: bool) -> None:
    (tmp_path / "far").mkdir()
    target, link, second = tmp_path / "far" / "data.bin", tmp_path / "link.txt", tmp_path / "second.txt"
    if there:
        target.write_text("old")
    link.symlink_to(Path("far") / "data.bin")
    second.symlink_to(link)
    write(second)
    assert link.is_symlink() and second.is_symlink() and target.read_text() == "new"
    assert list((tmp_path / "far").iterdir()) == [target]


@needs_links
def test_a_link_to_itself_is_the_callers_to_tell(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to("a.txt")
    with pytest.raises(OSError):
        write(tmp_path / "a.txt")
    assert (tmp_path / "a.txt").is_symlink()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="pipe: cannot be written .something that is no ordinary file"):
        write_whole(tmp_path / "pipe", "new")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match=r"folder: cannot be written .*choose another folder"):
        write_whole(tmp_path / "folder", "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "pipe"]


# --- the disk ---------------------------------------------------------------------------------


def test_the_content_is_on_the_disk_before_it_takes_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    flush, replace = os.fsync, Path.replace

    def flushed(handle: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else f"{os.fstat(handle).st_size} bytes")
        flush(handle)

    def replaced(self: Path, target: Path) -> Path:
        done.append("name")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "replace", replaced)
    write(tmp_path / "a.txt", "four")
    assert done == ["4 bytes", "name", "folder"] or (os.name == "nt" and done == ["4 bytes", "name"])


def test_a_disk_that_is_full_only_when_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(number: int) -> Callable[[int], None]:
        def flush(handle: int) -> None:
            raise OSError(number, os.strerror(number))

        return flush

    write(tmp_path / "a.txt", "old")
    monkeypatch.setattr(os, "fsync", fail(errno.ENOSPC))
    with pytest.raises(OutputError, match=r"a\.txt: cannot be written \(No space left on device\)"):
        write_whole(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "old" and len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(os, "fsync", fail(errno.EINVAL))  # as some network file systems say
    write_whole(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"


# --- all that write ---------------------------------------------------------------------------


def picture(path: Path) -> None:
    save_image(path, Picture(torch.rand(1, 3, 8, 8)))


def report(path: Path) -> None:
    write_report(path.parent, path.stem, {}, [])


def streamed(path: Path) -> None:
    def make() -> Tensor:
        return torch.zeros(2)

    write_safetensors(path, {"a": Entry("F32", (2,), make)}, {})


WRITERS: dict[str, Callable[[Path], None]] = {
    "a.png": picture,
    "a.webp": picture,
    "b.safetensors": streamed,
    "r.json": report,
    "r.md": report,
    "page.md": lambda path: write_text(path, "new"),
    "config.toml": lambda path: write_whole(path, "new"),
}


@needs_links
@pytest.mark.parametrize("name", WRITERS)
def test_all_that_write_files_keep_links_and_modes(tmp_path: Path, name: str) -> None:
    target, path = tmp_path / f"target_{name}", tmp_path / name
    target.write_bytes(b"old")
    target.chmod(0o600)
    path.symlink_to(target)
    WRITERS[name](path)
    assert path.is_symlink() and target.read_bytes() != b"old" and mode(target) == 0o600


@needs_links
def test_weights_keep_links_and_modes(tmp_path: Path, make_autoencoder: Callable[..., AutoEncoder]) -> None:
    target, path = tmp_path / "target.safetensors", tmp_path / "vae.safetensors"
    target.touch(0o600)
    path.symlink_to(target)
    save_autoencoder(path, make_autoencoder())
    assert path.is_symlink() and target.stat().st_size > 1000 and mode(target) == 0o600


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot be created \(.*\); choose another folder"):
        make_folder(tmp_path / "file" / "folder")


# --- what is read -----------------------------------------------------------------------------


def test_an_ordinary_file_is_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    assert regular_file(tmp_path / "a.txt") is None
    assert regular_file(tmp_path) == "a folder"
    assert regular_file(tmp_path / "none") == regular_file(tmp_path / "a.txt" / "b") == "not there"


@needs_links
def test_what_is_no_ordinary_file_is_named_and_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "link").symlink_to("pipe")
    monkeypatch.chdir(tmp_path)  # a socket's path has at most 107 bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        assert regular_file(tmp_path / "socket") == "a socket"
    assert regular_file(tmp_path / "pipe") == regular_file(tmp_path / "link") == "a named pipe"
    assert regular_file(Path("/dev/zero")) == "a device"
    assert regular_file(tmp_path / "loop") == "not readable (Too many levels of symbolic links)"
    assert regular_file(tmp_path / ("n" * 300)) == "not readable (File name too long)"
    assert "no file's can" in str(regular_file(Path("a\0b"))) and "no file's can" in str(regular_file(Path("\ud800")))


def test_a_file_without_rights_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretended, for the tests may run as root, whom no rights stop."""

    def refuse(*args: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    (tmp_path / "a.txt").touch()
    monkeypatch.setattr(os, "open", refuse)
    assert regular_file(tmp_path / "a.txt") == "not readable (Permission denied)"


# --- what is not finished ---------------------------------------------------------------------


def test_what_is_not_finished_is_hidden_and_of_a_length_that_fits(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 251 + ".png")
    with written_whole(path) as temporary:
        assert is_temporary(temporary.name) and temporary.name.startswith(".") and len(temporary.name) < 40
        assert temporary.suffix == ".part" and temporary.parent == tmp_path
        temporary.write_text("new")
    assert path.read_text() == "new" and not is_temporary(path.name) and not is_temporary("a.part")


def test_the_end_of_a_process_leaves_nothing_unfinished(tmp_path: Path) -> None:
    """As where a signal comes between the file's making and the block that deletes it."""
    writing = written_whole(tmp_path / "a.txt")
    temporary = writing.__enter__()
    remove_unfinished()
    assert not temporary.exists()
    with pytest.raises(FileNotFoundError):
        writing.__exit__(None, None, None)


def test_what_a_killed_process_left_goes_when_it_is_a_day_old(tmp_path: Path) -> None:
    old, fresh, other = (tmp_path / f".op4ksr-{digit * 16}.part" for digit in "abz")
    for path in (old, fresh, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (0, 0))
    remove_stale(tmp_path)
    assert sorted(tmp_path.iterdir()) == [fresh, other]
    remove_stale(tmp_path / "none")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_place_is_one_processs_until_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with claimed(path):
            os.write(writer, b"x")
            signal.pause()
    os.read(reader, 1)
    with claimed(path) as ours, claimed(tmp_path / "b.png") as other:
        assert not ours and other
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with claimed(path) as ours:
        assert ours
    assert not list(tmp_path.iterdir())
