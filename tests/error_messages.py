"""Every error message of the pack, read off the sources.

python tests/error_messages.py COVERAGE_FILE prints the messages that no test of that run made (CONTRIBUTING.md).
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

CLASSES = {
    "Op4ksrError",
    "UnsupportedCheckpointError",
    "ImageError",
    "OptionError",
    "OutputError",
    "OutOfMemoryError",
    "ArgumentTypeError",
}


def sources() -> list[Path]:
    return [path for folder in ("op4ksr_core", "nodes") for path in sorted((ROOT / folder).rglob("*.py"))]


def constants_of(tree: ast.Module) -> dict[str, str]:
    """The module's texts, by name."""
    return {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def text_of(node: ast.expr, known: dict[str, str]) -> str:
    """A string of the source; what is put into it, as <name>, or <...>."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part, known) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_of(node.left, known) + text_of(node.right, known)
    if isinstance(node, ast.FormattedValue):
        node = node.value
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        pattern = known.get(ast.unparse(node.func.value), "<...>")
        return pattern.replace("{}", text_of(node.args[0], known))
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.Name):
        return f"<{node.id}>"
    if isinstance(node, ast.Attribute):
        return f"<{node.attr}>"
    return "<...>"


def messages_of(path: Path) -> Iterator[tuple[str, range]]:
    """Each error that is made in a file, as a user reads it, and its lines."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in CLASSES:
            text = text_of(node.args[-1], constants_of(tree)) if node.args else ""
            prefix = "<file>: " if len(node.args) == 2 else ""
            yield f"{prefix}{text}".replace("|", "/").replace("`", "'"), range(node.lineno, node.end_lineno + 1)


def messages() -> dict[str, list[str]]:
    """Message -> where it is made, as file:line."""
    found: dict[str, list[str]] = {}
    for path in sources():
        for message, lines in messages_of(path):
            found.setdefault(message, []).append(f"{path.relative_to(ROOT).as_posix()}:{lines[0]}")
    return found


def never_made(coverage_file: str) -> Iterator[str]:
    """The places of errors none of whose lines was run, with the message."""
    from coverage import CoverageData

    data = CoverageData(coverage_file)
    data.read()
    run: dict[Path, set[int]] = {}
    for name in data.measured_files():
        run.setdefault(Path(name).resolve(), set()).update(data.lines(name) or ())
    for path in sources():
        for message, lines in messages_of(path):
            if not run.get(path, set()).intersection(lines):
                yield f"{path.relative_to(ROOT).as_posix()}:{lines[0]}: {message}"


def main() -> None:
    for coverage_file in sys.argv[1:]:
        print(*never_made(coverage_file), sep="\n")


if __name__ == "__main__":
    main()
