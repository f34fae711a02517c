"""Logs: how `run` shows what the system and the agents log, unless the module has set logging up itself."""

from __future__ import annotations

import logging
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING

from omniactors.cli.exits import expected_error
from omniactors.redaction import redact
from omniactors.tracebacks import user_traceback

if TYPE_CHECKING:
    from types import TracebackType

    SystemExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


LEAST_WIDTH = 20
"""Columns below which a line is not broken any further."""


class PlainFormatter(logging.Formatter):
    """One line a record; a traceback follows where it helps: not for an error whose sentence says it all."""

    def __init__(self, who: str) -> None:
        super().__init__("%(asctime)s " + who + "%(levelname)s %(message)s", datefmt="%H:%M:%S")
        self._is_terminal = sys.stderr is not None and sys.stderr.isatty()

    def format(self, record: logging.LogRecord) -> str:
        """The line, and what follows, without passwords; on a terminal the line is broken between words."""
        line, *rest = redact(super().format(record)).split("\n")
        if self._is_terminal:
            width = shutil.get_terminal_size().columns
            line = textwrap.fill(line, max(width, LEAST_WIDTH), subsequent_indent="  ", break_on_hyphens=False)
        return "\n".join([line, *rest])

    def formatException(self, ei: SystemExcInfo) -> str:  # noqa: N802 -- the name that logging calls
        """The traceback from the user's own frames on, or nothing for an error of our own."""
        error = ei[1]
        return "" if error is None or expected_error(error) else user_traceback(error).rstrip()


class StartFilter(logging.Filter):
    """Holds back, until `is_ready`, records of our own errors: a start that fails ends with that very sentence."""

    is_ready = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is shown."""
        error = record.exc_info[1] if record.exc_info else None
        return self.is_ready or error is None or expected_error(error) is None


def show_logs(who: str = "") -> StartFilter:
    """Show warnings and worse on stderr, if nobody has set logging up; returns the filter to open when ready.

    `who` begins the lines of a process that shares its stderr with others.
    """
    start = StartFilter()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlainFormatter(who))
    handler.addFilter(start)
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    return start
