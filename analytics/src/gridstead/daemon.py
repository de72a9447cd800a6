"""What the daemons share: their command line, their log, and the loop of those that work until told to stop."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import time
from collections.abc import Callable
from typing import Final, Protocol

from gridstead.collector.status import Answer, serve
from gridstead.config import Config, ConfigError, load

EXIT_CONFIG: Final = 78
"""The configuration cannot be used (EX_CONFIG of sysexits.h): starting the daemon again does not help."""


class Worker(Protocol):
    """What :func:`work` runs."""

    def run(self) -> None:
        """Work until :meth:`stop`."""

    def stop(self) -> None:
        """End :meth:`run`; called in a signal handler."""

    def health(self) -> Answer:
        """The page /health."""

    def metrics(self) -> Answer:
        """The page /metrics.json."""


def log_to_stderr(name: str) -> None:
    """Log lines of note to stderr, one a line, with ISO time in UTC and the daemon's name."""
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format=f"%(asctime)s.%(msecs)03dZ {name} %(levelname)s %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
        force=True,
    )


def start(name: str, description: str | None) -> str:
    """Read the command line (``--config FILE``), begin the log, and return the configuration's path."""
    parser = argparse.ArgumentParser(prog=f"python -m gridstead.{name}", description=description)
    parser.add_argument("--config", metavar="FILE", required=True, help="gridstead.toml of the appliance")
    arguments = parser.parse_args()
    log_to_stderr(name)
    return str(arguments.config)


def work(name: str, description: str | None, section: str, make: Callable[[Config], Worker]) -> int:
    """Run a daemon until SIGTERM or SIGINT, with its pages where ``section`` of the configuration says.

    Returns the exit code: 78 for a configuration that cannot be used, 1 for another failure.
    """
    log = logging.getLogger(f"gridstead.{name}")
    path = start(name, description)
    try:
        config = load(path)
    except ConfigError as error:
        log.critical("%s", error)
        return EXIT_CONFIG
    worker = make(config)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: worker.stop())
    page = getattr(config, section)
    try:
        server = serve(page.bind, page.status_port, {"/health": worker.health, "/metrics.json": worker.metrics})
    except OSError as error:
        where = f"{page.bind}:{page.status_port}"
        log.critical("status page on %s: %s: change %s.status_port in %s", where, error, section, config.path)
        return 1
    worker.run()
    server.shutdown()
    return 0
