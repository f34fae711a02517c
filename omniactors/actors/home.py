"""Thread rule: what lives in a trio run is touched by the thread of that run alone, and any other is refused."""

from __future__ import annotations

from functools import lru_cache
from threading import get_ident


def this_thread() -> int:
    """What `get_ident` says, as the same object each time: every actor keeps it."""
    return _same(get_ident())


@lru_cache(maxsize=16)
def _same(number: int) -> int:
    return number


def check_thread(home: int, path: str, remedy: str) -> None:
    """Raise RuntimeError unless `home` is the thread that calls."""
    if get_ident() != home:
        raise RuntimeError(f"{path} runs in another thread, so this call has changed nothing: use {remedy}")
