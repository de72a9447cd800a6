"""A real S3 server (versitygw) on loopback, built from its pinned module, and a Spark that reaches it by the bundle's S3A."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.exceptions import BotoCoreError, ClientError
from pyspark.sql import SparkSession

from gridstead.jobs.stream import S3_CHECKPOINT

sys.path.insert(0, str(Path(__file__).parent))  # s3server.py
from s3server import ROOT, Hadoop, Server, settings_of

STARTED: list[bool] = []  # whether the JVM of this process is ours
MODULE = Path(__file__).parent / "versitygw"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server, with a bucket `archive`."""
    if not shutil.which("go"):
        pytest.skip("the S3 server of these tests is built by Go, which is not installed (Debian: apt-get install golang-go)")
    program = ROOT / "build" / "versitygw"
    build = ["go", "build", "-o", str(program), "github.com/versity/versitygw/cmd/versitygw"]
    subprocess.run(build, cwd=MODULE, check=True, timeout=1200)
    work = tmp_path_factory.mktemp("s3")
    for name in ("data", "sidecar"):
        (work / name).mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    keys = {"ROOT_ACCESS_KEY": secrets.token_hex(10), "ROOT_SECRET_KEY": secrets.token_hex(20)}
    command = [str(program), "--port", f"127.0.0.1:{port}", "--access-log", str(work / "access"), "posix"]
    command += ["--sidecar", str(work / "sidecar"), str(work / "data")]
    with (work / "log").open("w") as log:
        process = subprocess.Popen(command, env={**os.environ, **keys}, stdout=log, stderr=log)
    try:
        found = Server(f"http://127.0.0.1:{port}", keys["ROOT_ACCESS_KEY"], keys["ROOT_SECRET_KEY"], work / "access")
        for _ in range(100):
            assert process.poll() is None, (work / "log").read_text()
            try:
                found.client().create_bucket(Bucket="archive")
                break
            except (BotoCoreError, ClientError):
                time.sleep(0.1)
        yield found
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="session")
def hadoop(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Hadoop:
    """The jars of the bundle, and the settings of the roles."""
    bundle = Path(os.environ.get("GRIDSTEAD_BUNDLE", ROOT / "bundle"))
    (tarball,) = bundle.glob("s3a-*.tar")
    work = tmp_path_factory.mktemp("s3a")
    with tarfile.open(tarball) as archive:
        archive.extractall(work)
    credentials = work / "credentials"
    credentials.touch(0o600)
    credentials.write_text(f"[default]\naws_access_key_id = {server.access}\naws_secret_access_key = {server.secret}\n")
    site = settings_of("hdfs", "_hdfs_core_site_s3_all") | {
        "fs.s3a.endpoint": server.url,
        "fs.s3a.endpoint.region": "us-east-1",
        "fs.s3a.path.style.access": "true",
        "fs.s3a.aws.credentials.provider": "software.amazon.awssdk.auth.credentials.ProfileCredentialsProvider",
        "hadoop.tmp.dir": str(work / "tmp"),
    }
    return Hadoop(f"{work}/lib/*", site, credentials)


@pytest.fixture(scope="module")
def spark(hadoop: Hadoop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """A local Spark with S3A; stopped after each module, since others have their own."""
    import pyspark
    from pyspark import SparkContext

    if SparkContext._gateway is not None and not STARTED:
        pytest.skip("a JVM keeps its class path, and that of this process began without S3A: run tests/s3 alone")
    STARTED.append(True)
    home = Path(pyspark.__file__).resolve().parents[2]
    os.environ["SPARK_HOME"] = str(home)
    os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    os.environ["AWS_SHARED_CREDENTIALS_FILE"] = str(hadoop.credentials)
    builder = SparkSession.builder.master("local[2]").appName("gridstead-s3-tests")
    for name, value in {
        **{f"spark.hadoop.{name}": value for name, value in hadoop.site.items()},
        **settings_of("spark", "_spark_s3"),
        "spark.driver.extraClassPath": hadoop.jars,
        "spark.driver.extraJavaOptions": "-XX:+UseSerialGC",
        "spark.driver.memory": "700m",
        "spark.sql.shuffle.partitions": "2",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.warehouse.dir": str(tmp_path_factory.mktemp("warehouse")),
        "spark.ui.enabled": "false",
        **S3_CHECKPOINT,
    }.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    yield session
    session.stop()
