"""Campaign: names, places, streams, signals, numbers and limits, through the command line."""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from .outcomes import Run, Tally, forked

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="no fork")]

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "op4ksr_core" / "bundled" / "models"
VAE, FLUX = MODELS / "op4ksr_small_f16_vae.safetensors", MODELS / "op4ksr_small_flux.safetensors"

#: Names that a file can have. Those after the first say something to a terminal, a format string, or a decoder.
NAMES = [
    b"plain.png",
    b"esc\x1b[2J\x1b[31m.png",
    b"new\nline.png",
    b"return\r.png",
    b"bell\x07tab\t.png",
    b"caf\xe9.png",
    b"\xff\xfe\x80.png",
    "right\u202eto left.png".encode(),
    "\u4e16\u754c\U0001f600.png".encode(),
    b"-rf.png",
    b"%s%n{0}.png",
    b"*?[a].png",
    b"a b 'c' \"d\".png",
    b"n" * 251 + b".png",
]

Work = Callable[[], int | None]


def picture(path: Path, seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
    Image.fromarray(pixels).save(path, "PNG")
    return path


def main(*arguments: str | Path) -> int:
    from op4ksr_core.cli.main import main

    logging.getLogger().handlers.clear()  # pytest's, in the forked process
    return main([str(argument) for argument in arguments])


def upscale(*arguments: str | Path) -> int:
    return main("upscale", *arguments, "--scale", "1", "--vae-only", "--device", "cpu")


def leftovers(folder: Path) -> str | None:
    """Unfinished files in the folder."""
    found = [p.name for p in folder.rglob("*") if p.name.startswith((".op4ksr", "tmp")) or ".part" in p.name]
    return f"left over: {found}" if found else None


def usage(run: Run) -> str | None:
    """What is wrong with a refused command line: one line of error."""
    errors = [line for line in run.err.split("\n") if "error: " in line]
    return None if len(errors) == 1 else f"{len(errors)} lines of error"


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """What forked processes need, once; no threads, which do not survive a fork."""
    torch.set_num_threads(1)
    from op4ksr_core.cli.main import build_parser

    build_parser()


class Cases:
    """Runs them, and counts what became of each."""

    def __init__(self, name: str, folder: Path) -> None:
        self.tally, self.folder, self.number = Tally(name), folder, 0

    def place(self) -> Path:
        """A new folder."""
        self.number += 1
        place = self.folder / f"case{self.number}"
        place.mkdir()
        return place

    def run(
        self,
        case: str,
        work: Work,
        codes: Sequence[int] = (0, 1),
        wrong: Callable[[Run], str | None] = lambda run: None,
        place: Path | None = None,
    ) -> None:
        run = forked(work, 20.0)
        what = run.fault(codes)
        if what is None and run.code == 2:
            what = usage(run)
        if what is None:
            what = wrong(run) or (leftovers(place) if place else None)
        if what:
            self.tally.fault(case, f"{what} | {run.err[-300:]!r}")
        elif run.code:
            self.tally.sentence()
        else:
            self.tally.right()


# --- names ------------------------------------------------------------------------------------


def strict_json(run: Run) -> str | None:
    """JSON that a reader which knows UTF-8 only takes as well."""
    if run.code:
        return None
    try:
        json.dumps(json.loads(run.out), allow_nan=False, ensure_ascii=False).encode()
    except ValueError as error:
        return f"JSON: {error}"
    return None


def test_names(tmp_path: Path) -> None:
    cases = Cases("names", tmp_path)
    for raw in NAMES:
        place = cases.place()
        name = os.fsdecode(raw)
        source, out = picture(place / name), place / "out"
        made = out / f"{source.stem}.png"
        cases.run(f"upscale {raw!r}", partial(upscale, source, "-o", f"{out}/"), (0,), partial(made_it, made), place)
        cases.run(f"json {raw!r}", partial(upscale, source, "-o", out, "--json"), (0,), strict_json)
        cases.run(f"as output {raw!r}", partial(upscale, source, "-o", place / f"o{name[-200:]}"), (0,), place=place)
        cases.run(f"periodicity {raw!r}", partial(main, "periodicity", source, source.parent), (0, 1))
        source.write_bytes(b"no picture")
        cases.run(f"bad {raw!r}", partial(upscale, source, "-o", out), (1,))
        source.unlink()
        cases.run(f"gone {raw!r}", partial(main, "plan", source), (1,))
        cases.run(f"as weights {raw!r}", partial(main, "inspect", source), (1,))
    for encoding in ("ascii", "cp1252", "latin-1"):
        place = cases.place()
        for raw in (NAMES[5], NAMES[8]):
            source = picture(place / os.fsdecode(raw))
            surroundings = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)}
            arguments = ["upscale", source, source, "-o", place / "out", "--vae-only"]
            run = started(["plan", source], surroundings)
            judge(cases.tally, f"{encoding} {raw!r}", run, (0,))
            run = started(arguments, surroundings)
            judge(cases.tally, f"{encoding} twice {raw!r}", run, (1,))
    cases.tally.close()


