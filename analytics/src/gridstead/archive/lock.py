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

PATH: Final = "locks/maintenance"
BEAT_S: Final = 20.0
STALE_S: Final = 300.0
"""A lock that its holder has not renewed for so long is a dead one's. Clocks may differ by less than that."""


class Lock:
    """Held inside ``with``; renewed by a thread. Raises ArchiveError if somebody else holds it."""

    def __init__(self, files: Files, what: str, stale_s: float = STALE_S) -> None:
        self._files = files
        self._stale_s = stale_s
        self._over = threading.Event()
        self._text = json.dumps(
            {"what": what, "host": socket.gethostname(), "pid": os.getpid(), "nonce": secrets.token_hex(8)}
        )

    def __enter__(self) -> Lock:
        """Take the lock."""
        self._files.mkdirs(PATH.rpartition("/")[0])
        if not self._files.create(PATH, self._text):
            self._take_over()
        self._beats = threading.Thread(target=self._beat, name="archive-lock", daemon=True)
        self._beats.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Give it back, if it is still ours."""
        self._over.set()
        self._beats.join()
        if self._held():
            self._files.delete(PATH)

    def check(self) -> None:
        """Raise ArchiveError if the lock was taken over, since this process was away for too long."""
        if not self._held():
            raise ArchiveError(f"the lock {self._files.url(PATH)} was taken over by another process: run again later")

    def _held(self) -> bool:
        return self._files.exists(PATH) and self._files.read(PATH) == self._text

    def _take_over(self) -> None:
        holder = self._files.read(PATH)
        renewed = self._files.modified_ms(PATH)
        if time.time() * 1000 - renewed <= self._stale_s * 1000:
            raise ArchiveError(
                f"the archive is being rearranged already, by {holder or 'an unknown process'}, last seen "
                f"{time_text(renewed)}: wait for it; {self._files.url(PATH)} is taken over {self._stale_s:.0f} s "
                "after its holder died"
            )
        self._files.rename(PATH, f"{PATH}-stale-{secrets.token_hex(4)}")
        for name in self._files.names("locks"):
            if "-stale-" in name:
                self._files.delete(f"locks/{name}")
        if not self._files.create(PATH, self._text):
            raise ArchiveError(f"another process took over {self._files.url(PATH)} first: wait for it")

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            try:
                if self._held():
                    self._files.write(PATH, self._text)
            except Exception:  # HDFS is away for a moment; check() finds out before anything is committed
                continue
