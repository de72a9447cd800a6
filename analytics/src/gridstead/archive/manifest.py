"""What a commit of the archive says: its token, its manifest, and which of several commits count."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final

Positions = dict[str, dict[int, int]]
"""topic -> partition -> next offset."""
Ranges = dict[str, dict[int, tuple[int, int]]]
"""topic -> partition -> (first offset, offset after the last)."""

VERSION: Final = 2
BATCH: Final = "batch"
MERGED: Final = "merged"
GAP: Final = "gap"

_TOKEN = re.compile(r"^(?P<first>\d{10})-(?P<last>\d{10})-(?P<epoch>\d{6})-(?P<nonce>[0-9a-f]{8})")


class ArchiveError(Exception):
    """The archive is not as it must be; the text says what, where, and what to do."""


@dataclass(frozen=True, order=True)
class Token:
    """The name of a commit, and the prefix of its files: the commits ``first`` to ``last``, by writer ``epoch``.

    A micro-batch has first = last; what compaction merged has the range of what it replaces, and the greatest epoch
    in it. ``nonce`` tells attempts apart, so what a killed attempt left never counts as another one's.
    """

    first: int
    last: int
    epoch: int
    nonce: str

    def __str__(self) -> str:
        return f"{self.first:010d}-{self.last:010d}-{self.epoch:06d}-{self.nonce}"

    @staticmethod
    def of(name: str) -> Token | None:
        """The token that a file's name begins with, None if it begins with none."""
        match = _TOKEN.match(name)
        return Token(int(match["first"]), int(match["last"]), int(match["epoch"]), match["nonce"]) if match else None


NO_TOKEN: Final = Token(0, 0, 0, "00000000")


@dataclass(frozen=True)
class CommittedFile:
    """One data file: path relative to the archive's root, number of rows, and size in bytes."""

    path: str
    rows: int
    bytes: int = 0


@dataclass(frozen=True)
class Manifest:
    """One commit: what it wrote, the positions it holds (``ranges``, without empty ones), and up to where the archive
    holds the whole log once it is there (``positions``, of every partition known).

    ``kind``: batch (of a stream), merged (by compaction), gap (positions given up by an administrator). ``source``:
    which streaming query and batch it was. ``columns``: what its files hold, so that an older version does not
    compact columns away that it does not know. ``absent``: how many positions of its ranges have no row, given up by
    retention or by an administrator.
    """

    token: Token
    kind: str
    committed_ms: int
    rows: int
    files: tuple[CommittedFile, ...]
    ranges: Ranges
    positions: Positions
    columns: tuple[str, ...] = ()
    source: str = ""
    absent: int = 0

    @property
    def bytes(self) -> int:
        """The size of its files."""
        return sum(file.bytes for file in self.files)

    def to_json(self) -> str:
        """The manifest's file: one JSON object."""
        document = asdict(self) | {"version": VERSION, "token": str(self.token)}
        return json.dumps(document, sort_keys=True, indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> Manifest:
        """Read a manifest; raises ArchiveError if it is none."""
        try:
            d = json.loads(text)
            token = Token.of(d["token"])
            if token is None or int(d["version"]) != VERSION:
                raise ValueError(f"version {d['version']}, token {d['token']}")
            return Manifest(
                token=token,
                kind=d["kind"],
                committed_ms=int(d["committed_ms"]),
                rows=int(d["rows"]),
                files=tuple(CommittedFile(f["path"], int(f["rows"]), int(f["bytes"])) for f in d["files"]),
                ranges={t: {int(p): (int(r[0]), int(r[1])) for p, r in ps.items()} for t, ps in d["ranges"].items()},
                positions=positions_of(d["positions"]),
                columns=tuple(d["columns"]),
                source=d["source"],
                absent=int(d["absent"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArchiveError(
                f"not a commit manifest of version {VERSION} ({error!r}): {text[:200]}; if an older Gridstead made "
                "this archive, move its directory away (hadoop fs -mv) and start the stream with a new checkpoint"
            ) from error


def positions_of(document: Any) -> Positions:
    """Positions from their JSON form, where partitions are text."""
    return {str(t): {int(p): int(o) for p, o in ps.items()} for t, ps in document.items()}


def live(tokens: Iterable[Token]) -> list[Token]:
    """Of all the commits that are there, those that count, in their order in the log.

    What is merged and what it came from, or commits of two writers, may be there at once; each sequence number counts
    once. Raises ArchiveError if a number between the first and the last is missing.
    """
    chosen, faults = counted(tokens)
    if faults:
        raise ArchiveError(f"{faults[0]}: run `gridstead archive verify`")
    return chosen


def counted(tokens: Iterable[Token]) -> tuple[list[Token], list[str]]:
    """What :func:`live` returns, even where that raises; and the reasons why it would."""
    chosen: list[Token] = []
    faults: list[str] = []
    epoch = -1
    for token in sorted(tokens, key=lambda t: (t.first, -t.epoch, -t.last, t.nonce)):
        if token.epoch < epoch:  # an older writer's, after a newer one had taken over
            continue
        epoch = token.epoch
        if chosen and token.last <= chosen[-1].last:  # merged already
            continue
        if chosen and token.first != chosen[-1].last + 1:
            what = "overlap" if token.first <= chosen[-1].last else "leave out a number"
            faults.append(f"the commits {chosen[-1]} and {token} {what}")
        chosen.append(token)
    return chosen, faults
