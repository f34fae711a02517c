"""Backoff rule: how long to wait before the n-th try, for restarts and retries alike.

Pure: chance comes in as an argument. Exponential growth with "equal jitter" after Marc Brooker,
"Exponential Backoff And Jitter" (AWS Architecture Blog, 2015).
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Backoff:
    """Delays that grow from `initial` by `factor` up to `maximum`, all in seconds.

    Of each delay the share `jitter` (0 to 1) is random, the rest is certain. `reset_after` is how
    long a child has to run before its next crash counts as the first again; retries ignore it.
    """

    initial: float = 0.5
    factor: float = 2.0
    maximum: float = 60.0
    jitter: float = 0.5
    reset_after: float = 60.0

    def __post_init__(self) -> None:
        """Refuse values that give no delay; raises ValueError."""
        for name in ("initial", "factor", "maximum", "reset_after"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"Backoff.{name} must be a finite number of at least 0, not {value!r}")
        if self.factor < 1:
            raise ValueError(f"Backoff.factor must be at least 1, not {self.factor!r}")
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"Backoff.jitter must lie between 0 and 1, not {self.jitter!r}")

    def delay(self, attempt: int, random: float) -> float:
        """Seconds to wait after try number `attempt` (from 1); `random` is drawn from [0, 1)."""
        try:
            grown = min(self.maximum, self.initial * self.factor ** (attempt - 1))
        except OverflowError:
            grown = self.maximum
        return grown * (1 - self.jitter * random)
