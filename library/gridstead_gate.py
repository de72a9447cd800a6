#!/usr/bin/python
# The gate of the day-2 playbooks: nothing that is kept in copies lacks one, and whatever fails over has a standby.
"""Ansible module: wait until the cluster could lose a host, or say what is wrong."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gridstead_gate
short_description: Wait until the cluster could lose a host
description:
  - Passes when ZooKeeper has a leader that all others follow, no block of HDFS is missing or under-replicated, every JournalNode has all of
    the journal, no partition of Kafka is under-replicated, no shard of Elasticsearch is unassigned, the NameNodes, the ResourceManagers and
    the message brokers each have one active and otherwise standbys, and the pipeline is healthy on every gateway.
  - Runs on a host that has the distribution C(gridstead), the gateway, and reads there how the services are reached. Changes nothing.
options:
  etc_dir: {description: Directory of the configuration., type: path, default: /etc/gridstead}
  library: {description: Where the Python packages of the distribution are., type: path, required: true}
  parts:
    description: What is looked at.
    type: list
    elements: str
    choices: [zookeeper, hdfs, yarn, kafka, elasticsearch, activemq, pipeline]
    default: [zookeeper, hdfs, yarn, kafka, elasticsearch, activemq, pipeline]
  timeout: {description: Seconds to wait., type: int, default: 300}
  report: {description: When the time is over report what is seen instead of failing., type: bool, default: false}
  datanodes: {description: Addresses of the DataNodes that must be in service., type: list, elements: str, default: []}
  nodemanagers: {description: NodeManagers that must be active., type: int, default: 1}
  gateways: {description: Addresses of the hosts of the pipeline; by default this host alone., type: list, elements: str, default: []}
  drained: {description: Address of a host whose DataNode must have handed everything over and may then be down., type: str}
  leaving:
    description: Addresses of hosts that may be on their way out; what they hand over may lack a copy.
    type: list
    elements: str
    default: []
author: [Gridstead]
"""

EXAMPLES = r"""
- name: Wait until the cluster could lose a host
  gridstead_gate: {library: /opt/gridstead/gridstead/current/lib}
"""

RETURN = r"""
passed: {description: Whether the cluster could lose a host., type: bool, returned: success}
troubles: {description: What is wrong., type: list, elements: str, returned: always}
active: {description: Addresses of the active servers by the name of the service., type: dict, returned: success}
datanodes: {description: Bytes C(used) and C(remaining) of each DataNode in service by its address., type: dict, returned: success}
block_copies: {description: Copies that HDFS keeps of a block., type: int, returned: success}
"""

import dataclasses
import json
import os
import re
import socket
import sys
import time
import urllib.parse
import urllib.request
import xml.etree.ElementTree as ET

from ansible.module_utils.basic import AnsibleModule

PARTS = ["zookeeper", "hdfs", "yarn", "kafka", "elasticsearch", "activemq", "pipeline"]
LOOKS = 2  # good looks in a row: a server that was just stopped may still be counted
PAUSE = 4  # seconds between them
LATE = 10  # seconds since a DataNode's last heartbeat; it sends one each second
FIRST = 5  # so many partitions or brokers are named, of more the number is said


