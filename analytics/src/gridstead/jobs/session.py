"""What the Spark applications share: the session, and how to reach Kafka from the JVM."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from pyspark.sql import SparkSession

from gridstead import daemon
from gridstead.config import Config
from gridstead.serving.indices import Indices


def log_to_stderr(name: str) -> None:
    """Begin the log of an application, and keep the clients' own chatter out of it."""
    daemon.log_to_stderr(name)
    for noisy in ("elastic_transport", "elasticsearch", "py4j"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def session(name: str, master: str, settings: Mapping[str, str]) -> SparkSession:
    """A Spark session in UTC; ``settings`` are defaults that spark-submit and spark-defaults.conf override.

    ``master`` is such a default too.
    """
    from pyspark import SparkConf, SparkContext

    SparkContext._ensure_initialized()  # only then does SparkConf hold what spark-submit and spark-defaults.conf said
    conf = SparkConf()
    conf.setIfMissing("spark.app.name", name)
    conf.setIfMissing("spark.master", master)
    for key, value in settings.items():
        conf.setIfMissing(key, value)
    if conf.get("spark.master", "").startswith("local"):
        # a task that waits for a nearer place is offered again when another one ends: in local mode, with none, never
        conf.setIfMissing("spark.locality.wait", "0s")
    conf.set("spark.sql.session.timeZone", "UTC")
    return SparkSession.builder.config(conf=conf).getOrCreate()


_JAVA_NAMES = {"sasl.mechanisms": "sasl.mechanism"}
_SAME = ("bootstrap.servers", "security.protocol", "sasl.mechanism", "client.id")


def kafka_source_options(client: Mapping[str, str]) -> dict[str, str]:
    """Translate a librdkafka client file into options of Spark's Kafka source (prefix ``kafka.``).

    Known: bootstrap.servers, security.protocol, sasl.mechanism(s) PLAIN and SCRAM with sasl.username and sasl.password,
    ssl.ca.location (a PEM file). Settings of librdkafka alone are left out.
    """
    options: dict[str, str] = {}
    for name, value in client.items():
        java = _JAVA_NAMES.get(name, name)
        if java in _SAME:
            options[f"kafka.{java}"] = value
    if client.get("ssl.ca.location"):
        options["kafka.ssl.truststore.type"] = "PEM"
        options["kafka.ssl.truststore.location"] = client["ssl.ca.location"]
    if client.get("sasl.username"):
        mechanism = options.get("kafka.sasl.mechanism", "PLAIN")
        module = "scram.ScramLoginModule" if mechanism.startswith("SCRAM") else "plain.PlainLoginModule"
        user, password = (
            client.get(f"sasl.{name}", "").replace("\\", "\\\\").replace('"', '\\"')
            for name in ("username", "password")
        )
        options["kafka.sasl.jaas.config"] = (
            f'org.apache.kafka.common.security.{module} required username="{user}" password="{password}";'
        )
    return options


def serving_indices(cfg: Config) -> Indices:
    """The names and settings of the served indices."""
    elastic = cfg.elasticsearch
    return Indices(elastic.index_prefix, cfg.stream.bin_s * 1000, elastic.shards, elastic.replicas)


def max_bins(cfg: Config) -> int:
    """The cap of bins of one event, from stream.max_bin_days and stream.bin_s."""
    return max(1, cfg.stream.max_bin_days * 86_400 // cfg.stream.bin_s)


def fingerprint(cfg: Config) -> str:
    """By which definitions statistics are computed: what is served must not mix two of them."""
    return f"bins of {cfg.stream.bin_s} s, at most {cfg.stream.max_bin_days} days of an event"
