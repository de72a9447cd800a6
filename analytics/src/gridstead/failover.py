"""``python -m gridstead.failover --config FILE --section NAME -- COMMAND …``: one service, on one of several gateways.

Every gateway starts this in the service's place. The one that holds the service's lock in ZooKeeper runs the command;
the others stand by, and answer at the service's own page: /health for themselves, /metrics.json with what the holder
says. When the holder's command ends, its host is lost, or ZooKeeper does not hear of it for ``failover.session_s``,
the next in the queue runs it. A holder that cannot reach ZooKeeper kills its command before its session can have ended.

The lock saves work, it is not what makes the counts exact: two streams at once, as after a holder that was stopped and
went on, are kept apart by the archive's positions and by the epoch of the served documents (docs/decisions/0007).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from typing import Any

from kazoo.client import KazooClient
from kazoo.exceptions import KazooException
from kazoo.protocol.states import KazooState
from kazoo.recipe.lock import Lock
from kazoo.retry import KazooRetry

from gridstead.collector.status import Answer, serve
from gridstead.config import Config, ConfigError, load
from gridstead.daemon import EXIT_CONFIG, log_to_stderr

SECTIONS = ("stream", "schedule")
LOOK_S = 0.2
PATIENCE = 4
"""A holder without a connection waits for this part of a session. Up to two thirds have passed by then: kazoo notices a
silent server after so long (kazoo.protocol.connection, read timeout)."""
NOTE_S = 30.0
GRACE_S = 3.0

log = logging.getLogger("gridstead.failover")


class Connection:
    """The session with ZooKeeper, as one who wants or holds a lock has to see it."""

    def __init__(self, config: Config) -> None:
        """Begin to connect; returns at once."""
        self._session_s = config.failover.session_s
        self._silent_since: float | None = None
        forever = KazooRetry(max_tries=-1, delay=0.2, max_delay=2.0)
        hosts = ",".join(config.failover.zookeeper)
        self.client = KazooClient(hosts=hosts, timeout=self._session_s, connection_retry=forever)
        self.client.add_listener(self._heard)
        self.client.start_async()

    def _heard(self, state: str) -> None:
        self._silent_since = None if state == KazooState.CONNECTED else time.monotonic()

    @property
    def connected(self) -> bool:
        """Whether a server of ZooKeeper answers."""
        return bool(self.client.connected)

    def holds(self, lock: Lock) -> int | None:
        """Number of the session in force if the lock's node is its own, else None. Raises KazooException."""
        identity = self.client.client_id
        node = self.client.exists(f"{lock.path}/{lock.node}")
        return identity[0] if identity and node is not None and node.ephemeralOwner == identity[0] else None

    def ended(self, session: int) -> bool:
        """Whether this session has ended, or may do so before long."""
        identity, silent = self.client.client_id, self._silent_since  # None while there is no connection
        if identity is not None and identity[0] != session:
            return True
        return silent is not None and time.monotonic() - silent > self._session_s / PATIENCE

    def close(self) -> None:
        """End the session, and with it the lock."""
        self.client.stop()
        self.client.close()


