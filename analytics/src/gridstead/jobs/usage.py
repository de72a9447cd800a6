"""What a part of a Spark application has used: tasks, CPU, memory and shuffle, as Spark itself has counted them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyspark.sql import SparkSession


@dataclass(frozen=True)
class Usage:
    """Sums over the stages that ran. ``cpu_s`` is the executors' Java threads alone, without Python workers.

    ``peak_execution_bytes``: the most that the tasks of one stage held in sorts, hash tables and shuffles together.
    """

    tasks: int = 0
    cpu_s: float = 0.0
    gc_s: float = 0.0
    shuffle_bytes: int = 0
    peak_execution_bytes: int = 0


class UsageMeter:
    """Reads the usage of all stages since it was made or last read; one at a time for an application."""

    def __init__(self, spark: SparkSession) -> None:
        self._context: Any = spark.sparkContext._jsc.sc()
        self._jvm: Any = spark._jvm
        self._gateway: Any = spark.sparkContext._gateway
        self._next_stage = 0
        self.read()

    def read(self) -> Usage:
        """The usage since the last call; waits until Spark has counted everything that has ended."""
        self._context.listenerBus().waitUntilEmpty()
        quantiles = self._gateway.new_array(self._jvm.double, 0)
        listed = self._context.statusStore().stageList(None, False, False, quantiles, self._jvm.java.util.ArrayList())
        fresh = []
        for index in range(listed.size()):  # the newest first
            stage = listed.apply(index)
            if stage.stageId() < self._next_stage:
                break
            fresh.append(stage)
        if fresh:
            self._next_stage = fresh[0].stageId() + 1
        return Usage(
            tasks=sum(stage.numCompleteTasks() for stage in fresh),
            cpu_s=sum(stage.executorCpuTime() for stage in fresh) / 1e9,
            gc_s=sum(stage.jvmGcTime() for stage in fresh) / 1e3,
            shuffle_bytes=sum(stage.shuffleWriteBytes() for stage in fresh),
            peak_execution_bytes=max((stage.peakExecutionMemory() for stage in fresh), default=0),
        )


def executors(spark: SparkSession) -> list[str]:
    """The hosts of the executors that are registered now, an entry for each executor; in local mode there are none."""
    jvm: Any = spark._jvm
    driver = jvm.org.apache.spark.SparkEnv.get().blockManager().blockManagerId().hostPort()
    registered = spark.sparkContext._jsc.sc().getExecutorMemoryStatus().keys().mkString(" ").split()
    return sorted(address.rpartition(":")[0] for address in registered if address != driver)


def stored(spark: SparkSession, path: str) -> tuple[int, int]:
    """Files of data below a path, and their bytes; 0 and 0 where there is nothing."""
    jvm: Any = spark._jvm
    context: Any = spark.sparkContext._jsc
    directory = jvm.org.apache.hadoop.fs.Path(path)
    system = directory.getFileSystem(context.hadoopConfiguration())
    files = total = 0
    if system.exists(directory):
        found = system.listFiles(directory, True)
        while found.hasNext():
            status = found.next()
            if not status.getPath().getName().startswith(("_", ".")):
                files += 1
                total += int(status.getLen())
    return files, total
