"""The command line, `omniactors`: a user of the public door like any other."""

from omniactors.cli.app import main

__all__ = ["main"]
