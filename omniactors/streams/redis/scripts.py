"""Scripts: every change of state is a small Lua script, carried out by Redis whole or not at all."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import msgspec

ALONE = frozenset({"append"})
"""Scripts that do without the common part: to unpack arguments costs more than they do."""

_encoder = msgspec.msgpack.Encoder()


@dataclass(frozen=True)
class Script:
    """A script's text, and the hash by which a server that has met it knows it."""

    name: str
    text: str
    sha: str


@cache
def script(name: str) -> Script:
    """The script of this name, with what it uses of the common part before it; nothing where it stands alone.

    Redis makes every function of a script anew at each call: with all of them in each script that cost
    3.5 microseconds a call and more.
    """
    folder = resources.files("omniactors.streams.redis") / "lua"
    first, *functions = _pieces((folder / "prelude.lua").read_text("utf-8"))
    body = (folder / f"{name}.lua").read_text("utf-8")
    text = "\n\n".join([first, *_used(functions, body), body]) if name not in ALONE else body
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


def _pieces(prelude: str) -> list[str]:
    """The first paragraph, then each function with its comment."""
    return re.split(r"\n+(?=(?:--[^\n]*\n)*local function )", prelude.strip())


def _used(functions: list[str], body: str) -> list[str]:
    """Those functions, in their order, that are named in the body or in a function that is used."""
    used, texts = [], [body]
    for function in reversed(functions):
        found = re.search(r"local function (\w+)", function)
        if found and any(re.search(rf"\b{found[1]}\b", text) for text in texts):
            used.append(function)
            texts.append(function)
    return used[::-1]


def pack(arguments: Any) -> bytes:  # noqa: ANN401 -- nested lists of text, numbers and `raw`
    """Arguments as a script unpacks them."""
    return _encoder.encode(arguments)


def raw(body: bytes) -> msgspec.Raw:
    """Bytes as MessagePack text of 32-bit length: Redis' own decoder knows no binary type."""
    return msgspec.Raw(b"\xdb" + len(body).to_bytes(4, "big") + body)
