"""MapReduce: Hadoop's own word count on YARN over a text whose counts are known."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

from gridstead.smoke.probe import Probe, SmokeError

WORDS = "site disk tape transfer replica dataset event job queue grid"
COUNT = 5000


def check(probe: Probe) -> str:
    """Run the check; returns what was seen, raises SmokeError."""
    jars = sorted(Path(probe.config.hadoop.home).rglob("hadoop-mapreduce-examples-*.jar"))
    jars = [jar for jar in jars if "sources" not in jar.name and "tests" not in jar.name]
    if not jars:
        raise SmokeError(f"no hadoop-mapreduce-examples-*.jar under {probe.config.hadoop.home}: run `make up`")
    draw = random.Random(probe.name)
    words = [draw.choice(WORDS.split()) for _ in range(COUNT)]
    lines = [" ".join(words[at : at + 20]) for at in range(0, COUNT, 20)]
    for part in range(2):
        text = "\n".join(lines[part::2]) + "\n"
        (probe.scratch / f"input-{part}").write_text(text)
    directory = probe.make_hdfs_directory()
    probe.hadoop("fs", "-mkdir", f"{directory}/in")
    probe.hadoop("fs", "-put", *(str(probe.scratch / f"input-{part}") for part in range(2)), f"{directory}/in/")
    probe.hadoop("jar", str(jars[0]), "wordcount", f"{directory}/in", f"{directory}/out")
    output = probe.hadoop("fs", "-cat", f"{directory}/out/part-r-*")
    counted = {word: int(count) for word, count in (line.split("\t") for line in output.splitlines())}
    probe.expect(counted, dict(Counter(words)), "counts of words")
    return f"{COUNT} words in 2 files, {len(counted)} counts exact"
