"""What the sources may import, and what none of them may do. By syntax tree; nothing is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "op4ksr_core"

#: The rooms of the core, low to high: a module imports its own room and rooms before it.
ROOMS = [
    "signals",
    "plain_text",
    "errors",
    "version",
    "bundled",
    "files",
    "machine",
    "images",
    "models",
    "pieces",
    "base",
    "vae",
    "planning",
    "weights",
]
ROOMS += ["one_step", "periodicity", "training", "cli", "__main__"]
#: What stands above the core: not imported by it, nor by one another.
ABOVE = {"nodes", "benchmarks"}
OURS = {"op4ksr_core", *ABOVE}
#: Rooms of the core that the nodes do without.
NOT_FOR_NODES = {"training", "cli"}

#: Where whatever escapes becomes a sentence: the end of a command, and one picture of several.
#: Or a parser that is not ours and may raise anything.
BOUNDARIES = {"cli/main.py", "cli/failures.py", "cli/upscale.py", "cli/pickles.py", "cli/enlargers.py"}

#: The modules that open a PyTorch pickle (a user's old file; the weights of a package), and how: nothing in it runs.
PICKLES = ("op4ksr_core/cli/pickles.py", "op4ksr_core/training/tasks/features.py")
PICKLES_CALL = "torch.load(path, map_location='cpu', weights_only=True)"

#: Nowhere in the core; and at no module's top level.
NEVER = {"comfy", "comfy_api", "comfy_extras", "folder_paths", "nodes", "server", "execution", "diffusers"}
ONLY_INSIDE_FUNCTIONS = {"piq", "matplotlib", "pyiqa", "lpips", "pydantic", "accelerate", "tensorboard", "torchao"}
ONLY_INSIDE_FUNCTIONS |= {"tomli", "tomllib", "spandrel"}

SOURCES = sorted(CORE.rglob("*.py"))
#: Not ours, or made by tools.
SKIPPED = {".venv", "venv", "build", "dist", "runs", ".git", "__pycache__", "node_modules"}
ALL_SOURCES = sorted(p for p in ROOT.rglob("*.py") if not SKIPPED & set(p.relative_to(ROOT).parts))

Import = tuple[int, str, tuple[str, ...]]


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def imports(nodes: Iterator[ast.AST] | list[ast.stmt]) -> Iterator[Import]:
    """(dots, module, names) of each import."""
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield 0, alias.name, ()
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or "", tuple(alias.name for alias in node.names)


def outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes that run when the module is imported."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from outside_functions(child)


def own_imports(path: Path, root: Path) -> Iterator[tuple[str, ...]]:
    """What a module imports of ours, as names below ``root``: ("models", "flux", "Flux").

    Relative imports, and absolute ones of our packages, which are named from the repository down whatever the root.
    """
    package = path.relative_to(root).parent.parts
    for dots, module, names in imports(ast.walk(tree(path))):
        parts = tuple(module.split(".")) if module else ()
        if dots == 0 and parts[0] not in OURS:
            continue
        if dots:
            assert dots - 1 <= len(package), f"{ids(path)}: from {'.' * dots}{module} leaves {root.name}"
            parts = (*package[: len(package) - dots + 1], *parts)
        yield from [(*parts, name) for name in names] or [parts]


def calls(path: Path) -> Iterator[tuple[str, int]]:
    """Dotted name and line of each call."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node.lineno


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


def room(path: Path) -> str:
    return path.relative_to(CORE).with_suffix("").parts[0]


def backwards(sources: list[Path], core: Path, rooms: list[str]) -> list[str]:
    """Each import of a room that does not lie before the importer's, or of what is no room: a name of the root's own.

    The root imports from every room, so that a name of it would be an import of them all.
    """
    found: list[str] = []
    for path in sources:
        own = path.relative_to(core).with_suffix("").parts[0]
        for parts in own_imports(path, core) if own != "__init__" else ():
            if parts[0] not in rooms or rooms.index(parts[0]) > rooms.index(own):
                found.append(f"{path.relative_to(core)} imports {'.'.join(parts)}")
    return found


def astray(root: Path) -> list[str]:
    """Each import of nodes/ and benchmarks/ below ``root`` that they do without."""
    found: list[str] = []
    for folder, forbidden in (
        ("nodes", {("benchmarks",), *(("op4ksr_core", room) for room in NOT_FOR_NODES)}),
        ("benchmarks", {("nodes",)}),
    ):
        for path in sorted((root / folder).rglob("*.py")):
            imported = [parts for parts in own_imports(path, root) if {parts[:1], parts[:2]} & forbidden]
            found += [f"{path.relative_to(root)} imports {'.'.join(parts)}" for parts in imported]
    return found


def test_every_module_has_its_room() -> None:
    assert len(SOURCES) > 60 and set(SOURCES) < set(ALL_SOURCES)
    assert {room(path) for path in SOURCES} - {"__init__"} == set(ROOMS)


def test_no_import_runs_backwards() -> None:
    assert backwards(SOURCES, CORE, ROOMS) == []


def test_the_library_is_imported_relatively_and_imports_nothing_above_it() -> None:
    for path in SOURCES:
        for dots, module, _ in imports(ast.walk(tree(path))):
            top = module.split(".")[0]
            assert dots or top not in OURS, f"{ids(path)} imports {module}"


