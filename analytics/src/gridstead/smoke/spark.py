"""Spark: an application, where jobs run, that reads from HDFS, shuffles, writes Parquet and reads it back."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

from gridstead.release import spark_environment
from gridstead.smoke import spark_job
from gridstead.smoke.mapreduce import WORDS
from gridstead.smoke.probe import Probe

COUNT = 20_000


def check(probe: Probe) -> str:
    """Run the check; returns what was seen, raises SmokeError."""
    config = probe.config
    draw = random.Random(probe.name)
    words = [draw.choice(WORDS.split()) for _ in range(COUNT)]
    (probe.scratch / "words").write_text("\n".join(" ".join(words[at : at + 20]) for at in range(0, COUNT, 20)))
    directory = probe.make_hdfs_directory()
    probe.hadoop("fs", "-put", str(probe.scratch / "words"), f"{directory}/words")
    submit = [str(Path(config.spark.home) / "bin" / "spark-submit")]
    submit += ["--master", config.spark.master, "--deploy-mode", "client"]
    submit += ["--num-executors", "1", "--executor-cores", "1", "--executor-memory", "512m", "--driver-memory", "512m"]
    submit += ["--conf", "spark.ui.enabled=false", "--conf", "spark.sql.shuffle.partitions=2"]
    submit += [str(Path(spark_job.__file__)), f"{directory}/words", directory]
    probe.command(submit, spark_environment(config))
    output = probe.hadoop("fs", "-cat", f"{directory}/checked/part-*")
    counted = {row["word"]: row["count"] for row in map(json.loads, output.splitlines())}
    probe.expect(counted, dict(Counter(words)), "counts of words")
    return f"{COUNT} words read from HDFS, {len(counted)} counts written as Parquet and read back, exact"
