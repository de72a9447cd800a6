"""The sink: whole documents into Elasticsearch under deterministic ids, safe to repeat in any order.

The document of a key holds absolute values, and its external version (``external_gte``) is ``active``, the number of
events counted. This number only grows while more of the log is read, so a writer that has seen less (a repeated
micro-batch, a stream that starts anew from the beginning of the log, a batch over an archive that lags behind) never
overwrites a document that has counted more, and writing the same again changes nothing. Such refusals (409) are
counted as ``superseded``. Lowering a count is a deliberate act (``jobs.batch --rebuild``): the document is deleted
first, on the condition that nobody changed it meanwhile, then written; ``index.gc_deletes`` is 0 so that the deleted
version does not linger.

Only calls that every Elasticsearch 8 has are used: _bulk, _search, _index_template, _refresh; no script, no pipeline.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Protocol, TypeVar

from elasticsearch import ApiError, ConnectionError, ConnectionTimeout, Elasticsearch, TransportError
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

log = logging.getLogger(__name__)

Action = tuple[str, str | None]
"""A line of action (JSON: index or delete, with _index and _id) and the document's line, None for a delete."""

MAX_BODY_BYTES: Final = 8 << 20
MAX_BODY_DOCUMENTS: Final = 10_000
DEADLINE_S: Final = 900.0
_RETRIED: Final = frozenset({429, 502, 503, 504})
_T = TypeVar("_T")


class SinkError(Exception):
    """Elasticsearch refused a document, or could not be reached until the deadline; the text says which and why."""


class _Client(Protocol):
    def bulk(self, *, operations: Any) -> Any:
        """As elasticsearch.Elasticsearch.bulk."""


@dataclass
class Written:
    """What became of the documents. ``retried`` counts documents sent again, not documents."""

    written: int = 0
    superseded: int = 0
    deleted: int = 0
    retried: int = 0
    requests: int = 0

    def __add__(self, other: Written) -> Written:
        mine, theirs = asdict(self), asdict(other)
        return Written(**{name: mine[name] + theirs[name] for name in mine})


def transfers_index(prefix: str) -> str:
    """The pattern of all indices of the transfer statistics."""
    return f"{prefix}-transfers-*"


def transfers_template(prefix: str, shards: int = 1, replicas: int = 0) -> dict[str, Any]:
    """The index template of the transfer statistics: one index a month (of the bin's start)."""
    keyword = {"type": "keyword"}
    long = {"type": "long"}
    date = {"type": "date", "format": "epoch_millis"}
    return {
        "index_patterns": [transfers_index(prefix)],
        "priority": 200,
        "template": {
            "settings": {
                "number_of_shards": shards,
                "number_of_replicas": replicas,
                "refresh_interval": "1s",
                "gc_deletes": "0s",
            },
            "mappings": {
                "dynamic": False,
                "properties": {
                    "vo": keyword,
                    "src": keyword,
                    "dst": keyword,
                    "is_remote": {"type": "boolean"},
                    "is_transfer": {"type": "boolean"},
                    "activity": keyword,
                    "bin_end_ms": date,
                    "bin_ms": long,
                    "active": long,
                    "finished": long,
                    "bytes": long,
                    "active_time": long,
                    "capped": long,
                    "update_time": date,
                },
            },
        },
    }


def ensure_templates(
    client: Elasticsearch, prefix: str, shards: int = 1, replicas: int = 0, deadline_s: float = DEADLINE_S
) -> None:
    """Put the index templates; existing indices keep their settings. Waits for Elasticsearch as :class:`BulkWriter`."""
    template = transfers_template(prefix, shards, replicas)
    patient(
        lambda: client.indices.put_index_template(name=f"{prefix}-transfers", **template),
        "put the index template of the transfer statistics",
        deadline_s,
    )


def transfer_actions(statistics: DataFrame, prefix: str) -> DataFrame:
    """Turn transfer statistics into bulk actions, JSON made in the JVM: columns ``action`` and ``source`` (strings)."""
    start = F.col("bin_end_ms") - F.col("bin_ms")
    month = F.date_format(F.date_from_unix_date(F.floor(start / 86_400_000).cast("int")), "yyyy.MM")
    header = F.struct(
        F.concat(F.lit(f"{prefix}-transfers-"), month).alias("_index"),
        F.col("key").alias("_id"),
        F.col("active").alias("version"),
        F.lit("external_gte").alias("version_type"),
    )
    document = F.struct(*[name for name in statistics.columns if name != "key"])
    return statistics.select(
        F.to_json(F.struct(header.alias("index"))).alias("action"), F.to_json(document).alias("source")
    )


def write_actions(actions: DataFrame, client_settings: Mapping[str, Any], deadline_s: float = DEADLINE_S) -> Written:
    """Send the actions of :func:`transfer_actions`, each partition by its own client, in parallel on the executors.

    ``client_settings`` are keyword arguments of elasticsearch.Elasticsearch. Raises the executors' error, which holds
    the text of a :class:`SinkError`.
    """
    settings = dict(client_settings)

    def send(partition: Iterable[Any]) -> Iterator[dict[str, int]]:
        rows = iter(partition)
        first = next(rows, None)
        if first is None:
            return
        with Elasticsearch(**({"request_timeout": 60} | settings)) as client:
            pairs = ((row[0], row[1]) for row in _chain(first, rows))
            yield asdict(BulkWriter(client, deadline_s).write(pairs))

    parts = actions.rdd.mapPartitions(send).collect()
    return sum((Written(**part) for part in parts), Written())


