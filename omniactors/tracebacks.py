"""Traceback rule: what is shown of an error begins where the user's own code does, without our frames and trio's."""

from __future__ import annotations

import os
import sysconfig
import traceback
from importlib.util import find_spec
from itertools import dropwhile
from pathlib import Path
from typing import TYPE_CHECKING

from omniactors.errors import OmniActorsError

if TYPE_CHECKING:
    from collections.abc import Iterator


def _folder(package: str) -> str:
    spec = find_spec(package)
    return str(Path(spec.origin).parent) + os.sep if spec is not None and spec.origin is not None else "\0"


_MACHINERY = (*map(_folder, ("omniactors", "trio", "outcome")), "<frozen importlib", "<frozen runpy")
"""How the files begin whose frames tell a user nothing: they are the same whatever went wrong."""

_STANDARD = sysconfig.get_path("stdlib") + os.sep


def user_traceback(error: BaseException) -> str:
    """The error as Python prints it, in the user's own frames and those of their libraries.

    An error that never was in any code of the user's keeps all its frames: it is ours to understand.
    One of omniactors' own is raised on purpose, and one of the compiler's shows the line: they are shown
    without any frame of ours.
    """
    shown = traceback.TracebackException.from_exception(error)
    says_all = isinstance(error, OmniActorsError | SyntaxError)
    parts = list(_parts(shown))
    theirs = [[frame for frame in part.stack if not frame.filename.startswith(_MACHINERY)] for part in parts]
    if not says_all and not any(theirs):
        return "".join(shown.format())
    for part, frames in zip(parts, theirs, strict=True):
        # What of the standard library led to their code is of no more help, as contextlib's __aenter__.
        own = list(dropwhile(_is_standard, frames))
        part.stack = traceback.StackSummary.from_list(own or frames)
    return "".join(shown.format() if any(theirs) else shown.format_exception_only())


def shows_code(report: str) -> bool:
    """Whether there is any code in such a text, and not only what the error says."""
    return '  File "' in report


def _is_standard(frame: traceback.FrameSummary) -> bool:
    return frame.filename.startswith(_STANDARD) and "site-packages" not in frame.filename


def _parts(shown: traceback.TracebackException) -> Iterator[traceback.TracebackException]:
    """The error, its causes, and what it holds if it is a group; a chain of them may be very long."""
    pending = [shown]
    while pending:
        part = pending.pop()
        yield part
        pending += [
            other for other in (part.__cause__, part.__context__, *(part.exceptions or ())) if other is not None
        ]