def test_nodes_and_benchmarks_stand_above_the_library() -> None:
    assert astray(ROOT) == []


def test_the_core_knows_no_host() -> None:
    for path in SOURCES:
        everywhere = {module.split(".")[0] for dots, module, _ in imports(ast.walk(tree(path))) if not dots}
        assert not everywhere & NEVER, ids(path)
        at_import = {module.split(".")[0] for dots, module, _ in imports(outside_functions(tree(path))) if not dots}
        assert not at_import & ONLY_INSIDE_FUNCTIONS, ids(path)


def test_only_the_command_line_prints() -> None:
    for path in SOURCES:
        lines = [line for name, line in calls(path) if name in ("print", "sys.stdout.write", "sys.stderr.write")]
        assert not lines or room(path) == "cli", (ids(path), lines)


def test_nothing_runs_code_from_data() -> None:
    forbidden = {"eval", "exec", "compile", "__import__", "torch.load", "pickle.load", "pickle.loads", "os.system"}
    for path in ALL_SOURCES:
        if "tests" in path.relative_to(ROOT).parts:
            continue
        found = [(name, line) for name, line in calls(path) if name in forbidden]
        if path.relative_to(ROOT).as_posix() in PICKLES:
            written = [ast.unparse(node) for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
            assert [name for name, _ in found] == ["torch.load"] and PICKLES_CALL in written
            found = []
        assert not found, ids(path)
        modules = {module.split(".")[0] for dots, module, _ in imports(ast.walk(tree(path))) if not dots}
        assert not modules & {"pickle", "cloudpickle", "dill", "joblib"}, ids(path)


def test_the_core_reads_no_environment_and_catches_nothing_blindly() -> None:
    for path in SOURCES:
        boundary = path.relative_to(CORE).as_posix() in BOUNDARIES
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Attribute):
                assert ast.unparse(node) not in ("os.environ", "os.getenv"), (ids(path), node.lineno)
            if isinstance(node, ast.ExceptHandler):
                caught = "" if node.type is None else ast.unparse(node.type)
                assert caught != "Exception" or boundary, (ids(path), node.lineno)
                assert caught not in ("", "BaseException"), (ids(path), node.lineno)


def test_sources_are_ascii() -> None:
    assert not [ids(path) for path in ALL_SOURCES if not path.read_bytes().isascii()]


def test_there_is_no_tests_package() -> None:
    assert not (ROOT / "tests" / "__init__.py").exists()


# --- the checks themselves --------------------------------------------------------------------


def test_the_checks_see_what_they_look_for(tmp_path: Path) -> None:
    path = tmp_path / "low" / "m.py"
    path.parent.mkdir()
    path.write_text(
        "import comfy.ops\nfrom . import flux\nfrom ..high import x\nfrom .. import version\n"
        "def f():\n    import piq\n    torch.load(y)\nclass C:\n    import lpips\n",
        "utf-8",
    )
    everywhere = list(imports(ast.walk(tree(path))))
    assert (0, "comfy.ops", ()) in everywhere and (2, "high", ("x",)) in everywhere and (0, "piq", ()) in everywhere
    at_import = list(imports(outside_functions(tree(path))))
    assert (0, "lpips", ()) in at_import and (0, "piq", ()) not in at_import
    assert list(own_imports(path, tmp_path)) == [("low", "flux"), ("high", "x"), ("version",)]
    assert backwards([path], tmp_path, ["version", "low", "high"]) == ["low/m.py imports high.x"]
    assert backwards([path], tmp_path, ["version", "high", "low"]) == []
    assert list(calls(path)) == [("torch.load", 7)]


def test_a_name_of_the_package_s_root_is_an_import_of_all_rooms(tmp_path: Path) -> None:
    path = tmp_path / "low" / "m.py"
    path.parent.mkdir()
    path.write_text("from .. import upscale\nfrom ..version import __version__\nimport op4ksr_core.low\n", "utf-8")
    found = backwards([path], tmp_path, ["version", "low", "high"])
    assert found == ["low/m.py imports upscale", "low/m.py imports op4ksr_core.low"]


@pytest.mark.parametrize(
    ("name", "line", "found"),
    [
        (
            "nodes/a.py",
            "from op4ksr_core.training.config import read_config",
            "op4ksr_core.training.config.read_config",
        ),
        ("nodes/a.py", "from op4ksr_core import cli", "op4ksr_core.cli"),
        ("nodes/host/a.py", "from ...op4ksr_core import training", "op4ksr_core.training"),
        ("nodes/a.py", "import benchmarks.quality", "benchmarks.quality"),
        ("nodes/a.py", "from ..benchmarks import quality", "benchmarks.quality"),
        ("benchmarks/a.py", "from nodes.host import files", "nodes.host.files"),
        ("benchmarks/a.py", "from op4ksr_core.training.config import read_config", None),
        ("nodes/a.py", "from op4ksr_core.images import io", None),
    ],
)
def test_imports_above_the_library_are_seen_however_they_are_written(
    tmp_path: Path, name: str, line: str, found: str | None
) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    path.write_text(f"import comfy.utils\n{line}\n", "utf-8")
    assert astray(tmp_path) == ([] if found is None else [f"{name} imports {found}"])
