"""A budget of bytes: what all connections together may make the gateway hold. Pure."""

from __future__ import annotations


class Budget:
    """Counts bytes that are held, at most `limit`."""

    def __init__(self, limit: int) -> None:
        self.held = 0
        self._limit = limit

    def claim(self, size: int) -> bool:
        """Count `size` bytes more; False, and nothing is counted, when that is too many."""
        if self.held + size > self._limit:
            return False
        self.held += size
        return True

    def release(self, size: int) -> None:
        """Count `size` bytes less."""
        self.held -= size
