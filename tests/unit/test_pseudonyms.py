"""Names go in, pseudonyms come out: from raw bytes to the encoded event, for every source; and the keys behind them."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from appliance_files import write_appliance
from gridstead.cli.app import main
from gridstead.collector.broker import accept_messages
from gridstead.collector.store import EVENT, Store
from gridstead.config import load, pseudonym_keys
from gridstead.events import Event
from gridstead.pseudonyms import KeyringError, Pseudonyms, add_key, pseudonyms_of, read_keys
from gridstead.sources import SOURCES, normalise
from gridstead.sources.xrootd import MemoryOpenTable, XrootdJoiner
from gridstead.xrootd import CloseRecord, OpenRecord, TimeRecord, decode_packet, encode_packet

NOW = 1_700_000_000_000
SECRETS = ("jdoe", "Jane Doe", "laptop-of-jane", "198.51.100.7")
RECORDS: dict[str, dict[str, Any]] = {
    "access": {
        "file_lfn": "/store/user/jdoe/ntuple.root", "end_time": 1_600_000_100, "start_time": 1_600_000_000, "read_bytes": 5,
        "client_host": "laptop-of-jane.site.example", "user": "jdoe", "user_dn": "/DC=example/CN=Jane Doe", "server_host": "disk01",
        "app_info": "crab:jdoe_task", "vo": "cms", "unique_id": "u-1",
    },
    "fts": {
        "tr_id": "t-1", "src_url": "davs://se1.site-a.example/eos/user/j/jdoe/f.root", "dst_url": "davs://se2.site-b.example/home/jdoe/f.root",
        "tr_timestamp_complete": 1_600_000_100_000, "tr_bt_transfered": 5, "user_dn": "/DC=example/CN=Jane Doe", "user": "jdoe",
    },
    "rucio": {
        "eventType": "download", "scope": "user.jdoe", "filename": "user.jdoe.123.out.root", "transferEnd": 1_600_000_100.5,
        "account": "jdoe", "usrdn": "/DC=example/CN=Jane Doe", "hostname": "laptop-of-jane", "ip": "198.51.100.7",
        "remoteSite": "SITE-A_DISK", "localSite": "SITE-B",
    },
}  # fmt: skip


@pytest.fixture
def names(tmp_path: Path) -> Pseudonyms:
    return Pseudonyms(tmp_path / "secrets" / "keys")


def collected(store: Store) -> list[tuple[str, bytes]]:
    """The events that go to the broker: identity and encoded bytes."""
    return [(row.event_id, row.body) for row in store.read_batch(1000, 1 << 20) if row.kind == EVENT]


def xrootd_events() -> list[Event]:
    """Two accesses of a user's file."""
    window = TimeRecord(1_600_000_000, 1_600_000_030, 7, 0, 2, 1)
    packets = [
        encode_packet([window, OpenRecord(n, 10, 1, f"/store/user/jdoe/{n}.root", False)], server_start_s=1, sequence=n) for n in (1, 2)
    ]
    packets.append(encode_packet([window, CloseRecord(1, 5, 0, 0, False), CloseRecord(2, 6, 0, 0, False)], server_start_s=1, sequence=3))
    joiner = XrootdJoiner(MemoryOpenTable())
    return [event for packet in packets for event in joiner.join(decode_packet(packet), "192.0.2.9", NOW).events]


def test_no_name_goes_from_raw_bytes_into_the_event_that_is_sent(names: Pseudonyms, tmp_path: Path) -> None:
    store = Store(tmp_path / "db", queue_max_bytes=1 << 20, join_horizon_s=10, protect=names.protect)
    messages = [SimpleNamespace(body=json.dumps(record).encode(), headers={}) for record in RECORDS.values()]
    accept_messages(store, messages, "gridstead.raw", 1 << 20, NOW)
    with store.transaction() as change:
        change.add_events(xrootd_events())
    sent = collected(store)
    assert {json.loads(body)["source"] for _, body in sent} == SOURCES.keys()
    for identity, body in sent:
        assert json.loads(body)["event_id"] == identity
        for secret in SECRETS:
            assert secret.encode() not in body, body
    assert [identity for identity, _ in sent[:3]] == [normalise(record, NOW)["event_id"] for record in RECORDS.values()]
    access, fts, rucio = (json.loads(body) for _, body in sent[:3])
    jdoe = names.of("jdoe")
    assert access["user"] == fts["user"] == rucio["user"] == jdoe
    assert access["user_dn"] == fts["user_dn"] == names.of("/DC=example/CN=Jane Doe")
    assert access["file_lfn"] == f"/store/user/{jdoe}/ntuple.root"
    assert fts["file_lfn"] == f"/eos/user/j/{jdoe}/f.root"
    assert rucio["file_lfn"] == f"user.{jdoe}:user.{jdoe}.123.out.root"
    assert (fts["server_host"], fts["client_host"]) == ("se1.site-a.example", "se2.site-b.example"), "storages are no persons"
    store.close()


