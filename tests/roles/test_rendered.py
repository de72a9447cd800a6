"""What the roles write can be read by whom it is for, and the launchers and the module agree on what is current."""

from __future__ import annotations

import configparser
import getpass
import importlib.util
import json
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
import yaml

from gridstead import config
from role_files import ROLES, ROOT, Rendered, defaults_of, handlers_of

PORTS = {name: port + 2000 for name, port in defaults_of(ROOT / "roles" / "common")["gridstead_base_ports"].items()}


def read_xml(path: Path) -> None:
    """Parse XML; a Hadoop file has each property once, with a value."""
    root = ElementTree.parse(path).getroot()
    names = [str(node.findtext("name")) for node in root.iter("property")]
    assert len(names) == len(set(names))
    assert all(node.findtext("value") for node in root.iter("property"))
    assert names or not path.name.endswith(("-site.xml", "-scheduler.xml")), "no property"


def read_properties(path: Path) -> dict[str, str]:
    """Parse Java properties (also with blanks between name and value, as Spark has them)."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    pairs = [re.fullmatch(r"\s*([\w.*-]+)(?:\s*=\s*|\s+)(\S.*)", line) for line in lines]
    assert all(pairs), [line for line, pair in zip(lines, pairs, strict=True) if not pair]
    names = [pair[1] for pair in pairs if pair]
    assert names and len(names) == len(set(names))
    return {pair[1]: pair[2] for pair in pairs if pair}


def read_shell(path: Path) -> None:
    """Let sh and shellcheck read a script."""
    subprocess.run(["sh", "-n", path], check=True)
    shellcheck = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    assert shellcheck, "shellcheck is missing. Next: pip install -r requirements/test.lock"
    command = [shellcheck, "--shell=sh", "--exclude=SC3045", path]  # `ulimit -n` is not of POSIX, but every sh of Linux has it
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def read_ini(path: Path) -> configparser.ConfigParser:
    """Parse a definition of supervisord or systemd."""
    parser = configparser.ConfigParser(interpolation=None, strict=False, inline_comment_prefixes=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign] # names of systemd keep their capitals
    parser.read_string(path.read_text())
    assert parser.sections()
    return parser


def read_elasticsearch(path: Path) -> None:
    """Parse the settings of Elasticsearch; a nested one would hide another."""
    settings = yaml.safe_load(path.read_text())
    assert settings["http.port"] == PORTS["elasticsearch_http"]
    assert settings["path.data"]


def read_jvm_options(path: Path) -> None:
    """Every line is a flag of the JVM."""
    assert all(line.startswith(("-", "#")) for line in path.read_text().splitlines())


def read_login(path: Path) -> None:
    """Parse a JAAS configuration: entries with modules, each closed by a semicolon."""
    assert re.fullmatch(r"\s*(\w+ \{\s*([\w.]+ (required|optional)(\s+[\w.]+=\S+)+;\s*)+\};\s*)+", path.read_text())


def read_password(path: Path) -> None:
    """A generated password, alone."""
    assert re.fullmatch(r"[A-Za-z0-9]{32}\n", path.read_text())


READERS: dict[str, Callable[[Path], object]] = {
    ".xml": read_xml,
    ".properties": read_properties,
    ".json": lambda path: json.loads(path.read_text()),
    ".toml": config.load,
    ".yml": read_elasticsearch,
    ".sh": read_shell,
    ".service": read_ini,
    "relabel.yml": lambda path: yaml.safe_load(path.read_text()),
    "password": read_password,
    "jvm.options": read_jvm_options,
    "login.config": read_login,
    "credentials": read_ini,
    "spark-defaults.conf": read_properties,
    ".conf": read_ini,
    ".cfg": read_properties,
}


def configuration(rendered: Rendered) -> list[Path]:
    """List every file that the roles wrote for somebody to read, without the passwords' own files."""
    outside = {"services", "secrets"}
    files = [path for path in sorted(rendered.etc.rglob("*")) if path.is_file() and not outside & set(path.relative_to(rendered.etc).parts)]
    return [path for path in files if path.suffix != ".up" and path.name != "running"]  # the toy supervisor's


def scripts(rendered: Rendered) -> list[Path]:
    """List the launchers and the commands."""
    names = "hadoop/bin/hadoop hadoop/bin/rack-of hadoop/bin/fence-namenode gridstead/bin/gridstead supervisor/bin/supervisorctl"
    return [*rendered.launchers(), *[rendered.root / "opt" / name for name in names.split()]]


