"""The command ``gridstead``: one module a command, what they share in ``session``, ``supervision`` and ``pipeline``."""

from gridstead.cli.app import main

__all__ = ["main"]