class Candidate:
    """One gateway's part in the election of a service, and the command that it runs when elected."""

    def __init__(self, config: Config, section: str, command: Sequence[str]) -> None:
        """``section`` of the configuration has the service's ``bind`` and ``status_port``."""
        page = getattr(config, section)
        self._bind, self._port = page.bind, page.status_port
        self._address = f"{page.bind}:{page.status_port}"
        self._path = f"/gridstead/{config.appliance.name}/{section}"
        self._config = config
        self._command = list(command)
        self._stopping = False
        self._connection: Connection
        self._lock: Lock
        self._session: int | None = None

    def stop(self) -> None:
        """End :meth:`run`, and the command; called in a signal handler."""
        self._stopping = True

    def run(self) -> int:
        """Stand by until elected, then run the command; returns its exit code, 0 if stopped, 1 if the lock was lost."""
        self._connection = Connection(self._config)
        self._lock = self._connection.client.Lock(self._path, self._address)
        try:
            self._stand_by()
            return 0 if self._session is None else self._lead(self._session)
        finally:
            self._connection.close()

    def _stand_by(self) -> None:
        """Wait until elected or stopped, with the pages of a standby."""
        server = serve(self._bind, self._port, {"/health": self.health, "/metrics.json": self.metrics})
        election = threading.Thread(target=self._elect, name="election", daemon=True)
        election.start()
        noted = time.monotonic() - NOTE_S + GRACE_S
        servers = ", ".join(self._config.failover.zookeeper)
        log.info("%s stands by; ZooKeeper is on %s", self._address, servers)
        try:
            while election.is_alive() and not self._stopping:
                election.join(LOOK_S)
                if not self._connection.connected and time.monotonic() - noted >= NOTE_S:
                    noted = time.monotonic()
                    log.warning("waiting for ZooKeeper: %s", servers)
        finally:
            server.shutdown()
            server.server_close()
        if self._stopping:
            self._session = None
            self._lock.cancel()

    def _elect(self) -> None:
        """The thread of a standby: queue for the lock until it is held, whatever happens to the connection."""
        while not self._stopping:
            if self._connection.connected:
                try:
                    if self._lock.acquire():
                        self._session = self._connection.holds(self._lock)
                        if self._session is not None:
                            return
                except KazooException as error:
                    log.info("the election begins anew: %s", type(error).__name__)
                self._lock = self._connection.client.Lock(self._path, self._address)
            time.sleep(LOOK_S)

    def _lead(self, session: int) -> int:
        """Run the command for as long as the lock is held."""
        log.info("%s is elected and runs %s", self._address, self._command[0])
        child = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, start_new_session=True)
        told = False
        try:
            while (code := child.poll()) is None:
                time.sleep(LOOK_S)
                if self._stopping and not told:
                    told = True
                    os.killpg(child.pid, signal.SIGTERM)
                if self._connection.ended(session):
                    log.error("ZooKeeper is out of reach, so another may be elected: the command is killed")
                    return 1
        finally:
            _kill_group(child)
        if self._stopping:
            return 0
        log.error("the command ended with exit code %d: another gateway is elected", code)
        return code if code >= 0 else 128 - code

    def _holder(self) -> str:
        """Address of the page of who holds the lock; empty where nobody does, or ZooKeeper does not answer."""
        try:
            return str(next(iter(self._lock.contenders()), ""))
        except KazooException:
            return ""

    def health(self) -> Answer:
        """The page /health of a standby: 200 while it would take over, with whom it stands by for; else 503."""
        holder = self._holder() if self._connection.connected else ""
        if not holder:
            return 503, {"healthy": False, "reason": "ZooKeeper is out of reach"}
        return 200, {"healthy": True, "standby": holder}

    def metrics(self) -> Answer:
        """The page /metrics.json of a standby: what the holder answers there; 503 where it does not."""
        holder = self._holder() if self._connection.connected else ""
        if holder in ("", self._address):
            return 503, {"reason": "nobody is elected yet"}
        try:
            with urllib.request.urlopen(f"http://{holder}/metrics.json", timeout=3) as answer:
                document: dict[str, Any] = json.loads(answer.read())
        except (OSError, ValueError) as error:
            return 503, {"reason": f"{holder}, which is elected, does not answer: {error}"}
        return 200, {**document, "standby": holder}


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a command and of all that it started."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    child.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT; returns the exit code: 78 for a configuration that cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m gridstead.failover", description=__doc__)
    parser.add_argument("--config", metavar="FILE", required=True, help="gridstead.toml of the appliance")
    parser.add_argument("--section", choices=SECTIONS, required=True, help="section that has the service's page")
    parser.add_argument("command", metavar="COMMAND", nargs="+", help="what runs where this host is elected")
    options = parser.parse_args(arguments)
    log_to_stderr("failover")
    logging.getLogger("kazoo").setLevel(
        logging.CRITICAL
    )  # it repeats every attempt to connect; what matters is said here
    try:
        config = load(options.config)
        if not config.failover.zookeeper:
            raise ConfigError([f"{config.path}: failover.zookeeper names no server: run `site.yml` to render it anew"])
    except ConfigError as error:
        log.critical("%s", error)
        return EXIT_CONFIG
    candidate = Candidate(config, options.section, options.command)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: candidate.stop())
    try:
        return candidate.run()
    except OSError as error:
        log.critical("%s: change %s.status_port in %s, or what runs there", error, options.section, config.path)
        return 1


if __name__ == "__main__":
    sys.exit(main())