def test_every_file_is_valid_for_its_reader(rendered: Rendered) -> None:
    files = configuration(rendered)
    for path in files:
        reader = READERS.get(path.name) or READERS.get(path.suffix)
        assert reader, f"no reader for {path.relative_to(rendered.root)}: add one to READERS"
        try:
            reader(path)
        except Exception as error:
            raise AssertionError(f"{path.relative_to(rendered.root)}: {error}") from error
    owners = {path.parent.name for path in files}
    servers = {"hadoop", "spark", "activemq", "zookeeper", "kafka", "elasticsearch", "victoriametrics"}
    assert {*servers, "gridstead", "clients", "programs"} <= owners


@pytest.mark.parametrize("leftover", ["{{", "{%", "Undefined", "<<", "None"])
def test_no_template_is_left_in_a_file(rendered: Rendered, leftover: str) -> None:
    assert [path for path in [*configuration(rendered), *scripts(rendered)] if leftover in path.read_text()] == []


def test_every_template_of_a_role_was_rendered(rendered: Rendered) -> None:
    """A template that this test does not render would not be tested: count them, by what each writes."""
    several = {"site.xml.j2", "launcher.sh.j2", "supervisor-tool.sh.j2", "supervisord.j2", "systemd.j2"}
    tools = {f"{path.name}.sh.j2" for path in scripts(rendered)}
    templates = {path.name for path in ROOT.glob("roles/*/templates/*.j2")} - several - tools
    assert templates - {f"{path.name}.j2" for path in configuration(rendered)} == set()


def test_every_script_is_valid_and_executable(rendered: Rendered) -> None:
    for path in scripts(rendered):
        read_shell(path)
        assert path.stat().st_mode & stat.S_IXUSR, path


def test_clients_are_told_the_ports_of_the_offset(rendered: Rendered) -> None:
    settings = config.load(rendered.etc / "gridstead" / "gridstead.toml")
    core = ElementTree.parse(Path(settings.hadoop.conf_dir) / "core-site.xml")
    values = {node.findtext("name"): node.findtext("value") for node in core.iter("property")}
    assert values["fs.defaultFS"] == f"hdfs://127.0.0.1:{PORTS['hdfs_namenode_rpc']}"
    assert read_properties(Path(settings.kafka.client))["bootstrap.servers"] == f"127.0.0.1:{PORTS['kafka']}"
    assert json.loads(Path(settings.stomp.client).read_text())["hosts"] == [["127.0.0.1", PORTS["activemq"]]]
    assert json.loads(Path(settings.elasticsearch.client).read_text())["hosts"] == [f"http://127.0.0.1:{PORTS['elasticsearch_http']}"]
    assert settings.collector.xrootd_port == PORTS["collector_xrootd"]


def test_object_storage_is_reached_by_keys_that_only_one_file_has(rendered: Rendered) -> None:
    holders = [path for path in rendered.etc.rglob("*") if path.is_file() and "secret-of-the-test" in path.read_text()]
    assert holders == [rendered.etc / "s3" / "credentials"]
    assert stat.S_IMODE(holders[0].stat().st_mode) == 0o600
    assert dict(read_ini(holders[0])["default"])["aws_access_key_id"] == "KEYOFTHETEST"
    assert "secret-of-the-test" not in rendered.log
    core = ElementTree.parse(rendered.etc / "hadoop" / "core-site.xml")
    values = {node.findtext("name"): node.findtext("value") for node in core.iter("property")}
    assert values["fs.s3a.endpoint"] == "https://s3.example.org"
    assert values["fs.s3a.path.style.access"] == "true"
    assert values["fs.s3a.encryption.algorithm"] == "AES256"
    assert values["fs.s3a.aws.credentials.provider"].endswith(".ProfileCredentialsProvider")
    spark = read_properties(rendered.etc / "spark" / "spark-defaults.conf")
    jars = f"{rendered.root}/opt/s3a/current/lib/*"
    assert spark["spark.driver.extraClassPath"] == spark["spark.executor.extraClassPath"] == jars
    assert spark["spark.executorEnv.AWS_SHARED_CREDENTIALS_FILE"] == str(holders[0])
    hadoop = (rendered.root / "opt" / "hadoop" / "bin" / "hadoop").read_text()
    assert f"AWS_SHARED_CREDENTIALS_FILE='{holders[0]}'" in hadoop
    assert jars in hadoop


def test_the_brokers_password_is_one_and_is_not_readable_by_all(rendered: Rendered) -> None:
    client = json.loads((rendered.etc / "clients" / "stomp.json").read_text())
    users = rendered.etc / "activemq" / "artemis-users.properties"
    assert read_properties(users) == {client["username"]: client["password"]}
    assert len(client["password"]) >= 32
    assert client["password"] not in rendered.log
    holders = [path for path in rendered.etc.rglob("*") if path.is_file() and client["password"] in path.read_text()]
    assert len(holders) == 3  # the broker's, the clients' and the secret itself
    assert [path for path in holders if path.stat().st_mode & stat.S_IRWXO] == []


