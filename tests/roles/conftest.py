"""The roles as files, and one appliance that Ansible renders into a temporary directory, with programs that do nothing.

The bundle is a toy: each tarball holds only the scripts that a launcher calls, and a supervisor of a few lines that runs
a launcher once and remembers it as running. Everything else is the product's own: roles, templates, modules.
"""

from __future__ import annotations

import getpass
import grp
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ROLES = sorted(path.parent for path in ROOT.glob("roles/*/tasks"))

SUPERVISORCTL = """\
import configparser, pathlib, subprocess, sys
etc, (verb, *names) = pathlib.Path(sys.argv[2]).parent, sys.argv[3:]
supervisor = etc / "running"
if verb == "pid":
    sys.exit(not supervisor.exists())
for name in names:
    up = etc / (name + ".up")
    if verb == "status":
        print(name, "RUNNING" if up.exists() else "STOPPED")
    if verb == "update" and not up.exists():
        program = configparser.ConfigParser(interpolation=None)
        program.read(etc / "programs" / (name + ".conf"))
        done = subprocess.run([program["program:" + name]["command"]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            sys.exit(done.stdout)
        up.write_text(done.stdout)
"""
SUPERVISORD = "import pathlib, sys; (pathlib.Path(sys.argv[2]).parent / 'running').touch()\n"
NOTHING = "#!/bin/sh\nexit 0\n"
TOY_BUNDLE = {
    "hadoop": {"lib/hadoop.jar": ""},
    "spark": {"bin/spark-submit": NOTHING, "bin/spark-class": NOTHING},
    "activemq": {"lib/artemis.jar": ""},
    "kafka": {"lib/kafka.jar": ""},
    "elasticsearch": {"bin/elasticsearch": NOTHING},
    "gridstead": {"lib/gridstead/__init__.py": ""},
    "supervisor": {
        "lib/supervisor/__init__.py": "",
        "lib/supervisor/supervisorctl.py": SUPERVISORCTL,
        "lib/supervisor/supervisord.py": SUPERVISORD,
    },
}
# Which files of a role make its configuration without a running server; `public` lets later tasks see its variables.
ENTRY_POINTS = {"activemq": "install", "kafka": "install", "elasticsearch": "install", "gridstead": "main"}


def load(path: Path) -> Any:
    """Read a YAML file."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def defaults_of(role: Path) -> dict[str, Any]:
    """Return the public defaults of a role, in their order."""
    merged: dict[str, Any] = {}
    for path in [*role.glob("defaults/main.yml"), *sorted(role.glob("defaults/main/*.yml"))]:
        merged |= load(path)
    return {name: value for name, value in merged.items() if not name.startswith("_")}


def options_of(role: Path) -> dict[str, Any]:
    """Return what the argument spec of a role says of each variable."""
    return dict(load(role / "meta" / "argument_specs.yml")["argument_specs"]["main"]["options"])


def tasks_in(tasks: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the tasks of a file, those within blocks too."""
    for task in tasks:
        yield task
        for part in ("block", "rescue", "always"):
            yield from tasks_in(task.get(part, []))


def service_tasks(role: Path) -> list[dict[str, Any]]:
    """Return the tasks by which a role hands its processes to the role `service`."""
    found = []
    for path in sorted(role.glob("tasks/*.yml")):
        for task in tasks_in(load(path) or []):
            if (task.get("ansible.builtin.include_role") or {}).get("name") == "service":
                found.append(task)
    return found


@dataclass
class Rendered:
    """An appliance's tree, as the roles wrote it."""

    root: Path
    log: str

    @property
    def etc(self) -> Path:
        """Directory of the configuration."""
        return self.root / "etc"

    def launchers(self) -> list[Path]:
        """Return the launchers of all services."""
        return sorted((self.etc / "services").iterdir())


