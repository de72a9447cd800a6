"""The appliance's own description: gridstead.toml, found, checked and given names.

One file says where everything is; every daemon, job, command and test reads it through ``load``. How to reach Kafka,
STOMP and Elasticsearch stands in one client file each, which the helpers at the end read only when they are called.
Importing this module touches neither the disk nor the network.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gridstead.statistic import STATISTICS

ENVIRONMENT_FILE = "GRIDSTEAD_CONFIG"
ENVIRONMENT_ROOT = "GRIDSTEAD_ROOT"
FILE_IN_TREE = Path("etc") / "gridstead" / "gridstead.toml"
SHORTEST_MONTH_DAYS = 28


class ConfigError(Exception):
    """The configuration cannot be used; ``problems`` holds one sentence a fault, each with file, key and remedy."""

    def __init__(self, problems: Iterable[str]) -> None:
        """Keep every problem; the exception's text is one a line."""
        self.problems: tuple[str, ...] = tuple(problems)
        super().__init__("\n".join(self.problems))


def _key(
    default: Any = dataclasses.MISSING,
    *,
    at_least: int | None = None,
    at_most: int | None = None,
    one_of: tuple[str, ...] = (),
    empty: bool = False,
    addresses: bool = False,
) -> Any:
    """Describe one key: its default (none: required) and what values it may have."""
    metadata = {"at_least": at_least, "at_most": at_most, "one_of": one_of, "empty": empty, "addresses": addresses}
    return dataclasses.field(default=default, metadata=metadata)


def _port(default: Any = dataclasses.MISSING, *, may_be_off: bool = False) -> Any:
    return _key(default, at_least=0 if may_be_off else 1, at_most=65535)


@dataclass(frozen=True, kw_only=True)
class Appliance:
    """[appliance]: the directories, and who supervises the processes."""

    name: str = _key("local")
    root: str = _key("", empty=True)
    log_dir: str = _key()
    run_dir: str = _key()
    data_dir: str = _key()
    opt_dir: str = _key()
    supervisor: str = _key("supervisord", one_of=("supervisord", "systemd", "container"))
    supervisorctl: tuple[str, ...] = _key(("supervisorctl",))
    java_home: str = _key("", empty=True)


@dataclass(frozen=True, kw_only=True)
class Hadoop:
    """[hadoop]: the configuration directory that says how to reach HDFS and YARN, and the launcher."""

    conf_dir: str = _key()
    home: str = _key()
    cli: str = _key()


@dataclass(frozen=True, kw_only=True)
class Spark:
    """[spark]: SPARK_HOME, the driver's Python and its library path, and where jobs run that are not told."""

    home: str = _key()
    python: str = _key("python3")
    pythonpath: str = _key("", empty=True)
    conf_dir: str = _key()
    master: str = _key("yarn")


@dataclass(frozen=True, kw_only=True)
class Kafka:
    """[kafka]: the client file (librdkafka names) and the topics."""

    client: str = _key()
    events_topic: str = _key("gridstead.events")
    deadletter_topic: str = _key("gridstead.deadletter")


@dataclass(frozen=True, kw_only=True)
class Stomp:
    """[stomp]: the client file (hosts and credentials) and the queues."""

    client: str = _key()
    raw_queue: str = _key("gridstead.raw")
    events_queue: str = _key("gridstead.events")
    deadletter_queue: str = _key("gridstead.deadletter")


@dataclass(frozen=True, kw_only=True)
class Elastic:
    """[elasticsearch]: the client file, how indices are made, and how many months are kept beside this one (0: all)."""

    client: str = _key()
    index_prefix: str = _key("gridstead")
    replicas: int = _key(0, at_least=0)
    shards: int = _key(1, at_least=1)
    retention_months: int = _key(0, at_least=0, at_most=1200)


