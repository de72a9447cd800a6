#!/usr/bin/python
# Whether a host can be what the inventory wants it to be.
"""Ansible module: look at a host before anything is installed on it, and name all that is wrong at once."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gridstead_preflight
short_description: All that is wrong with a host, before anything is installed
description:
  - Looks whether names resolve, the clock agrees, disks and memory suffice, ports are free, Java is right and limits are high enough.
  - Changes nothing and does not fail; the play judges, when it has heard all hosts.
options:
  addresses: {description: Name or address of every host of the cluster., type: list, elements: str, required: true}
  own_address: {description: Name or address of this host., type: str, required: true}
  now: {description: Seconds since the epoch by the control machine's clock., type: float, required: true}
  clock_tolerance: {description: Seconds by which the clock may differ., type: int, default: 10}
  disks: {description: Directories that will be written; the nearest that exists is looked at., type: list, elements: path, default: []}
  disk_free_gb: {description: Gigabytes that must be free there., type: int, default: 20}
  memory_mb: {description: Mebibytes that the host must have., type: int, default: 0}
  ports: {description: Ports that must be free or held by a service of ours., type: list, elements: int, default: []}
  java_home: {description: Java that is used; by default the one on the PATH., type: str, default: ""}
  java_versions: {description: Java that is accepted; none at all is installed., type: list, elements: int, default: []}
  open_files: {description: Limit of open files that services need., type: int, default: 65536}
author: [Gridstead]
"""

EXAMPLES = r"""
- name: Look at the host
  gridstead_preflight: {addresses: [m1, m2, m3], own_address: m1, now: 1795600000.0, ports: [2181]}
"""

RETURN = r"""
problems: {description: A sentence for everything that is wrong., type: list, elements: str, returned: always}
"""

import ipaddress
import os
import re
import resource
import shutil
import socket
import time

from ansible.module_utils.basic import AnsibleModule


def resolve(name):
    """Return the addresses of a name; none if it does not resolve."""
    try:
        return sorted({entry[4][0] for entry in socket.getaddrinfo(name, None, socket.AF_INET)})
    except OSError:
        return []


def names(parameters):
    """Names of the hosts: a server binds its own, and the others must find it under the same."""
    for name in parameters["addresses"]:
        found = resolve(name)
        if not found:
            yield "the name %s does not resolve: put it into DNS or /etc/hosts" % name
        elif name != "localhost" and any(ipaddress.ip_address(address).is_loopback for address in found) and name != "127.0.0.1":
            yield "%s resolves to %s: servers would be closed to other hosts; correct /etc/hosts" % (name, ", ".join(found))
        elif name == parameters["own_address"]:
            for address in found:
                with socket.socket() as probe:
                    try:
                        probe.bind((address, 0))
                    except OSError:
                        yield "%s resolves to %s, which is no address of this host" % (name, address)


def clock(parameters):
    """Clocks: leases, tokens and bins of statistics go by them."""
    off = time.time() - parameters["now"]
    if abs(off) > parameters["clock_tolerance"]:
        side = "before" if off > 0 else "behind"
        yield "the clock is %.0f s %s that of the control machine: set up time synchronisation" % (abs(off), side)


def space(parameters):
    """Disks and memory."""
    for directory in parameters["disks"]:
        place = directory
        while not os.path.isdir(place):
            place = os.path.dirname(place)
        free = shutil.disk_usage(place).free / 1e9
        if free < parameters["disk_free_gb"]:
            yield "%s has %.1f GB free (%s), %d are needed" % (directory, free, place, parameters["disk_free_gb"])
    with open("/proc/meminfo") as stream:
        total = int(re.search(r"MemTotal:\s+(\d+)", stream.read())[1]) // 1024
    if total < parameters["memory_mb"]:
        yield "the host has %d MiB of memory, its processes may take %d: choose a smaller gridstead_size" % (total, parameters["memory_mb"])


def ports(module):
    """Ports that somebody else holds."""
    _code, out, _err = module.run_command(["ss", "-Hlntup"])
    for line in out.splitlines():
        words = line.split()
        number = int(words[4].rpartition(":")[2])
        pid = re.search(r"pid=(\d+)", line)
        if number in module.params["ports"] and pid and not ours(pid[1]):
            yield "port %d is held by another process: %s" % (number, words[-1])


def ours(pid):
    """Whether a process is a service of Gridstead."""
    try:
        with open("/proc/%s/cgroup" % pid) as stream:
            return "gridstead-" in stream.read()
    except OSError:
        return False


def java(module):
    """Java, where there is one already."""
    home = module.params["java_home"]
    program = os.path.join(home, "bin", "java") if home else shutil.which("java")
    if home and not os.path.exists(program):
        yield "%s is not there: set java_home to another" % program
    elif program:
        _code, out, err = module.run_command([program, "-version"])
        found = re.search(r'version "(\d+)', out + err)
        if not found or int(found[1]) not in module.params["java_versions"]:
            wanted = " or ".join(str(version) for version in module.params["java_versions"])
            yield "%s is version %s, not %s: set java_home to another" % (program, found[1] if found else "unknown", wanted)


def limits(parameters):
    """Limits of the kernel."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < parameters["open_files"]:
        yield "the limit of open files is %d, services need %d: raise DefaultLimitNOFILE of systemd" % (hard, parameters["open_files"])


def main():
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "addresses": {"type": "list", "elements": "str", "required": True},
            "own_address": {"type": "str", "required": True},
            "now": {"type": "float", "required": True},
            "clock_tolerance": {"type": "int", "default": 10},
            "disks": {"type": "list", "elements": "path", "default": []},
            "disk_free_gb": {"type": "int", "default": 20},
            "memory_mb": {"type": "int", "default": 0},
            "ports": {"type": "list", "elements": "int", "default": []},
            "java_home": {"type": "str", "default": ""},
            "java_versions": {"type": "list", "elements": "int", "default": []},
            "open_files": {"type": "int", "default": 65536},
        },
        supports_check_mode=True,
    )
    parts = [part(module.params) for part in (names, clock, space, limits)] + [part(module) for part in (ports, java)]
    module.exit_json(changed=False, problems=[problem for part in parts for problem in part])


if __name__ == "__main__":
    main()
