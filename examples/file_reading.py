"""Finding and reading the files of the pipeline. Everything here blocks: call it in a thread."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from omniactors import Reject

if TYPE_CHECKING:
    from collections.abc import Iterator


def uris(root: Path) -> Iterator[str]:
    """The regular files below `root`, in a fixed order, without what is hidden or bytecode.

    As URIs, because the name of a file need not be text, and what is published must be.
    """
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__pycache__")))
        paths = [Path(folder, name) for name in sorted(names) if not name.startswith(".")]
        yield from (path.as_uri() for path in paths if path.is_file())


def path_of(uri: str) -> Path:
    """The path that a URI was made of."""
    return Path(os.fsdecode(unquote_to_bytes(uri.removeprefix("file://"))))


def read(uri: str) -> str:
    """The text of a file; raises Reject where trying again would be of no use."""
    try:
        return path_of(uri).read_bytes().decode()
    except (FileNotFoundError, PermissionError) as error:
        raise Reject(f"it cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Reject(f"it is not UTF-8: {error.reason} at byte {error.start}") from error
