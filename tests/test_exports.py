"""The one public door: what it holds, that it opens late, and that type checkers see the same."""

from __future__ import annotations

import ast
import inspect
import pickle
import subprocess
import sys
import typing

import pytest

import omniactors
from tests.source import PACKAGE, imports


def typed_names() -> dict[str, str]:
    """The names that the door imports for type checkers, with the module each comes from."""
    found = (edge for edge in imports("omniactors", PACKAGE / "__init__.py") if edge.typing_only)
    return {edge.target.rpartition(".")[2]: edge.target.rpartition(".")[0] for edge in found}


def homes() -> dict[str, str]:
    """The door's own table, read from its source."""
    for node in ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_NAMES_BY_HOME":
            table = ast.literal_eval(node.value)
            return {name: home for home, names in table.items() for name in names.split()}
    raise AssertionError("the door has no table")


def test_all_is_sorted_and_without_repeats() -> None:
    assert omniactors.__all__ == sorted(set(omniactors.__all__))


def test_the_three_lists_of_the_door_agree() -> None:
    assert typed_names() == homes()
    assert sorted(homes()) == omniactors.__all__


@pytest.mark.parametrize("name", omniactors.__all__)
def test_a_public_name_resolves_and_says_where_it_lives(name: str) -> None:
    value = getattr(omniactors, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert f"{value.__module__}.{value.__qualname__}" == f"omniactors.{name}"
        assert pickle.loads(pickle.dumps(value)) is value  # noqa: S301 -- our own bytes


def test_dir_lists_what_is_not_loaded_yet() -> None:
    code = "import omniactors\nprint(set(omniactors.__all__) <= set(dir(omniactors)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "True"


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'omniactors' has no attribute 'Nothing'"):
        _ = omniactors.Nothing  # type: ignore[attr-defined]


def test_classes_that_moved_to_the_door_keep_their_hints() -> None:
    hints = typing.get_type_hints(omniactors.EventEnvelope)
    assert hints["tenant_id"] == str | None
    assert typing.get_origin(hints["payload"]) is omniactors.PayloadBase
