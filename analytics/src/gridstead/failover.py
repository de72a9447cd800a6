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
from kazoo.exceptions import KazooException, LockTimeout
from kazoo.handlers.threading import SequentialThreadingHandler
from kazoo.recipe.lock import Lock
from kazoo.retry import KazooRetry

from gridstead.collector.status import Answer, serve
from gridstead.config import Config, ConfigError, load
from gridstead.daemon import EXIT_CONFIG, log_to_stderr

SECTIONS = ("stream", "schedule")
LOOK_S = 0.2
PATIENCE = 0.85
"""A holder of whom ZooKeeper has not heard for this part of a session gives up; the rest is for killing the command."""
ASKED_A_SESSION = 8
CONNECT_S = 2.0
"""A server that does not take a connection for so long is passed over: kazoo would wait for a whole session."""
QUEUE_S = 600.0
DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")
"""What is before a command that must not outlive this process (util-linux)."""
NOTE_S = 30.0
GRACE_S = 3.0

log = logging.getLogger("gridstead.failover")


class Handler(SequentialThreadingHandler):
    """kazoo's handler of threads, but impatient with servers that do not answer."""

    def create_connection(self, *arguments: Any, **options: Any) -> Any:
        """Connect to a server; raises OSError."""
        return super().create_connection(*arguments, **{**options, "timeout": CONNECT_S})


class Connection:
    """The session with ZooKeeper, as one who wants or holds a lock has to see it."""

    def __init__(self, config: Config) -> None:
        """Begin to connect; returns at once."""
        self._session_s = config.failover.session_s
        forever = KazooRetry(max_tries=-1, delay=0.2, max_delay=2.0)
        hosts = ",".join(config.failover.zookeeper)
        self.client = KazooClient(hosts, self._session_s, handler=Handler(), connection_retry=forever)
        self.client.start_async()

    @property
    def connected(self) -> bool:
        """Whether a server of ZooKeeper answers."""
        return bool(self.client.connected)

    def close(self) -> None:
        """End the session, and with it the lock; without a connection it ends by itself."""
        if self.connected:
            self.client.stop()
            self.client.close()


class Tenure:
    """A lock that is held, asked for again and again.

    ZooKeeper ends a session ``session_s`` after it heard of it last, so not before that time after a question was sent
    that it has answered. Until shortly before then nobody else can hold the lock, whatever happens to connections: a
    server, or the whole ensemble, may be away for so long.
    """

    def __init__(self, connection: Connection, lock: Lock, session_s: float) -> None:
        """``lock`` has just been acquired."""
        self._client = connection.client
        self._path = f"{lock.path}/{lock.node}"
        self._session_s = session_s
        self._confirmed = float("-inf")
        self._asked: float | None = None
        self._gone = False

    def ask(self) -> None:
        """Ask ZooKeeper for the lock, unless it was asked lately or still owes the answer; returns at once."""
        now = time.monotonic()
        if self._asked is None and now - self._confirmed > self._session_s / ASKED_A_SESSION:
            self._asked = now
            self._client.exists_async(self._path).rawlink(self._answered)

    def _answered(self, answer: Any) -> None:
        asked, self._asked = self._asked, None
        identity = self._client.client_id
        if answer.exception is not None or asked is None or identity is None:
            return
        if answer.value is None or answer.value.ephemeralOwner != identity[0]:
            self._gone = True
        else:
            self._confirmed = asked

    @property
    def begun(self) -> bool:
        """Whether ZooKeeper has confirmed it once."""
        return self._confirmed > 0

    @property
    def ended(self) -> bool:
        """Whether another may hold the lock, or may do so before long."""
        return self._gone or time.monotonic() - self._confirmed > self._session_s * PATIENCE


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
        self._tenure: Tenure | None = None

    def stop(self) -> None:
        """End :meth:`run`, and the command; called in a signal handler."""
        self._stopping = True

    def run(self) -> int:
        """Stand by until elected, then run the command; returns its exit code, 0 if stopped, 1 if the lock was lost.

        What goes wrong with the election ends it with 1 too: its supervisor starts it again, with another session.
        """
        self._connection = Connection(self._config)
        self._lock = self._connection.client.Lock(self._path, self._address)
        try:
            self._stand_by()
            if self._tenure is None:
                return 0 if self._stopping else 1
            return self._lead(self._tenure)
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
            self._tenure = None
            self._lock.cancel()

    def _elect(self) -> None:
        """The thread of a standby: queue for the lock until it is held; also where it ends without, all is over."""
        while not self._connection.connected:
            if self._stopping:
                return
            time.sleep(LOOK_S)
        while not self._stopping:
            try:
                if self._lock.acquire(timeout=QUEUE_S):
                    self._take()
                return
            except LockTimeout:
                continue  # into the queue again: kazoo waits longer and longer after each lost connection of one call
            except KazooException as error:
                if not self._stopping:
                    log.warning("the election begins anew: %s", type(error).__name__)
                return

    def _take(self) -> None:
        """Begin the tenure, if the lock is this session's own: it may have ended and begun again meanwhile."""
        tenure = Tenure(self._connection, self._lock, self._config.failover.session_s)
        until = time.monotonic() + self._config.failover.session_s
        while time.monotonic() < until and not tenure.begun:
            tenure.ask()
            time.sleep(LOOK_S / 10)
        if tenure.begun and not tenure.ended:
            self._tenure = tenure

    def _lead(self, tenure: Tenure) -> int:
        """Run the command for as long as the lock is held."""
        log.info("%s is elected and runs %s", self._address, self._command[0])
        child = subprocess.Popen([*DIES_WITH_US, *self._command], stdin=subprocess.DEVNULL, start_new_session=True)
        told = False
        try:
            while (code := child.poll()) is None:
                time.sleep(LOOK_S)
                tenure.ask()
                if self._stopping and not told:
                    told = True
                    os.killpg(child.pid, signal.SIGTERM)
                if tenure.ended:
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
        if holder == self._address:
            return 503, {"healthy": False, "reason": "is about to begin"}
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
    logging.getLogger("kazoo").setLevel(logging.CRITICAL)  # it tells each attempt to connect; what matters is said here
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
