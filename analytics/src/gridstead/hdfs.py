"""HDFS outside Spark: the ``hadoop fs`` command of the appliance, one call a verb."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path


class HdfsError(Exception):
    """A ``hadoop fs`` command failed; the text holds the command and what it said."""


class HdfsShell:
    """Runs ``<cli> fs …`` (cfg.hadoop.cli). Each call starts a JVM, 1 to 2 s, so pass several paths at once."""

    def __init__(self, cli: str | Sequence[str], timeout_s: float = 600.0) -> None:
        self._cli = [cli] if isinstance(cli, str) else list(cli)
        self._timeout_s = timeout_s

    def run(self, *arguments: str) -> str:
        """Run ``fs`` with these arguments and return what it printed. Raises HdfsError."""
        result = self._run(arguments)
        if result.returncode != 0:
            raise self._error(arguments, result)
        return result.stdout

    def exists(self, path: str) -> bool:
        """Whether there is a file or directory; raises HdfsError if HDFS does not answer."""
        result = self._run(["-test", "-e", path])
        if result.returncode == 0:
            return True
        if result.returncode == 1 and not any(": " in line for line in _telling(result.stderr)):
            return False
        raise self._error(["-test", "-e", path], result)

    def mkdirs(self, *paths: str) -> None:
        """Make directories and their parents."""
        self.run("-mkdir", "-p", *paths)

    def put(self, files: Sequence[Path], directory: str, overwrite: bool = False) -> None:
        """Copy local files into a directory of HDFS."""
        self.run("-put", *(["-f"] if overwrite else []), *[str(file) for file in files], directory)

    def replace(self, file: Path, target: str) -> None:
        """Copy a local file over a file of HDFS: it is written beside it under another name, then takes its place."""
        self.run("-put", "-f", str(file), target)

    def move(self, source: str, target: str) -> None:
        """Rename; fails if the target is there."""
        self.run("-mv", source, target)

    def remove(self, path: str) -> None:
        """Delete a file or directory for good; nothing happens if it is not there."""
        self.run("-rm", "-r", "-f", "-skipTrash", path)

    def read(self, *paths: str) -> str:
        """The text of files, one after another."""
        return self.run("-cat", *paths)

    def names(self, path: str) -> list[str]:
        """The names in a directory, sorted."""
        return sorted(
            line.rstrip("/").rpartition("/")[2] for line in self.run("-ls", "-C", path).splitlines() if line.strip()
        )

    def _run(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        command = [*self._cli, "fs", *arguments]
        try:
            return subprocess.run(
                command, capture_output=True, text=True, timeout=self._timeout_s, stdin=subprocess.DEVNULL
            )
        except FileNotFoundError as error:
            raise HdfsError(f"{command[0]} is not there: install the appliance with `make up`") from error
        except subprocess.TimeoutExpired as error:
            raise HdfsError(
                f"`{' '.join(command)}` took more than {self._timeout_s:.0f} s: see `gridstead doctor`"
            ) from error

    def _error(self, arguments: Sequence[str], result: subprocess.CompletedProcess[str]) -> HdfsError:
        text = " ".join(_telling(result.stderr)[-3:]) or f"exit status {result.returncode}"
        return HdfsError(f"`hadoop fs {' '.join(arguments)}` failed: {text}: see `gridstead doctor`")


def _telling(stderr: str) -> list[str]:
    """The lines of an error without those of logging and of the JVM."""
    noise = (" WARN ", " INFO ", "WARNING: ", "SLF4J", "Picked up ")
    return [line for line in stderr.splitlines() if line.strip() and not any(word in line for word in noise)]