@dataclass(frozen=True, kw_only=True)
class Collector:
    """[collector]: the daemon that receives packets and producers' JSON. Sizes in bytes, times in seconds.

    ``pseudonym_keys`` is the file of keys for ``pseudonymise``; empty: pseudonyms.keys in ``data_dir``.
    """

    bind: str = _key("127.0.0.1")
    xrootd_port: int = _port(9930)
    status_port: int = _port(9931)
    data_dir: str = _key()
    queue_max_bytes: int = _key(1 << 30, at_least=1 << 20)
    max_message_bytes: int = _key(1 << 20, at_least=1 << 10)
    join_horizon_s: int = _key(86_400, at_least=1)
    pseudonymise: bool = _key(True)
    pseudonym_keys: str = _key("", empty=True)


@dataclass(frozen=True, kw_only=True)
class Bridge:
    """[bridge]: the daemon that moves the broker's queues to Kafka."""

    bind: str = _key("127.0.0.1")
    status_port: int = _port(9932)
    batch_messages: int = _key(1000, at_least=1)
    replication: int = _key(1, at_least=1)
    retention_days: int = _key(7, at_least=1)


@dataclass(frozen=True, kw_only=True)
class Stream:
    """[stream]: the Spark application with the archive's query and the follower. Paths are on HDFS, or s3a://BUCKET/….

    ``dedupe_horizon_s``: for how long, by the log's clock, the follower knows an event's identity. ``statistics``:
    which the stream keeps up to date; the others are as the last batch left them.
    """

    master: str = _key("local[2]")
    bind: str = _key("127.0.0.1")
    checkpoint: str = _key("/gridstead/checkpoints")
    archive: str = _key("/gridstead")
    trigger_s: int = _key(2, at_least=1)
    max_offsets_per_trigger: int = _key(50_000, at_least=1)
    status_port: int = _port(9933, may_be_off=True)
    bin_s: int = _key(600, at_least=1)
    max_bin_days: int = _key(7, at_least=1)
    dedupe_horizon_s: int = _key(2 * 86_400, at_least=1)
    statistics: tuple[str, ...] = _key(tuple(STATISTICS), one_of=tuple(STATISTICS))


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """[schedule]: what runs by itself. Intervals in seconds, 0: never; ``batch_days``: how many days up to today."""

    bind: str = _key("127.0.0.1")
    status_port: int = _port(9934)
    batch_interval_s: int = _key(3600, at_least=0)
    batch_days: int = _key(2, at_least=1)
    compact_interval_s: int = _key(86_400, at_least=0)


@dataclass(frozen=True, kw_only=True)
class Archive:
    """[archive]: how the archive is kept. Retention of 0 days is for ever; where it is stands in stream.archive."""

    target_mb: int = _key(128, at_least=1)
    compact_after_h: int = _key(1, at_least=0)
    grace_h: int = _key(24, at_least=1)
    retention_days: int = _key(0, at_least=0)
    malformed_retention_days: int = _key(0, at_least=0)


@dataclass(frozen=True, kw_only=True)
class Release:
    """[release]: where on HDFS the versions of the jobs are."""

    root: str = _key("/apps/gridstead")


@dataclass(frozen=True, kw_only=True)
class Failover:
    """[failover]: the gateways, and servers of ZooKeeper (host:port) that elect one of them; empty: there is only one.

    ``session_s``: for how long, in seconds, ZooKeeper need not hear of the one elected until another is.
    """

    gateways: tuple[str, ...] = _key(())
    zookeeper: tuple[str, ...] = _key((), addresses=True)
    session_s: int = _key(30, at_least=4, at_most=40)


@dataclass(frozen=True, kw_only=True)
class Spot:
    """[spot]: the agent on a host that EC2 may take away. ``poll_s``: how often it looks for the notice, in seconds.

    ``metadata`` is the address of the metadata service; ``reserve_s`` before the end the DataNode is stopped too.
    """

    metadata: str = _key("http://169.254.169.254")
    bind: str = _key("127.0.0.1")
    status_port: int = _port(9945)
    poll_s: int = _key(5, at_least=1)
    reserve_s: int = _key(30, at_least=1, at_most=120)


