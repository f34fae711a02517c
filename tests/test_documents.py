"""README and docs run: every ```python block, in order, as a reader would run it.

A block runs as a script does (`__name__` is "__main__", its folder is the working directory), after
the blocks above it; one that holds an `await` outside a function runs inside `trio.run`. There is
no way to skip one: what cannot run is not marked ```python.
"""

from __future__ import annotations

import ast
import inspect
import sys
from types import CodeType, ModuleType
from typing import TYPE_CHECKING

import pytest
import trio
from sybil import Sybil
from sybil.parsers.markdown import CodeBlockParser

from tests.redis_server import fresh_prefix
from tests.source import ROOT

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from pathlib import Path

    from sybil import Example

    from tests.redis_server import RedisServer

ONLY_ON_REDIS = [ROOT / "docs" / "trio-redis.md"]

DOCUMENTS = [
    ROOT / "README.md",
    *(path for path in sorted((ROOT / "docs").rglob("*.md")) if path not in ONLY_ON_REDIS),
]

ON_REDIS = [
    ROOT / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("delivery", "getting-started", "migration")),
    *ONLY_ON_REDIS,
]
"""These run (a second time) with nothing changed but the setting that names the store."""


def run_block(example: Example) -> None:
    """Run one block in the document's `__main__`; what it raises is the test's failure."""
    module = sys.modules["__main__"]
    source = "\n" * (example.line + example.parsed.line_offset) + example.parsed
    code = compile(source, example.path, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    if code.co_flags & inspect.CO_COROUTINE:
        trio.run(_run_coroutine, code, module)
    else:
        exec(code, vars(module))  # noqa: S102 -- the documents are our own


async def _run_coroutine(code: CodeType, module: ModuleType) -> None:
    awaitable: Awaitable[object] = eval(code, vars(module))  # noqa: S307 -- as above
    await awaitable


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_document_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_document(path, tmp_path, monkeypatch)


@pytest.mark.parametrize("path", ON_REDIS, ids=lambda path: str(path.relative_to(ROOT)))
def test_document_runs_on_redis(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redis_server: RedisServer
) -> None:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    monkeypatch.setenv("OMNIACTORS_PREFIX", fresh_prefix())
    run_document(path, tmp_path, monkeypatch)
    assert list(tmp_path.iterdir()) == [], "it used the embedded file"


def run_document(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the blocks of a document in this folder."""
    monkeypatch.chdir(folder)
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))
    sybil = Sybil(parsers=[CodeBlockParser("python", run_block)], path=str(path.parent))
    for example in sybil.parse(path):
        example.evaluate()
