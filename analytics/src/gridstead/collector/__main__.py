"""``python -m gridstead.collector --config FILE``: receive access records and queue them for the broker."""

from __future__ import annotations

import logging
import os
import sys

from gridstead.collector.parent import ParentError, run_parent
from gridstead.collector.store import StoreError
from gridstead.collector.worker import SOCKET_ENVIRONMENT, WorkerError, run_worker
from gridstead.config import ConfigError, load
from gridstead.daemon import EXIT_CONFIG, start
from gridstead.pseudonyms import KeyringError


def main() -> int:
    """Run the daemon, as parent or (started by a parent) as worker; returns the exit code."""
    path = start("collector", __doc__)
    log = logging.getLogger("gridstead.collector")
    try:
        config = load(path)
        if SOCKET_ENVIRONMENT in os.environ:
            run_worker(config)
            return 0
        return run_parent(config)
    except (ConfigError, KeyringError, StoreError) as error:
        log.critical("%s", error)
        return EXIT_CONFIG
    except (ParentError, WorkerError) as error:
        log.critical("%s", error)
        return 1


if __name__ == "__main__":
    sys.exit(main())
