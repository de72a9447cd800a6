"""Pseudonyms for names of persons and of their machines: a keyed hash, so that who has no key cannot go back.

The keys are in one file, a line each: generation (1, 2, …), key (64 hex digits), when it was made. The highest
generation is in force, the older ones are kept so that one who may read the file can look a name up. A pseudonym names
its generation: ``p2-5f0c9b3e1a7d42860c11`` is keyed BLAKE2b-80 of the name under key 2; the same name has the same
pseudonym wherever it stands.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import secrets
import stat
import tempfile
import time
from functools import lru_cache
from pathlib import Path

from gridstead.events import Event
from gridstead.sources import SOURCES

log = logging.getLogger("gridstead.pseudonyms")

KEY_BYTES = 32
DIGEST_BYTES = 10
CACHED_NAMES = 1 << 17
"""Names whose pseudonyms are remembered: about 30 MB when full."""

_LINE = re.compile(r"([1-9]\d{0,5})\s+([0-9a-f]{64})(\s.*)?")
_HEADER = "# Keys of the pseudonyms: generation, key, when it was made. The highest generation is in force.\n"
_NAME_IN_PATH = re.compile(r"((?:^|/)(?:users?|home(?:-[a-z])?)/(?:[a-z]/)?)([^/]+)(?=/)|((?:^|[/:])user\.)([^/.:]+)")
"""Where a file's name holds its owner's: a directory below user/ or home/ (and a letter), and Rucio's user.NAME."""


class KeyringError(Exception):
    """The file of keys cannot be used; the message says file, reason and remedy."""


def read_keys(path: Path) -> dict[int, bytes]:
    """The keys by generation, ascending. Raises KeyringError; FileNotFoundError where there is no file."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        text = path.read_text(encoding="ascii")
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise KeyringError(f"{path} cannot be read ({error}): read it as the collector's user or as root") from error
    if mode & 0o077:
        raise KeyringError(f"{path} has mode {mode:03o}, others can read the keys: chmod 600 {path}")
    keys: dict[int, bytes] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None or int(match[1]) in keys:
            raise KeyringError(f"{path}:{number} is not a new generation and 64 hex digits: restore it from a backup")
        keys[int(match[1])] = bytes.fromhex(match[2])
    if not keys:
        raise KeyringError(f"{path} holds no key: restore it from a backup, or remove it to begin anew")
    return dict(sorted(keys.items()))


def add_key(path: Path, *, only_first: bool = False) -> int:
    """Add a new generation, which is in force from now on, and return it; ``only_first``: only where there is no file.

    The file appears whole, mode 600, with its owner kept. Raises KeyringError.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(path.parent / f".{path.name}.lock", "w", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if os.geteuid() == 0:  # root adds keys for the collector's user, who owns the directory
                owner = path.parent.stat()
                os.fchown(lock.fileno(), owner.st_uid, owner.st_gid)
            keys = read_keys(path) if path.exists() else {}
            if keys and only_first:
                return max(keys)
            text = path.read_text(encoding="ascii") if keys else _HEADER
            generation = max(keys, default=0) + 1
            made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            _replace(path, f"{text}{generation} {secrets.token_hex(KEY_BYTES)} {made}\n", path.parent.stat())
    except OSError as error:
        raise KeyringError(f"{path} cannot be written ({error}): do it as the collector's user or as root") from error
    return generation


def _replace(path: Path, text: str, owner: os.stat_result) -> None:
    descriptor, partial = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        if os.geteuid() == 0:  # root rotates for the collector's user, who owns the directory
            os.chown(partial, owner.st_uid, owner.st_gid)
        os.rename(partial, path)
    except BaseException:
        os.unlink(partial)
        raise


def pseudonym(name: str, generation: int, key: bytes) -> str:
    """The pseudonym of a name under a key."""
    return f"p{generation}-{hashlib.blake2b(name.encode('utf-8'), digest_size=DIGEST_BYTES, key=key).hexdigest()}"


def pseudonyms_of(name: str, keys: dict[int, bytes]) -> dict[int, str]:
    """The pseudonyms of a name under every generation."""
    return {generation: pseudonym(name, generation, key) for generation, key in keys.items()}


class Pseudonyms:
    """The keys in force in a running collector; thread-safe."""

    def __init__(self, path: Path) -> None:
        """Read the keys, and make the first one where there is none. Raises KeyringError."""
        self.path = path
        if not path.exists():
            add_key(path, only_first=True)
            log.warning("made the first key of the pseudonyms, %s: keep a copy of it in a safe place", path)
        self._seen = self._stamp()
        self._load(read_keys(path))

    def _load(self, keys: dict[int, bytes]) -> None:
        generation = max(keys)
        key = keys[generation]
        self.generation = generation
        self.of = lru_cache(CACHED_NAMES)(lambda name: pseudonym(name, generation, key))

    def _stamp(self) -> tuple[int, int] | None:
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns

    def refresh(self) -> None:
        """Take a new key where the file was changed. A file that is gone or broken is reported, and the old key stays
        in force.
        """
        stamp = self._stamp()
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            keys = read_keys(self.path)
        except (KeyringError, FileNotFoundError) as error:
            log.error("the pseudonyms keep key %d: %s", self.generation, error)
            return
        if max(keys) != self.generation:
            log.info("the pseudonyms have key %d now", max(keys))
        self._load(keys)

    def protect(self, event: Event) -> Event:
        """Put pseudonyms in the place of names, in the event itself; its identity must have been taken before."""
        of = self.of
        for field in _PERSONAL[event["source"]]:
            name = event[field]
            if name is not None:
                event[field] = of(name)
        file = event["file_lfn"]
        if file is not None and ("user" in file or "home" in file):
            event["file_lfn"] = _NAME_IN_PATH.sub(self._in_path, file)
        return event

    def _in_path(self, match: re.Match[str]) -> str:
        before, name = (match[1], match[2]) if match[1] is not None else (match[3], match[4])
        return before + self.of(name)


_PERSONAL = {source.name: source.personal for source in SOURCES.values()}