def _chain(first: _T, rest: Iterator[_T]) -> Iterator[_T]:
    yield first
    yield from rest


class BulkWriter:
    """Sends bulk requests of bounded size and does not give up before the deadline.

    Rejections (429), unavailable shards or nodes (503) and lost connections are repeated with growing pauses, only the
    documents concerned, until ``deadline_s`` without any progress. 409 counts as superseded; any other refusal raises.
    """

    def __init__(
        self,
        client: _Client,
        deadline_s: float = DEADLINE_S,
        max_bytes: int = MAX_BODY_BYTES,
        max_documents: int = MAX_BODY_DOCUMENTS,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client = client
        self._deadline_s = deadline_s
        self._max_bytes = max_bytes
        self._max_documents = max_documents
        self._sleep = sleep

    def write(self, actions: Iterable[Action]) -> Written:
        """Send all actions. Raises :class:`SinkError` with the id and the reason of the first document refused."""
        total = Written()
        for body in self._bodies(actions):
            total += self._send(body)
        return total

    def _bodies(self, actions: Iterable[Action]) -> Iterator[list[Action]]:
        body: list[Action] = []
        size = 0
        for action in actions:
            length = len(action[0]) + len(action[1] or "") + 2
            if body and (size + length > self._max_bytes or len(body) >= self._max_documents):
                yield body
                body, size = [], 0
            body.append(action)
            size += length
        if body:
            yield body

    def _send(self, body: list[Action]) -> Written:
        result = Written()
        pending = body
        waiting = _Patience(self._deadline_s, self._sleep)
        while pending:
            lines = [line for action in pending for line in action if line is not None]
            result.requests += 1
            try:
                response = self._client.bulk(operations=lines)
            except (TransportError, ApiError) as error:
                if not _transient(error):
                    raise SinkError(
                        f"Elasticsearch refused a bulk request of {len(pending)} documents: {error}"
                    ) from error
                result.retried += len(pending)
                waiting.wait(f"bulk request of {len(pending)} documents", str(error))
                continue
            again: list[Action] = []
            reason = ""
            for action, item in zip(pending, response["items"], strict=True):
                ((operation, outcome),) = item.items()
                status = outcome["status"]
                if status < 300 or (operation == "delete" and status == 404):
                    if operation == "delete":
                        result.deleted += 1
                    else:
                        result.written += 1
                elif status == 409:
                    result.superseded += 1
                elif status in _RETRIED:
                    again.append(action)
                    reason = str(outcome.get("error"))
                else:
                    raise SinkError(
                        f"Elasticsearch refused document {outcome.get('_id')!r} of index {outcome.get('_index')} "
                        f"(status {status}): {outcome.get('error')}"
                    )
            if len(again) < len(pending):
                waiting.progress()
            if again:
                result.retried += len(again)
                waiting.wait(f"{len(again)} of {len(pending)} documents", reason)
            pending = again
        return result


class _Patience:
    """Pauses that double from 0.2 s to 10 s, and end with SinkError after a time without progress."""

    def __init__(self, deadline_s: float, sleep: Callable[[float], None]) -> None:
        self._deadline_s = deadline_s
        self._sleep = sleep
        self._noted = 0.0
        self.progress()

    def progress(self) -> None:
        """Something was accepted: start the time and the pauses anew."""
        self._since = time.monotonic()
        self._pause = 0.2

    def wait(self, what: str, why: str) -> None:
        """Pause before another attempt; raises SinkError after the deadline."""
        now = time.monotonic()
        if now - self._since + self._pause > self._deadline_s:
            raise SinkError(
                f"Elasticsearch did not accept {what} for {self._deadline_s:.0f} s, last reason: {why}: "
                "see `gridstead doctor`"
            )
        if now - self._noted > 30:
            log.warning("Elasticsearch does not accept %s, trying again: %s", what, why[:300])
            self._noted = now
        self._sleep(self._pause * random.uniform(0.7, 1.0))
        self._pause = min(self._pause * 2, 10.0)


def _transient(error: Exception) -> bool:
    if isinstance(error, ApiError):
        return error.status_code in _RETRIED
    return isinstance(error, ConnectionError | ConnectionTimeout)


def patient(
    call: Callable[[], _T], what: str, deadline_s: float = DEADLINE_S, sleep: Callable[[float], None] = time.sleep
) -> _T:
    """Make a call to Elasticsearch, and repeat it while the server is away. Raises SinkError after the deadline."""
    waiting = _Patience(deadline_s, sleep)
    while True:
        try:
            return call()
        except (TransportError, ApiError) as error:
            if not _transient(error):
                raise SinkError(f"Elasticsearch refused to {what}: {error}") from error
            waiting.wait(what, str(error))
