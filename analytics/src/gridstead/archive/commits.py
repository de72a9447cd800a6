"""The record of what is committed: finding manifests by their names, and the steps by which a commit comes to be.

Whoever commits writes its data into a staging directory of its own, notes there the final names of its files, renames
them into place, and last renames its manifest into commits/. Since the names of the files begin with the commit's
token, and readers take only files of commits that are there, half a commit is never seen. What a killed attempt left
is found by its staging directory.

On an object store nothing is renamed, since that would copy: Spark writes the data to its place, under names that
begin with the token, by S3A's magic committer, which lets no file be seen before the job is done; then the manifest is
written, one object, which is there whole or not at all. The staging directory only says that an attempt has begun.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Iterator

from pyspark.sql import DataFrame, Observation, SparkSession
from pyspark.sql import functions as F

from gridstead.archive.files import Files
from gridstead.archive.layout import PARQUET, commit_path, day_text, final_path, is_day
from gridstead.archive.manifest import ArchiveError, CommittedFile, Manifest, Token, live


class Commits:
    """The commits of one archive. Listing is by names alone; ``read`` opens one file."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._day: dict[Token, str] = {}

    def days(self) -> list[str]:
        """The days on which there are commits, sorted."""
        return [name for name in self._files.names("commits") if is_day(name)]

    def of_day(self, day: str) -> list[Token]:
        """All tokens of one day, also those that no longer count; remembers where they are."""
        found = []
        for name in self._files.names(f"commits/{day}"):
            token = Token.of(name)
            if token is not None and name == f"{token}.json":
                found.append(token)
                self._day[token] = day
            elif name.endswith(".json"):
                raise ArchiveError(
                    f"{self._files.url(f'commits/{day}/{name}')} is no commit of this version: if an older Gridstead "
                    "made this archive, move its directory away (hadoop fs -mv) and start the stream anew"
                )
        return found

    def since(self, first_day: str = "") -> list[Token]:
        """All tokens from a day of the commit on, also those that no longer count."""
        return [token for day in self.days() if day >= first_day for token in self.of_day(day)]

    def backwards(self) -> Iterator[list[Token]]:
        """The commits that count, in order, of the newest days: each list reaches a day further back.

        One day more than is given is listed, since it may hold the newer writer's commit that an older writer's,
        made a moment later, must give way to.
        """
        tokens: list[Token] = []
        for day in reversed(self.days()):
            found = self.of_day(day)
            if found and tokens:
                hidden = set(found)
                yield [token for token in live(tokens + found) if token not in hidden]
            tokens += found
        if tokens:
            yield live(tokens)

    def newest(self) -> Manifest | None:
        """The newest commit; None where the archive is empty."""
        for tokens in self.backwards():
            if tokens:
                return self.read(tokens[-1])
        return None

    def path(self, token: Token) -> str:
        """Where the manifest of a token is that was listed before."""
        return commit_path(self._day[token], token)

    def read(self, token: Token) -> Manifest:
        """The manifest of a token that was listed before. Raises ArchiveError if it is none."""
        manifest = Manifest.from_json(self._files.read(self.path(token)))
        if manifest.token != token:
            raise ArchiveError(f"{self._files.url(self.path(token))} holds the manifest of {manifest.token}")
        return manifest


def new_token(first: int, last: int, epoch: int) -> Token:
    """A token that nobody else has."""
    return Token(first, last, epoch, secrets.token_hex(4))


