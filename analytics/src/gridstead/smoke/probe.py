"""What a check is given: the configuration, a time limit, a name of its own, and commands that explain themselves."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gridstead.config import Config

_SHOWN_LINES = 12
_STACK = re.compile(r"\s+(at |\.\.\. \d+ more)")  # the depth of a Java exception says little, its first line much


class SmokeError(Exception):
    """A check failed: what was expected, and what came instead."""


class Probe:
    """One check's surroundings. ``name`` is unique, for topics, indices and directories that are removed again."""

    def __init__(self, config: Config, timeout_s: float) -> None:
        """Start the clock and make a scratch directory."""
        self.config = config
        self.name = f"smoke-{uuid.uuid4().hex[:12]}"
        self._deadline = time.monotonic() + timeout_s
        self._timeout_s = timeout_s
        self._cleanup = ExitStack()
        scratch = self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix=f"gridstead-{self.name}-"))
        self.scratch = Path(scratch)
        self.hdfs = f"/tmp/gridstead-{self.name}"

    def __enter__(self) -> Probe:
        """Return itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Undo everything that was registered with ``later``, the last first."""
        self._cleanup.close()

    def later(self, function: Any, *arguments: Any) -> None:
        """Register a call that cleans up."""
        self._cleanup.callback(function, *arguments)

    def left(self) -> float:
        """Seconds left; raises SmokeError where none are."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise SmokeError(f"not done within {self._timeout_s:g} s")
        return left

    def expect(self, got: Any, wanted: Any, what: str) -> None:
        """Raise SmokeError where two values differ."""
        if got != wanted:
            raise SmokeError(f"{what}: {got!r} instead of {wanted!r}")

    def command(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None, *, grace: bool = False
    ) -> str:
        """Run a command and return what it prints; SmokeError with its last lines where it fails or takes too long.

        ``grace`` gives it half a minute even where no time is left: for cleaning up.
        """
        limit = 30.0 if grace else self.left()
        env = {**os.environ, **(environment or {})}
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=limit,
                env=env,
                stdin=subprocess.DEVNULL,
            )
        except FileNotFoundError as error:
            raise SmokeError(f"{command[0]} is not there: run `make up`") from error
        except PermissionError as error:
            raise SmokeError(f"{command[0]} may not be run: {error.strerror}") from error
        except subprocess.TimeoutExpired as error:
            raise SmokeError(f"`{_shown(command)}` did not end within {limit:.0f} s{_tail(error.stderr)}") from error
        if done.returncode != 0:
            raise SmokeError(f"`{_shown(command)}` ended with {done.returncode}{_tail(done.stderr or done.stdout)}")
        return done.stdout

    def hadoop(self, *arguments: str) -> str:
        """Run the Hadoop launcher: ``hadoop fs …``, ``hadoop jar …``."""
        return self.command([self.config.hadoop.cli, *arguments])

    def make_hdfs_directory(self) -> str:
        """Make this check's own directory on HDFS, removed at the end."""
        self.hadoop("fs", "-mkdir", "-p", self.hdfs)
        self.later(self._remove_hdfs_directory)
        return self.hdfs

    def _remove_hdfs_directory(self) -> None:
        self.command([self.config.hadoop.cli, "fs", "-rm", "-r", "-f", "-skipTrash", self.hdfs], grace=True)


def _shown(command: Sequence[str]) -> str:
    text = shlex.join(command)
    return text if len(text) <= 300 else f"{text[:300]}…"


def _tail(text: str | bytes | None) -> str:
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    lines = [line for line in (text or "").splitlines() if line.strip() and not _STACK.match(line)][-_SHOWN_LINES:]
    return "".join(f"\n    {line}" for line in lines)
