"""Waiting for an Elasticsearch that is away or busy: growing pauses, and an end to them."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import Final, TypeVar

from elasticsearch import ApiError, ConnectionError, ConnectionTimeout, TransportError

log = logging.getLogger(__name__)

DEADLINE_S: Final = 900.0
RETRIED: Final = frozenset({429, 502, 503, 504})
_T = TypeVar("_T")


class ServingError(Exception):
    """Elasticsearch refused something, or could not be reached until the deadline; the text says what and why."""


class Patience:
    """Pauses that double from 0.2 s to 10 s, and end with ServingError after a time without progress."""

    def __init__(self, deadline_s: float = DEADLINE_S, sleep: Callable[[float], None] = time.sleep) -> None:
        """Begin the time."""
        self._deadline_s = deadline_s
        self._sleep = sleep
        self._noted = 0.0
        self.progress()

    def progress(self) -> None:
        """Something was accepted: start the time and the pauses anew."""
        self._since = time.monotonic()
        self._pause = 0.2

    def wait(self, what: str, why: str) -> None:
        """Pause before another attempt; raises ServingError after the deadline."""
        now = time.monotonic()
        if now - self._since + self._pause > self._deadline_s:
            raise ServingError(
                f"Elasticsearch did not accept {what} for {self._deadline_s:.0f} s, last reason: {why}: "
                "see `gridstead doctor`"
            )
        if now - self._noted > 30:
            log.warning("Elasticsearch does not accept %s, trying again: %s", what, why[:300])
            self._noted = now
        self._sleep(self._pause * random.uniform(0.7, 1.0))
        self._pause = min(self._pause * 2, 10.0)


def transient(error: Exception) -> bool:
    """Whether trying again may help."""
    if isinstance(error, ApiError):
        return error.status_code in RETRIED
    return isinstance(error, ConnectionError | ConnectionTimeout)


def patient(
    call: Callable[[], _T], what: str, deadline_s: float = DEADLINE_S, sleep: Callable[[float], None] = time.sleep
) -> _T:
    """Make a call to Elasticsearch, and repeat it while the server is away. Raises ServingError after the deadline."""
    waiting = Patience(deadline_s, sleep)
    while True:
        try:
            return call()
        except (TransportError, ApiError) as error:
            if not transient(error):
                raise ServingError(f"Elasticsearch refused to {what}: {error}") from error
            waiting.wait(what, str(error))