@dataclass(frozen=True, kw_only=True)
class Service:
    """One [[services]]: a supervised process, and how to see that it is healthy.

    ``url`` is an address to GET where check is "http" (any status below 500 means alive), ``host:port`` where "tcp".
    """

    name: str = _key()
    role: str = _key("", empty=True)
    check: str = _key(one_of=("http", "tcp"))
    url: str = _key()
    log: str = _key()
    web: str = _key("", empty=True)


@dataclass(frozen=True, kw_only=True)
class Config:
    """All of gridstead.toml. ``path`` is the file it was read from; services are in start order."""

    path: Path
    appliance: Appliance
    hadoop: Hadoop
    spark: Spark
    kafka: Kafka
    stomp: Stomp
    elasticsearch: Elastic
    collector: Collector
    bridge: Bridge
    stream: Stream
    schedule: Schedule
    archive: Archive
    release: Release
    failover: Failover
    spot: Spot
    services: tuple[Service, ...]

    def service(self, name: str) -> Service | None:
        """Return the service of this name, None where this host does not run it."""
        return next((service for service in self.services if service.name == name), None)


_SECTIONS: dict[str, type] = {
    "appliance": Appliance,
    "hadoop": Hadoop,
    "spark": Spark,
    "kafka": Kafka,
    "stomp": Stomp,
    "elasticsearch": Elastic,
    "collector": Collector,
    "bridge": Bridge,
    "stream": Stream,
    "schedule": Schedule,
    "archive": Archive,
    "release": Release,
    "failover": Failover,
    "spot": Spot,
}


def candidates(environment: Mapping[str, str] | None = None) -> list[Path]:
    """List the places where gridstead.toml is looked for, first the one that wins."""
    env = os.environ if environment is None else environment
    if env.get(ENVIRONMENT_FILE):
        return [Path(env[ENVIRONMENT_FILE])]
    roots = [Path(env[ENVIRONMENT_ROOT])] if env.get(ENVIRONMENT_ROOT) else []
    roots.append(Path(env.get("HOME") or "~").expanduser() / ".gridstead")
    return [root / FILE_IN_TREE for root in roots] + [Path("/etc/gridstead/gridstead.toml")]


def find(environment: Mapping[str, str] | None = None) -> Path:
    """Return the configuration file in force; ConfigError naming every place tried where there is none."""
    places = candidates(environment)
    for place in places:
        if place.is_file():
            return place
    tried = ", ".join(str(place) for place in places)
    raise ConfigError([f"no gridstead.toml found (tried {tried}): install with `make up`, or set {ENVIRONMENT_FILE}"])


def load(path: str | Path | None = None) -> Config:
    """Read and check the configuration; ``path`` None searches the places of ``candidates``.

    Raises ConfigError with every fault at once: file, key, what is wrong, and the remedy.
    """
    file = Path(path) if path is not None else find()
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{file}: cannot be read ({error}): run `make up`, or pass --config FILE"]) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"{file}: is not TOML ({error}): run `make up` to render it anew"]) from error
    return parse(document, file)


def parse(document: Mapping[str, Any], file: Path) -> Config:
    """Check a decoded document; ``file`` is only named in errors. Raises ConfigError with every fault at once."""
    reader = _Reader(file)
    sections = {name: reader.section(name, document.get(name), cls) for name, cls in _SECTIONS.items()}
    services = reader.services(document.get("services", []))
    for name in document.keys() - _SECTIONS.keys() - {"services"}:
        reader.fault(name, f"is not a known section{_nearest(name, [*_SECTIONS, 'services'])}", "remove it")
    if not reader.problems:
        days, remedy = sections["schedule"].batch_days, "keep more days, or compute fewer"
        if 0 < sections["archive"].retention_days < days:
            reader.fault(
                "archive.retention_days", f"is less than schedule.batch_days ({days}), whose events it needs", remedy
            )
        if 0 < sections["elasticsearch"].retention_months * SHORTEST_MONTH_DAYS < days:
            reader.fault(
                "elasticsearch.retention_months",
                f"may be less than schedule.batch_days ({days}), which it is to serve",
                remedy,
            )
    if reader.problems:
        raise ConfigError(reader.problems)
    return Config(path=file, services=tuple(services), **sections)


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


