#!/usr/bin/python
# What somebody who helps wants to see of one host, without what nobody else may see.
"""Ansible module: pack logs, configuration and state of a host into one archive, without secrets."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gridstead_support
short_description: Logs, configuration and state of a host in one archive, without secrets
description:
  - Packs the configuration, the last lines of every service's log, the versions installed and what the host says of itself.
  - Files that are nothing but secrets are left out (private keys, keys of pseudonyms, users of the broker, whatever is no text). What they
    hold, what I(secrets) lists, and every value that a file of the configuration gives to a password, secret or token is replaced wherever
    it stands, in logs and in the output of commands too.
options:
  path: {description: Archive to write; only its owner may read it., type: path, required: true}
  etc_dir: {description: Directory of the configuration., type: path, required: true}
  opt_dir: {description: Directory of the programs., type: path, required: true}
  log_dir: {description: Directory of the logs that are files., type: path, required: true}
  supervisor: {description: Who supervises the services., type: str, choices: [supervisord, systemd], required: true}
  lines: {description: So many last lines of each log., type: int, default: 2000}
  secrets: {description: Secrets that must not be in the archive., type: list, elements: str, default: [], no_log: true}
author: [Gridstead]
"""

EXAMPLES = r"""
- name: Pack what a host says
  gridstead_support:
    path: /run/support.tar.gz
    etc_dir: /etc/gridstead
    opt_dir: /opt/gridstead
    log_dir: /var/log/gridstead
    supervisor: systemd
"""

RETURN = r"""
files: {description: How many files are in the archive., type: int, returned: success}
left_out: {description: Files that are nothing but secrets., type: list, elements: str, returned: success}
"""

import collections
import io
import os
import re
import tarfile
import time

from ansible.module_utils.basic import AnsibleModule

LEFT_OUT = re.compile(r"(^|/)(secrets|pseudonyms)/|(^|/)id_[a-z0-9]+$|\.(key|keystore|jks|p12|pem|keytab)$|(^|/)artemis-users\.properties$")
# a name that speaks of a secret, and what parts it from its value; the value
NAMED = re.compile(
    r"""([\w.-]*(?:password|passwd|secret|passphrase|credential|token|api_?key)[\w.-]*["']?(?:</name>\s*<value>|\s*[=:]\s*|\s+value=|>)["']?)"""
    r"""([^\s"'<>,;]+)""",
    re.IGNORECASE,
)
WORD = re.compile(r"[A-Za-z0-9+/=_.-]{16,}")  # in a file of nothing but secrets
INSTEAD = "[left-out]"
COMMANDS = {
    "date": ["date", "--iso-8601=seconds"],
    "uname": ["uname", "-a"],
    "uptime": ["uptime"],
    "memory": ["free", "-m"],
    "disks": ["df", "-h"],
    "addresses": ["ip", "-brief", "address"],
    "listening": ["ss", "-lntp"],
    "processes": ["ps", "-eo", "pid,user,rss,etime,args", "--sort=-rss"],
    "units": ["systemctl", "list-units", "--all", "--no-pager", "gridstead-*"],
    "failed": ["systemctl", "--failed", "--no-pager"],
}


def secrets_of(text):
    """Return what a file of nothing but secrets holds: values of NAME=VALUE, and long words."""
    found = set(WORD.findall(text))
    for line in text.splitlines():
        _name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.add(value.strip())
    return {secret for secret in found if len(secret) >= 4}


def without(text, secrets):
    """Return a text without secrets: neither known ones nor values of what is named like one."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, INSTEAD)
    return NAMED.sub(lambda found: found.group(1) + INSTEAD, text)


def read(path):
    """Return the text of a file; None for what is none."""
    with open(path, "rb") as stream:
        data = stream.read()
    try:
        return data.decode() if b"\0" not in data else None
    except UnicodeDecodeError:
        return None


def configuration(etc):
    """Return the texts of the configuration by path, which files are nothing but secrets, and the secrets found in all of them."""
    texts, left_out, secrets = {}, [], set()
    for folder, _folders, names in os.walk(etc):
        for name in names:
            path = os.path.join(folder, name)
            if not os.path.isfile(path):
                continue
            below, text = os.path.relpath(path, etc), read(path)
            if text is None or LEFT_OUT.search(below) or "PRIVATE KEY" in text:
                left_out.append(path)
                secrets |= secrets_of(text or "")
            else:
                texts["etc/" + below] = text
                secrets |= {value for _name, value in NAMED.findall(text) if len(value) >= 8}
    return texts, sorted(left_out), secrets


class Host:
    """One host, and the texts that are found on it."""

    def __init__(self, module):
        """Keep the module for its commands."""
        self.module = module
        self.parameters = module.params
        self.texts, self.left_out, self.secrets = configuration(self.parameters["etc_dir"])
        self.secrets |= {secret for secret in self.parameters["secrets"] if len(secret) >= 4}

    def run(self, command):
        """Return what a command prints; what keeps it from printing is said in its place."""
        code, out, err = self.module.run_command(command, environ_update={"LC_ALL": "C.UTF-8"}, handle_exceptions=False)
        return out + ("" if code == 0 else "%s\nended with %d\n" % (err, code))

    def collect(self):
        """Add state, versions and logs to the configuration."""
        for name, command in COMMANDS.items():
            try:
                self.texts["host/%s.txt" % name] = self.run(command)
            except OSError as error:
                self.texts["host/%s.txt" % name] = "%s\n" % error
        opt = self.parameters["opt_dir"]
        links = {name: os.path.join(opt, name, "current") for name in sorted(os.listdir(opt))} if os.path.isdir(opt) else {}
        self.texts["versions.txt"] = "".join("%s %s\n" % (name, os.readlink(link)) for name, link in links.items() if os.path.islink(link))
        lines = self.parameters["lines"]
        launchers = os.path.join(self.parameters["etc_dir"], "services")
        for name in sorted(os.listdir(launchers)) if os.path.isdir(launchers) and self.parameters["supervisor"] == "systemd" else []:
            command = ["journalctl", "--no-pager", "--output=short-iso-precise", "--lines=%d" % lines, "--unit=gridstead-%s" % name]
            self.texts["log/%s.log" % name] = self.run(command)
        for folder, _folders, names in os.walk(self.parameters["log_dir"]):
            for name in names:
                path = os.path.join(folder, name)
                if name.endswith(".log") and os.path.isfile(path):
                    with open(path, errors="replace") as stream:
                        last = collections.deque(stream, lines)
                    self.texts["log/" + os.path.relpath(path, self.parameters["log_dir"])] = "".join(last)

    def pack(self, path):
        """Write the archive."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as stream, tarfile.open(fileobj=stream, mode="w:gz") as tar:
            for name, text in sorted(self.texts.items()):
                data = without(text, self.secrets).encode()
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode, entry.mtime = len(data), 0o600, int(time.time())
                tar.addfile(entry, io.BytesIO(data))


def main():
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "etc_dir": {"type": "path", "required": True},
            "opt_dir": {"type": "path", "required": True},
            "log_dir": {"type": "path", "required": True},
            "supervisor": {"type": "str", "choices": ["supervisord", "systemd"], "required": True},
            "lines": {"type": "int", "default": 2000},
            "secrets": {"type": "list", "elements": "str", "default": [], "no_log": True},
        },
        supports_check_mode=True,
    )
    host = Host(module)
    host.collect()
    if not module.check_mode:
        host.pack(module.params["path"])
    module.exit_json(changed=True, files=len(host.texts), left_out=host.left_out)


if __name__ == "__main__":
    main()
