"""What the sources may import, and what none of them may do. By syntax tree; nothing is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "op4ksr_core"

#: Low to high: a module imports only modules before it.
ORDER = [
    "errors",
    "version",
    "whole_file",
    "attention",
    "kernels",
    "rope",
    "schedule",
    "latent",
    "resize",
    "layers",
    "flux",
    "fp8",
    "autoencoder_layers",
    "strip_maps",
    "strips",
    "machine",
    "memory",
    "bounded",
    "cost",
    "plan",
    "autoencoder",
    "full_size",
    "layouts",
    "export_layouts",
    "header",
    "description",
    "checkpoint",
    "lora_file",
    "safetensors_writer",
    "conversion",
    "icc",
    "png16",
    "png_writer",
    "image_io",
    "procedural",
    "dice",
    "leaves",
    "jpeg",
    "degradation",
    "frozen",
    "ranges",
    "enlarger",
    "enlarger_file",
    "enlarger_config",
    "enlarger_pairs",
    "train_config",
    "config_file",
    "metrics",
    "perceptual",
    "autocorrelation",
    "periods",
    "lattice",
    "blocks",
    "folding",
    "coherence",
    "detection",
    "calibration",
    "periodicity",
    "losses",
    "objectives",
    "lora",
    "suppress",
    "artifacts",
    "paths",
    "picture_sets",
    "drawing",
    "report",
    "cielab",
    "color",
    "one_step",
    "probe",
    "inspection",
    "allocation",
    "stage_clock",
    "stage_times",
    "sources",
    "linear_start",
    "model_source",
    "latent_cache",
    "task",
    "autoencoder_task",
    "one_step_task",
    "enlarger_task",
    "train_tasks",
    "engines",
    "optimization",
    "batches",
    "run_folder",
    "run_samples",
    "trainer",
    "step_meter",
    "train_plan",
    "benchmark",
    "benchmark_page",
    "ceiling",
    "benchmark_quality",
    "benchmark_sets",
    "periodicity_cases",
    "benchmark_periodicity",
    "ablation_figure",
    "ablation",
    "demo",
    "tiles",
    "patches",
    "benchmark_memory",
    "benchmark_speed",
    "benchmark_pipeline",
    "benchmark_train",
    "benchmark_scaling",
    "full_report",
    "benchmark_full",
    "full_size_files",
    "host_client",
    "benchmark_host",
    "benchmark_facts",
    "cli_options",
    "cli_plan",
    "cli_periodicity",
    "cli_train",
    "cli_ablation",
    "cli_pipeline",
    "cli_page",
    "cli_quality",
    "cli_full",
    "cli_train_benchmark",
    "cli_benchmark",
    "cli_convert",
    "cli_rope",
    "cli",
    "__main__",
]

#: Nowhere in the core; and at no module's top level.
NEVER = {"comfy", "comfy_api", "comfy_extras", "folder_paths", "nodes", "server", "execution", "diffusers"}
ONLY_INSIDE_FUNCTIONS = {"piq", "matplotlib", "pyiqa", "lpips", "webdataset", "accelerate", "tensorboard", "torchao"}
ONLY_INSIDE_FUNCTIONS |= {"tomli", "tomllib"}

SOURCES = sorted(CORE.glob("*.py"))
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


def own_modules(path: Path) -> set[str]:
    """The modules of the core that a module imports."""
    found: set[str] = set()
    for dots, module, names in imports(ast.walk(tree(path))):
        if dots == 1:
            found |= {module} if module else {name for name in names if (CORE / f"{name}.py").exists()}
    return found


def calls(path: Path) -> Iterator[tuple[str, int]]:
    """Dotted name and line of each call."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node.lineno


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_is_something_to_check() -> None:
    assert len(SOURCES) > 20 and set(SOURCES) < set(ALL_SOURCES)


def test_every_module_has_its_place_in_the_order() -> None:
    names = {path.stem for path in SOURCES} - {"__init__"}
    assert names <= set(ORDER), "put new modules into ORDER, as low as they can be"
    assert len(set(ORDER)) == len(ORDER)


@pytest.mark.parametrize("path", [p for p in SOURCES if p.stem in ORDER], ids=ids)
def test_modules_import_only_lower_ones(path: Path) -> None:
    above = {name for name in own_modules(path) if ORDER.index(name) >= ORDER.index(path.stem)}
    assert not above, f"{path.stem} imports {sorted(above)}, not below it"


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_the_core_is_imported_relatively_and_reaches_no_higher(path: Path) -> None:
    for dots, module, names in imports(ast.walk(tree(path))):
        assert dots <= 1, f"from {'.' * dots}{module}"
        assert module.split(".")[0] != "op4ksr_core"
        if dots == 1 and not module:
            assert path.stem == "cli" or all((CORE / f"{name}.py").exists() for name in names)


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_the_core_knows_no_host(path: Path) -> None:
    everywhere = {module.split(".")[0] for dots, module, _ in imports(ast.walk(tree(path))) if not dots}
    assert not everywhere & NEVER
    at_import = {module.split(".")[0] for dots, module, _ in imports(outside_functions(tree(path))) if not dots}
    assert not at_import & ONLY_INSIDE_FUNCTIONS


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_only_the_command_line_prints(path: Path) -> None:
    lines = [line for name, line in calls(path) if name in ("print", "sys.stdout.write", "sys.stderr.write")]
    assert not lines or path.stem.startswith("cli"), lines


@pytest.mark.parametrize("path", [p for p in ALL_SOURCES if "tests" not in p.relative_to(ROOT).parts], ids=ids)
def test_nothing_runs_code_from_data(path: Path) -> None:
    forbidden = {"eval", "exec", "compile", "__import__", "torch.load", "pickle.load", "pickle.loads", "os.system"}
    assert not [(name, line) for name, line in calls(path) if name in forbidden]
    modules = {module.split(".")[0] for dots, module, _ in imports(ast.walk(tree(path))) if not dots}
    assert not modules & {"pickle", "cloudpickle", "dill", "joblib"}


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_the_core_reads_no_environment_and_catches_nothing_blindly(path: Path) -> None:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in ("os.environ", "os.getenv"), node.lineno
        if isinstance(node, ast.ExceptHandler):
            caught = "" if node.type is None else ast.unparse(node.type)
            assert caught not in ("", "Exception", "BaseException"), node.lineno


@pytest.mark.parametrize("path", ALL_SOURCES, ids=ids)
def test_sources_are_ascii(path: Path) -> None:
    assert path.read_bytes().isascii()


def test_there_is_no_tests_package() -> None:
    assert not (ROOT / "tests" / "__init__.py").exists()


# --- the checks themselves --------------------------------------------------------------------


def test_the_checks_see_what_they_look_for(tmp_path: Path) -> None:
    path = tmp_path / "m.py"
    path.write_text(
        "import comfy.ops\nfrom . import flux, __version__\nfrom ..nodes import x\n"
        "def f():\n    import piq\n    torch.load(y)\nclass C:\n    import lpips\n",
        "utf-8",
    )
    everywhere = list(imports(ast.walk(tree(path))))
    assert (0, "comfy.ops", ()) in everywhere and (2, "nodes", ("x",)) in everywhere and (0, "piq", ()) in everywhere
    at_import = list(imports(outside_functions(tree(path))))
    assert (0, "lpips", ()) in at_import and (0, "piq", ()) not in at_import
    assert own_modules(path) == {"flux"}
    assert list(calls(path)) == [("torch.load", 6)]
