"""FTS: the message of the File Transfer Service at the end of each attempt to copy one file between two storages.

How an attempt becomes an event: the source storage is the server, the destination storage the client, and the bytes
are read from the one by the other. So data flow source -> destination (the statistics let them flow server -> client
unless bytes were written), and they do so for a failed attempt that moved nothing, too; the file that counts as
accessed is the one at the source.

A failed attempt is kept, with the bytes that really moved (``tr_bt_transfered``). Start, state and optimizer messages
tell of no finished attempt; they are refused by name.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from gridstead.events import FIELDS as EVENT_FIELDS
from gridstead.events import Event, ValidationError, finish
from gridstead.sources.field import SourceField
from gridstead.sources.values import count, first_time, identifier, in_order, string, type_name, unquoted

NAME: Final = "fts"

FIELDS: Final = (
    SourceField(
        "tr_id", "string", "", "id of the attempt: minute, hosts, file id and job id", "FTS", "producer_id, file_ref"
    ),
    SourceField("transfer_id", "string", "", "tr_id as some versions call it", "FTS", "producer_id, file_ref"),
    SourceField("job_id", "string", "", "job that the file belongs to", "FTS", "file_ref, where tr_id is missing"),
    SourceField("file_id", "bigint", "", "number of the file in FTS", "FTS", "file_ref, where tr_id is missing"),
    SourceField("src_url", "string", "", "address of the file at the source", "submitter", "server_host, file_lfn"),
    SourceField("dst_url", "string", "", "address of the file at the destination", "submitter", "client_host"),
    SourceField("src_hostname", "string", "", "host of src_url", "FTS", "server_host, server_domain"),
    SourceField("dst_hostname", "string", "", "host of dst_url", "FTS", "client_host, client_domain"),
    SourceField("vo", "string", "", "virtual organisation", "FTS", "vo"),
    SourceField("user", "string", "", "user name, as converters add it", "converter", "user"),
    SourceField("user_dn", "string", "", "distinguished name of the submitter's certificate", "FTS", "user_dn"),
    SourceField("f_size", "bigint", "bytes", "size of the file; 0 or -1: not learnt", "FTS", "file_size"),
    SourceField("file_size", "bigint", "bytes", "f_size as newer versions call it", "FTS", "file_size"),
    SourceField(
        "tr_bt_transfered",
        "bigint",
        "bytes",
        "bytes that were moved, also by an attempt that failed",
        "FTS",
        "read_bytes",
    ),
    SourceField(
        "t_final_transfer_state",
        "string",
        "",
        "Ok, Error or Abort",
        "FTS",
        "read_bytes, where tr_bt_transfered is missing",
    ),
    SourceField(
        "timestamp_tr_st", "bigint", "ms since epoch", "when bytes began to move; 0: they never did", "FTS", "start_ms"
    ),
    SourceField(
        "timestamp_tr_comp",
        "bigint",
        "ms since epoch",
        "when the last byte had moved; 0: it never did",
        "FTS",
        "end_ms",
    ),
    SourceField(
        "tr_timestamp_start",
        "bigint",
        "ms since epoch",
        "when the attempt began",
        "FTS",
        "start_ms, where timestamp_tr_st is missing",
    ),
    SourceField(
        "tr_timestamp_complete",
        "bigint",
        "ms since epoch",
        "when the attempt ended",
        "FTS",
        "end_ms, where timestamp_tr_comp is missing",
    ),
    SourceField("activity", "string", "", "share that the transfer was queued under", "submitter", "app_info"),
    SourceField(
        "file_metadata",
        "struct<scope:string,name:string>",
        "",
        "what the submitter noted; Rucio notes scope and name",
        "submitter",
        "file_lfn",
    ),
    SourceField("src_site_name", "string", "", "site of the source; mostly empty", "FTS"),
    SourceField("dst_site_name", "string", "", "site of the destination; mostly empty", "FTS"),
    SourceField("retry", "bigint", "", "how many attempts there were before", "FTS"),
    SourceField("t__error_message", "string", "", "why it failed, in words", "FTS"),
)

PERSONAL: Final = ("user", "user_dn")
"""client_host is not among them: it is a storage."""

SIGNS: Final = frozenset(("tr_id", "src_url", "dst_url", "tr_bt_transfered", "timestamp_tr_comp"))


def normalise(data: Mapping[str, Any], received_ms: int) -> Event:
    """Normalise a completion message without its envelope. Raises ValidationError naming the field.

    Numbers may be written in strings (older versions do). The end is required; of the two pairs of times the inner one
    counts, where it is given. The bytes are ``tr_bt_transfered``; where that is missing, the size of the file if the
    state is Ok, else 0.
    """
    if "file_state" in data:
        raise ValidationError("tells of a change of state, not of a finished attempt", "file_state")
    event: Event = dict.fromkeys(EVENT_FIELDS)
    event["source"] = NAME
    event["producer_id"] = event["file_ref"] = _attempt(data)
    source, destination = string(data.get("src_url"), "src_url"), string(data.get("dst_url"), "dst_url")
    event["server_host"] = _host(data, "src_hostname", source)
    event["client_host"] = _host(data, "dst_hostname", destination)
    if event["server_host"] is None or event["client_host"] is None:
        missing = "src" if event["server_host"] is None else "dst"
        raise ValidationError(f"neither it nor {missing}_url names the storage", f"{missing}_hostname")
    event["server_domain"], event["client_domain"] = _domain(event["server_host"]), _domain(event["client_host"])
    event["file_lfn"] = _logical_name(data.get("file_metadata")) or _path(source)
    event["vo"] = string(data.get("vo"), "vo")
    event["user"] = string(data.get("user"), "user")
    event["user_dn"] = string(data.get("user_dn"), "user_dn")
    event["app_info"] = string(data.get("activity"), "activity")

    end = first_time(data, "timestamp_tr_comp", "tr_timestamp_complete")
    if end is None:
        raise ValidationError("is required; a start message has none", "tr_timestamp_complete")
    began = first_time(data, "timestamp_tr_st", "tr_timestamp_start")
    start, event["open_missing"] = in_order(began, end, "timestamp_tr_st")

    ok = (string(data.get("t_final_transfer_state"), "t_final_transfer_state") or "").lower() == "ok"
    size = _size(data, ok)
    moved = count(unquoted(data.get("tr_bt_transfered")), "tr_bt_transfered")
    event["file_size"] = size
    event["read_bytes"] = moved if moved is not None else (size or 0) if ok else 0
    event["read_single_bytes"] = event["read_vector_bytes"] = event["write_bytes"] = 0
    return finish(event, start, end, received_ms)


def _attempt(data: Mapping[str, Any]) -> str | None:
    attempt = string(data.get("tr_id"), "tr_id") or string(data.get("transfer_id"), "transfer_id")
    job, file = string(data.get("job_id"), "job_id"), identifier(data.get("file_id"), "file_id")
    return attempt or (f"{job}/{file}" if job and file else None)


def _size(data: Mapping[str, Any], ok: bool) -> int | None:
    """The file's size. An attempt that failed early has 0 or -1 for a size that it never learnt."""
    for name in ("f_size", "file_size"):
        value = unquoted(data.get(name))
        size = None if value in (-1, -1.0) else count(value, name)
        if size is not None and (size > 0 or ok):
            return size
    return None


