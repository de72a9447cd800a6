"""Real hosts behind the instances of an account: what EC2 does with its machines is done here with hosts of a test lab."""

from __future__ import annotations

import json
import shlex
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import metadata_service
from aws import Aws
from clusters import pretend_open_files
from hosts import Hosts

NETWORK = "10.88.0.0/20"
OUTSIDE = "10.88.0.1/32"
"""Where whoever comes through the internet gateway comes from, as the hosts see it."""

NOTICE = "/run/spot-notice"
"""The file of a spot instance's host whose content its metadata service gives as the notice."""

FIRST_BOOT = """
useradd --create-home --shell /bin/bash admin
install -d -o admin -g admin -m 700 /home/admin/.ssh
install -o admin -g admin -m 600 /dev/null /home/admin/.ssh/authorized_keys
echo '{key}' >/home/admin/.ssh/authorized_keys
echo 'admin ALL=(ALL) NOPASSWD:ALL' >/etc/sudoers.d/admin
rm ~root/.ssh/authorized_keys
for disk in {disks}; do mkdir -p "/data/$disk"; done
"""
METADATA = """
cat >/usr/local/lib/metadata_service.py
cat >/etc/systemd/system/metadata.service <<END
[Service]
ExecStartPre=ip address replace 169.254.169.254/32 dev lo
ExecStart=python3 /usr/local/lib/metadata_service.py 169.254.169.254 80 {notice}
[Install]
WantedBy=multi-user.target
END
systemctl --quiet enable --now metadata
"""
FIREWALL = """
table inet aws {{
  set refused {{ type ipv4_addr . inet_service; flags dynamic; size 4096; }}
  chain in {{ type filter hook input priority 0; policy drop; }}
  chain out {{ type filter hook output priority 0; policy drop; }}
}}
flush chain inet aws in
flush chain inet aws out
table inet aws {{
  chain in {{
    ct state established,related accept
    iifname lo accept
    {rules_in}
    tcp flags & (syn | ack) == syn update @refused {{ ip saddr . tcp dport }}
  }}
  chain out {{
    ct state established,related accept
    oifname lo accept
    {rules_out}
    tcp flags & (syn | ack) == syn update @refused {{ ip daddr . tcp dport }}
  }}
}}
"""


