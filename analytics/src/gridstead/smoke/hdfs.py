"""HDFS: put a file, get it back, compare the bytes; HDFS's own checksums of a copy must agree."""

from __future__ import annotations

import hashlib
import random

from gridstead.smoke.probe import Probe

SIZE = 8 << 20


def check(probe: Probe) -> str:
    """Run the check; returns what was seen, raises SmokeError."""
    data = random.Random(probe.name).randbytes(SIZE)
    (probe.scratch / "put").write_bytes(data)
    directory = probe.make_hdfs_directory()
    probe.hadoop("fs", "-put", str(probe.scratch / "put"), f"{directory}/one")
    probe.hadoop("fs", "-cp", f"{directory}/one", f"{directory}/two")
    probe.hadoop("fs", "-get", f"{directory}/two", str(probe.scratch / "got"))
    wanted = hashlib.sha256(data).hexdigest()
    probe.expect(hashlib.sha256((probe.scratch / "got").read_bytes()).hexdigest(), wanted, "SHA-256 of what came back")
    lines = probe.hadoop("fs", "-checksum", f"{directory}/one", f"{directory}/two").splitlines()
    sums = [line.split()[1:] for line in lines if line.startswith((directory, "hdfs:"))]
    probe.expect(len(sums), 2, "number of HDFS checksums")
    probe.expect(sums[0], sums[1], "HDFS checksum of the copy")
    return f"{SIZE >> 20} MiB put, copied and got, SHA-256 {wanted[:12]}…, {sums[0][0]} equal"