def _host(data: Mapping[str, Any], name: str, url: str | None) -> str | None:
    host = string(data.get(name), name)
    if host is None and url is not None:
        try:
            host = urlsplit(url).hostname
        except ValueError:  # no valid address: then the host is not known from it
            host = None
    return host.lower().rstrip(".") or None if host else None


def _domain(host: str) -> str | None:
    """The DNS domain of a full host name: what follows its first label; None for an address or a short name."""
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        domain = host.partition(".")[2]
        return domain if "." in domain else None
    return None


def _path(url: str | None) -> str | None:
    """The file's path at a storage: SRM puts it behind SFN=, others behind the host."""
    if url is None:
        return None
    _, found, path = url.partition("SFN=")
    if found:
        return path or None
    rest = url.partition("://")[2] or url
    _, slash, path = rest.partition("/")
    return f"/{path.lstrip('/')}" if slash else None


def _logical_name(metadata: object) -> str | None:
    """The name under which Rucio knows the file, ``scope:name``, if Rucio submitted the transfer."""
    if not isinstance(metadata, Mapping):
        if metadata is None or isinstance(metadata, str):
            return None
        raise ValidationError(f"an object or a string is expected, not {type_name(metadata)}", "file_metadata")
    scope, name = metadata.get("scope"), metadata.get("name")
    if not isinstance(scope, str) or not isinstance(name, str) or not scope or not name:
        return None
    return string(f"{scope}:{name}", "file_metadata")
