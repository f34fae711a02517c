"""Starts programs quickly: a fork server has imported everything once, and each program is a fork of it.

They are processes like any other: with memory, sockets and signals of their own, and an end of their own.
"""

from __future__ import annotations

import multiprocessing
import os
import warnings
from typing import TYPE_CHECKING

import msgspec

from tests.faults.programs import Plan, main

if TYPE_CHECKING:
    from collections.abc import Mapping
    from multiprocessing.context import ForkServerProcess
    from pathlib import Path

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.faults.programs", "omniactors.system", "omniactors.streams.redis.backend"])


def start(plan: Plan, *, errors: Path, environment: Mapping[str, str]) -> ForkServerProcess:
    """A running program; what it says on stderr goes to the file `errors`, and warnings are errors in it."""
    arguments = (msgspec.json.encode(plan), str(errors), dict(environment))
    process = _context.Process(target=_run, args=arguments, name=plan.name, daemon=True)
    process.start()
    return process


def _run(plan: bytes, errors: str, environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    nothing = os.open(os.devnull, os.O_RDWR)
    said = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for source, target in ((nothing, 0), (nothing, 1), (said, 2)):
        os.dup2(source, target)
    warnings.simplefilter("error")
    main(msgspec.json.decode(plan, type=Plan))
