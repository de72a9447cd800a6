"""``python -m gridstead.collector --config FILE``: receive access records and queue them for the broker."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time

from gridstead.collector.parent import EXIT_CONFIG, ParentError, run_parent
from gridstead.collector.store import StoreError
from gridstead.collector.worker import SOCKET_ENVIRONMENT, WorkerError, run_worker
from gridstead.config import ConfigError, load


def main() -> int:
    """Run the daemon, as parent or (started by a parent) as worker; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m gridstead.collector", description=__doc__)
    parser.add_argument("--config", metavar="FILE", required=True, help="gridstead.toml of the appliance")
    arguments = parser.parse_args()
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format="%(asctime)s.%(msecs)03dZ collector %(levelname)s %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )
    log = logging.getLogger("gridstead.collector")
    try:
        config = load(arguments.config)
        if SOCKET_ENVIRONMENT in os.environ:
            run_worker(config)
            return 0
        return run_parent(config)
    except (ConfigError, StoreError) as error:
        log.critical("%s", error)
        return EXIT_CONFIG
    except (ParentError, WorkerError) as error:
        log.critical("%s", error)
        return 1


if __name__ == "__main__":
    sys.exit(main())
