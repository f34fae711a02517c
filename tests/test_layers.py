"""The layers of docs/design.md: imports only point down, and nothing heavy is loaded unasked."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.source import Import, imports, modules, own_imports

LAYERS = [
    ["omniactors.errors", "omniactors.backoff", "omniactors.redaction"],
    ["omniactors.tracebacks"],
    ["omniactors.settings", "omniactors.streams.envelope"],
    ["omniactors.streams.settlement"],
    ["omniactors.events"],
    ["omniactors.actors"],
    ["omniactors.streams"],
    ["omniactors.agents"],
    ["omniactors.operations"],
    ["omniactors.gateway"],
    ["omniactors.signals"],
    ["omniactors.system"],
    ["omniactors.testing"],
    ["omniactors.cli"],
    ["omniactors.__main__"],
]
"""From the lowest up. A module belongs to its longest prefix, and may import its own part and lower rows."""

PURE = {
    "omniactors.backoff",
    "omniactors.events.event",
    "omniactors.events.history",
    "omniactors.events.patterns",
    "omniactors.events.queue",
    "omniactors.gateway.access",
    "omniactors.gateway.protocol",
    "omniactors.settings",
    "omniactors.streams.crashes",
    "omniactors.streams.envelope",
    "omniactors.streams.settlement",
}
"""Rules: plain functions and values, in which nothing waits, draws lots or reads the world."""

IMPURE = {"httpx", "random", "redis", "secrets", "socket", "sqlite3", "starlette", "subprocess", "threading", "trio"}

DOOR = "omniactors"

USERS_OF_THE_DOOR = ("omniactors.cli", "omniactors.testing")
"""The top of the package: it uses what is public, by its public name and as late as every user."""


def part_of(module: str) -> tuple[int, str]:
    """The row and the part that a module belongs to; the door belongs to none and is (-1, "")."""
    parts = [(row, part) for row, names in enumerate(LAYERS) for part in names if f"{module}.".startswith(f"{part}.")]
    return max(parts, key=lambda found: len(found[1]), default=(-1, ""))


def points_down(edge: Import) -> bool:
    row, part = part_of(edge.module)
    if edge.target == DOOR:
        return part in USERS_OF_THE_DOOR
    target_row, target_part = part_of(edge.target)
    return part == target_part or (0 <= target_row < row)


def test_every_module_belongs_to_a_layer() -> None:
    homeless = [name for name in modules() if name != DOOR and part_of(name)[0] < 0]
    assert homeless == []


def test_imports_only_point_down() -> None:
    wrong = [str(edge) for edge in own_imports() if edge.module != DOOR and not points_down(edge)]
    assert wrong == []


def test_the_rule_can_fail() -> None:
    up = Import("omniactors.streams.sqlite", "omniactors.agents.router", 1, typing_only=False)
    through_the_door = Import("omniactors.agents.agent", DOOR, 1, typing_only=True)
    assert not points_down(up)
    assert not points_down(through_the_door)


def test_no_module_imports_itself_in_a_ring() -> None:
    needs: dict[str, set[str]] = {name: set() for name in modules()}
    for edge in own_imports():
        if not edge.typing_only and edge.module != DOOR:
            needs[edge.module].add(edge.target)
    while free := {name for name, targets in needs.items() if not targets}:
        needs = {name: targets - free for name, targets in needs.items() if name not in free}
    assert needs == {}, "these modules import one another, or something that does"


def test_rules_are_pure() -> None:
    files = modules()
    impure = [
        str(edge) for name in PURE for edge in imports(name, files[name]) if edge.target.partition(".")[0] in IMPURE
    ]
    assert impure == []


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import omniactors", ("trio", "msgspec", "omniactors.errors")),
        (
            "from omniactors import EventEnvelope, MailboxFull",
            ("redis", "httpx", "starlette", "trio_websocket", "typer", "sqlite3"),
        ),
        ("import omniactors.cli", ("redis", "httpx", "starlette", "sqlite3")),
    ],
)
def test_nothing_heavy_is_loaded_unasked(statement: str, unwanted: tuple[str, ...]) -> None:
    code = f"{statement}\nimport sys\nprint([name for name in {unwanted!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