def made_it(path: Path, run: Run) -> str | None:
    return None if path.is_file() else f"{path.name!a} is not there"


def judge(tally: Tally, case: str, run: Run, codes: Sequence[int]) -> None:
    what = run.fault(codes)
    if what:
        tally.fault(case, f"{what} | {run.err[-300:]!r}")
    elif run.code:
        tally.sentence()
    else:
        tally.right()


def started(arguments: Sequence[str | Path], surroundings: dict[str, str] | None = None) -> Run:
    """A real process."""
    surroundings = surroundings or {**os.environ, "PYTHONPATH": str(ROOT)}
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "op4ksr_core", *map(str, arguments)], capture_output=True, timeout=120, env=surroundings
    )
    out, err = (text.decode("latin-1") for text in (done.stdout, done.stderr))
    return Run(done.returncode, out, err, time.monotonic() - begun)


# --- places -----------------------------------------------------------------------------------


def oddities(place: Path) -> Iterator[tuple[str, Path]]:
    """What is no ordinary file, by name."""
    os.mkfifo(place / "pipe.png")
    (place / "loop.png").symlink_to("loop.png")
    (place / "dangling.png").symlink_to("none.png")
    (place / "folder.png").mkdir()
    (place / "zero.png").symlink_to("/dev/zero")
    (place / "toolong.png").symlink_to("n" * 200)
    here = os.getcwd()
    os.chdir(place)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
    os.chdir(here)
    for name in ("pipe", "loop", "dangling", "folder", "zero", "toolong", "socket"):
        yield name, place / f"{name}.png"
    yield "long name", place / ("n" * 300 + ".png")
    yield "long path", Path(f"{place}/" + "d/" * 3000 + "a.png")
    yield "in a file", VAE / "a.png"
    yield "nothing", Path("")


def test_what_is_no_ordinary_file(tmp_path: Path) -> None:
    """In every role that a file has. Where one may not enter or list a folder is pretended elsewhere: root may."""
    cases = Cases("no ordinary files", tmp_path)
    place = cases.place()
    good = picture(tmp_path / "good.png")
    weights = tmp_path / "out.safetensors"
    for name, odd in oddities(place):
        out = tmp_path / "o.png"
        roles: dict[str, Callable[[], int]] = {
            "upscale": partial(upscale, odd, "-o", out),
            "suppress": partial(main, "suppress", odd, "-o", out),
            "periodicity": partial(main, "periodicity", odd),
            "plan": partial(main, "plan", odd),
            "reference": partial(main, "suppress", good, "-o", out, "--reference", odd),
            "probe": partial(main, "inspect", VAE, "--probe", odd),
            "inspect": partial(main, "inspect", odd),
            "vae": partial(upscale, good, "-o", out, "--vae", odd),
            "model": partial(main, "plan", good, "--model", odd),
            "convert": partial(main, "convert", odd, "-o", weights),
            "lora": partial(main, "convert", FLUX, "-o", weights, "--merge-lora", odd),
            "prompt": partial(main, "convert", FLUX, "-o", weights, "--prompt-embedding", odd),
            "config": partial(main, "train", odd),
            "rope": partial(main, "rope", odd),
        }
        for role, work in roles.items():
            cases.run(f"{name} as {role}", work, (1,), place=tmp_path)
    cases.tally.close()


