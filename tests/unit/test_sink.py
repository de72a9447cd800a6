"""The sink: bodies, back-off, partial failures, and the documents' form."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import pytest
from elastic_transport import ApiResponseMeta, HttpHeaders, NodeConfig
from elasticsearch import ApiError, AuthenticationException, ConnectionError
from hypothesis import given
from hypothesis import strategies as st
from pyspark.sql import SparkSession

from gridstead.schema import EVENT
from gridstead.sink import BulkWriter, SinkError, patient, transfer_actions, transfers_template
from gridstead.statistics import TRANSFER_COLUMNS, transfer_statistics


class Server:
    """Answers bulk requests as Elasticsearch does: external_gte versions, and troubles when told."""

    def __init__(self, troubles: list[Any] | None = None) -> None:
        self.documents: dict[str, tuple[int, str]] = {}
        self.troubles = troubles or []
        self.requests: list[list[str]] = []

    def bulk(self, *, operations: list[str]) -> dict[str, Any]:
        self.requests.append(operations)
        trouble = self.troubles.pop(0) if self.troubles else {}
        if isinstance(trouble, Exception):
            raise trouble
        items, lines = [], iter(operations)
        for line in lines:
            ((operation, meta),) = json.loads(line).items()
            key = meta["_id"]
            source = next(lines) if operation == "index" else ""
            status = trouble.get(key, 200)
            if status == 200 and operation == "index":
                old = self.documents.get(key)
                if old is not None and old[0] > meta["version"]:
                    status = 409
                else:
                    self.documents[key] = (meta["version"], source)
            elif status == 200:
                status = 200 if self.documents.pop(key, None) else 404
            items.append(
                {operation: {"_id": key, "_index": meta["_index"], "status": status, "error": {"type": f"e{status}"}}}
            )
        return {"items": items}


def api_error(status: int, kind: type[ApiError] = ApiError) -> ApiError:
    meta = ApiResponseMeta(status, "1.1", HttpHeaders(), 0.0, NodeConfig("http", "h", 1))
    return kind("trouble", meta, {})


def index(key: str, version: int = 1, text: str = "{}") -> tuple[str, str]:
    return json.dumps({"index": {"_index": "i", "_id": key, "version": version, "version_type": "external_gte"}}), text


def delete(key: str) -> tuple[str, None]:
    return json.dumps({"delete": {"_index": "i", "_id": key}}), None


def writer(server: Server, **options: Any) -> BulkWriter:
    return BulkWriter(server, sleep=lambda _: None, **options)


def test_writes_supersedes_and_deletes() -> None:
    server = Server()
    assert writer(server).write([index("a", 5), index("b", 1)]).written == 2
    result = writer(server).write([index("a", 4), index("b", 1, '{"x":1}'), delete("a"), delete("z")])
    assert (result.written, result.superseded, result.deleted) == (1, 1, 2)
    assert server.documents == {"b": (1, '{"x":1}')}


def test_only_what_was_rejected_is_sent_again() -> None:
    server = Server([{"b": 429, "c": 503}, {"b": 429}])
    result = writer(server).write([index("a"), index("b"), index("c")])
    assert (result.written, result.retried, result.requests) == (3, 3, 3)
    assert [len(request) // 2 for request in server.requests] == [3, 2, 1]


@pytest.mark.parametrize("trouble", [ConnectionError("refused"), api_error(503), api_error(429)])
def test_a_server_that_is_away_is_waited_for(trouble: Exception) -> None:
    server = Server([trouble, trouble])
    assert writer(server).write([index("a")]).written == 1


def test_the_deadline_ends_the_waiting_with_the_reason() -> None:
    with pytest.raises(SinkError, match="did not accept .* last reason: Connection error.*gridstead doctor"):
        writer(Server([ConnectionError("refused")] * 100), deadline_s=0.1).write([index("a")])


def test_a_refused_document_is_named_with_its_reason() -> None:
    with pytest.raises(SinkError, match=r"document 'b' of index i \(status 400\): .*e400"):
        writer(Server([{"b": 400}])).write([index("a"), index("b")])


def test_a_refused_request_is_not_repeated() -> None:
    server = Server([api_error(401, AuthenticationException)])
    with pytest.raises(SinkError, match="refused a bulk request of 1 documents"):
        writer(server).write([index("a")])
    assert len(server.requests) == 1


@given(sizes=st.lists(st.integers(2, 400), max_size=60), limit=st.integers(200, 2000), count=st.integers(1, 9))
def test_bodies_are_bounded_and_complete(sizes: list[int], limit: int, count: int) -> None:
    server = Server()
    actions = [index(str(n), 1, "x" * size) for n, size in enumerate(sizes)]
    assert writer(server, max_bytes=limit, max_documents=count).write(actions).written == len(sizes)
    for request in server.requests:
        assert len(request) // 2 <= count
        assert len(request) == 2 or sum(len(line) + 1 for line in request) <= limit
    assert len(server.documents) == len(sizes)


@given(order=st.permutations(range(8)))
def test_in_any_order_the_document_that_counted_most_stays(order: list[int]) -> None:
    server = Server()
    for version in order:
        writer(server).write([index("a", version, str(version))])
    assert server.documents == {"a": (7, "7")}


def test_patient_repeats_a_call_and_gives_up_on_refusals() -> None:
    answers: list[Any] = [ConnectionError("refused"), 7]

    def call() -> int:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert patient(call, "ask", sleep=lambda _: None) == 7
    answers.append(api_error(400))
    with pytest.raises(SinkError, match="refused to ask"):
        patient(call, "ask", sleep=lambda _: None)


def test_actions_hold_the_whole_document_and_the_month_of_the_bins_start(spark: SparkSession) -> None:
    midnight = int(dt.datetime(2023, 12, 1, tzinfo=dt.UTC).timestamp() * 1000)
    row: dict[str, Any] = dict.fromkeys(EVENT.names)
    row.update(
        event_id="0" * 32,
        source="access",
        start_ms=midnight - 600_000,
        end_ms=midnight + 1,
        read_bytes=11,
        write_bytes=0,
        vo='c"ms',
    )
    events = spark.createDataFrame([tuple(row[name] for name in EVENT.names)], EVENT)
    collected = transfer_actions(transfer_statistics(events), "g").collect()
    actions = [(json.loads(action), json.loads(source)) for action, source in collected]
    by_end = {source["bin_end_ms"]: (action["index"], source) for action, source in actions}
    assert by_end.keys() == {midnight, midnight + 600_000}
    action, source = by_end[midnight]
    key = f'c"ms|unknown|unknown|false|false|r|{midnight}'
    assert action == {"_index": "g-transfers-2023.11", "_id": key, "version": 1, "version_type": "external_gte"}
    assert source == {
        "vo": 'c"ms', "src": "unknown", "dst": "unknown", "is_remote": False, "is_transfer": False, "activity": "r",
        "bin_end_ms": midnight, "bin_ms": 600_000, "active": 1, "finished": 0, "bytes": 10,
        "active_time": 600_000, "capped": 0,
    }  # fmt: skip
    assert by_end[midnight + 600_000][0]["_index"] == "g-transfers-2023.12"


def test_the_template_knows_every_field_of_a_document() -> None:
    properties = transfers_template("g")["template"]["mappings"]["properties"]
    assert set(properties) == set(TRANSFER_COLUMNS) - {"key"}
