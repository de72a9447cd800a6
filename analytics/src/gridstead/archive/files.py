"""Files under one root by Hadoop's FileSystem in the JVM of Spark: the same on HDFS, file:// and S3A."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyspark.sql import SparkSession

from gridstead.archive.manifest import ArchiveError


@dataclass(frozen=True)
class Entry:
    """One file: its path relative to the directory that was listed, and its size in bytes."""

    path: str
    bytes: int


class Files:
    """Hadoop's FileSystem for one root. Paths are relative to the root.

    Any error of the file system (NameNode away, safe mode, no permission) comes as Py4JJavaError.
    """

    def __init__(self, spark: SparkSession, root: str) -> None:
        jvm: Any = spark._jvm
        self._jvm = jvm
        self._conf: Any = spark._jsc.hadoopConfiguration()
        # each step of a dotted name asks the JVM, so what is used often is looked up once
        self._new_path: Any = jvm.org.apache.hadoop.fs.Path
        self._to_string: Any = jvm.org.apache.commons.io.IOUtils.toString
        self._stat2paths: Any = jvm.org.apache.hadoop.fs.FileUtil.stat2Paths
        self._wrap: Any = jvm.scala.Predef.genericWrapArray
        loader = jvm.java.lang.Thread.currentThread().getContextClassLoader()
        self._status: Any = jvm.scala.reflect.ClassTag.apply(loader.loadClass("org.apache.hadoop.fs.FileStatus"))
        self.root = root.rstrip("/") or "/"
        self._fs: Any = self._path("").getFileSystem(self._conf)

    def _path(self, relative: str) -> Any:
        full = f"{self.root.rstrip('/')}/{relative}" if relative else self.root
        return self._new_path(full)

    @property
    def renames(self) -> bool:
        """Whether a rename is one step; on an object store it is a copy of each file and a deletion."""
        return not self.root.startswith("s3a:")

    def url(self, relative: str) -> str:
        """The full address of a path, scheme included."""
        return str(self._fs.makeQualified(self._path(relative)).toString())

    def exists(self, path: str) -> bool:
        """Whether there is a file or directory."""
        return bool(self._fs.exists(self._path(path)))

    def mkdirs(self, path: str) -> None:
        """Make a directory and its parents."""
        self._fs.mkdirs(self._path(path))

    def delete(self, path: str) -> bool:
        """Delete a file or a whole directory; false if there was none."""
        return bool(self._fs.delete(self._path(path), True))

    def names(self, path: str) -> list[str]:
        """The names in a directory, sorted; empty if there is no such directory.

        However many they are, they come from the JVM in one call.
        """
        try:
            found = self._fs.listStatus(self._path(path))
        except Exception as error:
            if "FileNotFoundException" in str(error):
                return []
            raise
        statuses = self._wrap(found).toArray(self._status)  # Py4J would not pass S3A's array, which is of its own class
        text = str(self._wrap(self._stat2paths(statuses)).mkString("\n"))
        return sorted(line.rpartition("/")[2] for line in text.splitlines())

    def files(self, path: str) -> list[Entry]:
        """All files under a directory, sorted by their paths; none if there is no such directory."""
        base = self.url(path).rstrip("/") + "/"
        if not self.exists(path):
            return []
        found = self._fs.listFiles(self._path(path), True)
        result = []
        while found.hasNext():
            status = found.next()
            result.append(Entry(str(status.getPath().toString()).removeprefix(base), int(status.getLen())))
        return sorted(result, key=lambda entry: entry.path)

    def modified_ms(self, path: str) -> int:
        """When a file was written last, by the file system's clock, in ms since the epoch."""
        return int(self._fs.getFileStatus(self._path(path)).getModificationTime())

    def read(self, path: str) -> str:
        """The text of a file (UTF-8)."""
        stream = self._fs.open(self._path(path))
        try:
            return str(self._to_string(stream, "UTF-8"))
        finally:
            stream.close()

    def write(self, path: str, text: str) -> None:
        """Write a file (UTF-8), replacing what is there; in one step only on an object store."""
        self._fill(self._fs.create(self._path(path), True), text)

    def create(self, path: str, text: str) -> bool:
        """Write a new file (UTF-8); false if the name is taken.

        Of several callers at once only one succeeds, but on an object store each may.
        """
        try:
            stream = self._fs.create(self._path(path), False)
        except Exception as error:
            if "FileAlreadyExistsException" in str(error) or "AlreadyBeingCreatedException" in str(error):
                return False
            raise
        self._fill(stream, text)
        return True

    @staticmethod
    def _fill(stream: Any, text: str) -> None:
        try:
            stream.write(bytearray(text.encode("utf-8")))
        finally:
            stream.close()

    def rename(self, source: str, target: str) -> None:
        """Move a file or directory to a name that is free, in one step; makes the target's directory if need be.

        Raises ArchiveError if it cannot be done, for instance since the source is gone.
        """
        if self._renamed(source, target):
            return
        self._fs.mkdirs(self._path(target).getParent())
        if not self._renamed(source, target):
            raise ArchiveError(
                f"cannot rename {self.url(source)} to {self.url(target)} (is another writer at work?): "
                "see `gridstead doctor` and the NameNode's log"
            )

    def _renamed(self, source: str, target: str) -> bool:
        try:
            return bool(self._fs.rename(self._path(source), self._path(target)))
        except Exception as error:  # HDFS says false where the local file system raises
            if "FileNotFoundException" in str(error):
                return False
            raise

    def parquet_rows(self, path: str) -> int:
        """The number of rows of a Parquet file, from its footer."""
        file = self._jvm.org.apache.parquet.hadoop.util.HadoopInputFile.fromPath(self._path(path), self._conf)
        reader = self._jvm.org.apache.parquet.hadoop.ParquetFileReader.open(file)
        try:
            return int(reader.getRecordCount())
        finally:
            reader.close()
