"""``python -m gridstead.spot --config FILE``: drain this host when EC2 says that it takes it away.

A spot instance is told about two minutes before, by the instance metadata service, which is asked every few seconds.
Two minutes are too short to copy a DataNode's blocks; they are enough to end everything here cleanly, once:

1. At once the NodeManager, whose containers YARN then starts elsewhere, and after it the other services, in the reverse
   of the order in which they start.
2. The DataNode last, shortly before the end: until then others read from it, and HDFS copies what has one copy only.

Whatever the metadata service does, it is asked again. Restarted after the notice, the agent drains again, which does
nothing to what is stopped already.
"""

from __future__ import annotations

import datetime as dt
import http.client
import json
import logging
import re
import subprocess
import sys
import threading
import time
import urllib.parse
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

from gridstead.collector.status import Answer
from gridstead.config import Config
from gridstead.daemon import work

OWN = "spot"
FIRST = "yarn-nodemanager"
LAST = "hdfs-datanode"
NOTICE_S = 120.0  # between notice and end, as EC2 documents it
STOP_S = 40.0  # for one service to stop; its supervisor kills it after 30
REPORT_S = 20.0  # for the NameNode to answer
SILENT_S = 60.0  # without an answer of the metadata service the agent is not healthy
ANSWER_BYTES = 64 << 10
TOKEN_PATH = "/latest/api/token"
TOKEN_TTL_S = 21_600
TOKEN_TTL_HEADER = "X-aws-ec2-metadata-token-ttl-seconds"
TOKEN_HEADER = "X-aws-ec2-metadata-token"
NOTICE = "/latest/meta-data/spot/instance-action"
REBALANCE = "/latest/meta-data/events/recommendations/rebalance"

log = logging.getLogger("gridstead.spot")


class MetadataError(Exception):
    """The metadata service gave no answer that could be used; the text says which question, and what came."""


@dataclass(frozen=True)
class Notice:
    """What EC2 will do (terminate, stop or hibernate), and when: s since the epoch, None where it was not readable."""

    action: str
    at: float | None

    def __str__(self) -> str:
        """Say it in words."""
        if self.at is None:
            return f"{self.action} at a time that could not be read"
        return f"{self.action} at {dt.datetime.fromtimestamp(self.at, dt.UTC):%Y-%m-%dT%H:%M:%SZ}"


