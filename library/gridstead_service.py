#!/usr/bin/python
# Bring one supervised service into the wanted state, by supervisord or by systemd, through one interface.
"""Ansible module: start, restart or stop one service, and tell whether it runs with its present configuration."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gridstead_service
short_description: One supervised service, by supervisord or by systemd
description:
  - Starts, restarts or stops a service that the role C(service) has defined. One that is stopped is not started at boot either.
  - The launcher of a service writes the digest of itself and of its configuration when it starts. With I(state=started)
    the module compares this with the digest of the files as they are now and reports C(changed) and C(restart_needed)
    where they differ, so that a restart that an interrupted playbook owes is made by the next run.
options:
  name: {description: Name of the service., type: str, required: true}
  state: {description: Wanted state., type: str, choices: [started, restarted, stopped], default: started}
  layout:
    description: How services are supervised here, and where their files are.
    type: dict
    required: true
    options:
      supervisor: {description: Which supervisor runs it., type: str, choices: [supervisord, systemd], required: true}
      supervisorctl: {description: Command line of supervisorctl., type: list, elements: str, default: []}
      launcher_dir: {description: Where the launchers are; the line C(# watch) of one names its configuration., type: path, required: true}
      run_dir: {description: Where a launcher writes the digest at start., type: path, required: true}
  force: {description: With I(state=restarted) restart also what runs with its present configuration., type: bool, default: false}
  timeout: {description: Seconds to wait for a start or a stop., type: int, default: 120}
author: [Gridstead]
"""

EXAMPLES = r"""
- name: Start Kafka
  gridstead_service:
    name: kafka
    layout: {supervisor: systemd, launcher_dir: /etc/gridstead/services, run_dir: /run/gridstead}
"""

RETURN = r"""
restart_needed: {description: The service runs with another configuration than the present one., type: bool, returned: always}
running: {description: Whether the service was running before., type: bool, returned: always}
"""

import hashlib
import os
import time

from ansible.module_utils.basic import AnsibleModule


def configured_digest(launcher):
    """Digest of the launcher and of the files that its `# watch` line names, as the launcher computes it."""
    digest = hashlib.sha256()
    with open(launcher, "rb") as stream:
        content = stream.read()
    digest.update(content)
    for line in content.decode().splitlines():
        if line.startswith("# watch "):
            for path in line.split()[2:]:
                if os.path.exists(path):
                    with open(path, "rb") as stream:
                        digest.update(stream.read())
    return digest.hexdigest()


def running_digest(path):
    """Digest that the launcher wrote when the running process was started, or None."""
    try:
        with open(path) as stream:
            return stream.read().split()[0]
    except (OSError, IndexError):
        return None


class Supervisord:
    """Services as programs of one supervisord."""

    def __init__(self, module):
        """Keep the module for its commands."""
        self.module = module
        self.name = module.params["name"]

    def control(self, *words):
        """Run supervisorctl; return (exit code, output)."""
        code, out, err = self.module.run_command([*self.module.params["layout"]["supervisorctl"], *words])
        return code, (out + err).strip()

    def running(self):
        """Tell whether the program is up, or on its way up."""
        _code, out = self.control("status", self.name)
        words = out.split()
        return len(words) > 1 and words[1] in ("RUNNING", "STARTING", "BACKOFF")

    def load(self):
        """Make supervisord read a new or changed definition; it restarts a program whose definition changed."""
        self.control("reread")
        code, out = self.control("update", self.name)
        if code:
            self.module.fail_json(msg="supervisord does not take the definition of %s: %s" % (self.name, out))

    def enabled(self):
        """Tell whether the program is started with the supervisor, which it is whenever it is defined."""
        return False

    def disable(self):
        """Leave the definition, which the role owns."""

    def act(self, verb):
        """Start or stop the program."""
        code, out = self.control(verb, self.name)
        if code and "already started" not in out and "not running" not in out:
            self.module.fail_json(msg="supervisorctl %s %s: %s" % (verb, self.name, out))