def test_outputs(tmp_path: Path) -> None:
    cases = Cases("outputs", tmp_path)
    good = picture(tmp_path / "good.png")
    place = cases.place()
    outputs = dict(oddities(place))
    del outputs["dangling"], outputs["nothing"]
    outputs["device"], outputs["null"] = Path("/dev/zero"), Path("/dev/null")
    outputs["proc"], outputs["no folder"] = Path("/proc/a.png"), place / "none" / "a.png"
    outputs["ending"], outputs["no ending"] = place / "a.xyz", Path("/dev/full")
    for name, output in outputs.items():
        fits = (0, 1) if name in ("folder", "toolong") else (1,)
        cases.run(f"upscale to {name}", partial(upscale, good, "-o", output), fits, place=tmp_path)
        cases.run(f"suppress to {name}", partial(main, "suppress", good, "-o", output), fits, place=tmp_path)
        cases.run(f"report to {name}", partial(main, "periodicity", good, "--report", output), fits, place=tmp_path)
        cases.run(f"convert to {name}", partial(main, "convert", VAE, "-o", output), (0, 1), place=tmp_path)
        if name not in ("folder", "toolong", "no folder", "ending"):
            cases.run(f"demo to {name}", partial(main, "demo", "-o", output), (1,), place=tmp_path)
    assert os.path.exists("/dev/zero") and not os.path.isfile("/dev/zero")
    cases.tally.close()


def test_folders(tmp_path: Path) -> None:
    """A folder with all that one can hold: the good ones are made, the others are lines, and the last line counts."""
    cases = Cases("folders", tmp_path)
    place = cases.place()
    for index in range(3):
        picture(place / f"good{index}.png", index)
    odd = [name for name, path in oddities(place) if path.parent == place and name not in ("folder", "long name")]
    (place / "._good0.png").write_bytes(b"\0\5\x16\7 resource fork")
    (place / ".DS_Store").write_bytes(b"\0" * 9)
    (place / "notes.txt").write_text("no picture")
    (place / "empty.png").touch()
    (place / "cut.png").write_bytes((place / "good0.png").read_bytes()[:60])
    (place / "text.png").write_bytes(b"hello\x1b[2J")
    (place / os.fsdecode(b"caf\xe9.png")).write_bytes(b"hello")
    bad = len(odd) + 4
    for name, command in (("upscale", upscale), ("suppress", lambda *given: main("suppress", *given))):
        out = tmp_path / f"{name}_out"

        def wrong(run: Run, out: Path = out) -> str | None:
            made = sorted(p.name for p in out.iterdir())
            last = run.err.strip().rsplit("\n", 1)[-1]
            if made != ["good0.png", "good1.png", "good2.png"]:
                return f"made {made}"
            if run.err.count("notes.txt") != 1 or "._good0" in run.err:
                return "what is no picture is not named once"
            return None if last == f"{bad} of {bad + 3} pictures failed" else f"last line {last!r}"

        cases.run(name, partial(command, place, "-o", out), (1,), wrong, out)
        cases.run(f"{name} again", partial(command, place, "-o", out), (1,), wrong, out)
        cases.run(f"{name} as JSON", partial(command, place, "-o", out, "--json"), (1,), wrong, out)

    def counted(run: Run) -> str | None:
        last = run.err.strip().rsplit("\n", 1)[-1]
        return None if last == f"{bad} of {bad + 3} pictures failed" and "good2.png" in run.out else f"last {last!r}"

    cases.run("periodicity", partial(main, "periodicity", place), (1,), counted)
    foreign = picture(tmp_path / "upscale_out" / "good1.png", 9).read_bytes()

    def kept(run: Run) -> str | None:
        now = (tmp_path / "upscale_out" / "good1.png").read_bytes()
        return None if now == foreign and "good1.png: is there already" in run.err else "a foreign picture is gone"

    cases.run("a foreign picture", partial(upscale, place, "-o", tmp_path / "upscale_out"), (1,), kept)
    cases.tally.close()


# --- streams ----------------------------------------------------------------------------------


