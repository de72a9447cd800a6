"""config: what is found, what is refused, and how clearly."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance_files import write_appliance
from gridstead import config as configuration
from gridstead.config import ConfigError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_appliance(tmp_path)


def test_every_section_is_read_and_optional_keys_have_defaults(file: Path) -> None:
    config = configuration.load(file)
    assert config.path == file
    assert config.appliance.supervisor == "supervisord"
    assert config.kafka.events_topic == "gridstead.events"
    assert config.stream.bin_s == 600
    assert config.collector.queue_max_bytes == 1 << 30
    assert [service.name for service in config.services] == ["collector", "kafka"]
    assert config.service("kafka") is config.services[1]
    assert config.service("nonesuch") is None


def test_all_faults_come_at_once_each_with_file_key_and_remedy(file: Path) -> None:
    text = file.read_text()
    text = text.replace('name = "test"', 'name = 7\nsupervisor = "cron"\nlogdir = "x"')
    text = text.replace("[bridge]", "[bridge]\nbatch_messages = 0").replace('check = "tcp"', 'check = "ping"')
    text = text.replace('[kafka]\nclient = "', '[kafka]\nevents_topic = "')
    file.write_text(text + '\n[colector]\nbind = "x"\n')
    with pytest.raises(ConfigError) as raised:
        configuration.load(file)
    problems = raised.value.problems
    assert all(problem.startswith(f"{file}: ") for problem in problems)
    for part in (
        "appliance.name is 7, not a string: write it in quotes",
        "appliance.supervisor is 'cron': use one of supervisord, systemd, container",
        "appliance.logdir is not a known key (did you mean log_dir?)",
        "bridge.batch_messages is 0, out of range: use 1 or more",
        "kafka.client is missing",
        "services[1].check is 'ping': use one of http, tcp",
        "colector is not a known section (did you mean collector?)",
    ):
        assert any(part in problem for problem in problems), part
    assert len(problems) == 7


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("xrootd_port = ", "xrootd_port = 9", "out of range: use from 1 to 65535"),
        ("[hadoop]", "[hadoop", "is not TOML"),
        ("[stream]", '[stream]\nstatistics = ["transfer"]', "stream.statistics has 'transfer': use some of transfers,"),
        ("[collector]", "[collector]\npseudonymise = 1", "collector.pseudonymise is 1, neither true nor false"),
        ('check = "http"', 'check = "tcp"', "is not host:port"),
        ('name = "kafka"', 'name = "collector"', "'collector' occurs twice"),
        ("supervisorctl = [", "supervisorctl = 1 #[", "not a list of strings"),
        ("status_port = ", "status_port = true #", "not an integer"),
        ("[stream]", "[schedule]\nbatch_days = 40\n[archive]\nretention_days = 39\n[stream]", "archive.retention_days is less than"),
        (
            "[elasticsearch]",
            "[schedule]\nbatch_days = 40\n[elasticsearch]\nretention_months = 1",
            "elasticsearch.retention_months may be less than schedule.batch_days",
        ),
    ],
)
def test_one_fault(file: Path, old: str, new: str, part: str) -> None:
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(ConfigError, match=part.replace("[", r"\[")):
        configuration.load(file)


def test_the_file_is_looked_for_in_order(file: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / ".gridstead/etc/gridstead").mkdir(parents=True)
    (home / ".gridstead/etc/gridstead/gridstead.toml").write_text("")
    environment = {"HOME": str(home)}
    assert configuration.find(environment) == home / ".gridstead/etc/gridstead/gridstead.toml"
    assert configuration.find({**environment, "GRIDSTEAD_CONFIG": str(file)}) == file
    with pytest.raises(ConfigError, match="make up"):
        configuration.find({**environment, "GRIDSTEAD_CONFIG": str(tmp_path / "nonesuch")})
    with pytest.raises(ConfigError, match="cannot be read"):
        configuration.load(tmp_path / "nonesuch")


def test_the_client_files_are_read(file: Path) -> None:
    config = configuration.load(file)
    assert set(configuration.kafka_client(config)) == {"bootstrap.servers", "security.protocol"}
    assert configuration.kafka_client(config)["security.protocol"] == "PLAINTEXT"
    stomp = configuration.stomp_client(config)
    assert stomp.hosts[0][0] == "127.0.0.1" and isinstance(stomp.hosts[0][1], int)
    assert (stomp.username, stomp.password) == ("u", "p")
    assert "password" not in repr(stomp)
    elastic = file.parent / "elasticsearch.json"
    elastic.write_text('{"hosts": ["https://es:9200"], "username": "a", "password": "b", "ca_certs": "/ca.pem"}')
    settings = configuration.elasticsearch_settings(config)
    assert settings == {"hosts": ["https://es:9200"], "basic_auth": ("a", "b"), "ca_certs": "/ca.pem"}


def test_a_broken_client_file_names_itself_and_its_key(file: Path) -> None:
    config = configuration.load(file)
    (file.parent / "kafka.properties").write_text("security.protocol\n")
    with pytest.raises(ConfigError) as raised:
        configuration.kafka_client(config)
    assert any("kafka.properties:1: is not name=value" in problem for problem in raised.value.problems)
    assert any("bootstrap.servers is missing" in problem for problem in raised.value.problems)
    (file.parent / "stomp.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"stomp.json \(stomp.client in .*\"hosts\" is missing"):
        configuration.stomp_client(config)
    (file.parent / "elasticsearch.json").unlink()
    with pytest.raises(ConfigError, match="elasticsearch.json .*cannot be read"):
        configuration.elasticsearch_settings(config)