class Systemd:
    """Services as units of systemd, named gridstead-<name>."""

    def __init__(self, module):
        """Keep the module for its commands."""
        self.module = module
        self.name = "gridstead-%s.service" % module.params["name"]

    def running(self):
        """Tell whether the unit is up, or on its way up."""
        _code, out, _err = self.module.run_command(["systemctl", "show", "-p", "ActiveState", "--value", self.name])
        return out.strip() in ("active", "activating", "reloading")

    def enabled(self):
        """Tell whether the unit is started at boot."""
        _code, out, _err = self.module.run_command(["systemctl", "is-enabled", self.name])
        return out.strip() == "enabled"

    def disable(self):
        """Not start the unit at boot."""
        self.module.run_command(["systemctl", "disable", self.name], check_rc=True)

    def load(self):
        """Make systemd read a new or changed unit, and enable it."""
        for command in (["systemctl", "daemon-reload"], ["systemctl", "enable", self.name]):
            self.module.run_command(command, check_rc=True)

    def act(self, verb):
        """Start or stop the unit."""
        self.module.run_command(["systemctl", verb, self.name], check_rc=True)


def wait(module, what, condition):
    """Wait until the condition holds, or fail with a sentence that names the service."""
    deadline = time.monotonic() + module.params["timeout"]
    while not condition():
        if time.monotonic() > deadline:
            module.fail_json(msg="%s did not %s within %d s; read its log" % (module.params["name"], what, module.params["timeout"]))
        time.sleep(0.2)


def main():
    """Entry point of the module."""
    layout = {
        "supervisor": {"type": "str", "choices": ["supervisord", "systemd"], "required": True},
        "supervisorctl": {"type": "list", "elements": "str", "default": []},
        "launcher_dir": {"type": "path", "required": True},
        "run_dir": {"type": "path", "required": True},
    }
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["started", "restarted", "stopped"], "default": "started"},
            "layout": {"type": "dict", "required": True, "options": layout},
            "force": {"type": "bool", "default": False},
            "timeout": {"type": "int", "default": 120},
        },
        supports_check_mode=True,
    )
    name, state, layout = module.params["name"], module.params["state"], module.params["layout"]
    launcher = os.path.join(layout["launcher_dir"], name)
    digest_file = os.path.join(layout["run_dir"], name + ".digest")
    tool = (layout["supervisorctl"] or [""])[0]
    if not os.path.exists(launcher) or (layout["supervisor"] == "supervisord" and not os.path.exists(tool)):
        if not module.check_mode and state != "stopped":
            module.fail_json(msg="%s is missing: the role `service` has not defined %s" % (launcher, name))
        module.exit_json(changed=state != "stopped", running=False, restart_needed=False)
    service = {"supervisord": Supervisord, "systemd": Systemd}[layout["supervisor"]](module)

    def current():
        return running_digest(digest_file) == configured_digest(launcher)

    running = service.running()
    stale = running and not current()
    restart_needed = stale and state == "started"
    start = not running and state != "stopped"
    force = module.params["force"]
    restart = running and (stale or force) and state == "restarted"
    stop = state == "stopped" and (running or service.enabled())
    if not module.check_mode:
        if start:
            if os.path.exists(digest_file):
                os.remove(digest_file)
            service.load()
            if not service.running():
                service.act("start")
        if restart:
            service.load()
            if force or not current():
                service.act("stop")
                if os.path.exists(digest_file):
                    os.remove(digest_file)
                service.act("start")
        if start or restart:
            wait(module, "start", current)
        if stop:
            service.act("stop")
            service.disable()
            wait(module, "stop", lambda: not service.running())
    module.exit_json(changed=start or restart or stop or restart_needed, running=running, restart_needed=restart_needed)


if __name__ == "__main__":
    main()
