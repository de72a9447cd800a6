"""What the daemons share: their command line and their log."""

from __future__ import annotations

import argparse
import logging
import sys
import time


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
