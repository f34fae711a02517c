"""The package as source: its modules and what they import, read with ast and without running any of it."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "omniactors"


@dataclass(frozen=True)
class Import:
    """`module` imports `target` in `line`; `typing_only` when it stands under `if TYPE_CHECKING`."""

    module: str
    target: str
    line: int
    typing_only: bool

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


def modules() -> dict[str, Path]:
    """The files of the package by dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path) -> Iterator[Import]:
    """Every import that the file at `path` holds, at any depth; relative ones are refused by ruff."""
    yield from _walk(ast.parse(path.read_text(encoding="utf-8")), name, typing_only=False)


def own_imports() -> list[Import]:
    """The imports from one module of the package to another, each resolved to the module it names."""
    known = modules()
    found = []
    for name, path in known.items():
        for edge in imports(name, path):
            target = edge.target
            while target and target not in known:
                target = target.rpartition(".")[0]
            if target and target != name:
                found.append(Import(name, target, edge.line, edge.typing_only))
    return found


def _walk(node: ast.AST, module: str, *, typing_only: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(module, alias.name, child.lineno, typing_only)
        elif isinstance(child, ast.ImportFrom):
            for alias in child.names:
                yield Import(module, f"{child.module}.{alias.name}", child.lineno, typing_only)
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            for statement in child.body:
                yield from _walk(ast.Module([statement], []), module, typing_only=True)
            for statement in child.orelse:
                yield from _walk(ast.Module([statement], []), module, typing_only=typing_only)
        else:
            yield from _walk(child, module, typing_only=typing_only)