def test_spark_reports_to_the_store_of_metrics_whose_password_few_may_read(rendered: Rendered) -> None:
    spark = read_properties(rendered.etc / "spark" / "spark-defaults.conf")
    sink = "spark.metrics.conf.*.sink.graphite"
    command = (rendered.etc / "services" / "victoriametrics").read_text()
    assert f"-graphiteListenAddr={spark[f'{sink}.host']}:{spark[f'{sink}.port']}" in command
    assert f"-httpListenAddr=127.0.0.1:{PORTS['victoriametrics_http']}" in command
    password = rendered.etc / "victoriametrics" / "password"
    assert stat.S_IMODE(password.stat().st_mode) == 0o640
    assert password.read_text().strip() not in command + rendered.log


def test_each_service_has_a_launcher_a_definition_and_a_handler(rendered: Rendered) -> None:
    services = config.load(rendered.etc / "gridstead" / "gridstead.toml").services
    names = {service.name for service in services}
    assert {path.name for path in rendered.launchers()} == names
    assert {path.stem for path in (rendered.etc / "supervisor" / "programs").iterdir()} == names
    wanted = {(service.role, f"Restart {service.name}", service.name) for service in services}
    handlers = {(role.name, handler["name"], handler["vars"]["service_restarted"]) for role in ROLES for handler in handlers_of(role)}
    assert handlers == wanted


def test_each_program_is_its_launcher(rendered: Rendered) -> None:
    for path in (rendered.etc / "supervisor" / "programs").iterdir():
        assert read_ini(path)[f"program:{path.stem}"]["command"] == str(rendered.etc / "services" / path.stem)


def test_a_unit_of_systemd_says_what_the_role_said(rendered: Rendered) -> None:
    service = read_ini(rendered.etc / "unit.service")["Service"]
    said = [service[key] for key in ("ExecStart", "User", "TimeoutStopSec", "LimitNOFILE")]
    assert said == [f"{rendered.etc}/services/unit", "someone", "45", "65536"]


def test_a_unit_of_root_leaves_the_directory_of_the_others_to_them(rendered: Rendered) -> None:
    """A RuntimeDirectory is given to the unit's user, with all that is in it."""
    services = {name: read_ini(rendered.etc / f"{name}.service")["Service"] for name in ("unit", "powerful")}
    assert services["unit"]["RuntimeDirectory"] == "gridstead"
    assert "RuntimeDirectory" not in services["powerful"]
    user, run_dir = getpass.getuser(), rendered.root / "run"
    assert re.fullmatch(rf"/usr/bin/install -d -m 0755 -o {user} -g \S+ {run_dir}", services["powerful"]["ExecStartPre"])


def test_a_nodemanager_that_may_be_taken_away_signs_off_when_it_stops(rendered: Rendered) -> None:
    site = ElementTree.parse(rendered.etc / "hadoop" / "yarn-site.xml")
    values = {node.findtext("name"): node.findtext("value") for node in site.iter("property")}
    assert values["yarn.nodemanager.recovery.supervised"] == "false"


@pytest.fixture(scope="module")
def module() -> ModuleType:
    """The module gridstead_service, imported."""
    spec = importlib.util.spec_from_file_location("gridstead_service", ROOT / "library" / "gridstead_service.py")
    assert spec and spec.loader
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_every_launcher_wrote_the_digest_that_the_module_computes(rendered: Rendered, module: ModuleType) -> None:
    for launcher in rendered.launchers():
        written = module.running_digest(rendered.root / "run" / f"{launcher.name}.digest")
        assert written == module.configured_digest(launcher), launcher.name


def test_a_changed_file_is_stale_until_the_next_start(rendered: Rendered, module: ModuleType) -> None:
    launcher, digest = rendered.etc / "services" / "kafka", rendered.root / "run" / "kafka.digest"
    watched = rendered.etc / "kafka" / "server.properties"
    before = watched.read_text()
    try:
        watched.write_text(before + "num.io.threads=3\n")
        assert module.running_digest(digest) != module.configured_digest(launcher)
        subprocess.run([launcher], check=True)
        assert module.running_digest(digest) == module.configured_digest(launcher)
    finally:
        watched.write_text(before)
        subprocess.run([launcher], check=True)


def test_every_watched_file_exists(rendered: Rendered) -> None:
    """A path that is misspelt would never cause a restart."""
    for launcher in rendered.launchers():
        (line,) = (line for line in launcher.read_text().splitlines() if line.startswith("# watch "))
        assert [path for path in line.split()[2:] if not Path(path).exists()] == [], launcher.name
