"""``gridstead status``: every service, the lag of each stage, events in and out."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import click
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gridstead.cli import batch, pipeline, supervision
from gridstead.cli.pipeline import Snapshot
from gridstead.cli.session import EXIT_FAILED, Failure, Session, command
from gridstead.cli.supervision import ServiceState
from gridstead.cli.units import exact, human_bytes, human_seconds


@click.command(
    epilog="""\b
Examples:
  gridstead status
  gridstead status --json | jq '.pipeline.backlog'"""
)
@command
def status(session: Session) -> None:
    """Show every service (supervisor, health, memory) and the path of events (in, out, lag).

    Exits with 1 where a service is not healthy; lag alone is no fault.
    """
    config = session.config
    with ThreadPoolExecutor(max_workers=2) as pool:
        services_later = pool.submit(supervision.services, config)
        snapshot_later = pool.submit(pipeline.snapshot, config)
        services, snapshot = services_later.result(), snapshot_later.result()
    try:
        fresh = batch.freshness(session)
        batches = batch.in_words(fresh)
    except Failure as failure:
        fresh, batches = {"problem": failure.message}, f"Batch: {failure.message}."
    sick = [service for service in services if not service.healthy]
    memory = sum(service.rss_bytes or 0 for service in services)
    data = {
        "appliance": config.appliance.name,
        "config": str(config.path),
        "healthy": not sick,
        "rss_bytes": memory,
        "services": [service.as_dict() for service in services],
        "pipeline": snapshot.as_dict(),
        "batch": fresh,
    }
    session.emit(data, lambda: Group(_screen(config.appliance.name, services, memory, snapshot), Text(batches)))
    if sick:
        if not session.as_json:
            click.echo(f"not healthy: {supervision.names(sick)}\nnext:  gridstead doctor", err=True)
        sys.exit(EXIT_FAILED)


def _screen(name: str, services: list[ServiceState], memory: int, snapshot: Snapshot) -> RenderableType:
    return Group(_services(name, services, memory), Text(), _stages(snapshot))


def _services(name: str, services: list[ServiceState], memory: int) -> Table:
    table = Table(title=f"Services of {name}", title_justify="left", show_footer=True)
    table.add_column("service", no_wrap=True, footer=f"{len(services)} services")
    table.add_column("state", no_wrap=True)
    table.add_column("health", footer=f"{sum(service.healthy for service in services)} healthy", overflow="fold")
    table.add_column("pid", justify="right", no_wrap=True)
    table.add_column("uptime", justify="right", no_wrap=True)
    table.add_column("memory", justify="right", no_wrap=True, footer=human_bytes(memory))
    table.add_column("web", overflow="fold")
    for service in services:
        word = service.reason or ("ok" if service.healthy else "not healthy")
        health = Text(word, style="green" if service.healthy else "red")
        table.add_row(
            service.name,
            service.state.lower(),
            health,
            str(service.pid or ""),
            human_seconds(service.uptime_s) if service.uptime_s is not None else "",
            human_bytes(service.rss_bytes) if service.rss_bytes is not None else "",
            service.web or "",
        )
    return table


def _stages(snapshot: Snapshot) -> RenderableType:
    table = Table(title="Path of events", title_justify="left")
    for column in ("in", "out", "lag"):
        if column == "in":
            table.add_column("stage", no_wrap=True)
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("note", overflow="fold")
    for stage in snapshot.stages:
        unknown = "?" if stage.problem else ""
        values = (stage.events_in, stage.events_out, stage.lag)
        row = [exact(value) if value is not None else unknown for value in values]
        lag = Text(row[2], style="yellow" if stage.lag else "")
        note = Text(stage.problem, style="red") if stage.problem else _note(stage)
        table.add_row(stage.name, row[0], row[1], lag, note)
    fresh = snapshot.freshness_s
    backlog = snapshot.backlog
    line = "Backlog: " + (exact(backlog) if backlog is not None else "unknown")
    line += f"; newest event received {human_seconds(fresh)} ago." if fresh is not None else "; no event received yet."
    return Group(table, Text(line))


def _note(stage: pipeline.Stage) -> str:
    detail = stage.detail
    if stage.name == "collector":
        parts = [f"{exact(detail[name] or 0)} {text}" for name, text in _COLLECTOR if detail.get(name)]
        return ", ".join(parts)
    if stage.name == "broker":
        return ", ".join(f"{name} {exact(depth)}" for name, depth in detail["depth"].items() if depth)
    if stage.name == "log":
        return f"{exact(detail['events'])} events, {exact(detail['dead_letters'])} dead letters"
    if stage.service == "stream":
        took = detail.get("batch_duration_ms")
        return f"out: {detail['unit_out']}" + (f"; last micro-batch {took} ms" if took is not None else "")
    if stage.name == "serving":
        return "out: documents"
    return f"since its {stage.since}" if stage.since == "start" else ""


_COLLECTOR = (
    ("packets", "packets"),
    ("messages", "messages"),
    ("packets_bad", "bad packets"),
    ("dead_letters", "dead letters"),
    ("dropped_full", "dropped, queue full"),
    ("kernel_drops", "dropped by the kernel"),
)
