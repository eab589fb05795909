"""The command line: a file for each command or group of commands."""

from promptprism.cli.main import app

__all__ = ["app"]