class _Reader:
    """Turns tables into dataclasses and collects what is wrong with them."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.problems: list[str] = []

    def fault(self, key: str, what: str, remedy: str) -> None:
        self.problems.append(f"{self.file}: {key} {what}: {remedy}")

    def section(self, name: str, table: Any, cls: type) -> Any:
        if table is None:
            table = {}
        if not isinstance(table, dict):
            self.fault(f"[{name}]", "is not a table", f"write it as a section [{name}]")
            return None
        hints = typing.get_type_hints(cls)
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for key in table.keys() - fields.keys():
            self.fault(f"{name}.{key}", f"is not a known key{_nearest(key, fields)}", "correct or remove it")
        values: dict[str, Any] = {}
        for key, field in fields.items():
            if key in table:
                values[key] = self._value(f"{name}.{key}", table[key], hints[key], field.metadata)
            elif field.default is dataclasses.MISSING:
                self.fault(f"{name}.{key}", "is missing", "set it, or run `make up` to render the file anew")
                values[key] = None
        return cls(**values)

    def services(self, tables: Any) -> list[Service]:
        if not isinstance(tables, list):
            self.fault("services", "is not an array of tables", "write each service as [[services]]")
            return []
        services = [self.section(f"services[{index}]", table, Service) for index, table in enumerate(tables)]
        seen: set[str] = set()
        for index, service in enumerate(services):
            if service is None or service.name is None:
                continue
            if service.name in seen:
                self.fault(f"services[{index}].name", f"{service.name!r} occurs twice", "keep one of the two")
            seen.add(service.name)
            if service.check == "tcp" and service.url is not None and not _is_host_port(service.url):
                self.fault(f"services[{index}].url", f"{service.url!r} is not host:port", "a tcp check needs host:port")
        return services

    def _value(self, key: str, value: Any, hint: Any, rules: Mapping[str, Any]) -> Any:
        check: Callable[[str, Any, Mapping[str, Any]], Any]
        if hint is bool:
            check = self._boolean
        elif hint is int:
            check = self._integer
        elif hint is str:
            check = self._string
        else:
            assert isinstance(hint, types.GenericAlias) and hint.__origin__ is tuple
            check = self._strings
        return check(key, value, rules)

    def _boolean(self, key: str, value: Any, rules: Mapping[str, Any]) -> bool | None:
        if not isinstance(value, bool):
            self.fault(key, f"is {value!r}, neither true nor false", "write true or false without quotes")
            return None
        return value

    def _integer(self, key: str, value: Any, rules: Mapping[str, Any]) -> int | None:
        if isinstance(value, bool) or not isinstance(value, int):
            self.fault(key, f"is {value!r}, not an integer", "write a whole number without quotes")
            return None
        low, high = rules["at_least"], rules["at_most"]
        if (low is not None and value < low) or (high is not None and value > high):
            allowed = f"{low} or more" if high is None else f"from {low} to {high}"
            self.fault(key, f"is {value}, out of range", f"use {allowed}")
        return value

    def _string(self, key: str, value: Any, rules: Mapping[str, Any]) -> str | None:
        if not isinstance(value, str):
            self.fault(key, f"is {value!r}, not a string", "write it in quotes")
            return None
        if not value and not rules["empty"]:
            self.fault(key, "is empty", "give it a value")
        if rules["one_of"] and value not in rules["one_of"]:
            self.fault(key, f"is {value!r}", f"use one of {', '.join(rules['one_of'])}")
        return value

    def _strings(self, key: str, value: Any, rules: Mapping[str, Any]) -> tuple[str, ...] | None:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.fault(key, f"is {value!r}, not a list of strings", 'write it as ["command", "argument"]')
            return None
        unknown = [item for item in value if rules["one_of"] and item not in rules["one_of"]]
        if unknown:
            self.fault(key, f"has {', '.join(map(repr, unknown))}", f"use some of {', '.join(rules['one_of'])}")
        wrong = [item for item in value if rules["addresses"] and not _is_host_port(item)]
        if wrong:
            self.fault(key, f"has {', '.join(map(repr, wrong))}", "write each as host:port")
        return tuple(value)


def _is_host_port(url: str) -> bool:
    host, _, port = url.rpartition(":")
    return bool(host) and port.isdigit() and 0 < int(port) < 65536


def _client_text(file: str, key: str, config: Config) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        remedy = "run `make up`" if isinstance(error, FileNotFoundError) else "read it as a user who may"
        raise ConfigError([f"{file} ({key} in {config.path}): cannot be read ({error}): {remedy}"]) from error


def _client_json(file: str, key: str, config: Config) -> dict[str, Any]:
    text = _client_text(file, key, config)
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ConfigError([f"{file} ({key} in {config.path}): is not JSON ({error}): run `make up`"]) from error
    if not isinstance(document, dict) or not isinstance(document.get("hosts"), list) or not document["hosts"]:
        raise ConfigError([f'{file} ({key} in {config.path}): "hosts" is missing or empty: run `make up`'])
    return document


STOMP_CONNECT_TIMEOUT_S = 5.0
STOMP_HEARTBEAT_S = 5.0
STOMP_SILENT_BEATS = 3
"""A broker whose host was cut off ends no connection: without a byte for so many heart-beats it is taken for dead."""


@dataclass(frozen=True)
class StompClient:
    """How to reach the broker over STOMP: hosts as (name, port), and the credentials (None: anonymous)."""

    hosts: tuple[tuple[str, int], ...]
    username: str | None = None
    password: str | None = dataclasses.field(default=None, repr=False)


def pseudonym_keys(config: Config) -> Path:
    """Return where the keys of the pseudonyms are."""
    return Path(config.collector.pseudonym_keys or Path(config.collector.data_dir) / "pseudonyms.keys")


def kafka_client(config: Config) -> dict[str, str]:
    """Return the librdkafka settings of the Kafka client file: a dict for confluent_kafka's Producer and Consumer.

    The file has one ``name=value`` a line; lines that begin with # are comments. Raises ConfigError.
    """
    file = config.kafka.client
    settings: dict[str, str] = {}
    problems = []
    for number, line in enumerate(_client_text(file, "kafka.client", config).splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, separator, value = text.partition("=")
        if not separator or not name.strip():
            problems.append(f"{file}:{number}: is not name=value: run `make up` to render it anew")
            continue
        settings[name.strip()] = value.strip()
    if "bootstrap.servers" not in settings:
        problems.append(f"{file}: bootstrap.servers is missing: run `make up` to render it anew")
    if problems:
        raise ConfigError(problems)
    return settings


def stomp_client(config: Config) -> StompClient:
    """Return hosts and credentials of the STOMP client file. Raises ConfigError."""
    file = config.stomp.client
    document = _client_json(file, "stomp.client", config)
    try:
        hosts = tuple((str(host), int(port)) for host, port in document["hosts"])
    except (TypeError, ValueError) as error:
        raise ConfigError([f'{file}: "hosts" is not a list of [host, port] ({error}): run `make up`']) from error
    return StompClient(hosts, document.get("username"), document.get("password"))


def elasticsearch_settings(config: Config) -> dict[str, Any]:
    """Return the keyword arguments for ``elasticsearch.Elasticsearch`` from its client file. Raises ConfigError."""
    document = _client_json(config.elasticsearch.client, "elasticsearch.client", config)
    settings: dict[str, Any] = {"hosts": [str(host) for host in document["hosts"]]}
    if document.get("username"):
        settings["basic_auth"] = (document["username"], document.get("password") or "")
    if document.get("ca_certs"):
        settings["ca_certs"] = document["ca_certs"]
    return settings


def elasticsearch_client(config: Config, **options: Any) -> Any:
    """Make an ``elasticsearch.Elasticsearch`` client; ``options`` (request_timeout, retries) go to its constructor.

    Nothing is sent until it is used. Raises ConfigError where the client file cannot be read.
    """
    from elasticsearch import Elasticsearch

    return Elasticsearch(**{**elasticsearch_settings(config), **options})
