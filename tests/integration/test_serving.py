"""Elasticsearch as the store of documents: the conditions that the merge relies on, in generations of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from appliance import Appliance
from gridstead.config import elasticsearch_client, load
from gridstead.serving import indices as serving
from gridstead.serving.control import Conflict, Control, Point
from gridstead.serving.documents import Document
from gridstead.serving.elastic import ElasticStore
from gridstead.serving.store import Place, Write

pytestmark = pytest.mark.appliance

BIN_MS = 600_000
JANUARY_END_MS = 1_738_368_000_000  # 2025-02-01: the end of January's last bin
DIMENSIONS = '{"vo":"a|b%","src":"s","dst":"d","is_remote":true,"is_transfer":false,"activity":"r"}'


@pytest.fixture
def store(appliance: Appliance) -> Iterator[ElasticStore]:
    """A store under a prefix of its own on the appliance's Elasticsearch; everything is deleted afterwards."""
    client = elasticsearch_client(load(appliance.config), request_timeout=30)
    indices = serving.Indices("gridstead-test-serving", BIN_MS)
    serving.prepare_control(client, indices, 60)
    serving.serve(client, indices, 1, 60)
    yield ElasticStore(client, indices, deadline_s=60)
    serving.drop(client, indices, None, 60)
    client.options(ignore_status=404).indices.delete(index=indices.control)
    client.indices.delete_index_template(name=indices.control)
    client.close()


def document(count: int, end_ms: int = JANUARY_END_MS) -> Document:
    return Document(DIMENSIONS, end_ms, (count, 0, 2**62, 3, 0), 7, 5, (count, 0, 1, 2, 0))


def place(key: str, generation: int = 1, end_ms: int = JANUARY_END_MS) -> Place:
    return Place(generation, "transfers", key, end_ms)


def test_documents_change_only_as_they_were_read(store: ElasticStore) -> None:
    first, second = place('k|"1"'), place("k2", end_ms=JANUARY_END_MS + BIN_MS)  # two months, so two indices
    made = store.write([Write(first, document(1), None), Write(second, document(2, second.bin_end_ms), None)])
    assert set(made) == {first, second}
    found = store.read([first, second, place("unknown"), place("k", generation=9)])
    assert found == {first: document(1).at(made[first]), second: document(2, second.bin_end_ms).at(made[second])}

    assert store.write([Write(first, document(9), None)]) == {}, "there is one already"
    changed = store.write([Write(first, document(3), made[first])])
    assert store.write([Write(first, document(4), made[first])]) == {}, "it has changed since"
    assert store.write([Write(first, None, made[first])]) == {}, "it has changed since"
    assert store.read([first])[first] == document(3).at(changed[first])

    assert store.write([Write(first, None, changed[first])]) == {first: None}
    assert store.write([Write(first, document(5), changed[first])]) == {}, "it is gone"
    assert store.read([first]) == {}
    assert set(store.write([Write(first, document(6), None)])) == {first}
    january = dict(store.scan(1, "transfers", JANUARY_END_MS - BIN_MS, JANUARY_END_MS))
    assert [(p, d.values[0]) for p, d in january.items()] == [(first, 6)]


def test_as_many_months_are_given_up_as_there_are(store: ElasticStore) -> None:
    """Their names together are longer than a line of a request may be."""
    ends = [JANUARY_END_MS - month * 31 * 86_400_000 for month in range(110)]
    places = [place("old", end_ms=end_ms) for end_ms in ends]
    assert len(store.write(Write(one, document(1, one.bin_end_ms), None) for one in places)) == len(places)
    client = store._client
    kept = serving.month_of(JANUARY_END_MS - BIN_MS)
    gone = serving.drop_months(client, store.indices, kept, 60)
    assert sum(map(len, gone)) > 4096
    assert set(store.read(places)) == {places[0]}


def test_more_documents_than_one_request_takes(store: ElasticStore) -> None:
    places = [place(f"many-{number}") for number in range(12_000)]
    assert len(store.write(Write(one, document(1), None) for one in places)) == 12_000
    assert len(store.read(places)) == 12_000
    assert sum(1 for _ in store.scan(1, "transfers", 0, JANUARY_END_MS)) == 12_000


def test_readers_see_the_served_generation_without_its_empty_documents(store: ElasticStore, appliance: Appliance) -> None:
    client, indices = store._client, store.indices
    empty = Document(DIMENSIONS, JANUARY_END_MS, (0, 0, 0, 0, 0), 7)
    store.write([Write(place("old"), document(1), None), Write(place("empty"), empty, None)])
    store.write([Write(place("new", 2), document(1), None), Write(place("newer", 2), document(1), None)])

    def seen() -> list[str]:
        appliance.refresh()
        hits = appliance.elasticsearch(f"{indices.alias('transfers')}/_search")["hits"]["hits"]
        return sorted(hit["_id"] for hit in hits)

    assert seen() == ["old"]
    serving.serve(client, indices, 2, 60)
    store.write([Write(place("february", 2, JANUARY_END_MS + BIN_MS), document(1, JANUARY_END_MS + BIN_MS), None)])
    assert seen() == ["february", "new", "newer"]
    store.write([Write(place("next", 3), document(1), None)])
    assert serving.drop(client, indices, 2, 60) == [indices.index("transfers", 1, JANUARY_END_MS)]
    assert seen() == ["february", "new", "newer"]
    begun = indices.index("transfers", 3, JANUARY_END_MS)
    assert begun in serving.existing(client, indices, 60), "of a rebuild that has begun meanwhile"
    types = {index: client.indices.get_mapping(index=index)[index]["mappings"] for index in serving.existing(client, indices, 60)}
    assert all(mapping == types[begun] for mapping in types.values())
    assert types[begun]["properties"]["vo"]["type"] == "keyword"


def test_the_control_record_changes_by_compare_and_set(store: ElasticStore) -> None:
    assert store.read_control() is None
    record = Control("w", "f", Point(1, {"t": {0: 5}}))
    store.write_control(record, None)
    with pytest.raises(Conflict):
        store.write_control(record, None)
    found = store.read_control()
    assert found is not None and found[0] == record
    store.write_control(Control("w2", "f", Point(2, {})), found[1])
    with pytest.raises(Conflict):
        store.write_control(record, found[1])
