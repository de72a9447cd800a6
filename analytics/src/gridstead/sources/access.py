"""File-access events: JSON of the storages' monitoring, one record a file that was closed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gridstead.events import FIELDS as EVENT_FIELDS
from gridstead.events import INT64_MAX, Event, ValidationError, finish
from gridstead.sources.field import SourceField
from gridstead.sources.values import count, identifier, in_order, largest, string, time_ms

NAME: Final = "access"

FIELDS: Final = (
    SourceField(
        "unique_id", "string", "", "the record's id, drawn anew when it is converted again", "converter", "producer_id"
    ),
    SourceField("file_lfn", "string", "", "logical file name", "storage", "file_lfn"),
    SourceField("file_size", "bigint", "bytes", "size of the file when opened", "storage", "file_size"),
    SourceField(
        "start_time",
        "bigint",
        "s or ms since epoch",
        "when it was opened; 0 or null: the open was lost",
        "storage",
        "start_ms, open_missing",
    ),
    SourceField("end_time", "bigint", "s or ms since epoch", "when it was closed", "storage", "end_ms", required=True),
    SourceField(
        "read_bytes",
        "bigint",
        "bytes",
        "bytes read, counted while reading; may be 0 where the other is not",
        "storage",
        "read_bytes",
    ),
    SourceField("read_bytes_at_close", "bigint", "bytes", "bytes read, told at the close", "storage", "read_bytes"),
    SourceField("read_single_bytes", "bigint", "bytes", "bytes read by single reads", "storage", "read_single_bytes"),
    SourceField("read_vector_bytes", "bigint", "bytes", "bytes read by vector reads", "storage", "read_vector_bytes"),
    SourceField("write_bytes", "bigint", "bytes", "bytes written, counted while writing", "storage", "write_bytes"),
    SourceField(
        "write_bytes_at_close", "bigint", "bytes", "bytes written, told at the close", "storage", "write_bytes"
    ),
    SourceField("server_host", "string", "", "host that served the file", "storage", "server_host"),
    SourceField("server_domain", "string", "", "its domain", "converter", "server_domain"),
    SourceField("server_username", "string", "", "account that the server runs as", "storage", "server_username"),
    SourceField("client_host", "string", "", "host that read or wrote", "storage", "client_host"),
    SourceField("client_domain", "string", "", "its domain", "converter", "client_domain"),
    SourceField("user", "string", "", "user name", "storage", "user"),
    SourceField("user_dn", "string", "", "distinguished name of the user's certificate", "storage", "user_dn"),
    SourceField("vo", "string", "", "virtual organisation", "storage", "vo"),
    SourceField(
        "app_info",
        "string",
        "",
        "what the application said of itself; may name jobs and users",
        "application",
        "app_info",
    ),
    SourceField("is_transfer", "boolean", "", "the producer's own judgement; the statistics make theirs", "converter"),
    SourceField(
        "remote_access", "boolean", "", "the producer's own judgement; the statistics make theirs", "converter"
    ),
    SourceField("read_average", "double", "bytes", "mean size of a read; int or float", "storage"),
    SourceField("read_operations", "bigint", "", "number of reads", "storage"),
    SourceField("throughput", "double", "bytes/s", "bytes over time", "converter"),
)

PERSONAL: Final = ("user", "user_dn", "client_host", "app_info")
"""Fields of the normalised event that may name a person or a person's machine."""

SIGNS: Final = frozenset(
    "file_lfn unique_id start_time end_time read_bytes write_bytes read_bytes_at_close server_host client_host".split()
)
"""Any of these fields tells a record of this source, where nothing else does."""

_STRINGS = (
    "server_host", "server_domain", "server_username", "client_host", "client_domain", "user", "user_dn", "vo",
    "app_info", "file_lfn",
)  # fmt: skip


def normalise(data: Mapping[str, Any], received_ms: int) -> Event:
    """Normalise a record without its envelope. Raises ValidationError naming the field.

    ``end_time`` is required; times in s or ms (above 1e11: ms). Without ``start_time`` (absent, null or 0) start = end
    and ``open_missing`` is true. ``read_bytes`` is the larger of ``read_bytes`` and ``read_bytes_at_close``, or single
    + vector where neither is given; ``write_bytes`` likewise.
    """
    event: Event = dict.fromkeys(EVENT_FIELDS)
    event["source"] = NAME
    event["producer_id"] = identifier(data.get("unique_id"), "unique_id")
    for name in _STRINGS:
        event[name] = string(data.get(name), name)
    event["file_size"] = count(data.get("file_size"), "file_size")

    end = time_ms(data.get("end_time"), "end_time")
    if end is None:
        raise ValidationError("is required", "end_time")
    start, event["open_missing"] = in_order(time_ms(data.get("start_time"), "start_time"), end, "start_time")

    single = count(data.get("read_single_bytes"), "read_single_bytes") or 0
    vector = count(data.get("read_vector_bytes"), "read_vector_bytes") or 0
    read = largest(data, "read_bytes", "read_bytes_at_close")
    if read is None:
        read = single + vector
        if read > INT64_MAX:
            raise ValidationError("read_single_bytes + read_vector_bytes exceeds 64 bits", "read_bytes")
    event["read_bytes"] = read
    event["read_single_bytes"] = single
    event["read_vector_bytes"] = vector
    event["write_bytes"] = largest(data, "write_bytes", "write_bytes_at_close") or 0
    return finish(event, start, end, received_ms)