def test_unless_it_is_configured_otherwise(tmp_path: Path) -> None:
    store = Store(tmp_path / "db", queue_max_bytes=1 << 20, join_horizon_s=10)
    accept_messages(store, [SimpleNamespace(body=json.dumps(RECORDS["access"]).encode(), headers={})], "q", 1 << 20, NOW)
    assert json.loads(collected(store)[0][1])["user"] == "jdoe"
    store.close()


def test_a_new_key_changes_pseudonyms_and_no_identity(names: Pseudonyms) -> None:
    before = names.protect(normalise(RECORDS["access"], NOW))
    assert before["user"] is not None and before["user"].startswith("p1-")
    assert add_key(names.path) == 2
    names.refresh()
    after = names.protect(normalise(RECORDS["access"], NOW))
    assert after["user"].startswith("p2-")
    assert after["event_id"] == before["event_id"]
    keys = read_keys(names.path)
    assert pseudonyms_of("jdoe", keys) == {1: before["user"], 2: after["user"]}
    assert Pseudonyms(names.path).of("jdoe") == after["user"], "a restarted collector goes on with it"


def test_unknown_names_stay_unknown_and_bare_user_directories_are_no_names(names: Pseudonyms) -> None:
    record = {"end_time": 1_600_000_100, "user": "", "client_host": None}
    for lfn in ("/store/user/readme.txt", "/store/mc/users", "superuser.x", "/home", "/store/usershare/a/b"):
        event = names.protect(normalise(record | {"file_lfn": lfn}, NOW))
        assert (event["user"], event["client_host"], event["file_lfn"]) == (None, None, lfn)


def test_a_key_file_that_is_gone_or_broken_leaves_the_old_key_in_force(names: Pseudonyms, caplog: pytest.LogCaptureFixture) -> None:
    alias = names.of("jdoe")
    text = names.path.read_text()
    names.path.write_text("1 of three\n")
    names.refresh()
    names.path.unlink()
    names.refresh()
    names.refresh()
    assert names.of("jdoe") == alias
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"], "said once each"
    names.path.write_text(text)
    names.path.chmod(0o600)
    names.refresh()
    assert names.of("jdoe") == alias


def test_the_key_file_is_for_its_owner_only_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "keys"
    assert add_key(path, only_first=True) == 1
    assert add_key(path, only_first=True) == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    good = path.read_text()
    path.chmod(0o640)
    with pytest.raises(KeyringError, match="mode 640, others can read the keys: chmod 600"):
        read_keys(path)
    path.chmod(0o600)
    for text, reason in (
        (good + good, ":4 is not a new generation"),
        ("# nothing\n", "holds no key"),
        ("1 abc\n", ":1 is not"),
        ("\xff", "cannot be read"),
    ):
        path.write_text(text, encoding="latin-1")
        with pytest.raises(KeyringError, match=reason):
            read_keys(path)
        with pytest.raises(KeyringError):
            add_key(path)


def test_the_command_looks_names_up_and_rotates(tmp_path: Path) -> None:
    file = write_appliance(tmp_path)
    keys = pseudonym_keys(load(file))
    assert keys == tmp_path / "data" / "collector" / "pseudonyms.keys"
    run = CliRunner()
    missing = run.invoke(main, ["--config", str(file), "pseudonyms", "of", "jdoe"])
    assert missing.exit_code == 3 and "the collector makes it" in missing.output
    names = Pseudonyms(keys)
    first = names.of("jdoe")
    rotated = run.invoke(main, ["--config", str(file), "pseudonyms", "rotate"])
    assert rotated.exit_code == 0 and f"Key 2 is in force, in {keys}" in rotated.output
    names.refresh()
    shown = run.invoke(main, ["--config", str(file), "pseudonyms", "of", "jdoe", "unseen", "--json"])
    document = json.loads(shown.output)
    assert document["jdoe"] == {"1": first, "2": names.of("jdoe")}
    assert document["unseen"].keys() == {"1", "2"}
    table = run.invoke(main, ["--config", str(file), "pseudonyms", "of", "jdoe"]).output
    assert first in table and read_keys(keys)[1].hex() not in table