def stream(kind: str, number: int) -> None:
    """Make standard output or error of this process closed, full, or a pipe that nobody reads."""
    if kind == "full":
        os.dup2(os.open("/dev/full", os.O_WRONLY), number)
    elif kind == "pipe":
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, number)
    else:
        os.close(number)
    name = "stdout" if number == 1 else "stderr"
    setattr(sys, name, None if kind == "closed" else open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115


def test_streams(tmp_path: Path) -> None:
    cases = Cases("streams", tmp_path)
    good = picture(tmp_path / "good.png")
    (tmp_path / "in").mkdir()
    for name in "ab":
        picture(tmp_path / "in" / f"{name}.png")
    works: dict[str, Callable[[], int]] = {
        "help": partial(main, "--help"),
        "version": partial(main, "--version"),
        "plan": partial(main, "plan", "64x64"),
        "inspect": partial(main, "inspect", FLUX, "--json"),
        "rope": partial(main, "rope"),
        "upscale": partial(upscale, good, "-o", tmp_path / "o.png"),
        "folder": partial(upscale, tmp_path / "in", "-o", tmp_path / "out"),
        "periodicity": partial(main, "periodicity", good),
        "gone": partial(main, "plan", tmp_path / "gone.png"),
        "usage": partial(main, "plan"),
    }
    fine = {"gone": 1, "usage": 2}
    for name, work in works.items():
        for kind, lost in (("full", 1), ("pipe", 141), ("closed", 0)):
            code = fine.get(name, lost)

            def out(work: Work = work, kind: str = kind) -> int | None:
                stream(kind, 1)
                return work()

            def err(work: Work = work, kind: str = kind) -> int | None:
                stream(kind, 2)
                return work()

            def quiet(run: Run, kind: str = kind, name: str = name) -> str | None:
                return "not silent" if run.err and kind != "full" and name not in fine else None

            cases.run(f"{name}, stdout {kind}", out, (code,), quiet)
            run = forked(err, 20.0)
            what = run.code not in (fine.get(name, 0), 2) or "Traceback" in run.out
            cases.tally.fault(f"{name}, stderr {kind}", f"{run.code}, {run.out!r}") if what else cases.tally.right()
    cases.tally.close()


# --- signals ----------------------------------------------------------------------------------

ENDINGS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


def after(seconds: float, number: int, times: int) -> None:
    """Send this process a signal a while from now, so often 10 ms apart."""
    pid = os.getpid()

    def send() -> None:
        time.sleep(seconds)
        for _ in range(times):
            os.kill(pid, number)
            time.sleep(0.01)

    threading.Thread(target=send, daemon=True).start()


def one_line(run: Run) -> str | None:
    lines = [line for line in run.err.split("\n") if line and "%" not in line]
    return None if len(lines) == 1 else f"{len(lines)} lines"


def test_signals(tmp_path: Path) -> None:
    """At many moments of a run that takes longer: reading models, computing, writing. Nothing half is left."""
    cases = Cases("signals", tmp_path)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)).save(tmp_path / "large.png")
    moments = np.random.default_rng(17).uniform(0.1, 1.5, 24)
    for index, moment in enumerate(moments):
        place = cases.place()
        number, code = list(ENDINGS.items())[index % 3]
        times = 1 + index % 2

        def work(moment: float = moment, number: int = number, times: int = times, place: Path = place) -> int:
            after(moment, number, times)
            return main("upscale", tmp_path / "large.png", "-o", place / "o.png", "--scale", "4", "--vae-only")

        cases.run(f"signal {number} x {times} after {moment:.2f} s", work, (code,), one_line, place)
    cases.tally.close()