def pack(directory: Path) -> None:
    """Write the toy bundle with a manifest as tools/bundle.py does."""
    components = {}
    for name, files in TOY_BUNDLE.items():
        target = directory / f"{name}-1.0.tar"
        with tarfile.open(target, "w") as tar:
            for path, content in files.items():
                info = tarfile.TarInfo(path)
                info.size, info.mode = len(content), 0o755
                tar.addfile(info, io.BytesIO(content.encode()))
        digest = hashlib.sha256(target.read_bytes()).hexdigest()
        components[name] = {"version": "1.0", "file": target.name, "sha256": digest, "inputs": ""}
    (directory / "manifest.json").write_text(json.dumps({"components": components}))


def play(root: Path, bundle: Path) -> list[dict[str, Any]]:
    """Compose the play: every role's configuration, its arguments checked, its processes handed to the role `service`."""
    group = grp.getgrgid(os.getgid()).gr_name
    names = [role.name for role in ROLES if service_tasks(role)]
    tasks: list[dict[str, Any]] = []
    for name, entry in ENTRY_POINTS.items():
        include = {"name": name, "tasks_from": entry, "public": True}
        tasks.append({"name": f"Configure {name}", "ansible.builtin.include_role": include})
    for role in (ROOT / "roles" / name for name in names):
        check = {"argument_spec": options_of(role), "validate_args_context": {"name": role.name}}
        tasks.append({"name": f"Check {role.name}", "ansible.builtin.validate_argument_spec": check})
        directories = [{"path": value, "state": "directory", "mode": "0755"} for key, value in defaults_of(role).items() if key.endswith("_data_dir")]
        tasks += [{"name": "Make the data directory", "ansible.builtin.file": directory} for directory in directories]
        tasks += service_tasks(role)
    stream = {"path": "{{ gridstead_data_dir }}/stream", "state": "directory", "mode": "0755"}
    tasks.insert(len(ENTRY_POINTS), {"name": "Make the stream's directory", "ansible.builtin.file": stream})
    handlers = [handler for role in ROLES for path in role.glob("handlers/main.yml") for handler in load(path)]
    unit = {"service_name": "unit", "service_definition": f"{root}/etc/unit.service", "service_stop_timeout": 45, "service_user": "someone", "service_group": "some"}
    template = {"src": str(ROOT / "roles/service/templates/systemd.j2"), "dest": f"{root}/etc/unit.service", "mode": "0644"}
    tasks.append({"name": "Render a unit of systemd", "ansible.builtin.template": template, "vars": unit})
    return [
        {
            "name": "Render every role",
            "hosts": "localhost",
            "gather_subset": ["!all", "!min", "user", "env"],
            "vars": {
                "gridstead_root": str(root),
                "gridstead_bundle_dir": str(bundle),
                "gridstead_user": getpass.getuser(),
                "gridstead_group": group,
                "gridstead_supervisor": "supervisord",
                "gridstead_port_offset": 2000,
                "gridstead_java_home": str(root / "java"),
                "gridstead_python": str(root / "python"),
            },
            # these roles have no entry point without a process; the values of defaults are the same at any precedence
            "vars_files": [str(ROOT / f"roles/{name}/defaults/main.yml") for name in ("collector", "bridge", "analytics")],
            "tasks": tasks,
            "handlers": handlers,
        }
    ]


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Rendered:
    """Render everything once, with one run of Ansible."""
    work = tmp_path_factory.mktemp("roles")
    root, bundle = work / "root", work / "bundle"
    (root / "java" / "bin").mkdir(parents=True)
    bundle.mkdir()
    pack(bundle)
    (root / "java" / "bin" / "java").write_text(NOTHING)
    (root / "python").write_text(f'#!/bin/sh\ncase $2 in supervisor.*) exec {sys.executable} "$@" ;; esac\n')
    for script in (root / "java" / "bin" / "java", root / "python"):
        script.chmod(0o755)
    book = work / "render.yml"
    book.write_text(yaml.safe_dump(play(root, bundle), sort_keys=False))
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    ansible = shutil.which("ansible-playbook", path=environment["PATH"])
    assert ansible, "ansible-playbook is missing. Next: pip install -r requirements/control.lock"
    inventory = ["-i", "localhost,", "-c", "local", "-e", f"ansible_python_interpreter={sys.executable}"]
    done = subprocess.run([ansible, *inventory, str(book)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return Rendered(root, done.stdout)