def read_notice(text: str) -> Notice:
    """Read the metadata service's ``{"action": "terminate", "time": "2026-11-26T08:22:00Z"}``.

    Without an action it is no notice: MetadataError. A time that is no time does not keep the host from being drained.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    action = document.get("action") if isinstance(document, dict) else None
    if not isinstance(action, str) or not re.fullmatch(r"[a-z-]{1,40}", action):
        raise MetadataError(f"{NOTICE} has an answer that is no notice: {text[:100]!r}")
    return Notice(action, _epoch(document.get("time")))


def _epoch(text: object) -> float | None:
    """Read an ISO time, UTC where it has no zone; s since the epoch."""
    if not isinstance(text, str):
        return None
    try:
        at = dt.datetime.fromisoformat(text)
        return (at.astimezone(dt.UTC) if at.tzinfo else at.replace(tzinfo=dt.UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def serving_s(notice: Notice, now: float, reserve_s: float) -> float:
    """For how many seconds the DataNode may go on: until ``reserve_s`` before the end; 0 if that is unknown.

    Never longer than a notice that came just now allows, so that a clock that is slow does no harm; one that is fast
    only ends the DataNode sooner.
    """
    if notice.at is None:
        return 0.0
    return max(0.0, min(notice.at - now, NOTICE_S) - reserve_s)


class Metadata:
    """The instance metadata service, version 2: every question bears a token, which is renewed when it is refused."""

    def __init__(self, url: str, timeout_s: float = 2.0) -> None:
        """Keep the address; nothing is sent. ``timeout_s`` is for each connection, and for each silence within it."""
        parts = urllib.parse.urlsplit(url)
        self.url = url
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._timeout_s = timeout_s
        self._token = ""

    def get(self, path: str) -> str | None:
        """Return what is at this path, None where nothing is (404). Raises MetadataError."""
        known = self._token
        self._token = known or self._new_token()
        status, text = self._ask("GET", path, {TOKEN_HEADER: self._token})
        if status == 401:
            self._token = ""
            if known:
                return self.get(path)
        if status == 404:
            return None
        if status != 200:
            raise MetadataError(f"GET {path}: HTTP {status}")
        return text

    def _new_token(self) -> str:
        status, text = self._ask("PUT", TOKEN_PATH, {TOKEN_TTL_HEADER: str(TOKEN_TTL_S)})
        if status != 200 or not re.fullmatch(r"[!-~]{1,1024}", text):
            raise MetadataError(f"PUT {TOKEN_PATH}: HTTP {status}, no token")
        return text

    def _ask(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        """Send one request, past any proxy; returns status and body."""
        connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        try:
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            body = response.read(ANSWER_BYTES + 1)
            if len(body) > ANSWER_BYTES:
                raise MetadataError(f"{method} {path}: the answer is longer than {ANSWER_BYTES} bytes")
            return response.status, body.decode().strip()
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise MetadataError(f"{method} {path}: {error or type(error).__name__}") from error
        finally:
            connection.close()


def stop_command(config: Config, name: str) -> list[str]:
    """Write the command that stops a service; it is started again at the next boot."""
    if config.appliance.supervisor == "systemd":
        return ["systemctl", "stop", f"gridstead-{name}.service"]
    return [*config.appliance.supervisorctl, "stop", name]


def single_copies(report: str) -> int | None:
    """Read in ``dfsadmin -report`` how many blocks have one copy and should have more; None if it does not say."""
    found = re.search(r"Low redundancy blocks with highest priority to recover: (\d+)", report)
    return int(found[1]) if found else None


def copies(conf_dir: Path) -> int | None:
    """Read in hdfs-site.xml how many copies a block is given; None if it does not say."""
    try:
        for each in ET.parse(conf_dir / "hdfs-site.xml").getroot().iter("property"):
            if each.findtext("name") == "dfs.replication":
                return int(each.findtext("value", ""))
    except (OSError, ET.ParseError, ValueError):
        pass
    return None


class Agent:
    """Looks for a notice until stopped, and drains the host when there is one."""

    def __init__(self, config: Config) -> None:
        """Keep the configuration; nothing is asked."""
        self.config = config
        self.metadata = Metadata(config.spot.metadata)
        self.draining: Notice | None = None
        self.drained: Notice | None = None
        self.rebalance = ""
        self.failure = "not asked yet"
        self._heard: float | None = None  # when the last answer came
        self._stop = threading.Event()

    def stop(self) -> None:
        """End :meth:`run`; what a drain has not stopped by then it leaves, and the next start goes on."""
        self._stop.set()

    def run(self) -> None:
        """Work until :meth:`stop`."""
        log.info("asking %s every %d s", self.config.spot.metadata, self.config.spot.poll_s)
        while not self._stop.is_set():
            self.look()
            self._stop.wait(self.config.spot.poll_s)

    def look(self) -> None:
        """Ask once; drain if there is a notice for which that was not done."""
        try:
            text = self.metadata.get(NOTICE)
            notice = None if text is None else read_notice(text)
        except MetadataError as error:
            self._silent(str(error))
            return
        if self.failure:
            log.info("%s answers", self.metadata.url)
        self.failure, self._heard = "", time.monotonic()
        if notice is not None and notice != self.drained:
            self.draining = notice
            self.drain(notice)
            self.draining = None
        elif notice is None and self.drained is not None:
            log.warning("the notice is gone and this host is still here. Next: site.yml starts its services again")
            self.drained = None
        elif notice is None:
            self.look_ahead()

    def look_ahead(self) -> None:
        """Log, once, that EC2 expects to take the host away; nothing is done for that."""
        try:
            text = (self.metadata.get(REBALANCE) or "")[:200]
        except MetadataError:
            return  # what matters was heard
        if text not in ("", self.rebalance):
            log.warning("EC2 expects to take this host away some time: %r. Nothing is done before its notice", text)
        self.rebalance = text

    def _silent(self, why: str) -> None:
        """Note that there was no answer; said when it begins, and when it is another failure."""
        if why != self.failure:
            log.error("no notice could be heard of %s: %s; it is asked again", self.metadata.url, why)
        self.failure = why

    def drain(self, notice: Notice) -> None:
        """Stop what runs here, the DataNode when the end is near."""
        serving = serving_s(notice, time.time(), self.config.spot.reserve_s)
        end = time.monotonic() + serving
        here = [service.name for service in self.config.services if service.name != OWN]
        at_once = sorted(reversed([name for name in here if name != LAST]), key=lambda name: name != FIRST)
        log.warning("EC2 takes this host away: %s. Stopping %s", notice, ", ".join(at_once) or "nothing")
        running = [name for name in at_once if not self.stop_service(name, max(5.0, end - time.monotonic()))]
        if LAST in here:
            self.tell_copies(end - time.monotonic())
            log.warning("%s serves for %.0f s more", LAST, max(0.0, end - time.monotonic()))
            if self._stop.wait(max(0.0, end - time.monotonic())):
                log.warning("told to end before %s was stopped", LAST)
                return
            if not self.stop_service(LAST, STOP_S):
                running.append(LAST)
        if running:
            log.error("not drained: %s did not stop; tried again", ", ".join(running))
            return
        self.drained = notice
        log.warning("drained. Next, when the host is gone: ec2-up makes it anew, and site.yml installs it")

    def stop_service(self, name: str, patience_s: float) -> bool:
        """Stop one service, and tell whether it has stopped; one that does not in time keeps nobody waiting."""
        began = time.monotonic()
        command = stop_command(self.config, name)
        code, said = _run(command, min(STOP_S, patience_s))
        if code and "not running" not in said:
            log.error("%s did not stop: %s: %s", name, " ".join(command), said or f"exit code {code}")
            return False
        log.info("%s is stopped, in %.1f s", name, time.monotonic() - began)
        return True

    def tell_copies(self, patience_s: float) -> None:
        """Log what of HDFS may be lost with this host: blocks of which it may hold the only copy."""
        wanted = copies(Path(self.config.hadoop.conf_dir))
        if wanted is not None and wanted < 2:
            log.error("dfs.replication is %d: what is here has no other copy and is lost with this host", wanted)
        if patience_s < 1:
            log.warning("no time to ask HDFS for blocks that have one copy only")
            return
        command = [self.config.hadoop.cli, "dfsadmin", "-report", "-live"]
        code, said = _run(command, min(REPORT_S, patience_s))
        count = single_copies(said)
        if count is None:
            log.error("HDFS does not say how many blocks have one copy only: %s", said[-300:] or f"exit code {code}")
        elif count:
            log.error("%d blocks of HDFS have one copy only; those here that are not copied in time are lost", count)
        else:
            log.info("every block of HDFS that should have more copies has at least two")

    def health(self) -> Answer:
        """200 while a notice would be heard, or was."""
        patience_s = max(SILENT_S, 3.0 * self.config.spot.poll_s)
        heard = self._heard is not None and time.monotonic() - self._heard < patience_s
        if self.draining is None and not heard:
            return 503, {"status": f"no notice would be heard: {self.failure}"}
        return 200, {"status": "ok", **self.metrics()[1]}

    def metrics(self) -> Answer:
        """What is known: the notice being followed, the one for which this host was drained, forecast, last failure."""
        return 200, {
            "draining": str(self.draining or ""),
            "drained": str(self.drained or ""),
            "rebalance": self.rebalance,
            "failure": self.failure,
        }


def _run(command: list[str], timeout_s: float) -> tuple[int, str]:
    """Run a command; returns its exit code, not 0 where it took too long, and what it said in one line."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        return 124, f"not done after {timeout_s:.0f} s"
    except OSError as error:
        return 127, str(error)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def main() -> int:
    """Run the daemon; returns the exit code."""
    return work(OWN, __doc__, "spot", Agent)


if __name__ == "__main__":
    sys.exit(main())
