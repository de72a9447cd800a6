"""``gridstead replay``: send recorded events or captured packets into the appliance."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from gridstead.cli import recorded
from gridstead.cli.broker import BrokerError
from gridstead.cli.packets import SendError
from gridstead.cli.pipeline import Snapshot, wait_until_drained
from gridstead.cli.recorded import Kind, Recording
from gridstead.cli.sending import EventSender, Meter, Pace, Sink, packet_sender, send_all
from gridstead.cli.session import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, Failure, Session, command, unreachable
from gridstead.cli.units import exact, human_bytes, human_seconds


@click.command(
    epilog="""\b
Examples:
  gridstead replay capture.jsonl --wait             captured packets, until they are served
  gridstead replay events.jsonl.gz --rate 250       250 events a second
  zcat old/*.gz | gridstead replay -                from a pipe"""
)
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--rate", default=0.0, type=click.FloatRange(0), help="Messages a second (default: as fast as taken).")
@click.option("--repeat", default=1, show_default=True, type=click.IntRange(1), help="Send everything so many times.")
@click.option("--limit", type=click.IntRange(1), help="Stop after so many messages.")
@click.option("--as", "kind", type=click.Choice([str(kind) for kind in Kind]), help="Do not guess; events unchecked.")
@click.option("--wait", is_flag=True, help="Wait until everything has gone through and is served.")
@click.option("--timeout", default=300.0, show_default=True, help="Seconds to wait for a server, and for --wait.")
@command
def replay(
    session: Session,
    files: tuple[Path, ...],
    rate: float,
    repeat: int,
    limit: int | None,
    kind: str | None,
    wait: bool,
    timeout: float,
) -> None:
    """Send recorded input: JSON lines of file-access events, or captured XRootD packets; plain or gzip, - for a pipe.

    Which of the two a file holds is found from its content. Every line is checked before anything is sent. Events go to
    the broker in transactions, packets over UDP to the collector; while a server is away, replay waits and sends again.
    """
    with ExitStack() as stack:
        recordings = [_inspect(_spooled(file, stack), kind, file) for file in files]
        total = sum(recording.count for recording in recordings) * repeat
        meter = Meter(session.log, min(total, limit) if limit else total, "replay")
        note = session.log.print
        kinds = {recording.kind for recording in recordings}
        sinks: dict[Kind, Sink] = {}
        if Kind.EVENTS in kinds:
            events = EventSender(session.config, rate=rate, patience_s=timeout, note=note)
            sinks[Kind.EVENTS] = stack.enter_context(events)
        if Kind.PACKETS in kinds:
            sinks[Kind.PACKETS] = stack.enter_context(packet_sender(session.config, timeout, note))
        streams = ((sinks[item.kind], messages) for item, messages in _in_order(recordings, repeat, limit))
        try:
            sent = send_all(streams, Pace(rate), meter)
        except SendError as error:
            raise _failed(meter, unreachable("The collector", error, "collector")) from error
        except BrokerError as error:
            raise _failed(meter, unreachable("The broker", error, "activemq")) from error
    summary: dict[str, Any] = {"files": [str(file) for file in files], **sent.as_dict()}
    summary["drained"], holding = drain(session, timeout) if wait and not sent.interrupted else (None, [])
    session.emit(summary, lambda: _sentence(summary))
    if sent.interrupted:
        sys.exit(EXIT_INTERRUPTED)
    if summary["drained"] is False:
        raise not_drained(timeout, holding)


def drain(session: Session, timeout_s: float) -> tuple[bool, list[str]]:
    """Wait until the pipeline is drained, telling now and then what it holds: whether it is, and what it held last."""
    shown_at, shown = 0.0, ""

    def note(snapshot: Snapshot) -> None:
        nonlocal shown_at, shown
        text = ", ".join(snapshot.holding)
        if text and text != shown and time.monotonic() - shown_at > 2:
            shown_at, shown = time.monotonic(), text
            session.log.print(f"waiting: {text}", soft_wrap=True)

    try:
        done, last = wait_until_drained(session.config, timeout_s, note)
    except KeyboardInterrupt:
        return False, ["interrupted while waiting"]
    return done, last.holding


def not_drained(timeout_s: float, holding: list[str]) -> Failure:
    """Make the Failure for a pipeline that still holds events after the timeout."""
    what = f"everything was sent, but not all of it is served after {human_seconds(timeout_s)}"
    what += f" ({'; '.join(holding)})" if holding else " (events are still coming)"
    return Failure(what, "gridstead status    # shows the stage that lags", EXIT_FAILED)


def _in_order(
    recordings: list[Recording], repeat: int, limit: int | None
) -> Iterator[tuple[Recording, Iterator[bytes]]]:
    """Go through the files as often as asked, until the limit is reached."""
    left = limit
    for _ in range(repeat):
        for recording in recordings:
            if left is not None and left <= 0:
                return
            count = recording.count if left is None else min(left, recording.count)
            if left is not None:
                left -= count
            yield recording, _first(recorded.messages(recording), count)


def _first(messages: Iterator[bytes], count: int) -> Iterator[bytes]:
    for _, message in zip(range(count), messages, strict=False):
        yield message


def _inspect(path: Path, kind: str | None, shown: Path) -> Recording:
    try:
        return recorded.inspect(path, Kind(kind) if kind else None)
    except recorded.InputError as error:
        what = str(error).replace(str(path), str(shown), 1)
        raise Failure(what, "gridstead replay --help", EXIT_USAGE) from error


def _spooled(path: Path, stack: ExitStack) -> Path:
    """Copy standard input to a file, so that it can be checked before it is sent."""
    if str(path) != "-":
        return path
    spool = stack.enter_context(tempfile.NamedTemporaryFile(prefix="gridstead-replay-"))
    shutil.copyfileobj(sys.stdin.buffer, spool)
    spool.flush()
    return Path(spool.name)


def _failed(meter: Meter, failure: Failure) -> Failure:
    what = f"{failure.message}; {exact(meter.messages)} messages were sent before, the last batch of them perhaps not"
    return Failure(what, failure.next_command, failure.exit_code)


def _sentence(summary: dict[str, Any]) -> str:
    text = f"Sent {exact(summary['messages'])} messages, {human_bytes(summary['bytes'])}, in {summary['seconds']:.1f} s"
    if summary["resent"]:
        text += f" ({exact(summary['resent'])} of them again after an interruption)"
    if summary["stalled_s"] >= 1:
        text += f"; nothing was taken for {summary['stalled_s']:.1f} s at the most"
    if summary["interrupted"]:
        text += "; interrupted"
    if summary["drained"]:
        text += "; all of it is served"
    return text + "."