@dataclass
class Machines:
    """The hosts of a lab, each named by the address of its instance, as on AWS.

    `follow` makes, boots, halts and destroys them as instances came, went or stopped. A new one is as Debian's image is after its first
    boot: user `admin` with the key pair, no login as root; a directory stands for each volume. Behind a spot instance it also has a
    metadata service, at its real address. Each lets through what the security groups of its instance let through. The one way from
    here to there is a public address, by a configuration of SSH that playbooks are given.
    """

    aws: Aws
    hosts: Hosts
    work: Path
    behind: dict[str, str] = field(default_factory=dict)  # which instance each host stands behind

    def __post_init__(self) -> None:
        """Make the user's key, and have SSH read a configuration here instead of the one at home."""
        for folder in ("bin", "cp"):
            (self.work / folder).mkdir(exist_ok=True)
        self.key.unlink(missing_ok=True)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key)], check=True, stdin=subprocess.DEVNULL)
        ssh = self.work / "bin/ssh"
        ssh.write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {shlex.quote(str(self.config))} "$@"\n')
        ssh.chmod(0o755)
        path = f"{ssh.parent}:{self.aws.environment['PATH']}"
        self.aws.further |= {"PATH": path, "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self.work / "cp")}

    @property
    def key(self) -> Path:
        """The user's SSH key; the public half is that of the cluster file."""
        return self.work / "id"

    @property
    def config(self) -> Path:
        """SSH's configuration."""
        return self.work / "ssh_config"

    def follow(self) -> None:
        """Make the hosts what the instances are."""
        instances = self._instances()
        there = self.hosts.status() if self.behind else {}
        gone = [name for name in there if name not in instances or instances[name]["InstanceId"] != self.behind[name]]
        running = {name: instance for name, instance in instances.items() if instance["State"]["Name"] == "running"}
        stopped = [name for name in there if name not in gone and name not in running and there[name]["pid"]]
        if gone:
            self.hosts.do("destroy", *gone)
        if stopped:
            self.hosts.do("halt", *stopped, timeout=300)
        if gone or stopped:
            self.forget_connections()
        ended = [name for name in running if name in there and name not in gone and not there[name]["pid"]]
        if ended:
            self.hosts.do("start", *ended, timeout=300)
        new = [name for name in running if name not in there or name in gone]
        self.behind = {name: instance["InstanceId"] for name, instance in instances.items() if name in there or name in new}
        if new:
            addresses = [f"{name}={running[name]['PrivateIpAddress']}" for name in new]
            self.hosts.do("create", "--network", NETWORK, *addresses, timeout=900)
            pretend_open_files(self.hosts, new, self.work)
        for name in new:
            self._first_boot(name, running[name])
        for name in running:
            self._firewall(name, running)
        self._ssh(running)

    def refused(self) -> set[tuple[str, str, int]]:
        """What the security groups refused since the hosts were booted: host, address of the other, TCP port."""
        found = set()
        for name, host in self.hosts.status().items():
            if host["pid"]:
                said = json.loads(self.hosts.on(name, "nft -j list set inet aws refused"))["nftables"]
                entries = [entry["concat"] for part in said for entry in part.get("set", {}).get("elem", [])]
                found |= {(name, address, port) for address, port in entries}
        return found

    def forget_connections(self) -> None:
        """End what SSH keeps open for the next command, as a minute without one would."""
        for socket in (self.work / "cp").iterdir():
            command = ["/usr/bin/ssh", "-F", str(self.config), "-o", f"ControlPath={socket}", "-O", "exit", "any"]
            subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False)

    def destroy(self) -> None:
        """Leave nothing."""
        self.forget_connections()
        self.hosts.do("destroy")

    def _instances(self) -> dict[str, dict[str, Any]]:
        """All instances that there are, by the name of the host."""
        reservations = self.aws.client("ec2").describe_instances()["Reservations"]
        instances = [i for reservation in reservations for i in reservation["Instances"]]
        return {host_of(i): i for i in instances if i["State"]["Name"] not in ("terminated", "shutting-down")}

    def _first_boot(self, name: str, instance: dict[str, Any]) -> None:
        pairs = self.aws.client("ec2").describe_key_pairs(KeyNames=[instance["KeyName"]], IncludePublicKey=True)["KeyPairs"]
        disks = range(1, len(instance["BlockDeviceMappings"]))
        self.hosts.on(name, "set -eu" + FIRST_BOOT.format(key=pairs[0]["PublicKey"].strip(), disks=" ".join(map(str, disks))))
        if instance.get("InstanceLifecycle") == "spot":
            self._script(name, "set -eu" + METADATA.format(notice=NOTICE), Path(metadata_service.__file__).read_text())

    def _firewall(self, name: str, running: dict[str, dict[str, Any]]) -> None:
        members: dict[str, list[str]] = {}
        for instance in running.values():
            for group in groups_of(instance):
                members.setdefault(group, []).append(instance["PrivateIpAddress"])
        ids = groups_of(running[name])
        assert ids, f"the instance of {name} has no security group"
        groups = self.aws.client("ec2").describe_security_groups(GroupIds=ids)["SecurityGroups"]
        rules_in = [rule for group in groups for rule in rules(group["IpPermissions"], "saddr", members)]
        rules_out = [rule for group in groups for rule in rules(group["IpPermissionsEgress"], "daddr", members)]
        text = FIREWALL.format(rules_in="\n    ".join(rules_in), rules_out="\n    ".join(rules_out))
        self._script(name, "cat >/etc/nftables.conf && nft -f /etc/nftables.conf && systemctl --quiet enable nftables", text)

    def _script(self, name: str, script: str, given: str) -> None:
        command = self.hosts.command("exec", name, "--", "sh", "-c", script)
        done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{done.stderr}\n{given}"

    def _ssh(self, running: dict[str, dict[str, Any]]) -> None:
        lines = []
        for instance in running.values():
            if instance.get("PublicIpAddress"):  # which the internet gateway translates to the private one
                proxy = shlex.join(self.hosts.command("connect", instance["PrivateIpAddress"]))
                lines += [f"Host {instance['PublicIpAddress']}", f"  ProxyCommand {proxy} %p"]
        lines += ["Host *", f"  IdentityFile {self.key}", "  IdentitiesOnly yes", f"  UserKnownHostsFile {self.work}/known_hosts"]
        self.config.write_text("\n".join(lines) + "\n")


def host_of(instance: dict[str, Any]) -> str:
    """The name that AWS gives a host."""
    return "ip-" + instance["PrivateIpAddress"].replace(".", "-")


def groups_of(instance: dict[str, Any]) -> list[str]:
    """The ids of an instance's security groups; the server names them at the network interfaces only."""
    return [group["GroupId"] for interface in instance["NetworkInterfaces"] for group in interface["Groups"]]


def rules(permissions: list[dict[str, Any]], side: str, members: dict[str, list[str]]) -> list[str]:
    """What a security group lets through, as rules of nftables; its members by group."""
    found = []
    for permission in permissions:
        others = [source["CidrIp"] for source in permission["IpRanges"]]
        others += [address for pair in permission["UserIdGroupPairs"] for address in members.get(pair["GroupId"], [])]
        protocol = permission["IpProtocol"]
        ports = "" if protocol == "-1" else f"{protocol} dport {permission['FromPort']}-{permission['ToPort']} "
        found += [f"ip {side} {other} {ports}accept" for other in others]
    return found
