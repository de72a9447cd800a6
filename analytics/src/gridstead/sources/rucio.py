"""Rucio traces: what a client of Rucio, or a pilot, reports of one file that it downloaded, uploaded or touched.

How a trace becomes one event: the storage element (RSE) in ``remoteSite`` is the server, the client's host the client.
``remoteSite`` may be a comma list: then the trace does not say which of them moved the bytes. Taking the first would
invent an answer, an event for each would count the bytes several times; so it stays one event, whose server is the
whole list (sorted) and whose server domain is unknown.

Bytes are the file's size if the state is DONE, else 0: a trace that failed does not tell how much it had moved, and a
file opened in place (FOUND_ROOT) is read later, by somebody else's count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gridstead.events import FIELDS as EVENT_FIELDS
from gridstead.events import Event, ValidationError, finish
from gridstead.sources.field import SourceField
from gridstead.sources.values import count, first_time, in_order, string, unquoted

NAME: Final = "rucio"

FIELDS: Final = (
    SourceField(
        "eventType",
        "string",
        "",
        "download, get, sm_get: read; upload, put, sm_put: write (with any ending); touch",
        "client",
        "read_bytes or write_bytes, app_info",
        required=True,
    ),
    SourceField("eventVersion", "string", "", "version of the client", "client"),
    SourceField(
        "uuid", "string", "", "id of the client's operation, which may be on many files", "client", "producer_id"
    ),
    SourceField(
        "traceId",
        "string",
        "",
        "id of this trace, given when it was received",
        "Rucio server",
        "producer_id, where uuid is missing",
    ),
    SourceField("scope", "string", "", "scope of the file; user.NAME for users' own files", "client", "file_lfn"),
    SourceField("filename", "string", "", "name of the file within the scope", "client", "file_lfn"),
    SourceField(
        "name", "string", "", "filename as some versions call it", "client", "file_lfn, where filename is missing"
    ),
    SourceField("dataset", "string", "", "dataset through which the file was found", "client"),
    SourceField(
        "filesize",
        "bigint",
        "bytes",
        "size of the file; null: not known",
        "client",
        "file_size; read_bytes or write_bytes if DONE",
    ),
    SourceField("remoteSite", "string", "", "storage elements, a comma list", "client", "server_host, server_domain"),
    SourceField("localSite", "string", "", "site of the client", "client", "client_domain"),
    SourceField("hostname", "string", "", "host of the client", "client", "client_host"),
    SourceField("ip", "string", "", "address of the client", "client", "client_host, where hostname is missing"),
    SourceField("transferStart", "double", "s since epoch", "when bytes began to move", "client", "start_ms"),
    SourceField("transferEnd", "double", "s since epoch", "when the last byte had moved", "client", "end_ms"),
    SourceField(
        "timeStart",
        "double",
        "s since epoch",
        "when the operation began",
        "client",
        "start_ms, where transferStart is missing",
    ),
    SourceField(
        "timeEnd",
        "double",
        "s since epoch",
        "when the operation ended",
        "client",
        "end_ms, where transferEnd is missing",
    ),
    SourceField(
        "traceTimeentryUnix",
        "double",
        "s since epoch",
        "when the trace was received",
        "Rucio server",
        "end_ms, where both are missing",
    ),
    SourceField("clientState", "string", "", "DONE, or how far it came", "client", "read_bytes or write_bytes"),
    SourceField("account", "string", "", "account in Rucio", "client", "user"),
    SourceField("usrdn", "string", "", "distinguished name of the user's certificate", "client", "user_dn"),
    SourceField("vo", "string", "", "virtual organisation; def: the only one, unnamed", "client", "vo"),
    SourceField("protocol", "string", "", "how it was moved", "client"),
    SourceField("stateReason", "string", "", "why it failed, in words", "client"),
)

PERSONAL: Final = ("user", "user_dn", "client_host")

SIGNS: Final = frozenset(("eventType", "clientState", "remoteSite", "traceTimeentryUnix"))

_READS = ("download", "get", "sm_get")
_WRITES = ("upload", "put", "sm_put")


def normalise(data: Mapping[str, Any], received_ms: int) -> Event:
    """Normalise a trace without its envelope. Raises ValidationError naming the field.

    Times are float seconds. The end is ``transferEnd``, else ``timeEnd``, else ``traceTimeentryUnix``; one is required.
    """
    event: Event = dict.fromkeys(EVENT_FIELDS)
    event["source"] = NAME
    kind = string(data.get("eventType"), "eventType")
    writes = _writes(kind)
    event["app_info"] = kind
    event["producer_id"] = string(data.get("uuid"), "uuid") or string(data.get("traceId"), "traceId")
    event["file_lfn"] = _logical_name(data)
    event["client_host"] = string(data.get("hostname"), "hostname") or string(data.get("ip"), "ip")
    event["client_domain"] = string(data.get("localSite"), "localSite")
    event["server_host"], event["server_domain"] = _server(data, event["client_domain"])
    event["user"] = string(data.get("account"), "account")
    event["user_dn"] = string(data.get("usrdn"), "usrdn")
    vo = string(data.get("vo"), "vo")
    event["vo"] = None if vo == "def" else vo

    end = first_time(data, "transferEnd", "timeEnd", "traceTimeentryUnix")
    if end is None:
        raise ValidationError("is required, or timeEnd, or traceTimeentryUnix", "transferEnd")
    began = first_time(data, "transferStart", "timeStart")
    start, event["open_missing"] = in_order(began, end, "transferStart")

    size = count(unquoted(data.get("filesize")), "filesize")
    done = (string(data.get("clientState"), "clientState") or "").upper() == "DONE"
    moved = size if done and size is not None and writes is not None else 0
    event["file_size"] = size
    event["read_bytes"], event["write_bytes"] = (0, moved) if writes else (moved, 0)
    event["read_single_bytes"] = event["read_vector_bytes"] = 0
    return finish(event, start, end, received_ms)


def _writes(kind: str | None) -> bool | None:
    """Whether bytes go to the storage; None for a touch, which moves none."""
    if kind is None:
        raise ValidationError("is required", "eventType")
    lower = kind.lower()
    if lower == "touch":
        return None
    if lower.startswith(_READS):
        return False
    if lower.startswith(_WRITES):
        return True
    raise ValidationError(
        "is none of download, get, sm_get, upload, put, sm_put (with any ending) and touch", "eventType"
    )


def _logical_name(data: Mapping[str, Any]) -> str | None:
    scope = string(data.get("scope"), "scope")
    name = string(data.get("filename"), "filename") or string(data.get("name"), "name")
    return f"{scope}:{name}" if scope and name else name


def _server(data: Mapping[str, Any], local_site: str | None) -> tuple[str | None, str | None]:
    """Host and domain of the server: the storage element, and the client's own site if it is there, else again the
    storage element.

    A storage element of a site has the site's name, or begins with it and "_" (CERN-PROD, CERN-PROD_DATADISK).
    """
    listed = string(data.get("remoteSite"), "remoteSite") or ""
    elements = sorted({name for part in listed.split(",") if (name := string(part.strip(), "remoteSite"))})
    if len(elements) != 1:
        return ",".join(elements) or None, None
    element = elements[0]
    at_home = local_site is not None and (element == local_site or element.startswith(f"{local_site}_"))
    return element, local_site if at_home else element
