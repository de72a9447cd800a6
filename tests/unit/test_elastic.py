"""Bulk requests of the serving layer beside an Elasticsearch that refuses: bodies of 5 to 15 MB, nothing is dropped."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from elasticsearch import ConnectionTimeout

from gridstead.serving.documents import Document
from gridstead.serving.elastic import ElasticStore
from gridstead.serving.indices import Indices
from gridstead.serving.patience import ServingError
from gridstead.serving.store import Place, Write
from gridstead.statistic import STATISTICS

END_MS = 1_738_368_000_000
DIMENSIONS = '{"vo":"cms","src":"site-012.example","dst":"site-117.example","is_remote":true,"is_transfer":false,"activity":"r"}'


class Client:
    """Answers bulk requests: what ``refuse`` says of a document and of how often it was sent, else that it is stored."""

    def __init__(self, refuse: Callable[[str, int], int | Exception | None]) -> None:
        self.refuse = refuse
        self.sent: dict[str, int] = {}
        self.sizes: list[int] = []

    def options(self, **options: Any) -> Client:
        return self

    def bulk(self, operations: list[str], filter_path: str) -> dict[str, Any]:
        self.sizes.append(sum(len(line) + 1 for line in operations))
        items = []
        for lines in operations:
            ((verb, action),) = json.loads(lines.partition("\n")[0]).items()
            key = action["_id"]
            self.sent[key] = self.sent.get(key, 0) + 1
            wrong = self.refuse(key, self.sent[key])
            if isinstance(wrong, Exception):
                raise wrong
            answer = {"status": wrong, "error": {"type": "made up"}} if wrong else {"status": 201, "_seq_no": 1, "_primary_term": 1}
            items.append({verb: answer})
        return {"items": items}


def store(refuse: Callable[[str, int], int | Exception | None], deadline_s: float = 20) -> tuple[ElasticStore, Client]:
    client = Client(refuse)
    return ElasticStore(client, Indices("gridstead", 600_000), deadline_s), client  # type: ignore[arg-type]  # answers what a test wants


def writes(count: int, statistic: str = "transfers") -> list[Write]:
    values = tuple([123_456_789] * len(STATISTICS[statistic].values))
    document = Document(DIMENSIONS, END_MS, values, 7)
    keys = (f"cms|site-012.example|site-117.example|true|false|r|{number:013}" for number in range(count))
    return [Write(Place(1, statistic, key, END_MS), document, None) for key in keys]


@pytest.mark.parametrize("statistic", sorted(STATISTICS))
def test_bodies_are_of_5_to_15_mb(statistic: str) -> None:
    tested, client = store(lambda key, times: None)
    assert len(tested.write(writes(80_000, statistic))) == 80_000
    assert len(client.sizes) > 1
    assert all(5e6 <= size <= 15e6 for size in sorted(client.sizes)[1:]), client.sizes  # the least is the rest


@pytest.mark.parametrize("status", [429, 503])
def test_only_what_was_rejected_is_sent_again(status: int) -> None:
    all_of_them = writes(5)
    busy = all_of_them[2].place.key
    tested, client = store(lambda key, times: status if key == busy and times < 3 else None)
    assert set(tested.write(all_of_them)) == {write.place for write in all_of_them}
    assert client.sent == {write.place.key: 3 if write.place.key == busy else 1 for write in all_of_them}
    assert tested.retried == 2


def test_a_request_without_an_answer_is_sent_again_whole() -> None:
    (first, *others) = writes(3)
    tested, client = store(lambda key, times: ConnectionTimeout("nothing") if key == first.place.key and times == 1 else None)
    assert len(tested.write([first, *others])) == 3 and tested.retried == 3
    assert client.sizes[0] == client.sizes[1]


def test_what_is_refused_for_good_is_an_error_that_names_the_document() -> None:
    all_of_them = writes(3)
    wrong = all_of_them[1].place.key
    tested, _ = store(lambda key, times: 400 if key == wrong else None)
    with pytest.raises(ServingError, match=r"refused document .*0000000000001.*status 400"):
        tested.write(all_of_them)


def test_who_is_rejected_for_ever_is_told_after_the_deadline() -> None:
    tested, _ = store(lambda key, times: 429, deadline_s=0.5)
    with pytest.raises(ServingError, match="did not accept 2 of 2 documents"):
        tested.write(writes(2))
