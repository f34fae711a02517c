"""Loading rule: which system and which agents the module that `run` names stands for."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from typing import TYPE_CHECKING

import omniactors
from omniactors.agents.options import LOADED_SCRIPT
from omniactors.cli.exits import CommandError, ExitCode, UserCodeError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from omniactors import Agent, OmniActors


@dataclass(frozen=True)
class Program:
    """What a module holds: its own system, or the agent classes to put into one; `origin` is its file."""

    origin: str
    system: OmniActors | None = None
    agents: tuple[type[Agent], ...] = ()


def load(target: str) -> Program:
    """The program in the file or module `target`; raises CommandError.

    A file's folder, or for a dotted name the working directory, goes first on `sys.path`.
    """
    module = _import(target)
    origin = getattr(module, "__file__", None) or target
    systems = {id(value): value for value in vars(module).values() if isinstance(value, omniactors.OmniActors)}
    if len(systems) > 1:
        names = [name for name, value in vars(module).items() if id(value) in systems]
        raise CommandError(f"{target} has more than one OmniActors ({', '.join(names)})", ExitCode.USAGE)
    if systems:
        return Program(origin, system=next(iter(systems.values())))
    agents = tuple(value for value in vars(module).values() if _is_own_agent(value, module))
    if not agents:
        raise CommandError(
            f"{target} has no agents: it must define an Agent subclass with a topic, or an OmniActors at its top level",
            ExitCode.USAGE,
        )
    return Program(origin, agents=tuple(dict.fromkeys(agents)))


def _is_own_agent(value: object, module: ModuleType) -> bool:
    """Whether `value` is an agent class of the module's own; one without a topic is a base of others."""
    return (
        inspect.isclass(value)
        and issubclass(value, omniactors.Agent)
        and value.__module__ == module.__name__
        and bool(value.__options__.topics)
    )


def _import(target: str) -> ModuleType:
    path = Path(target)
    if path.suffix == ".py" or path.is_file() or os.sep in target:
        return _import_file(target, path)
    module, colon, _ = target.partition(":")
    if colon:
        raise CommandError(f"{target!r} is no module name; give {module!r}: all that it defines runs", ExitCode.USAGE)
    if not all(target.split(".")):
        raise CommandError(f"{target!r} is no module name", ExitCode.USAGE)
    sys.path.insert(0, str(Path.cwd()))
    try:
        with _users_code(target):
            return importlib.import_module(target)
    except UserCodeError as error:
        missing = error.__cause__.name if isinstance(error.__cause__, ModuleNotFoundError) else None
        if missing is not None and f"{target}.".startswith(f"{missing}."):
            raise CommandError(f"there is no file and no module {target!r}", ExitCode.USAGE) from error
        raise


def _import_file(target: str, path: Path) -> ModuleType:
    """The module in the file, under its stem: the name that its agents keep from run to run.

    A stem that another module has already is left to that one; agents are named by the file all the same.
    """
    if not path.is_file():
        raise CommandError(f"there is no file {target!r}", ExitCode.USAGE)
    name = LOADED_SCRIPT if path.stem in sys.modules else path.stem
    # As for `python FILE`: a link keeps its own name, but its imports are found beside what it leads to.
    file = str(path.absolute())
    loader = SourceFileLoader(name, file)
    spec = ModuleSpec(name, loader, origin=file)
    spec.has_location = True
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))
    sys.modules[name] = module
    with _users_code(target):
        loader.exec_module(module)
    return module


@contextmanager
def _users_code(target: str) -> Iterator[None]:
    """Around code of the user's: whatever it raises comes out as a UserCodeError, and `sys.exit` as a CommandError.

    The code that it exits with is told, not passed on: 2, 3 and others have meanings of their own here.
    """
    try:
        yield
    except SystemExit as end:
        raise CommandError(f"{target} called sys.exit({end.code!r}) while it was imported, so nothing runs") from end
    except Exception as error:
        raise UserCodeError(f"{target} could not be imported", error) from error
