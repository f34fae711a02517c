"""The table of keys in docs/delivery.md is true: it has what is found in Redis, and nothing else."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.redis_server import fresh_prefix
from tests.source import ROOT
from tests.streams.redis_tour import Tour

if TYPE_CHECKING:
    from tests.redis_server import RedisServer

PLACEHOLDERS = {
    "AGENT": "[^:]+",
    "BODY": r"\{.*",
    "CLIENT": "[0-9a-f]+",
    "CONSUMER": "[^:]+",
    "ID": r"\d+-\d+",
    "KEY": ".+",
    "LENGTH": r"\d+",
    "NAME": ".+",
    "NUMBER": r"\d+",
    "SERIAL": r"\d{16}",
    "TASK": ".+",
    "TOPIC": ".+",
}


def pattern(text: str) -> re.Pattern[str]:
    """The form of a key or a field, with each word in capitals for what it stands for."""
    spelled = re.escape(text.replace("GROUP", "group:TOPIC:AGENT")).replace(r"\ ", " ")
    return re.compile(re.sub("[A-Z]{2,}", lambda match: PLACEHOLDERS[match[0]], spelled), re.DOTALL)


@dataclass
class Row:
    """One line of the table, and which of its fields have been met; `met` is whether its key was."""

    key: str
    kind: str
    fields: list[str]
    expires: bool
    met: bool = False
    met_fields: set[str] = field(default_factory=set)

    def meet(self, client: Any, name: bytes) -> None:
        """Compare a key with this line."""
        kind = client.type(name).decode()
        if kind == "none":
            return  # it has expired
        assert kind == self.kind, name
        assert (client.pttl(name) > 0) == self.expires, name
        self.met = True
        for found in fields_of(client, name, kind):
            forms = [form for form in self.fields if pattern(form).fullmatch(found)]
            assert forms, f"{self.key} has {found!r}, and the table names {self.fields}"
            self.met_fields.update(forms)


def fields_of(client: Any, name: bytes, kind: str) -> set[str]:
    """The fields of a hash or of a stream's entries, the members of a set, sorted set or list."""
    found: list[bytes] = []
    match kind:
        case "hash":
            found = client.hkeys(name)
        case "stream":
            found = [each for _, entry in client.xrange(name) for each in entry]
        case "set":
            found = list(client.smembers(name))
        case "zset":
            found = client.zrange(name, 0, -1)
        case "list":
            found = client.lrange(name, 0, -1)
    return {each.decode() for each in found}


def documented() -> list[Row]:
    text = (ROOT / "docs" / "delivery.md").read_text(encoding="utf-8")
    (section,) = re.findall(r"### The keys\n(.*?)\n## ", text, re.DOTALL)
    lines = re.findall(r"^\|.*\|$", section, re.MULTILINE)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [
        Row(key=key.strip("`"), kind=kind, fields=re.findall("`(.*?)`", fields), expires="expires" in life)
        for key, kind, fields, _, life in rows[2:]
    ]


@pytest.fixture(scope="module")
def rows(redis_server: RedisServer) -> list[Row]:
    """The table, after a tour of everything."""
    rows, prefix = documented(), fresh_prefix()
    with redis_server.sync() as client:

        def look() -> None:
            for name in client.scan_iter(f"{prefix}*", count=1000):
                key = name.decode().removeprefix(prefix)
                found = [row for row in rows if pattern(row.key).fullmatch(key)]
                assert len(found) == 1, f"{key} stands {len(found)} times in the table"
                found[0].meet(client, name)

        trio.run(Tour(redis_server.url, prefix, look).take)
    return rows


def test_every_key_of_the_table_is_met(rows: list[Row]) -> None:
    assert len(rows) > 20
    assert [row.key for row in rows if not row.met] == []


def test_every_field_of_the_table_is_met(rows: list[Row]) -> None:
    assert {row.key: sorted(missed) for row in rows if (missed := set(row.fields) - row.met_fields)} == {}
