"""One appliance that Ansible renders into a temporary directory, with programs that do nothing.

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
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))  # role_files.py
from play import launchers

from role_files import ROLES, ROOT, Rendered, defaults_of, handlers_of, options_of

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
    "zookeeper": {"lib/zookeeper.jar": ""},
    "hadoop": {"lib/hadoop.jar": ""},
    "spark": {"bin/spark-submit": NOTHING, "bin/spark-class": NOTHING},
    "activemq": {"lib/artemis.jar": ""},
    "kafka": {"lib/kafka.jar": ""},
    "elasticsearch": {"bin/elasticsearch": NOTHING},
    "victoriametrics": {"bin/victoria-metrics": NOTHING},
    "gridstead": {"lib/gridstead/__init__.py": ""},
    "s3a": {"lib/hadoop-aws.jar": ""},
    "supervisor": {
        "lib/supervisor/__init__.py": "",
        "lib/supervisor/supervisorctl.py": SUPERVISORCTL,
        "lib/supervisor/supervisord.py": SUPERVISORD,
    },
}
# The task files that write a role's configuration and need no running server.
ENTRY_POINTS = {"zookeeper": "install", "activemq": "install", "kafka": "install", "elasticsearch": "install", "victoriametrics": "install",
                "gridstead": "main"}  # fmt: skip


def pack(bundle: Path, programs: Path) -> None:
    """Write the toy bundle with a manifest as tools/bundle.py does, and install all but one of its components to save time."""
    components = {}
    for name, files in TOY_BUNDLE.items():
        target = bundle / f"{name}-1.0.tar"
        with tarfile.open(target, "w") as tar:
            for path, content in files.items():
                info = tarfile.TarInfo(path)
                info.size, info.mode = len(content), 0o755
                tar.addfile(info, io.BytesIO(content.encode()))
        digest = hashlib.sha256(target.read_bytes()).hexdigest()
        components[name] = {"version": "1.0", "file": target.name, "sha256": digest, "inputs": ""}
        if name != "gridstead":
            home = programs / name / "1.0"
            with tarfile.open(target) as tar:
                tar.extractall(home)
            for marker in (".bundle", f".bundle-{digest[:16]}"):
                (home / marker).write_text(digest + "\n")
            (programs / name / "current").symlink_to("1.0")
    (bundle / "manifest.json").write_text(json.dumps({"components": components}))


def play(root: Path, bundle: Path) -> list[dict[str, Any]]:
    """Compose the play: every role's configuration, its arguments checked, its processes handed to the role `service`."""
    group = grp.getgrgid(os.getgid()).gr_name
    names = [role.name for role in ROLES if launchers(role.name)]
    tasks: list[dict[str, Any]] = []
    for name, entry in ENTRY_POINTS.items():
        include = {"name": name, "tasks_from": entry, "public": True}
        tasks.append({"name": f"Configure {name}", "ansible.builtin.include_role": include})
    for script in ("rack-of", "fence-namenode"):  # what a cluster has besides
        template = {"src": str(ROOT / f"roles/hdfs/templates/{script}.sh.j2"), "dest": f"{root}/opt/hadoop/bin/{script}", "mode": "0755"}
        tasks.append({"name": f"Render {script}", "ansible.builtin.template": template})
    for role in (ROOT / "roles" / name for name in names):
        check = {"argument_spec": options_of(role), "validate_args_context": {"name": role.name}}
        tasks.append({"name": f"Check {role.name}", "ansible.builtin.validate_argument_spec": check})
        tasks += launchers(role.name)
    handlers = [handler for role in ROLES for handler in handlers_of(role)]
    for name, user in (("unit", "someone"), ("powerful", "root")):
        unit = {**defaults_of(ROOT / "roles" / "service"), "service_name": name, "service_user": user, "service_stop_timeout": 45}
        template = {"src": str(ROOT / "roles/service/templates/systemd.j2"), "dest": f"{root}/etc/{name}.service", "mode": "0644"}
        tasks.append({"name": f"Render {name} of systemd", "ansible.builtin.template": template, "vars": unit})
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
                "role_path": str(ROOT / "roles" / "service"),  # of the handlers, which are in no role here
                # what only a cluster needs, too
                "hdfs_hosted": ["journalnode", "namenode", "zkfc", "datanode"],
                "zookeeper_hosted": True,
                # what only a site with a dashboard needs
                "gridstead_metrics": True,
                # what only a host has that may be taken away
                "gridstead_spot": True,
                # and what only an archive on object storage needs
                "gridstead_s3": True,
                "gridstead_s3_endpoint": "https://s3.example.org",
                "gridstead_s3_access_key": "KEYOFTHETEST",
                "gridstead_s3_secret_key": "secret-of-the-test",
                "gridstead_s3_encryption": "AES256",
            },
            # these roles have no entry point without a process; the values of defaults are the same at any precedence
            "vars_files": [str(ROOT / f"roles/{name}/defaults/main.yml") for name in ("collector", "bridge", "analytics", "spot")],
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
    for data in ("collector", "stream"):  # tasks that this play leaves out create them
        (root / "var" / "lib" / data).mkdir(parents=True)
    bundle.mkdir()
    pack(bundle, root / "opt")
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
    command = [ansible, *inventory, str(book)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return Rendered(root, done.stdout)
