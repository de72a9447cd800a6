"""The upkeep of the archive: compact, retain, verify, and give up positions that are lost for good.

Each subcommand prints one JSON object when it is done; progress goes to standard error. Exit status: 0 done, 1 there
are findings, or something was refused or failed, 2 wrong use or configuration. Nothing here hinders the stream or
readers, and everything may be killed and started again.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from pyspark.sql import SparkSession

from gridstead import config as configuration
from gridstead.archive.compaction import Compaction, Compactor
from gridstead.archive.manifest import ArchiveError, Positions, positions_of
from gridstead.archive.retention import Retention, retain
from gridstead.archive.verify import Verifier
from gridstead.archive.writer import ArchiveWriter
from gridstead.jobs.session import log_to_stderr, session

log = logging.getLogger("gridstead.archive")

SETTINGS = {
    "spark.ui.enabled": "false",
    "spark.sql.shuffle.partitions": "8",
    "spark.sql.files.openCostInBytes": "262144",  # the files of the stream are small: many of them make one task
}
HOUR_MS = 3_600_000

Answer = tuple[dict[str, Any], int]


def compact(cfg: configuration.Config, spark: SparkSession, below: Positions | None) -> Answer:
    """Merge small files by the settings of [archive]; ``below``: leave what is not wholly before these positions."""
    archive = cfg.archive
    settings = Compaction(
        target_bytes=archive.target_mb << 20,
        min_age_ms=archive.compact_after_h * HOUR_MS,
        grace_ms=archive.grace_h * HOUR_MS,
        below=below,
    )
    done = Compactor(spark, cfg.stream.archive, settings, log.info).run()
    return asdict(done), 1 if done.refused else 0


def keep(cfg: configuration.Config, spark: SparkSession) -> Answer:
    """Give up the days that are older than [archive] says."""
    settings = Retention(
        cfg.archive.retention_days, cfg.archive.malformed_retention_days, cfg.archive.grace_h * HOUR_MS
    )
    today = dt.datetime.now(dt.UTC).date()
    return asdict(retain(spark, cfg.stream.archive, settings, today, log.info)), 0


def verify(cfg: configuration.Config, spark: SparkSession) -> Answer:
    """Check every file, row and position."""
    found = Verifier(spark, cfg.stream.archive, log.info).run()
    return asdict(found), 1 if found.findings else 0


def accept_gap(cfg: configuration.Config, spark: SparkSession, topic: str, partition: int, upto: int) -> Answer:
    """Go on at an offset although the ones before it are not archived; a running stream starts anew."""
    writer = ArchiveWriter(spark, cfg.stream.archive, f"{cfg.stream.checkpoint.rstrip('/')}/archive")
    manifest = writer.accept_gap(topic, partition, upto)
    return {"given_up": manifest.ranges, "positions": manifest.absent}, 0


def _positions(text: str) -> Positions:
    try:
        return positions_of(json.loads(text))
    except (ValueError, AttributeError, TypeError) as error:
        raise argparse.ArgumentTypeError(f'{text!r} is not like {{"topic": {{"0": 123}}}}') from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gridstead-archive", description="Upkeep of the archive of events.")
    parser.add_argument(
        "--config", metavar="FILE", help="gridstead.toml (default: as found by every gridstead command)"
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    merging = verbs.add_parser("compact", help="merge small files into large ones")
    merging.add_argument("--below", type=_positions, metavar="JSON", help="only commits wholly before these positions")
    verbs.add_parser("retain", help="delete the days that are older than configured")
    verbs.add_parser("verify", help="check every file, row and position")
    gap = verbs.add_parser("accept-gap", help="give up positions that are lost for good")
    gap.add_argument("topic")
    gap.add_argument("partition", type=int)
    gap.add_argument("upto", type=int, metavar="OFFSET", help="the first offset that comes after the gap")
    return parser


def _work(options: argparse.Namespace, cfg: configuration.Config) -> Callable[[SparkSession], Answer]:
    if options.verb == "compact":
        return lambda spark: compact(cfg, spark, options.below)
    if options.verb == "retain":
        return lambda spark: keep(cfg, spark)
    if options.verb == "verify":
        return lambda spark: verify(cfg, spark)
    return lambda spark: accept_gap(cfg, spark, options.topic, options.partition, options.upto)


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the application."""
    options = _parser().parse_args(arguments)
    log_to_stderr("archive")
    try:
        cfg = configuration.load(options.config)
    except configuration.ConfigError as error:
        log.error("%s", error)
        return 2
    began = time.monotonic()
    spark = session(f"gridstead-archive-{options.verb}", "local[*]", SETTINGS)
    spark.sparkContext.setLogLevel("ERROR")
    try:
        answer, status = _work(options, cfg)(spark)
    except ArchiveError as error:
        log.error("%s", error)
        print(json.dumps({"error": str(error)}), flush=True)
        return 1
    finally:
        spark.stop()
    print(json.dumps(answer | {"seconds": round(time.monotonic() - began, 1)}), flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
