"""``gridstead dlq``: what could not be decoded or validated, and a second chance for it."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import click
from confluent_kafka import Consumer, Message, TopicPartition
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gridstead.cli import kafkalog
from gridstead.cli.broker import Broker, BrokerError
from gridstead.cli.session import EXIT_USAGE, Failure, Session, command, unreachable
from gridstead.cli.units import exact, utc
from gridstead.config import Config, stomp_client
from gridstead.sources import PACKET_HEADER, SOURCE_HEADER

GROUP = "gridstead-dlq-replay"
_BATCH = 100
_MAX_METADATA = 4000
_PREVIEW_BYTES = 64
_UDP_SOURCE = "xrootd-udp"


@dataclass(frozen=True)
class Letter:
    """A dead letter and its place in the topic. ``raw`` None: the record itself cannot be read."""

    partition: int
    offset: int
    reason: str
    source: str
    origin: str
    received_ms: int
    raw: bytes | None
    truncated: bool
    header: str | None = None
    partial: bool = False

    @property
    def place(self) -> str:
        """The name of the letter on the command line: partition:offset."""
        return f"{self.partition}:{self.offset}"

    def as_dict(self) -> dict[str, Any]:
        """Give the fields for JSON, the raw bytes in base64."""
        return {
            "place": self.place,
            "reason": self.reason,
            "source": self.source,
            "origin": self.origin,
            "received_ms": self.received_ms,
            "header": self.header,
            "truncated": self.truncated,
            "partial": self.partial,
            "bytes": None if self.raw is None else len(self.raw),
            "raw_base64": None if self.raw is None else base64.b64encode(self.raw).decode(),
        }


def parse(partition: int, offset: int, value: bytes | None) -> Letter:
    """Read one record of the dead-letter topic; a record that is not a dead letter says so in its reason."""
    try:
        record = json.loads(value or b"")
        raw = base64.b64decode(record["raw_base64"], validate=True)
        received = int(record.get("received_ms") or 0)
        header = record.get("header")
        reason, source, origin = (str(record.get(name) or "unknown") for name in ("reason", "source", "origin"))
        truncated = bool(record.get("truncated"))
        said, partial = None if header is None else str(header), bool(record.get("partial"))
        return Letter(partition, offset, reason, source, origin, received, raw, truncated, said, partial)
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error, RecursionError) as error:
        reason = f"not a dead-letter record ({type(error).__name__}: {error})"
        return Letter(partition, offset, reason, "unknown", "unknown", 0, None, False)


def kind_of_reason(reason: str) -> str:
    """Make reasons that differ only in numbers or quoted names one kind, for counting."""
    return re.sub(r"\d+", "N", re.sub(r"'[^']*'|\"[^\"]*\"", "'…'", reason))


def to_ranges(offsets: Iterable[int]) -> str:
    """Write offsets as ranges: {3,4,5,9} is "3-5,9"."""
    parts: list[list[int]] = []
    for offset in sorted(set(offsets)):
        if parts and parts[-1][1] == offset - 1:
            parts[-1][1] = offset
        else:
            parts.append([offset, offset])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def from_ranges(text: str | None) -> set[int]:
    """Read what ``to_ranges`` wrote; nothing where the text is of another kind."""
    found: set[int] = set()
    for part in (text or "").split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if match:
            found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return found


class Progress:
    """Which letters were replayed: committed in Kafka as a position, and in its metadata the ranges beyond it."""

    def __init__(self, opened: Consumer, topic: str, bounds: kafkalog.Bounds) -> None:
        """Read the committed positions of the group."""
        self._consumer, self._topic = opened, topic
        self._low = {number: low for number, (low, _) in bounds.items()}
        self.done: dict[int, set[int]] = {}
        self.position: dict[int, int] = {}
        wanted = [TopicPartition(topic, number) for number in bounds]
        for committed in opened.committed(wanted, timeout=kafkalog.TIMEOUT_S):
            low = self._low[committed.partition]
            self.position[committed.partition] = max(committed.offset, low) if committed.offset >= 0 else low
            self.done[committed.partition] = from_ranges(committed.metadata)

    def is_done(self, letter: Letter) -> bool:
        """Whether this letter was replayed before."""
        return letter.offset < self.position[letter.partition] or letter.offset in self.done[letter.partition]

    def commit(self, letters: Iterable[Letter]) -> None:
        """Remember letters as replayed. Raises Failure where the gaps between them are too many to remember."""
        for letter in letters:
            self.done[letter.partition].add(letter.offset)
        offsets = []
        for number, done in self.done.items():
            position = self.position[number]
            while position in done:
                position += 1
            self.position[number] = position
            self.done[number] = {offset for offset in done if offset > position}
            ranges = to_ranges(self.done[number])
            if len(ranges) > _MAX_METADATA:
                raise Failure(
                    f"partition {number} of {self._topic} has too many gaps between replayed letters to remember",
                    "gridstead dlq replay    # without a filter, so that the gaps are closed",
                )
            offsets.append(TopicPartition(self._topic, number, position, ranges))
        self._consumer.commit(offsets=offsets, asynchronous=False)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def dlq() -> None:
    """List and replay dead letters: what could not be decoded or validated, with its reason and raw bytes."""


@dlq.command(
    "list",
    epilog="""\b
