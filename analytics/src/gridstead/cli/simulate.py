"""``gridstead simulate``: realistic events from a seed, to a file or straight into the appliance."""

from __future__ import annotations

import base64
import gzip
import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, cast

import click

from gridstead import simulate as generator
from gridstead import simulate_transfers as transfers
from gridstead.cli.broker import BrokerError
from gridstead.cli.packets import SendError
from gridstead.cli.replay import drain, not_drained
from gridstead.cli.sending import EventSender, Meter, Pace, Sink, packet_sender, send_all
from gridstead.cli.session import EXIT_INTERRUPTED, EXIT_USAGE, Failure, Session, command, unreachable
from gridstead.cli.units import Moment, exact, human_bytes, utc

_KINDS = ("access", "packets", "fts", "rucio")
_FRACTIONS = {
    "duplicates": (0.05, "come twice or more"),
    "late": (0.02, "come up to six hours late"),
    "future": (0.002, "have a clock a year ahead"),
    "missing_open": (0.03, "have lost their open"),
    "invalid": (0.0, "records that must be refused, beside the events"),
}


def _fractions(function: Any) -> Any:
    for name, (default, meaning) in reversed(_FRACTIONS.items()):
        option = f"--{name.replace('_', '-')}"
        kind = click.FloatRange(0, 1)
        help_text = f"Fraction: {meaning}."
        function = click.option(option, name, default=default, show_default=True, type=kind, help=help_text)(function)
    return function


@click.command(
    epilog="""\b
Examples:
  gridstead simulate --events 1000 -o sample.jsonl.gz
  gridstead simulate --events 100000 --seed 7 --send --wait
  gridstead simulate --kind packets --events 5000 --send    XRootD packets over UDP
  gridstead simulate --kind fts --events 5000 --send        transfers between storages"""
)
@click.option("--events", default=10_000, show_default=True, type=click.IntRange(1), help="Distinct events.")
@click.option("--seed", default=1, show_default=True, help="The same seed and options give the same output.")
@click.option("--start", "start_ms", type=Moment(), help="First end of an event, UTC (default: --span before now).")
@click.option("--span", "span_s", default=86_400, show_default=True, type=click.IntRange(1), help="Seconds covered.")
@_fractions
@click.option("--kind", default="access", show_default=True, type=click.Choice(_KINDS), help="What is simulated.")
@click.option("--output", "-o", type=click.Path(path_type=Path), help="File (.gz is zipped); default: standard output.")
@click.option("--send", is_flag=True, help="Send to the appliance instead of writing.")
@click.option("--rate", default=0.0, type=click.FloatRange(0), help="With --send: messages a second.")
@click.option("--wait", is_flag=True, help="With --send: wait until everything is served.")
@click.option("--timeout", default=300.0, show_default=True, help="Seconds to wait for a server, and for --wait.")
@command
def simulate(
    session: Session,
    events: int,
    seed: int,
    start_ms: int | None,
    span_s: int,
    kind: str,
    output: Path | None,
    send: bool,
    rate: float,
    wait: bool,
    timeout: float,
    **fractions: float,
) -> None:
    """Generate events as they come: over hours, twice, late, with wrong clocks and lost opens.

    The output is what ``gridstead replay`` reads. Of packets only --missing-open and --duplicates apply, of fts and
    rucio only --duplicates and --late.
    """
    if send and output:
        raise Failure("--send and --output exclude each other", "gridstead simulate --help", EXIT_USAGE)
    begin = start_ms if start_ms is not None else (int(time.time()) - span_s) // 60 * 60_000
    packets = kind == "packets"
    source = _source(kind, seed, events, begin, span_s, fractions)
    summary: dict[str, Any] = {"seed": seed, "start_ms": begin, "span_s": span_s, "distinct_events": events}
    if not send:
        try:
            summary |= _write(source, packets, output)
        except OSError as error:
            what = f"{output or 'standard output'} cannot be written ({error.strerror})"
            raise Failure(what, "gridstead simulate --help", EXIT_USAGE) from error
        if output:
            session.emit(summary, lambda: _sentence(summary))
        else:
            session.log.print(json.dumps(summary) if session.as_json else _sentence(summary))
        return
    meter = Meter(session.log, None, "simulate")
    messages = source if packets else (json.dumps(record).encode() for record in source)
    note = session.log.print
    try:
        with ExitStack() as stack:
            sink: Sink
            if packets:
                sink = stack.enter_context(packet_sender(session.config, timeout, note))
            else:
                events_sink = EventSender(session.config, rate=rate, patience_s=timeout, note=note)
                sink = stack.enter_context(events_sink)
            sent = send_all([(sink, cast(Iterator[bytes], messages))], Pace(rate), meter)
    except SendError as error:
        raise unreachable("The collector", error, "collector") from error
    except BrokerError as error:
        raise unreachable("The broker", error, "activemq") from error
    summary |= sent.as_dict() | {"refused": getattr(source, "refused", 0)}
    summary["drained"], holding = drain(session, timeout) if wait and not sent.interrupted else (None, [])
    session.emit(summary, lambda: _sentence(summary))
    if sent.interrupted:
        sys.exit(EXIT_INTERRUPTED)
    if summary["drained"] is False:
        raise not_drained(timeout, holding)


def _source(kind: str, seed: int, events: int, begin: int, span_s: int, fractions: dict[str, float]) -> Any:
    if kind in ("fts", "rucio"):
        simulation = transfers.FtsSimulation if kind == "fts" else transfers.RucioSimulation
        some = {name: fractions[name] for name in ("duplicates", "late")}
        return simulation(seed, events, begin, span_s, **some)
    if kind == "packets":
        missing, repeat = fractions["missing_open"], fractions["duplicates"]
        return generator.simulate_packets(seed, events, begin, span_s, missing_open=missing, repeat=repeat)
    return generator.simulate(seed, events, begin, span_s, **fractions)


def _write(source: Any, packets: bool, output: Path | None) -> dict[str, Any]:
    count = size = 0
    with ExitStack() as stack:
        if output is None:
            file: IO[bytes] = sys.stdout.buffer
        elif output.suffix == ".gz":
            file = stack.enter_context(cast(IO[bytes], gzip.GzipFile(output, "wb", mtime=0)))
        else:
            file = stack.enter_context(output.open("wb"))
        for item in source:
            record = {"data": base64.b64encode(item).decode(), "remote": None} if packets else item
            line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
            file.write(line)
            count += 1
            size += len(line)
        file.flush()
    refused = getattr(source, "refused", 0)
    return {"messages": count, "bytes": size, "refused": refused, "output": str(output) if output else None}


def _sentence(summary: dict[str, Any]) -> str:
    verb = "Sent" if "drained" in summary else "Wrote"
    text = f"{verb} {exact(summary['messages'])} messages ({human_bytes(summary['bytes'])})"
    text += f" of {exact(summary['distinct_events'])} distinct events, seed {summary['seed']},"
    text += f" from {utc(summary['start_ms'])}"
    if summary["refused"]:
        text += f"; {exact(summary['refused'])} of them must be refused"
    return text + ("; all of it is served." if summary.get("drained") else ".")
