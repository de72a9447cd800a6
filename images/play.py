"""The playbook that fills the images: each role's own tasks, and of the tasks that run servers only those that write their launchers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

CONNECTION = {  # of the images alone: tasks for this machine are among the roles'
    "ansible_connection": "community.general.chroot",
    "ansible_python_interpreter": "/usr/bin/python3",
    "ansible_remote_tmp": "/tmp/.ansible",
}
ROOT = Path(__file__).resolve().parents[1]
# Of each image: the roles' entry points that install and configure, then the roles whose services it runs.
ENTRIES = {
    "hadoop": ([("hdfs", "client")], ["hdfs"]),
    "zookeeper": ([("zookeeper", "install")], ["zookeeper"]),
    "kafka": ([("kafka", "install")], ["kafka"]),
    "artemis": ([("activemq", "install")], ["activemq"]),
    "elasticsearch": ([("elasticsearch", "install")], ["elasticsearch"]),
    "victoriametrics": ([("victoriametrics", "install")], ["victoriametrics"]),
    "pipeline": ([("gridstead", "main")], ["spark", "collector", "bridge", "analytics"]),
}
WITH_PYTHON = ("pipeline",)
COMPONENTS = {  # what each image has below /opt/gridstead, by the bundle's names
    "hadoop": ["hadoop"],
    "zookeeper": ["zookeeper"],
    "kafka": ["kafka"],
    "artemis": ["activemq"],
    "elasticsearch": ["elasticsearch"],
    "victoriametrics": ["victoriametrics"],
    "pipeline": ["hadoop", "spark", "gridstead"],
}


def tasks_in(tasks: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The tasks of a file, those within blocks too."""
    for task in tasks:
        yield task
        for part in ("block", "rescue", "always"):
            yield from tasks_in(task.get(part, []))


def launchers(role: str) -> list[dict[str, Any]]:
    """The tasks by which a role hands its processes to the role `service`."""
    files = sorted((ROOT / "roles" / role / "tasks").glob("*.yml"))
    tasks = [task for file in files for task in tasks_in(yaml.safe_load(file.read_text()) or [])]
    return [task for task in tasks if (task.get("ansible.builtin.include_role") or {}).get("name") == "service"]


def defaults(role: str) -> list[str]:
    """The files of a role's variables."""
    return [str(path) for path in (ROOT / "roles" / role).glob("[dv][ea][fr]*s/main.yml")]


def compose(roots: dict[str, Path], directory: Path) -> tuple[Path, Path]:
    """Write the inventory and the playbook for these images, whose root directories are given; return both."""
    variables = ROOT / "images/variables.yml"
    hosts = {image: {**CONNECTION, "ansible_host": str(root)} for image, root in roots.items()}
    inventory, book = directory / "inventory.json", directory / "fill.json"
    inventory.write_text(json.dumps({"all": {"hosts": hosts, "vars": yaml.safe_load(variables.read_text())}}, indent=1))
    plays = []
    for image in roots:
        entries, services = ENTRIES[image]
        tasks = [{"name": f"Find Java for {image}", "ansible.builtin.include_role": {"name": "java"}}]
        for role, entry in entries:
            include = {"name": role, "tasks_from": entry, "public": True}
            tasks.append({"name": f"Install {role} in {image}", "ansible.builtin.include_role": include})
        # variables of roles that the entry points do not bring, none of which differs by host
        files = [file for role in ("collector", "bridge", "analytics", "yarn", *services) for file in defaults(role)]
        files.append(str(variables))  # last, or defaults would count
        tasks += [task for role in services for task in launchers(role)]
        plays.append(
            {"name": f"Fill {image}", "hosts": image, "gather_subset": ["!all", "!min", "user", "env"], "vars_files": files, "tasks": tasks}
        )
    book.write_text(json.dumps(plays, indent=1))
    return inventory, book