Examples:
  gridstead dlq list                       how many for which reason, and the latest
  gridstead dlq list --last 100 --source stomp
  gridstead dlq list --json                with the raw bytes in base64""",
)
@click.option("--last", default=10, show_default=True, type=click.IntRange(0), help="How many to show whole.")
@click.option("--source", help=f"Only from this entrance: {_UDP_SOURCE}, stomp, replay.")
@click.option("--reason", "pattern", help="Only reasons that match this regular expression.")
@command
def list_letters(session: Session, last: int, source: str | None, pattern: str | None) -> None:
    """Count dead letters by reason, and show the last ones."""
    wanted = _filter(source, pattern, ())
    counts: Counter[tuple[str, str]] = Counter()
    latest: list[Letter] = []
    replayed = 0
    topic = session.config.kafka.deadletter_topic
    try:
        with kafkalog.consumer(session.config, GROUP) as opened:
            bounds = kafkalog.bounds(opened, topic)
            progress = Progress(opened, topic, bounds)
            for letter in _letters(opened, topic, bounds):
                if not wanted(letter):
                    continue
                counts[letter.source, kind_of_reason(letter.reason)] += 1
                replayed += progress.is_done(letter)
                latest = _newest([*latest, letter], last)
    except kafkalog.KafkaError as error:
        raise unreachable(f"Kafka (topic {topic})", error, "kafka") from error
    data = {
        "topic": topic,
        "count": sum(counts.values()),
        "replayed": replayed,
        "reasons": [
            {"source": entrance, "reason": reason, "count": count} for (entrance, reason), count in counts.most_common()
        ],
        "last": [letter.as_dict() for letter in latest],
    }
    session.emit(data, lambda: _tables(counts, latest, replayed))


@dlq.command(
    "replay",
    epilog="""\b
