"""Documents in Elasticsearch: conditional whole-document writes in bulk, reads by id, scans of a range of bins.

Only calls that every Elasticsearch 8 has are used: _bulk, _mget, _search, _doc, templates and aliases; no script, no
pipeline. Every write names the version that it replaces, so a request whose answer was lost is repeated without harm.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from json.encoder import encode_basestring
from typing import Any, Final

from elasticsearch import ApiError, ConflictError, Elasticsearch, NotFoundError, TransportError, helpers

from gridstead.serving.control import Conflict, Control
from gridstead.serving.documents import NO_CUT, Document, Version
from gridstead.serving.indices import CONTROL_ID, Indices
from gridstead.serving.patience import DEADLINE_S, RETRIED, Patience, ServingError, patient, transient
from gridstead.serving.store import Place, Write
from gridstead.statistic import STATISTICS

MAX_BODY_BYTES: Final = 8 << 20
MAX_BODY_DOCUMENTS: Final = 40_000
"""The bytes are the limit: a document has 240 to 650 of them, its action included, and a body 5 to 15 MB."""
BODIES_AT_ONCE: Final = 2
"""Bulk requests under way: while Elasticsearch works on one the next is made."""
READ_AT_ONCE: Final = 5_000
LONG_MAX: Final = (1 << 63) - 1
_THERE: Final[dict[str, Any]] = {"ignore_unavailable": True, "allow_no_indices": True}
_AMOUNTS: Final = {
    name: ",".join(f'"{value}":%d' for value in statistic.values) for name, statistic in STATISTICS.items()
}
_BULK_ANSWER: Final = "items.*.status,items.*._seq_no,items.*._primary_term,items.*.error"


class ElasticStore:
    """A :class:`gridstead.serving.store.DocumentStore` in Elasticsearch. Not for several threads at once.

    ``retried`` counts documents that had to be sent again since Elasticsearch was busy or away.
    """

    def __init__(self, client: Elasticsearch, indices: Indices, deadline_s: float = DEADLINE_S) -> None:
        """Use a client; the templates are to be put first (indices.serve)."""
        self._client = client
        self.indices = indices
        self._deadline_s = deadline_s
        self.retried = 0
        self._senders = ThreadPoolExecutor(BODIES_AT_ONCE, "bulk")

    # --- the control record ------------------------------------------------------------------------------------------

    def read_control(self) -> tuple[Control, Version] | None:
        """The record and its version; None if there is none."""
        index = self.indices.control
        try:
            found = patient(
                lambda: self._client.get(index=index, id=CONTROL_ID), "read the control record", self._deadline_s
            )
        except ServingError as error:
            if isinstance(error.__cause__, NotFoundError):
                return None
            raise
        return Control.from_json(found["_source"]), (found["_seq_no"], found["_primary_term"])

    def write_control(self, control: Control, version: Version | None) -> None:
        """Replace the record of this version (None: there must be none). Raises Conflict.

        An answer that was lost is told from a conflict by reading what is stored.
        """
        condition: dict[str, Any] = (
            {"op_type": "create"} if version is None else {"if_seq_no": version[0], "if_primary_term": version[1]}
        )
        waiting = Patience(self._deadline_s)
        lost = False
        while True:
            try:
                self._client.index(index=self.indices.control, id=CONTROL_ID, document=control.to_json(), **condition)
                return
            except (ConflictError, NotFoundError) as error:
                found = self.read_control() if lost else None
                if found is not None and found[0] == control:
                    return
                raise Conflict from error
            except Exception as error:
                if not transient(error):
                    raise
                lost = True
                waiting.wait("the control record", str(error))

    # --- documents ---------------------------------------------------------------------------------------------------

    def read(self, places: Sequence[Place]) -> dict[Place, Document]:
        """The stored documents of these places, read by id, so as they are now."""
        found: dict[Place, Document] = {}
        for at in range(0, len(places), READ_AT_ONCE):
            part = places[at : at + READ_AT_ONCE]
            wanted = [{"_index": self._index(place), "_id": place.key} for place in part]
            answer = self._read_again(wanted)
            for place, hit in zip(part, answer, strict=True):
                if hit.get("found"):
                    found[place] = self._document(place.statistic, hit)
        return found

    def _read_again(self, wanted: list[dict[str, str]]) -> list[dict[str, Any]]:
        waiting = Patience(self._deadline_s)
        while True:
            answer = patient(lambda: self._client.mget(docs=wanted), "read documents", self._deadline_s)
            hits: list[dict[str, Any]] = answer["docs"]
            failed = [hit["error"] for hit in hits if "error" in hit and not _no_index(hit["error"])]
            if not failed:
                return hits
            waiting.wait(f"a read of {len(wanted)} documents", str(failed[0]))

    def write(self, writes: Iterable[Write]) -> Mapping[Place, Version | None]:
        """Send the writes in bulk bodies of bounded size, some at once; what is missing in the answer was changed by
        another. Nothing is under way any more when it returns or raises."""
        done: dict[Place, Version | None] = {}
        sent: deque[Future[dict[Place, Version | None]]] = deque()
        try:
            for body in self._bodies(writes):
                while len(sent) >= BODIES_AT_ONCE:
                    done.update(sent.popleft().result())
                sent.append(self._senders.submit(self._send, body))
            while sent:
                done.update(sent.popleft().result())
        finally:
            wait(sent)
        return done

    def _bodies(self, writes: Iterable[Write]) -> Iterator[list[tuple[Write, str]]]:
        now_ms = time.time_ns() // 1_000_000
        body: list[tuple[Write, str]] = []
        size = 0
        for write in writes:
            lines = self._lines(write, now_ms)
            if body and (size + len(lines) > MAX_BODY_BYTES or len(body) >= MAX_BODY_DOCUMENTS):
                yield body
                body, size = [], 0
            body.append((write, lines))
            size += len(lines)
        if body:
            yield body

    def _lines(self, write: Write, now_ms: int) -> str:
        place, document, version = write
        verb = "delete" if document is None else "create" if version is None else "index"
        condition = f',"if_seq_no":{version[0]},"if_primary_term":{version[1]}' if version is not None else ""
        action = f'{{"{verb}":{{"_index":"{self._index(place)}","_id":{encode_basestring(place.key)}{condition}}}}}'
        if document is None:
            return action
        return f"{action}\n{self.source(place.statistic, document, now_ms)}"

    def source(self, statistic: str, document: Document, now_ms: int) -> str:
        """The stored form of a document: JSON, made by hand since this runs for every document."""
        dimensions, bin_end_ms, values, seq, cut, since, _ = document
        if max(values) > LONG_MAX or min(values) < -LONG_MAX:  # a long's end: only absurd input comes near
            values = tuple(max(-LONG_MAX, min(LONG_MAX, value)) for value in values)
        noted = f',"since":{{"cut":{cut},"values":[{",".join(map(str, since))}]}}' if cut != NO_CUT else ""
        average = ""
        if statistic == "access":
            average = f',"average_file_size":{values[1] / values[2] if values[2] > 0 else "null"}'
        return (
            f'{dimensions[:-1]},"bin_end_ms":{bin_end_ms},"bin_ms":{self.indices.bin_ms},{_AMOUNTS[statistic] % values}'
            f'{average},"update_time":{now_ms},"seq":{seq}{noted}}}'
        )

    def _send(self, body: list[tuple[Write, str]]) -> dict[Place, Version | None]:
        done: dict[Place, Version | None] = {}
        pending = body
        waiting = Patience(self._deadline_s)
        while pending:
            lines: list[Any] = [line for _, line in pending]
            try:
                answer = self._client.options(request_timeout=120).bulk(operations=lines, filter_path=_BULK_ANSWER)
            except Exception as error:
                if not transient(error):
                    raise ServingError(
                        f"Elasticsearch refused a bulk request of {len(pending)} documents: {error}"
                    ) from error
                self.retried += len(pending)
                waiting.wait(f"a bulk request of {len(pending)} documents", str(error))
                continue
            again: list[tuple[Write, str]] = []
            reason = ""
            for item, result in zip(pending, answer["items"], strict=True):
                ((verb, outcome),) = result.items()
                status, write = outcome["status"], item[0]
                if status < 300:
                    done[write.place] = None if verb == "delete" else (outcome["_seq_no"], outcome["_primary_term"])
                elif status == 404 and verb == "delete":
                    done[write.place] = None
                elif status in RETRIED:
                    again.append(item)
                    reason = str(outcome.get("error"))
                elif status not in (404, 409):  # 404: the index went away; as with 409, read again
                    raise ServingError(
                        f"Elasticsearch refused document {write.place.key!r} of index {self._index(write.place)} "
                        f"(status {status}): {outcome.get('error')}"
                    )
            if len(again) < len(pending):
                waiting.progress()
            if again:
                self.retried += len(again)
                waiting.wait(f"{len(again)} of {len(pending)} documents", reason)
            pending = again
        return done

    def scan(self, generation: int, statistic: str, low_ms: int, high_ms: int) -> Iterator[tuple[Place, Document]]:
        """All documents whose bin begins in [low, high), read from the indices after a refresh."""
        pattern = self.indices.pattern(statistic, generation)
        patient(lambda: self._client.indices.refresh(index=pattern, **_THERE), "refresh the indices", self._deadline_s)
        bin_ms = self.indices.bin_ms
        query = {
            "query": {"range": {"bin_end_ms": {"gte": low_ms + bin_ms, "lt": high_ms + bin_ms}}},
            "seq_no_primary_term": True,
        }
        waiting = Patience(self._deadline_s)
        while True:  # a scroll that broke off is begun again
            try:
                hits = list(helpers.scan(self._client, index=pattern, query=query, size=READ_AT_ONCE, **_THERE))
                break
            except (ApiError, TransportError, helpers.ScanError) as error:
                if not isinstance(error, helpers.ScanError) and not transient(error):
                    raise ServingError(f"Elasticsearch refused to read {pattern}: {error}") from error
                waiting.wait(f"a read of {pattern}", str(error))
        for hit in hits:
            document = self._document(statistic, hit)
            yield Place(generation, statistic, hit["_id"], document.bin_end_ms), document

    def days(self, generation: int, statistic: str, low_ms: int, high_ms: int) -> set[int]:
        """The days (their begin, ms) in [low, high) on which a bin with documents begins. Days are UTC."""
        bin_ms = self.indices.bin_ms
        histogram = {"field": "bin_end_ms", "fixed_interval": "1d", "offset": f"{bin_ms}ms", "min_doc_count": 1}
        pattern = self.indices.pattern(statistic, generation)
        patient(lambda: self._client.indices.refresh(index=pattern, **_THERE), "refresh the indices", self._deadline_s)
        counted = self._counted(pattern, low_ms, high_ms, {"date_histogram": histogram})
        return {bin_end_ms - bin_ms for bin_end_ms in counted}

    def bins(self, generation: int, statistic: str, low_ms: int, high_ms: int) -> dict[int, int]:
        """How many documents each bin has that begins in [low, high), at most a day, by the end of the bin (ms).

        As the last search saw it: :meth:`days` refreshes.
        """
        terms = {"field": "bin_end_ms", "size": (high_ms - low_ms) // self.indices.bin_ms + 1}
        return self._counted(self.indices.pattern(statistic, generation), low_ms, high_ms, {"terms": terms})

    def _counted(self, pattern: str, low_ms: int, high_ms: int, by: dict[str, Any]) -> dict[int, int]:
        bin_ms = self.indices.bin_ms
        answer = patient(
            lambda: self._client.search(
                index=pattern,
                size=0,
                query={"range": {"bin_end_ms": {"gte": low_ms + bin_ms, "lt": high_ms + bin_ms}}},
                aggs={"by": by},
                **_THERE,
            ),
            "count what is served",
            self._deadline_s,
        )
        buckets = answer["aggregations"]["by"]["buckets"] if "aggregations" in answer else []
        return {int(bucket["key"]): bucket["doc_count"] for bucket in buckets}

    def _index(self, place: Place) -> str:
        return self.indices.index(place.statistic, place.generation, place.bin_end_ms)

    def _document(self, statistic: str, hit: Mapping[str, Any]) -> Document:
        source = hit["_source"]
        known = STATISTICS[statistic]
        since = source.get("since")
        return Document(
            json.dumps({name: source.get(name) for name in known.dimensions}, separators=(",", ":")),
            int(source["bin_end_ms"]),
            tuple(source[name] for name in known.values),
            source["seq"],
            since["cut"] if since else NO_CUT,
            tuple(since["values"]) if since else (),
            (hit["_seq_no"], hit["_primary_term"]),
        )


def _no_index(error: Mapping[str, Any]) -> bool:
    return error.get("type") == "index_not_found_exception"
