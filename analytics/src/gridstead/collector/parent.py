"""The collector's parent: holds the UDP socket and a worker process, and nothing that could fail.

The worker may be killed at any moment: packets wait in the socket's buffer until the next one runs. The socket comes,
in this order, from systemd (LISTEN_FDS), from the orphaned worker of a parent that was killed, or is bound anew.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from gridstead.collector.worker import HANDOVER, SOCKET_ENVIRONMENT, short_path
from gridstead.config import Config
from gridstead.daemon import EXIT_CONFIG

log = logging.getLogger("gridstead.collector")

RECEIVE_BUFFER_BYTES = 64 << 20
BIND_WAIT_S = 30.0
BACKOFF_MAX_S = 10.0
STEADY_S = 30.0
STOP_WAIT_S = 25.0
_SO_RCVBUFFORCE = 33


class ParentError(Exception):
    """The parent cannot run; the message says why and what to do."""


def systemd_socket() -> socket.socket | None:
    """The first datagram socket that systemd passes to this process (sd_listen_fds(3)), if any."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    for fd in range(3, 3 + int(os.environ.get("LISTEN_FDS", "0"))):
        passed = socket.socket(fileno=os.dup(fd))
        if passed.type == socket.SOCK_DGRAM:
            return passed
        passed.close()
    return None


def orphan_socket(data_dir: Path) -> socket.socket | None:
    """The socket of an orphaned worker, which ends when it gives it away; None if there is none."""
    if not (data_dir / HANDOVER).exists():
        return None
    with short_path(data_dir, HANDOVER) as path, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(30)
        try:
            client.connect(path)
            _, fds, _, _ = socket.recv_fds(client, 16, 1)
        except OSError:
            return None
    return socket.socket(fileno=fds[0]) if fds else None


def open_socket(config: Config) -> tuple[socket.socket, bool]:
    """The UDP socket, and whether a worker used it before. Raises ParentError if the address cannot be had."""
    bind, port = config.collector.bind, config.collector.xrootd_port
    data_dir = Path(config.collector.data_dir)
    passed = systemd_socket()
    deadline = time.monotonic() + BIND_WAIT_S
    while True:
        orphan = orphan_socket(data_dir)
        if passed is not None:
            log.info("using the socket passed by systemd")
            return _with_buffer(passed), True
        if orphan is not None:
            if orphan.getsockname()[:2] == (bind, port):
                log.info("took the socket over from the worker of a killed collector")
                return _with_buffer(orphan), True
            orphan.close()
        fresh = socket.socket(socket.AF_INET6 if ":" in bind else socket.AF_INET, socket.SOCK_DGRAM)
        try:
            fresh.bind((bind, port))
            return _with_buffer(fresh), False
        except OSError as error:
            fresh.close()
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                raise ParentError(
                    f"cannot bind UDP {bind} port {port} ({error.strerror}): stop what uses it, or change "
                    "collector.bind and collector.xrootd_port"
                ) from error
        time.sleep(0.2)


def _with_buffer(sock: socket.socket) -> socket.socket:
    """Ask for a large receive buffer; without privilege the kernel grants up to net.core.rmem_max."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
    except OSError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    granted = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2  # the kernel reports twice what it granted
    if granted < RECEIVE_BUFFER_BYTES // 16:
        log.warning(
            "the socket buffer is only %d bytes, bursts may be lost: set sysctl net.core.rmem_max to %d",
            granted,
            RECEIVE_BUFFER_BYTES,
        )
    return sock


def run_parent(config: Config) -> int:
    """Keep a worker running until SIGTERM or SIGINT; returns the exit code. Raises ParentError."""
    data_dir = Path(config.collector.data_dir)
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o750)
    except OSError as error:
        reason = f"cannot make the directory {data_dir} ({error.strerror}): make it, owned by this user"
        raise ParentError(reason) from error
    watched = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}
    signal.signal(signal.SIGCHLD, lambda *_: None)  # ignored by default, and then never pending
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)  # taken by sigtimedwait below, so that none comes at a bad moment
    sock, used = open_socket(config)
    pause = 0.1
    while True:
        started = time.monotonic()
        worker = _start(config, sock, used)
        used = True
        stop = _wait(worker)
        if stop:
            return _stop(worker)
        if worker.returncode == EXIT_CONFIG:
            return EXIT_CONFIG
        pause = 0.1 if time.monotonic() - started > STEADY_S else min(pause * 2, BACKOFF_MAX_S)
        ending = _ending(worker.returncode)
        log.error("the worker (pid %d) ended with %s: starting another in %.1f s", worker.pid, ending, pause)
        if signal.sigtimedwait({signal.SIGTERM, signal.SIGINT}, pause) is not None:
            return 0


def _start(config: Config, sock: socket.socket, used: bool) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LISTEN_")}
    environment[SOCKET_ENVIRONMENT] = f"{sock.fileno()}:{int(used)}"
    command = [sys.executable, "-m", "gridstead.collector", "--config", str(config.path)]
    return subprocess.Popen(command, pass_fds=[sock.fileno()], env=environment)


def _wait(worker: subprocess.Popen[bytes]) -> bool:
    """Wait until the worker ends (False) or this process is told to stop (True)."""
    while worker.poll() is None:
        caught = signal.sigtimedwait({signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}, 5)
        if caught is not None and caught.si_signo != signal.SIGCHLD:
            return True
    return False


def _stop(worker: subprocess.Popen[bytes]) -> int:
    if worker.poll() is None:
        worker.terminate()
    try:
        worker.wait(STOP_WAIT_S)
    except subprocess.TimeoutExpired:
        log.error("the worker (pid %d) does not stop: killing it; what it had committed is kept", worker.pid)
        worker.kill()
        worker.wait()
    return 0


def _ending(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
