"""What the Comfy registry, its linter and GitHub ask of the repository; as far as it can be checked offline."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = (ROOT / "pyproject.toml").read_text("utf-8")

#: What comfy-test 0.4 refuses in a pack's sources, tests included (its SYNTAX level), in our words.
FORBIDDEN = {
    "a device written out": r'\.cuda\s*\(|\.to\s*\(\s*(torch\.device\s*\(\s*)?["\']cuda',
    "autocast by its full name": r"torch\.(cuda\.amp\.|amp\.)?autocast\s*\(",
    "a layer by its full name": r"(?<![\w.])(torch\.)?nn\."
    r"(Linear|Conv[123]d|ConvTranspose[12]d|LayerNorm|GroupNorm|Embedding)\s*\(",
}

PACK_FOLDERS = ("op4ksr_core", "nodes", "tests", "benchmarks")


def sources() -> list[Path]:
    return [ROOT / "__init__.py", *(path for name in PACK_FOLDERS for path in sorted((ROOT / name).rglob("*.py")))]


def stated(key: str) -> str:
    """A string value of pyproject.toml (Python 3.10 has no reader for it)."""
    found = re.search(rf'^{re.escape(key)} = "([^"]+)"$', PROJECT, re.MULTILINE)
    assert found, f"pyproject.toml has no {key}"
    return found.group(1)


def test_project_is_named_as_the_registry_wants_it() -> None:
    name = stated("name")
    assert re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]{0,99}", name) and "comfyui" not in name.lower()
    assert re.fullmatch(r"\d+\.\d+\.\d+", stated("version"))
    assert len(stated("description")) < 250 and stated("PublisherId") and stated("DisplayName")
    assert 'license = { file = "LICENSE" }' in PROJECT
    assert "Apache License" in (ROOT / "LICENSE").read_text("utf-8")[:300]


def test_nothing_heavy_is_installed() -> None:
    """ComfyUI has all of it already, and nothing is pinned."""
    have = {"torch", "safetensors", "numpy", "pillow", "einops"}
    (line,) = re.findall(r"^dependencies = \[(.+)\]$", PROJECT, re.MULTILINE)
    assert {re.match(r"[a-z]+", spec).group() for spec in re.findall(r'"([^"]+)"', line)} == have  # pyright: ignore
    assert set((ROOT / "requirements.txt").read_text("utf-8").split()) == have and "==" not in line


def test_changelog_begins_with_this_version() -> None:
    found = re.search(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert found and found.group(1) == stated("version")


@pytest.mark.parametrize("name", ["test", "publish"])
def test_workflows_are_what_github_reads(name: str) -> None:
    yaml = pytest.importorskip("yaml")
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text("utf-8"))
    assert workflow["jobs"] and workflow[True]  # YAML 1.1 reads the key "on" as true
    for job in workflow["jobs"].values():
        assert "uses" in job or job["steps"]


def test_matrix_covers_what_is_claimed() -> None:
    matrix = (ROOT / ".github" / "workflows" / "test.yml").read_text("utf-8")
    claimed = re.findall(r"Python :: (3\.\d+)", PROJECT)
    assert re.findall(r'"(3\.\d+)"', matrix.split("python: [")[1].split("]")[0]) == claimed
    assert claimed[0] == stated("requires-python").removeprefix(">=")
    assert f'"v{stated("requires-comfyui").removeprefix(">=")}"' in matrix


@pytest.mark.parametrize("what", FORBIDDEN)
def test_sources_have_nothing_that_the_registrys_linter_refuses(what: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sources()
        if path.name != Path(__file__).name
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if not line.lstrip().startswith("#") and re.search(FORBIDDEN[what], line)
    ]
    assert not found, "\n".join(found)


def test_sources_are_ascii() -> None:
    found = [str(path.relative_to(ROOT)) for path in sources() if not path.read_bytes().isascii()]
    assert not found, found


def test_security_rules_of_the_registry() -> None:
    """``comfy node validate`` runs these: exec, eval, several statements on a line."""
    rules = ["--isolated", "--select", "S102,S307,E702", "--no-cache"]
    command = [sys.executable, "-m", "ruff", "check", *rules, *(str(path) for path in sources())]
    done = subprocess.run(command, capture_output=True, text=True)
    if "No module named ruff" in done.stderr:
        pytest.skip("ruff is not installed")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", sorted((ROOT / "workflows").glob("*.json")), ids=lambda path: path.stem)
def test_no_node_of_a_template_lies_on_another(path: Path) -> None:
    title = 30  # px above a node's place
    nodes = json.loads(path.read_text("utf-8"))["nodes"]
    boxes = [(n["id"], n["pos"][0], n["pos"][1] - title, *n["size"]) for n in nodes]
    found = [
        (a, b)
        for (a, ax, ay, aw, ah), (b, bx, by, bw, bh) in itertools.combinations(boxes, 2)
        if ax < bx + bw and bx < ax + aw and ay < by + bh + title and by < ay + ah + title
    ]
    assert not found


# --- the archive of the registry ----------------------------------------------------------------


def listed(*options: str) -> set[str]:
    """Files that git tracks; a skip outside of a checkout."""
    command = ["git", "-C", str(ROOT), "-c", "core.quotepath=off", "ls-files", *options]
    try:
        return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines())
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")


@pytest.fixture(scope="module")
def archive() -> set[str]:
    """What ``comfy node pack`` takes: all that git tracks, but for .comfyignore (which reads like .gitignore)."""
    return listed() - listed("--ignored", "--cached", "--exclude-from=.comfyignore")


@pytest.mark.parametrize("folder", ["locales", "nodes", "op4ksr_core", "web"])
def test_archive_has_all_that_is_read(archive: set[str], folder: str) -> None:
    tracked = {name for name in listed() if name.startswith(f"{folder}/")}
    assert tracked and tracked <= archive


def test_archive_has_the_templates_and_the_papers(archive: set[str]) -> None:
    workflows = {f"workflows/{path.name}" for path in (ROOT / "workflows").iterdir()}
    assert workflows | {"__init__.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE"} <= archive


def test_archive_is_small_and_without_the_tests(archive: set[str]) -> None:
    """The bundled models may be 20 MB of it together; nothing else is large."""
    assert not [name for name in archive if name.startswith(("tests/", "benchmarks/", ".github/", ".ci/"))]
    sizes = {name: (ROOT / name).stat().st_size for name in archive}
    models = [size for name, size in sizes.items() if name.startswith("op4ksr_core/bundled/models/")]
    assert len(models) >= 3 and sum(models) < 20_000_000
    rest = {name: size for name, size in sizes.items() if not name.startswith("op4ksr_core/bundled/models/")}
    assert sum(rest.values()) < 5_000_000 and max(rest.values()) < 1_000_000
