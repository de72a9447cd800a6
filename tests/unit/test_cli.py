"""The command: help, exit codes, and the parts of commands that need no server."""

from __future__ import annotations

import ast
import dataclasses
import json
import socket
import subprocess
import sys
import threading
import xml.etree.ElementTree as ET
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from appliance_files import free_ports, write_appliance
from gridstead import cli
from gridstead import config as configuration
from gridstead.cli import dlq, main, metrics, pipeline, supervision
from gridstead.cli.app import COMMANDS
from gridstead.collector.status import serve
from gridstead.config import Service
from gridstead.smoke import Outcome, junit
from gridstead.smoke.probe import Probe, SmokeError
from gridstead.smoke.runner import CHECKS


def test_commands_need_no_spark() -> None:
    directory = Path(cli.__file__).parent
    names = {f"gridstead.cli.{name}" for name in COMMANDS}
    for path in directory.glob("*.py"):  # what they import when they are called, too
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gridstead."):
                names.add(str(node.module))
    assert "gridstead.archive.manifest" in names
    script = f"import sys; sys.modules['pyspark'] = None; import {', '.join(sorted(names))}"  # as where the command is installed
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_examples_and_json(name: str) -> None:
    result = CliRunner().invoke(main, [name, "--help"])
    assert result.exit_code == 0, result.output
    if name in ("archive", "dlq", "release", "pseudonyms", "batch", "stream", "merge"):
        groups = [line.split()[0] for line in result.output.partition("Commands:")[2].splitlines() if line.strip()]
        texts = [CliRunner().invoke(main, [name, group, "--help"]).output for group in groups]
    else:
        texts = [result.output]
    assert texts
    for text in texts:
        assert "Examples:" in text and f"gridstead {name}" in text and "--json" in text and "--config" in text


def test_help_lists_commands_and_exit_codes() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    assert all(name in result.output for name in COMMANDS)
    assert "130  interrupted" in result.output


def test_counters_of_several_gateways_are_those_of_one(tmp_path: Path) -> None:
    port, stream_port = free_ports(socket.SOCK_STREAM, 2)
    pages = {
        "127.0.0.2": {"events": 5, "queue_rows": 1, "last_event_ms": 90, "sender_connected": True, "pseudonym_key": None},
        "127.0.0.3": {"events": 7, "queue_rows": 0, "last_event_ms": 80, "sender_connected": False, "pseudonym_key": 2},
    }
    servers = {host: serve(host, port, {"/metrics.json": lambda page=page: (200, page)}) for host, page in pages.items()}
    stream = serve("127.0.0.3", stream_port, {"/metrics.json": lambda: (200, {"queries": {}})})
    config = configuration.load(write_appliance(tmp_path))
    config = dataclasses.replace(
        config,
        collector=dataclasses.replace(config.collector, bind="127.0.0.3", status_port=port),
        stream=dataclasses.replace(config.stream, bind="127.0.0.2", status_port=stream_port),
        failover=dataclasses.replace(config.failover, gateways=tuple(pages)),
    )
    try:
        together = {"events": 12, "queue_rows": 1, "last_event_ms": 90, "sender_connected": False, "pseudonym_key": 2}
        assert metrics.collector(config) == together
        assert metrics.stream(config) == {"queries": {}}  # the gateway that is asked first does not answer
        assert metrics.packets_counter(config)() is None  # it counts the packets of this host alone, and this page has none
        servers["127.0.0.2"].shutdown()
        servers["127.0.0.2"].server_close()
        with pytest.raises(metrics.MetricsError, match="127.0.0.2"):
            metrics.collector(config)
    finally:
        for server in (servers["127.0.0.3"], stream):
            server.shutdown()
            server.server_close()


@pytest.mark.parametrize("where", ["before", "after"])
def test_a_missing_configuration_is_exit_code_3(tmp_path: Path, where: str) -> None:
    option = ["--config", str(tmp_path / "nonesuch.toml")]
    arguments = [*option, "status"] if where == "before" else ["status", *option]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 3
    assert "nonesuch.toml: cannot be read" in result.stderr and "next:  make up" in result.stderr


