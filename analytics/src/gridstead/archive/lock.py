"""The lock of those who rearrange the archive: one at a time, and one whose holder died is taken over."""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from types import TracebackType
from typing import Final

from gridstead.archive.files import Files
from gridstead.archive.layout import time_text
from gridstead.archive.manifest import ArchiveError

DIRECTORY: Final = "locks"
BEAT_S: Final = 20.0
STALE_S: Final = 300.0
"""A lock that its holder has not renewed for so long is a dead one's. Clocks may differ by less than that."""


class Lock:
    """Held inside ``with``; renewed by a thread. Raises ArchiveError if somebody else holds it.

    Each who wants it writes a file of his own and then lists those of the others: who sees one that is alive withdraws.
    So of two at once none may get it, and never both, also where two can create the same file.
    """

    def __init__(self, files: Files, what: str, stale_s: float = STALE_S) -> None:
        self._files = files
        self._stale_s = stale_s
        self._over = threading.Event()
        self._name = secrets.token_hex(8)
        self.path = f"{DIRECTORY}/{self._name}"
        self._text = json.dumps({"what": what, "host": socket.gethostname(), "pid": os.getpid()})

    def __enter__(self) -> Lock:
        """Take the lock."""
        self._files.mkdirs(DIRECTORY)
        self._files.write(self.path, self._text)
        try:
            for name in self._files.names(DIRECTORY):
                if name != self._name:
                    self._judge(f"{DIRECTORY}/{name}")
        except ArchiveError:
            self._files.delete(self.path)
            raise
        self._beats = threading.Thread(target=self._beat, name="archive-lock", daemon=True)
        self._beats.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Give it back."""
        self._over.set()
        self._beats.join()
        self._files.delete(self.path)

    def check(self) -> None:
        """Raise ArchiveError if the lock was taken over, since this process was away for too long."""
        if not self._files.exists(self.path):
            raise ArchiveError(
                f"the lock {self._files.url(self.path)} was taken over by another process: run again later"
            )

    def _judge(self, other: str) -> None:
        """Delete the lock of a dead process; raise ArchiveError for that of a living one."""
        try:
            renewed = self._files.modified_ms(other)
            holder = self._files.read(other)
        except Exception:
            if self._files.exists(other):
                raise
            return  # given back in between
        if time.time() * 1000 - renewed <= self._stale_s * 1000:
            raise ArchiveError(
                f"the archive is being rearranged already, by {holder or 'an unknown process'}, last seen "
                f"{time_text(renewed)}: wait for it; {self._files.url(other)} is taken over {self._stale_s:.0f} s "
                "after its holder died"
            )
        self._files.delete(other)

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            try:
                if self._files.exists(self.path):
                    self._files.write(self.path, self._text)
            except Exception:  # the store is away for a moment; check() finds out before anything is committed
                continue