def test_signals_at_the_start(tmp_path: Path) -> None:
    """From where signals are handled; before that Python itself answers, for the first hundredths of a second."""
    tally = Tally("signals at the start")
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    script = "import sys; from op4ksr_core.cli.main import main; print('begun', flush=True); sys.exit(main())"
    moments = np.random.default_rng(5).uniform(0.05, 1.5, 9)
    for index, moment in enumerate(moments):
        number, code = list(ENDINGS.items())[index % 3]
        process = subprocess.Popen(
            [sys.executable, "-c", script, "plan", "64x64"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=surroundings,
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(moment)
        for _ in range(1 + index % 2):
            process.send_signal(number)
            time.sleep(0.01)
        out, err = (text.decode() for text in process.communicate(timeout=60))
        run = Run(process.returncode, out, err, 0.0)
        what = run.fault((code,)) or one_line(run)
        tally.fault(f"signal {number} after {moment:.2f} s", f"{what}: {err!r}") if what else tally.right()
    for start in (["-m", "op4ksr_core"], ["-m", "benchmarks"]):
        process = subprocess.Popen(
            [sys.executable, *start, "--help"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=surroundings
        )
        time.sleep(1.2)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        ok = process.returncode == 130 and err.count(b"\n") == 1
        tally.right() if ok else tally.fault(f"{start}", f"{process.returncode}: {err[-300:]!r}")
    tally.close()


def test_signals_that_are_ignored_stay_so(tmp_path: Path) -> None:
    """As under nohup."""

    def work() -> int:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        after(0.05, signal.SIGHUP, 3)
        return upscale(picture(tmp_path / "a.png"), "-o", tmp_path / "o.png")

    assert forked(work).code == 0


# --- numbers ----------------------------------------------------------------------------------

NUMBERS = ["1e308", "1e400", "nan", "inf", "-inf", "-0", "0", "-1", "1e9", "1" * 5000, "\u0661\u0662", "2**70", ""]
NUMBERS += [str(2**70), "0x10", "1_000", " 4", "\x1b[2J"]


def test_numbers(tmp_path: Path) -> None:
    cases, chance = Cases("numbers", tmp_path), np.random.default_rng(3)
    good = picture(tmp_path / "good.png")
    out = tmp_path / "o.png"
    commands: dict[str, tuple[list[str | Path], list[str]]] = {
        "plan": (
            ["plan", "64x48"],
            ["scale", "long-edge", "short-edge", "megapixels", "max-megapixels", "free", "sigma", "theta", "strips"],
        ),
        "upscale": (["upscale", good, "-o", out, "--vae-only"], ["fidelity", "compression", "bits", "stride"]),
        "periodicity": (["periodicity", good], ["alarm", "token"]),
        "suppress": (["suppress", good, "-o", out], ["strength"]),
        "rope": (["rope", "--policy", "fit"], ["grid", "turns", "train-tokens"]),
    }
    for name, (start, options) in commands.items():
        for option in options:
            for value in chance.choice(NUMBERS, 4, replace=False).tolist():
                work = partial(main, *start, f"--{option}={value}")
                cases.run(f"{name} --{option} {value[:20]!a}", work, (0, 1, 2))
    for value in NUMBERS[:12]:
        for size in (f"{value}x64", f"64x{value}")[: 1 + len(value) % 2]:
            cases.run(f"plan {size[:20]!a}", partial(main, "plan", size), (0, 1, 2))
        for size in ("999999999x999999999",):
            work = partial(main, "plan", size, f"--scale={value}", "--max-megapixels", "inf")
            cases.run(f"plan {size} --scale {value[:20]!a}", work, (0, 1, 2))
        lora = f"a.safetensors:{value}"
        work = partial(main, "convert", FLUX, "-o", tmp_path / "m.safetensors", "--merge-lora", lora)
        cases.run(f"lora {value[:20]!a}", work, (1,))
    cases.tally.close()


# --- limits -----------------------------------------------------------------------------------


def test_limits(tmp_path: Path) -> None:
    """Of a file's size, and of open files."""
    cases = Cases("limits", tmp_path)
    good = picture(tmp_path / "good.png")
    for size in (0, 100, 600):
        place = cases.place()

        def small(size: int = size, place: Path = place) -> int:
            resource.setrlimit(resource.RLIMIT_FSIZE, (max(size, 4096), resource.RLIM_INFINITY))
            return main("upscale", good, "-o", place / "o.png", "--scale", "8", "--vae-only")

        cases.run(f"files of at most {max(size, 4096)} bytes", small, (1,), place=place)
    for count in range(3, 24, 3):
        place = cases.place()

        def few(count: int = count, place: Path = place) -> int:
            resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))
            return upscale(good, "-o", place / "o.png")

        cases.run(f"{count} open files", few, place=place)
    cases.tally.close()