def test_status_of_an_appliance_that_is_down(tmp_path: Path) -> None:
    file = write_appliance(tmp_path)
    result = CliRunner().invoke(main, ["status", "--config", str(file), "--json"])
    assert result.exit_code == 1
    answer = json.loads(result.stdout)
    assert answer["healthy"] is False
    assert [service["name"] for service in answer["services"]] == ["collector", "kafka"]
    assert all("refused" in service["reason"].lower() for service in answer["services"])
    stages = {stage["name"]: stage for stage in answer["pipeline"]["stages"]}
    assert list(stages) == ["collector", "broker", "bridge", "log", "archive", "statistics", "serving"]
    assert all(stage["problem"] for stage in stages.values())
    assert answer["pipeline"]["backlog"] is None


def test_doctor_of_an_appliance_that_is_down_says_what_to_type(tmp_path: Path) -> None:
    file = write_appliance(tmp_path)
    result = CliRunner().invoke(main, ["doctor", "--config", str(file), "--json"])
    assert result.exit_code == 1
    findings = json.loads(result.stdout)["findings"]
    wrong = [finding for finding in findings if finding["verdict"] == "wrong"]
    assert {"services"} <= {finding["check"] for finding in wrong}
    assert all(finding["next_command"] for finding in wrong)
    assert findings[0] == {
        "check": "configuration",
        "verdict": "ok",
        "message": f"{file} and the three client files can be read",
        "next_command": "",
    }
    (tmp_path / "stomp.json").write_text("nonsense")
    result = CliRunner().invoke(main, ["doctor", "--config", str(file)])
    assert result.exit_code == 1 and "is not JSON" in result.stdout.replace("\n", "")


def test_supervisor_output_is_read() -> None:
    text = (
        "kafka                            RUNNING   pid 4711, uptime 0:01:02\n"
        "gridstead:collector              RUNNING   pid 4712, uptime 1 day, 0:01:02\n"
        "stream                           FATAL     Exited too quickly (process log may have details)\n"
        "bridge                           STOPPED   Nov 21 08:00 AM\n"
    )
    found = supervision.parse_supervisor(text)
    assert found["kafka"] == supervision.Process("RUNNING", 4711)
    assert found["collector"].pid == 4712 and found["collector"].running
    assert found["stream"] == supervision.Process("FATAL") and not found["bridge"].running
    assert supervision.parse_supervisor("unix:///run/supervisor.sock no such file\n") == {}


def test_systemd_output_is_read() -> None:
    text = (
        "Id=gridstead-kafka.service\nActiveState=active\nMainPID=17\n\n"
        "Id=gridstead-stream.service\nActiveState=failed\nMainPID=0\n"
    )
    found = supervision.parse_systemd(text)
    assert found == {"kafka": supervision.Process("active", 17), "stream": supervision.Process("failed", None)}


def test_a_log_is_read_where_the_supervisor_keeps_it(tmp_path: Path) -> None:
    embedded = configuration.load(write_appliance(tmp_path))
    service = embedded.services[0]
    assert supervision.log_command(embedded, service) == ["tail", "-n", "50", service.log]
    appliance = dataclasses.replace(embedded.appliance, supervisor="systemd")
    on_host = dataclasses.replace(embedded, appliance=appliance)
    assert supervision.log_command(on_host, service)[:2] == ["journalctl", f"--unit=gridstead-{service.name}"]
    released = dataclasses.replace(embedded, appliance=dataclasses.replace(embedded.appliance, name="r", supervisor="container"))
    selector = f"app.kubernetes.io/instance=r,app.kubernetes.io/component={service.name}"
    assert supervision.log_command(released, service) == ["kubectl", "logs", "-l", selector, "--tail=50"]
    [told] = supervision.log_tail(released, service.name)
    assert "this is not a pod with a service account" in told and selector in told
    assert supervision.supervised(released) == {}


