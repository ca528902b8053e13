"""The package's source files and what they import, read without importing them."""

import ast
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "longctx_rl"
FILES = sorted(SOURCE.rglob("*.py"))


def name(path: Path) -> str:
    """The path of a file below the package, without its suffix."""
    return path.relative_to(SOURCE).with_suffix("").as_posix()


def imported(path: Path) -> Iterator[str]:
    """Dotted names of all that a file imports, inside functions and for type checkers too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{name(path)}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def own(path: Path) -> set[str]:
    """What a file imports of the package, as dotted names below it."""
    return {module.removeprefix("longctx_rl.") for module in imported(path) if module.startswith("longctx_rl.")}


def libraries(path: Path) -> set[str]:
    """Top-level names of all that a file imports of others, the standard library included."""
    return {module.split(".")[0] for module in imported(path)} - {"longctx_rl"}