Examples:
  gridstead dlq replay                           everything not replayed before
  gridstead dlq replay --reason 'end_time'       what failed for one reason, after a fix
  gridstead dlq replay 0:17 0:18                 these two, by place""",
)
@click.argument("places", nargs=-1, metavar="[PARTITION:OFFSET]...")
@click.option("--source", help=f"Only from this entrance: {_UDP_SOURCE}, stomp, replay.")
@click.option("--reason", "pattern", help="Only reasons that match this regular expression.")
@click.option("--all", "again", is_flag=True, help="Also what was replayed before.")
@click.option("--dry-run", is_flag=True, help="Say what would be sent, send nothing.")
@command
def replay_letters(
    session: Session, places: tuple[str, ...], source: str | None, pattern: str | None, again: bool, dry_run: bool
) -> None:
    """Send raw bytes to the raw queue again: messages, and packets for the host that had sent them.

    What was replayed is remembered in Kafka, so that a second call sends nothing twice. What still cannot be read
    becomes a new dead letter. Never replayed are bytes that were not kept whole, and packets that gave events: only
    some of their records were refused.
    """
    wanted = _filter(source, pattern, places)
    config, topic = session.config, session.config.kafka.deadletter_topic
    counts: Counter[str] = Counter(packets=0, messages=0, replayed_before=0, not_replayable=0)
    try:
        with kafkalog.consumer(config, GROUP) as opened:
            bounds = kafkalog.bounds(opened, topic)
            progress = Progress(opened, topic, bounds)
            batch: list[Letter] = []
            chosen = []
            for letter in _letters(opened, topic, bounds):
                if not wanted(letter):
                    continue
                if progress.is_done(letter) and not again:
                    counts["replayed_before"] += 1
                elif letter.raw is None or letter.truncated or letter.partial:
                    counts["not_replayable"] += 1
                else:
                    chosen.append(letter.place)
                    batch.append(letter)
                if len(batch) >= _BATCH:
                    counts += _send(config, progress, batch, dry_run)
                    batch = []
            counts += _send(config, progress, batch, dry_run)
    except kafkalog.KafkaError as error:
        raise unreachable(f"Kafka (topic {topic})", error, "kafka") from error
    names = ("packets", "messages", "replayed_before", "not_replayable")
    data = {name: counts[name] for name in names} | {"dry_run": dry_run, "places": chosen}
    session.emit(data, lambda: _summary(counts, dry_run))


def _send(config: Config, progress: Progress, batch: list[Letter], dry_run: bool) -> Counter[str]:
    packets = sum(letter.source == _UDP_SOURCE for letter in batch)
    counts = Counter(packets=packets, messages=len(batch) - packets)
    if dry_run or not batch:
        return counts
    try:
        with Broker(stomp_client(config)) as broker:
            for headers in dict.fromkeys(map(_headers, batch)):
                alike = [letter for letter in batch if _headers(letter) == headers]
                broker.send(config.stomp.raw_queue, [letter.raw or b"" for letter in alike], dict(headers))
                progress.commit(alike)
    except BrokerError as error:
        raise unreachable("The broker", error, "activemq") from error
    return counts


def _headers(letter: Letter) -> tuple[tuple[str, str], ...]:
    if letter.source == _UDP_SOURCE:
        return ((PACKET_HEADER, letter.origin),)
    return () if letter.header is None else ((SOURCE_HEADER, letter.header),)


def _letters(opened: Consumer, topic: str, bounds: kafkalog.Bounds) -> Iterator[Letter]:
    begin = {number: low for number, (low, _) in bounds.items()}
    end = {number: high for number, (_, high) in bounds.items()}
    for message in kafkalog.records(opened, topic, begin, end):
        yield _letter(message)


def _letter(message: Message) -> Letter:
    value = message.value()
    return parse(message.partition() or 0, message.offset() or 0, value if isinstance(value, bytes) else None)


def _newest(letters: list[Letter], count: int) -> list[Letter]:
    return (
        sorted(letters, key=lambda letter: (letter.received_ms, letter.partition, letter.offset))[-count:]
        if count
        else []
    )


def _filter(source: str | None, pattern: str | None, places: tuple[str, ...]) -> Any:
    wrong = [place for place in places if not re.fullmatch(r"\d+:\d+", place)]
    if wrong:
        raise Failure(f"{wrong[0]!r} is not PARTITION:OFFSET", "gridstead dlq list", EXIT_USAGE)
    try:
        expression = re.compile(pattern) if pattern else None
    except re.error as error:
        what = f"--reason {pattern!r} is not a regular expression ({error})"
        raise Failure(what, "gridstead dlq list", EXIT_USAGE) from error

    def wanted(letter: Letter) -> bool:
        return (
            (source is None or letter.source == source)
            and (expression is None or expression.search(letter.reason) is not None)
            and (not places or letter.place in places)
        )

    return wanted


def _tables(counts: Counter[tuple[str, str]], latest: list[Letter], replayed: int) -> RenderableType:
    if not counts:
        return "No dead letters."
    title = f"{exact(sum(counts.values()))} dead letters, {exact(replayed)} of them replayed"
    reasons = Table(title=title, title_justify="left")
    reasons.add_column("count", justify="right")
    reasons.add_column("source", no_wrap=True)
    reasons.add_column("reason", overflow="fold")
    for (source, reason), count in counts.most_common():
        reasons.add_row(exact(count), source, Text(reason))
    if not latest:
        return reasons
    last = Table(title="The latest", title_justify="left")
    for name in ("place", "received", "source", "origin", "bytes", "reason", "begins with"):
        last.add_column(name, overflow="fold")
    for letter in latest:
        size = "unreadable" if letter.raw is None else exact(len(letter.raw)) + (" (cut)" if letter.truncated else "")
        row = [letter.place, utc(letter.received_ms), letter.source, letter.origin, size, letter.reason]
        last.add_row(*map(Text, row), Text(_preview(letter.raw or b"")))
    return Group(reasons, last)


def _preview(raw: bytes) -> str:
    head = raw[:_PREVIEW_BYTES]
    return "".join(chr(byte) if 32 <= byte < 127 else "·" for byte in head) + ("…" if len(raw) > len(head) else "")


def _summary(counts: Counter[str], dry_run: bool) -> str:
    verb = "Would send" if dry_run else "Sent"
    text = f"{verb} {exact(counts['packets'])} packets and {exact(counts['messages'])} messages to their entrance."
    if counts["replayed_before"]:
        text += f" {exact(counts['replayed_before'])} were replayed before: --all sends them again."
    if counts["not_replayable"]:
        why = "their raw bytes are cut or unreadable, or they gave events already"
        text += f" {exact(counts['not_replayable'])} cannot be sent: {why}."
    return text