def test_checks_by_network() -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(405 if self.path == "/" else 503)
            self.end_headers()
            self.wfile.write(b"the queue\nis full")

        def log_message(self, format: str, *args: object) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host = f"127.0.0.1:{server.server_port}"

    def check(kind: str, url: str) -> tuple[bool, str]:
        return supervision.check(Service(name="x", check=kind, url=url, log="/x"))

    assert check("http", f"http://{host}/") == (True, "")
    assert check("tcp", host) == (True, "")
    healthy, reason = check("http", f"http://{host}/health")
    assert not healthy and "HTTP 503 the queue is full" in reason
    server.shutdown()
    server.server_close()
    assert check("tcp", host)[0] is False and check("http", f"http://{host}/")[0] is False


def test_a_check_of_a_port_that_speaks_something_else() -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        connection, _ = listener.accept()
        connection.sendall(b"not http\r\n\r\n")
        connection.close()

    threading.Thread(target=answer, daemon=True).start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    healthy, reason = supervision.check(Service(name="x", check="http", url=url, log="/x"))
    listener.close()
    assert not healthy and reason


def test_the_stage_of_a_query() -> None:
    topic = "gridstead.events"
    entry = {"state": "running", "offsets": {topic: {"0": 90, "1": 10}}, "rows": 100, "documents": 7}
    stage = pipeline.stream_stage("statistics", "documents", entry, {0: 100, 1: 10}, topic)
    assert (stage.lag, stage.events_in, stage.events_out, stage.problem) == (10, 100, 7, "")
    starting = pipeline.stream_stage("archive", "rows", {"state": "starting"}, {0: 5}, topic)
    assert starting.lag is None and starting.problem
    assert pipeline.stream_stage("archive", "rows", {"state": "running"}, {0: 0}, topic).lag == 0
    failed = pipeline.stream_stage("archive", "rows", {"state": "failed", "error": "boom"}, {0: 5}, topic)
    assert failed.problem == "failed: boom"


@given(st.sets(st.integers(0, 10_000)))
def test_replayed_offsets_survive_their_text(offsets: set[int]) -> None:
    assert dlq.from_ranges(dlq.to_ranges(offsets)) == offsets


def test_dead_letters_are_read_and_strange_records_say_so() -> None:
    record = {"reason": "end_time: is required", "source": "stomp", "origin": "q", "received_ms": 5}
    letter = dlq.parse(0, 7, json.dumps({**record, "raw_base64": "eA==", "truncated": False}).encode())
    assert (letter.place, letter.raw, letter.truncated, letter.header) == ("0:7", b"x", False, None)
    assert not letter.partial and dlq.parse(0, 7, json.dumps({**record, "raw_base64": "eA==", "partial": True}).encode()).partial
    for value in (None, b"", b"\xff", b"[]", b"{}", json.dumps({**record, "raw_base64": "*"}).encode()):
        letter = dlq.parse(1, 2, value)
        assert letter.raw is None and "not a dead-letter record" in letter.reason
    kinds = {dlq.kind_of_reason(f"record size {n} (at byte {n}) in 'x{n}'") for n in range(20)}
    assert len(kinds) == 1


def test_dlq_without_kafka(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["dlq", "list", "--config", str(write_appliance(tmp_path)), "--json"])
    assert result.exit_code == 4
    assert json.loads(result.stderr)["error"].startswith("Kafka (topic gridstead.deadletter) does not answer")
    result = CliRunner().invoke(main, ["dlq", "replay", "5", "--config", str(tmp_path / "gridstead.toml")])
    assert result.exit_code == 2 and "is not PARTITION:OFFSET" in result.stderr


