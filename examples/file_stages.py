"""The stages of the file pipeline, one agent each; what one returns is the next one's event."""

from __future__ import annotations

import hashlib
import mimetypes
import re
import time
from collections import Counter
from pathlib import Path

import msgspec
import trio

from omniactors import Agent, EventEnvelope, Reject

WORD = re.compile(r"[^\W\d_]{4,}")


class Uploaded(msgspec.Struct, frozen=True):
    """A file that is there to be worked on; `path` is absolute."""

    path: str


class Scanned(msgspec.Struct, frozen=True):
    """What a file is; `size` in bytes."""

    path: str
    kind: str
    size: int
    lines: int
    sha256: str
    seconds: float


class Indexed(msgspec.Struct, frozen=True):
    """How often each word stands in a file; `seconds` were spent in both stages together."""

    path: str
    size: int
    lines: int
    words: dict[str, int]
    seconds: float


class Scanner(Agent, topic="file.uploaded", reply_to="file.scanned", concurrency=4):
    """Finds out what a file is, and refuses what cannot be read as text."""

    async def handle(self, event: EventEnvelope[Uploaded]) -> object:
        """A `Scanned`, as JSON; files block, so a thread reads them."""
        return msgspec.to_builtins(await trio.to_thread.run_sync(scan, event.payload.content))


class Indexer(Agent, topic="file.scanned", reply_to="file.indexed", concurrency=4):
    """Counts the words of a file."""

    async def handle(self, event: EventEnvelope[Scanned]) -> object:
        """An `Indexed`, as JSON."""
        return msgspec.to_builtins(await trio.to_thread.run_sync(index, event.payload.content))


def scan(file: Uploaded) -> Scanned:
    """Read the whole file; raises Reject when it cannot be read, or is no text."""
    began = time.perf_counter()
    data = read(file.path)
    kind = mimetypes.guess_type(file.path)[0] or "unknown"
    sha256 = hashlib.sha256(data).hexdigest()
    return Scanned(file.path, kind, len(data), len(data.splitlines()), sha256, time.perf_counter() - began)


def index(file: Scanned) -> Indexed:
    """Count the words of the very bytes that were scanned; raises Reject when they are gone."""
    began = time.perf_counter()
    data = read(file.path)
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise Reject("it changed while it was being worked on")
    words = Counter(word.lower() for word in WORD.findall(data.decode()))
    return Indexed(file.path, file.size, file.lines, dict(words), file.seconds + time.perf_counter() - began)


def read(path: str) -> bytes:
    """The bytes of a text file; raises Reject where trying again is of no use."""
    try:
        data = Path(path).read_bytes()
        data.decode()
    except (FileNotFoundError, PermissionError) as error:
        raise Reject(f"it cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Reject(f"it is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}") from error
    return data