class Staging:
    """What one commit writes, and the steps that put it into place.

    ``kind`` ("write", "merge") keeps those apart who clean up after their own predecessors. ``data`` is where the files
    are written, ``days`` are those that they are of.
    """

    def __init__(self, files: Files, kind: str, token: Token) -> None:
        self._files = files
        self._token = token
        self.path = f"staging/{kind}-{token}"
        self.data = f"{self.path}/data" if files.renames else "events"
        self.prefix = "part" if files.renames else str(token)
        self.days: set[str] = set()

    def begin(self) -> None:
        """Leave a note for those who clean up, where the data does not go into the staging directory."""
        if not self._files.renames:
            self._files.write(f"{self.path}/begun", "")

    def write(self, rows: DataFrame, codec: str, days: Iterable[str] = (), **options: str) -> None:
        """Write rows of layout.ARCHIVED. ``days`` are theirs; where none are given they are found on the way."""
        self.begin()
        self.days = set(days)
        seen = Observation()
        if not self._files.renames and not self.days:
            found = F.array_join(F.collect_set(F.col("date").cast("string")), " ")
            rows = rows.observe(seen, found.alias("days"))
        writer = rows.write.partitionBy("source", "date").mode("append").option("compression", codec)
        writer = writer.option("mapreduce.output.basename", self.prefix).options(**PARQUET, **options)
        writer.parquet(self._files.url(self.data))
        if not self._files.renames and not self.days:
            self.days = set(seen.get["days"].split())

    def staged(self) -> tuple[tuple[CommittedFile, ...], dict[str, str]]:
        """What was written: the files as they will be named, and their present names by the new."""
        if self._files.renames:
            found = [(f"{self.data}/{e.path}", e) for e in self._files.files(self.data) if e.path.endswith(".parquet")]
            placed = [(final_path(e.path, self._token, number), path, e) for number, (path, e) in enumerate(found)]
        else:
            directories = [
                f"events/{source}/date={day}"
                for source in self._files.names("events")
                if source.startswith("source=")
                for day in sorted(self.days)
            ]
            found = [(f"{at}/{e.path}", e) for at in directories for e in self._files.files(at)]
            placed = [(path, path, e) for path, e in found if Token.of(path.rpartition("/")[2]) == self._token]
        files = tuple(CommittedFile(name, self._files.parquet_rows(path), e.bytes) for name, path, e in placed)
        return files, {name: path for name, path, _ in placed}

    def commit(self, manifest: Manifest, names: dict[str, str]) -> None:
        """Put the files into place and then the manifest; afterwards the staging directory is gone."""
        target = commit_path(day_text(manifest.committed_ms), self._token)
        if self._files.renames:
            self._files.mkdirs(self.path)
            self._files.write(f"{self.path}/files.json", json.dumps(sorted(names)))
            for name, staged in names.items():
                self._files.rename(staged, name)
            self._files.write(f"{self.path}/manifest.json", manifest.to_json())
            self._files.rename(f"{self.path}/manifest.json", target)
        else:
            self._files.write(target, manifest.to_json())
        self._files.delete(self.path)

    def abandon(self, names: dict[str, str]) -> None:
        """Delete what was written."""
        for staged in names.values():
            self._files.delete(staged)
        self._files.delete(self.path)


def sweep(files: Files, kind: str, keep: Iterable[Token] = ()) -> list[str]:
    """Clean up after the attempts of one kind that did not come to their end; returns the files deleted.

    Each staging directory is first renamed, where that can be done: a predecessor that is still alive then cannot put
    anything into place. Files of commits that are there are left; so are those of ``keep``.
    """
    committed: set[Token] | None = None
    deleted = []
    for name in files.names("staging"):
        if not name.startswith((f"{kind}-", f"dead-{kind}-")):
            continue
        dead = name if name.startswith("dead-") or not files.renames else f"dead-{name}"
        if dead != name:
            files.rename(f"staging/{name}", f"staging/{dead}")
        if committed is None:
            committed = {*Commits(files).since(), *keep}
        token = Token.of(dead.removeprefix("dead-").removeprefix(f"{kind}-"))
        if token is not None and token not in committed:
            written = _noted(files, f"staging/{dead}/files.json") if files.renames else _of(files, token)
            for target in written:
                files.delete(target)
                deleted.append(target)
        files.delete(f"staging/{dead}")
    return deleted


def _of(files: Files, token: Token) -> list[str]:
    """The data files of a token in place; lists them all."""
    return [f"events/{e.path}" for e in files.files("events") if Token.of(e.path.rpartition("/")[2]) == token]


def _noted(files: Files, note: str) -> list[str]:
    if not files.exists(note):
        return []
    try:
        return [str(target) for target in json.loads(files.read(note))]
    except ValueError:  # killed while the list was written: nothing was renamed yet
        return []


def manifests(spark: SparkSession, root: str, first_day: str = "") -> Iterator[Manifest]:
    """All commits that count, from a day (of the commit) on, one file read each: not for every reader."""
    commits = Commits(Files(spark, root))
    for token in live(commits.since(first_day)):
        yield commits.read(token)