def test_smoke_of_an_appliance_that_is_down(tmp_path: Path) -> None:
    file = write_appliance(tmp_path)
    (tmp_path / "log" / "kafka.log").write_text("one\ntwo: java.lang.OutOfMemoryError\n")
    target = tmp_path / "out" / "smoke.xml"
    arguments = ["smoke", "--config", str(file), "--only", "stomp", "--only", "hdfs", "--junit", str(target)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert "2 of 2 checks failed" in result.stderr and "gridstead doctor" in result.stderr
    suite = ET.parse(target).getroot()[0]
    assert (suite.get("tests"), suite.get("failures")) == ("2", "2")
    messages = [case[0].get("message") for case in suite]
    assert "refused" in str(messages[0]) and "is not there: run `make up`" in str(messages[1])


def test_junit_takes_any_text(tmp_path: Path) -> None:
    outcome = Outcome("x", "y", False, "bad \x00\x1b[31m <&> \ud800", 1.5, {"kafka": ["\x07 line"]})
    junit.write([outcome, Outcome("z", "y", True, "fine", 0.1)], tmp_path / "x.xml")
    root = ET.parse(tmp_path / "x.xml").getroot()
    assert root.get("failures") == "1"
    assert "<&>" in str(root[0][0][0].get("message")) and "kafka" in str(root[0][0][0].text)


def test_every_smoke_check_has_its_module() -> None:
    import importlib

    for check in CHECKS:
        assert callable(importlib.import_module(f"gridstead.smoke.{check.name}").check)


def test_a_probe_explains_commands_that_fail(tmp_path: Path) -> None:
    config = configuration.load(write_appliance(tmp_path))
    done: list[str] = []
    with pytest.raises(SmokeError, match="ended with 3\n    last words"):
        with Probe(config, 10) as probe:
            probe.later(done.append, "cleaned")
            probe.command(["sh", "-c", "echo last words >&2; exit 3"])
    assert done == ["cleaned"]
    with Probe(config, 0.5) as probe, pytest.raises(SmokeError, match="did not end within"):
        probe.command(["sleep", "5"])


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["submit", "nonesuch"], "neither a job of a release (archive, batch, ingest, reading, stream) nor a .py file"),
        (["submit", "nonesuch.py"], "nonesuch.py is not there"),
        (["submit", "--conf", "colour", "batch"], "is not NAME=VALUE"),
        (["batch", "run", "--from", "2025-06-02", "--to", "2025-06-01"], "is after --to"),
        (["batch", "run", "--from", "1st of June", "--to", "2025-06-01"], "is not a day"),
        (["simulate", "--send", "--output", "x"], "exclude each other"),
        (["replay"], "Missing argument"),
        (["smoke", "--only", "nonesuch"], "nonesuch"),
    ],
)
def test_wrong_usage_is_exit_code_2(tmp_path: Path, arguments: list[str], part: str) -> None:
    result = CliRunner().invoke(main, ["--config", str(write_appliance(tmp_path)), *arguments])
    assert result.exit_code == 2, result.output
    assert part in result.output


def test_submit_runs_scripts_with_the_libraries_of_a_release(tmp_path: Path) -> None:
    file = write_appliance(tmp_path)
    script = tmp_path / "own.py"
    script.write_text("print(1)\n")
    options = ["--config", str(file), "submit", "--dry-run", "--release", "0.1.0"]
    result = CliRunner().invoke(main, ["--json", *options, "--conf", "spark.x=a=b", str(script), "--from", "x"])
    assert result.exit_code == 0, result.output
    command = json.loads(result.stdout)["command"]
    assert command[-3:] == [str(script), "--from", "x"]
    assert command[command.index("--name") + 1] == "own" and "spark.x=a=b" in command
    assert "hdfs:///apps/gridstead/0.1.0/environment.tar.gz#environment" in command
    result = CliRunner().invoke(main, ["--json", *options, "batch", "--from", "2025-06-01", "--help"])
    command = json.loads(result.stdout)["command"]
    assert command[-5:] == ["--config", str(file), "--from", "2025-06-01", "--help"]


def test_an_hdfs_that_is_not_installed_is_said_so(tmp_path: Path) -> None:
    file = write_appliance(tmp_path)
    for arguments in (["release", "list"], ["submit", "batch"], ["rebuild"]):
        result = CliRunner().invoke(main, ["--config", str(file), *arguments])
        assert result.exit_code == 4, result.output
        assert "is not there: install the appliance with `make up`" in result.stderr