def fetch(url):
    """Answer of an HTTP server as JSON."""
    request = urllib.request.Request(url, headers={"Accept": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read())


def properties(path):
    """Properties of one of Hadoop's configuration files."""
    return {entry.findtext("name"): entry.findtext("value") or "" for entry in ET.parse(path).getroot().iter("property")}


def some(names):
    """Return the first few names, and how many there are."""
    names = sorted(names)
    return ", ".join(names[:FIRST]) + (" and %d more" % (len(names) - FIRST) if len(names) > FIRST else "")


def one_active(what, states, active, standby):
    """Say what is wrong with servers of which one is active and all others are standbys; states by address."""
    troubles = ["%s on %s is %s" % (what, host, state) for host, state in sorted(states.items()) if state not in (active, standby)]
    count = list(states.values()).count(active)
    if count != 1:
        troubles.append("%d %ss are active" % (count, what))
    return troubles


def judge_datanodes(nodes, wanted, drained):
    """Say what is wrong with DataNodes, by the active NameNode's list of live ones; return that, and the space of those in service.

    Others than the wanted are not looked at: of one that left the cluster the NameNode knows until it is restarted.
    """
    by_host = {name.rsplit(":", 1)[0]: node for name, node in nodes.items()}
    troubles = ["the DataNode on %s is not there" % host for host in sorted(set(wanted) - set(by_host))]
    serving = {}
    for host, node in sorted(by_host.items()):
        if host == drained and node["adminState"] != "Decommissioned":
            troubles.append("the DataNode on %s still hands its blocks over (%s)" % (host, node["adminState"]))
        elif host in wanted and node["adminState"] != "In Service":
            troubles.append("the DataNode on %s is not in service (%s)" % (host, node["adminState"]))
        elif host in wanted and node["lastContact"] > LATE:
            troubles.append("the DataNode on %s was last heard of %d s ago" % (host, node["lastContact"]))
        if node["adminState"] == "In Service":
            serving[host] = {"used": node["used"], "remaining": node["remaining"]}
    return troubles, serving


def on_its_way_out(nodes, leaving):
    """Whether a DataNode at an address of `leaving` hands its blocks over, by the active NameNode's list of live ones."""
    return any(name.rsplit(":", 1)[0] in leaving and node["adminState"] == "Decommission In Progress" for name, node in nodes.items())


def judge_journals(status):
    """Say which JournalNodes lack a part of the journal, by the active NameNode's report: 'HOST:PORT (Written txid 7 …), …'."""
    troubles = []
    for address, report in re.findall(r"(\S+:\d+) \((Written txid .*?)\)(?=, \S+:\d+ \(|\s*$)", status, re.DOTALL):
        if "re-sync on next segment" in report or "never written" in report:
            troubles.append("the JournalNode at %s lacks the last changes and gets the next ones from the next segment on" % address)
    return troubles


def judge_ensemble(modes):
    """Say what is wrong with the servers of ZooKeeper: {address: mode, or what keeps it from telling}."""
    single = len(modes) == 1
    allowed = ("standalone",) if single else ("leader", "follower")
    troubles = ["ZooKeeper on %s is %s" % (host, mode) for host, mode in sorted(modes.items()) if mode not in allowed]
    leaders = list(modes.values()).count("leader")
    if not single and leaders != 1:
        troubles.append("ZooKeeper: %d servers lead" % leaders)
    return troubles


def judge_partitions(topics):
    """Say what is wrong with partitions: {topic: {partition: (leader, copies, copies in sync)}}."""
    headless, behind = [], []
    for topic, partitions in topics.items():
        for number, (leader, copies, in_sync) in partitions.items():
            if leader < 0:
                headless.append("%s-%d" % (topic, number))
            elif in_sync < copies:
                behind.append("%s-%d" % (topic, number))
    return (["Kafka: no leader of %s" % some(headless)] if headless else []) + (
        ["Kafka: under-replicated are %s" % some(behind)] if behind else []
    )


class Gate:
    """One look at the cluster; what it finds is in `troubles` and `seen`."""

    def __init__(self, parameters):
        """Remember where things are, and what is wanted."""
        self.parameters = parameters
        self.etc = parameters["etc_dir"]
        self.troubles = []
        self.seen = {"active": {}, "datanodes": {}}

    def look(self):
        """Look at every part; one that does not answer is a trouble like others."""
        for part in self.parameters["parts"]:
            try:
                getattr(self, part)()
            except Exception as error:  # whatever a client raises is said, not hidden
                self.troubles.append("%s: %s: %s" % (part, type(error).__name__, error))

    def zookeeper(self):
        """Servers of ZooKeeper: one leads, and all others follow it. With one master and one gateway nothing uses it, nor names it."""
        modes = {}
        core, yarn = (properties(os.path.join(self.etc, "hadoop", name)) for name in ("core-site.xml", "yarn-site.xml"))
        quorum = core.get("ha.zookeeper.quorum") or yarn.get("hadoop.zk.address") or self.elections()
        if not quorum:
            return
        for server in quorum.split(","):
            host, port = server.rsplit(":", 1)
            try:
                with socket.create_connection((host, int(port)), timeout=5) as connection:
                    connection.sendall(b"srvr")
                    with connection.makefile() as answer:
                        said = answer.read()
            except OSError as error:
                said = "silent (%s)" % error
            mode = re.search(r"^Mode: (\S+)", said, re.MULTILINE)
            modes[host] = mode.group(1) if mode else said.strip()
        self.troubles += judge_ensemble(modes)

    def elections(self):
        """Servers of ZooKeeper through which gateways elect one; empty where there is one gateway, or none is installed yet."""
        if not os.path.exists(os.path.join(self.etc, "gridstead", "gridstead.toml")):
            return ""
        return ",".join(self.config()[1].failover.zookeeper)

    def hdfs(self):
        """NameNodes, JournalNodes, DataNodes and blocks."""
        site = properties(os.path.join(self.etc, "hadoop", "hdfs-site.xml"))
        self.seen["block_copies"] = int(site["dfs.replication"])
        states = {}
        for name, address in site.items():
            if not name.startswith("dfs.namenode.http-address"):
                continue
            host, bean = address.split(":")[0], {}
            try:
                for query in ("NameNodeStatus", "FSNamesystemState", "FSNamesystem", "NameNodeInfo"):
                    for found in fetch("http://%s/jmx?qry=Hadoop:service=NameNode,name=%s" % (address, query))["beans"]:
                        bean.update(found)
            except (OSError, ValueError) as error:
                states[host] = "silent (%s)" % error
                continue
            states[host] = bean.get("State") or "starting"
            if bean.get("FSState") != "Operational":
                states[host] += ", in safe mode"
            elif bean.get("State") == "active":
                self.active_namenode(host, bean)
        self.troubles += one_active("NameNode", states, "active", "standby")
        journals = re.match(r"qjournal://([^/]+)/", site.get("dfs.namenode.shared.edits.dir", "").strip())
        port = site.get("dfs.journalnode.http-address", "").rpartition(":")[2]
        for server in journals.group(1).split(";") if journals else []:
            host = server.split(":")[0]
            try:
                fetch("http://%s:%s/jmx?qry=java.lang:type=Runtime" % (host, port))
            except (OSError, ValueError) as error:
                self.troubles.append("the JournalNode on %s is silent (%s)" % (host, error))

    def active_namenode(self, host, bean):
        """What the active NameNode says."""
        self.seen["active"]["hdfs-namenode"] = [host]
        nodes = json.loads(bean["LiveNodes"])
        leaves = on_its_way_out(nodes, self.parameters["leaving"])
        for name, what in (("MissingBlocks", "missing"), ("UnderReplicatedBlocks", "under-replicated")):
            if bean[name] and not (leaves and name == "UnderReplicatedBlocks"):
                self.troubles.append("HDFS: %d blocks are %s" % (bean[name], what))
        troubles, self.seen["datanodes"] = judge_datanodes(nodes, self.parameters["datanodes"], self.parameters["drained"])
        self.troubles += troubles
        for journal in json.loads(bean["NameJournalStatus"]):
            self.troubles += judge_journals(journal["stream"])

    def yarn(self):
        """Ask the ResourceManagers and the health of the NodeManagers."""
        site = properties(os.path.join(self.etc, "hadoop", "yarn-site.xml"))
        states, wanted = {}, self.parameters["nodemanagers"]
        for name, address in site.items():
            if not name.startswith("yarn.resourcemanager.webapp.address"):
                continue
            host = address.split(":")[0]
            try:
                states[host] = fetch("http://%s/ws/v1/cluster/info" % address)["clusterInfo"]["haState"].lower()
                if states[host] == "active":
                    self.seen["active"]["yarn-resourcemanager"] = [host]
                    metrics = fetch("http://%s/ws/v1/cluster/metrics" % address)["clusterMetrics"]
                    if metrics["activeNodes"] < wanted:
                        self.troubles.append("YARN: %d NodeManagers are active, of %d" % (metrics["activeNodes"], wanted))
                    if metrics["decommissioningNodes"] and not self.parameters["leaving"]:
                        self.troubles.append("YARN: %d NodeManagers still have containers to finish" % metrics["decommissioningNodes"])
                    if metrics["unhealthyNodes"]:
                        self.troubles.append("YARN: %d NodeManagers are unhealthy" % metrics["unhealthyNodes"])
            except (OSError, ValueError) as error:
                states[host] = "silent (%s)" % error
        self.troubles += one_active("ResourceManager", states, "active", "standby")

    def config(self):
        """Configuration of the distribution, which knows the clients' files."""
        from gridstead import config

        return config, config.load(os.path.join(self.etc, "gridstead", "gridstead.toml"))

    def kafka(self):
        """Partitions and brokers of Kafka."""
        from confluent_kafka.admin import AdminClient

        config, loaded = self.config()
        settings = config.kafka_client(loaded)
        metadata = AdminClient(settings).list_topics(timeout=15)
        self.troubles += judge_partitions(
            {
                topic.topic: {number: (p.leader, len(p.replicas), len(p.isrs)) for number, p in topic.partitions.items()}
                for topic in metadata.topics.values()
            }
        )
        there = {"%s:%d" % (broker.host, broker.port) for broker in metadata.brokers.values()}
        missing = set(settings["bootstrap.servers"].split(",")) - there
        if missing:
            self.troubles.append("Kafka: not in the cluster are %s" % some(missing))

    def elasticsearch(self):
        """Shards and nodes of Elasticsearch."""
        with open(os.path.join(self.etc, "clients", "elasticsearch.json")) as stream:
            hosts = json.load(stream)["hosts"]
        for number, host in enumerate(hosts, 1):
            try:
                health = fetch(host + "/_cluster/health")
                break
            except OSError:
                if number == len(hosts):
                    raise
        for name in ("unassigned_shards", "initializing_shards", "relocating_shards"):
            if health[name]:
                self.troubles.append("Elasticsearch: %d %s" % (health[name], name.replace("_", " ")))
        if health["number_of_nodes"] < len(hosts):
            self.troubles.append("Elasticsearch: %d nodes are in the cluster, of %d" % (health["number_of_nodes"], len(hosts)))

    def activemq(self):
        """Of a pair of message brokers one is active and the other a full copy."""
        from gridstead.cli.broker import Broker, BrokerError

        config, loaded = self.config()
        client = config.stomp_client(loaded)
        for host in client.hosts:  # who copies answers no client
            try:
                with Broker(dataclasses.replace(client, hosts=(host,)), timeout_s=10) as broker:
                    self.seen["active"]["activemq"] = [host[0]]
                    if len(client.hosts) > 1 and broker.manage("broker", attribute="replicaSync") is not True:
                        self.troubles.append("the message broker on %s has no copy that could take over" % host[0])
            except BrokerError:
                if host == client.hosts[-1] and "activemq" not in self.seen["active"]:
                    raise

    def pipeline(self):
        """Ask the daemons of every gateway for their health; those that one of them runs tell who stands by."""
        _config, loaded = self.config()
        for service in loaded.services:
            if service.role not in ("collector", "bridge", "analytics"):
                continue
            own = urllib.parse.urlsplit(service.url)
            for host in self.parameters["gateways"] or [own.hostname]:
                try:
                    if not fetch(own._replace(netloc="%s:%d" % (host, own.port)).geturl()).get("standby"):
                        self.seen["active"].setdefault(service.name, []).append(host)
                except (OSError, ValueError) as error:
                    self.troubles.append("%s on %s is not well (%s)" % (service.name, host, error))


def main():
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "etc_dir": {"type": "path", "default": "/etc/gridstead"},
            "library": {"type": "path", "required": True},
            "parts": {"type": "list", "elements": "str", "choices": PARTS, "default": PARTS},
            "timeout": {"type": "int", "default": 300},
            "report": {"type": "bool", "default": False},
            "datanodes": {"type": "list", "elements": "str", "default": []},
            "nodemanagers": {"type": "int", "default": 1},
            "gateways": {"type": "list", "elements": "str", "default": []},
            "drained": {"type": "str"},
            "leaving": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    sys.dont_write_bytecode = True
    sys.path.insert(0, module.params["library"])
    timeout, started, good = module.params["timeout"], time.monotonic(), 0
    while True:
        gate = Gate(module.params)
        gate.look()
        good = 0 if gate.troubles else good + 1
        over = time.monotonic() - started > timeout
        if good >= LOOKS or (over and module.params["report"]):
            module.exit_json(changed=False, passed=not gate.troubles, troubles=gate.troubles, **gate.seen)
        if gate.troubles and over:
            module.fail_json(
                msg="After %d s the cluster could not lose a host: %s. Nothing further was done. Next: `gridstead doctor` on the hosts "
                "named, then the same playbook again" % (timeout, "; ".join(gate.troubles)),
                troubles=gate.troubles,
            )
        time.sleep(PAUSE)


if __name__ == "__main__":
    main()
