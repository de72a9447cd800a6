#!/usr/bin/python
# The gate of the day-2 playbooks: nothing that is kept in copies lacks one, and whatever fails over has a standby.
"""Ansible module: wait until the cluster could lose a host, or say what is wrong."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gridstead_gate
short_description: Wait until the cluster could lose a host
description:
  - Passes when no block of HDFS is missing or under-replicated, no partition of Kafka is under-replicated, no shard of Elasticsearch is
    unassigned, and the NameNodes, the ResourceManagers and the message brokers each have one active and otherwise standbys.
  - Runs on a host that has the distribution C(gridstead), the gateway, and reads there how the services are reached. Changes nothing.
options:
  etc_dir: {description: Directory of the configuration., type: path, default: /etc/gridstead}
  library: {description: Where the Python packages of the distribution are., type: path, required: true}
  timeout: {description: Seconds to wait., type: int, default: 300}
  drained:
    description: Address and name of a host that must hold nothing any more, and may be down.
    type: dict
    options:
      address: {description: Under which the others reach it., type: str, required: true}
      name: {description: Name of its Elasticsearch node., type: str, required: true}
author: [Gridstead]
"""

EXAMPLES = r"""
- name: Wait until the cluster could lose a host
  gridstead_gate: {library: /opt/gridstead/gridstead/current/lib}
"""

RETURN = r"""
active: {description: Addresses of the active servers by the name of the service., type: dict, returned: success}
datanodes: {description: DataNodes in service., type: int, returned: success}
block_copies: {description: Copies that HDFS keeps of a block., type: int, returned: success}
elasticsearch_nodes: {description: Nodes of Elasticsearch in the cluster., type: int, returned: success}
shard_copies: {description: Most copies that an index wants of a shard., type: int, returned: success}
"""

import dataclasses
import json
import os
import sys
import time
import urllib.request
import xml.etree.ElementTree as ET

from ansible.module_utils.basic import AnsibleModule

LOOKS = 2  # good looks in a row: a server that was just stopped may still be counted
PAUSE = 4  # seconds between them
LATE = 5  # seconds since a DataNode's last heartbeat; it sends one each second
FIRST = 5  # so many partitions or shards are named, of more the number is said


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


def judge_datanodes(nodes, drained):
    """Say what is wrong with the DataNodes that an active NameNode counts as live; return that, and how many are in service."""
    troubles, serving = [], 0
    for name, node in sorted(nodes.items()):
        host, state = name.split(":")[0], node.get("adminState")
        if host == drained:
            if state != "Decommissioned":
                troubles.append("the DataNode on %s still hands its blocks over (%s)" % (host, state))
        elif state == "In Service":
            serving += 1
            if node.get("lastContact", 0) > LATE:
                troubles.append("the DataNode on %s was last heard of %d s ago" % (host, node["lastContact"]))
    return troubles, serving


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
    """One look at the whole cluster; what it finds is in `troubles` and `seen`."""

    def __init__(self, module):
        """Remember where things are."""
        self.etc = module.params["etc_dir"]
        self.drained = module.params["drained"] or {"address": None, "name": None}
        self.troubles = []
        self.seen = {"active": {}}

    def look(self):
        """Look at everything; a part that does not answer is a trouble like others."""
        for part in (self.hdfs, self.yarn, self.kafka, self.elasticsearch, self.brokers):
            try:
                part()
            except Exception as error:  # whatever a client raises is said, not hidden
                self.troubles.append("%s: %s: %s" % (part.__name__, type(error).__name__, error))

    def hdfs(self):
        """NameNodes, DataNodes and blocks."""
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
                self.blocks(host, bean)
        self.troubles += one_active("NameNode", states, "active", "standby")

    def blocks(self, host, bean):
        """What the active NameNode says."""
        self.seen["active"]["hdfs-namenode"] = [host]
        for name, what in (("MissingBlocks", "missing"), ("UnderReplicatedBlocks", "under-replicated")):
            if bean.get(name) != 0:
                self.troubles.append("HDFS: %s blocks are %s" % (bean.get(name), what))
        troubles, self.seen["datanodes"] = judge_datanodes(json.loads(bean["LiveNodes"]), self.drained["address"])
        self.troubles += troubles
        dead = [
            name
            for name, node in json.loads(bean["DeadNodes"]).items()
            if not node.get("decommissioned") and name.split(":")[0] != self.drained["address"]
        ]
        if dead:
            self.troubles.append("HDFS: dead DataNodes are %s" % some(dead))

    def yarn(self):
        """Ask the ResourceManagers and the health of the NodeManagers."""
        site = properties(os.path.join(self.etc, "hadoop", "yarn-site.xml"))
        states = {}
        for name, address in site.items():
            if not name.startswith("yarn.resourcemanager.webapp.address"):
                continue
            host = address.split(":")[0]
            try:
                states[host] = fetch("http://%s/ws/v1/cluster/info" % address)["clusterInfo"]["haState"].lower()
                if states[host] == "active":
                    self.seen["active"]["yarn-resourcemanager"] = [host]
                    metrics = fetch("http://%s/ws/v1/cluster/metrics" % address)["clusterMetrics"]
                    if metrics["activeNodes"] < 1 or metrics["unhealthyNodes"]:
                        self.troubles.append("YARN: %(activeNodes)d NodeManagers are active, %(unhealthyNodes)d unhealthy" % metrics)
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
        shards = fetch(host + "/_cat/shards?format=json&h=index,shard,node")
        settings = fetch(host + "/_all/_settings/index.number_of_replicas?expand_wildcards=all")
        persistent = fetch(host + "/_cluster/settings?flat_settings=true")["persistent"]
        replicas = [int(index["settings"]["index"]["number_of_replicas"]) for index in settings.values()]
        self.seen["shard_copies"] = 1 + max(replicas, default=0)
        self.seen["elasticsearch_nodes"] = health["number_of_nodes"]
        for name in ("unassigned_shards", "initializing_shards", "relocating_shards"):
            if health[name]:
                self.troubles.append("Elasticsearch: %d %s" % (health[name], name.replace("_", " ")))
        wanted = len([url for url in hosts if url.split("//")[1].split(":")[0] != self.drained["address"]])
        if health["number_of_nodes"] < wanted:
            self.troubles.append("Elasticsearch: %d nodes are in the cluster, of %d" % (health["number_of_nodes"], wanted))
        held = len([shard for shard in shards if (shard["node"] or "").split(" ")[0] == self.drained["name"]])
        if held:
            self.troubles.append("Elasticsearch: %d shards are still on %s" % (held, self.drained["name"]))
        allowed = persistent.get("cluster.routing.allocation.enable", "all")
        if allowed != "all":
            self.troubles.append("Elasticsearch: allocation is limited to %s" % allowed)

    def brokers(self):
        """Of a pair of message brokers one is active and the other a full copy."""
        from gridstead.cli.broker import Broker, BrokerError

        config, loaded = self.config()
        client = config.stomp_client(loaded)
        if len(client.hosts) < 2:
            return
        for host in client.hosts:  # who copies answers no client
            try:
                with Broker(dataclasses.replace(client, hosts=(host,)), timeout_s=10) as broker:
                    self.seen["active"]["activemq"] = [host[0]]
                    if broker.manage("broker", attribute="replicaSync") is not True:
                        self.troubles.append("the message broker on %s has no copy that could take over" % host[0])
            except BrokerError:
                if host == client.hosts[-1] and "activemq" not in self.seen["active"]:
                    raise


def main():
    """Entry point of the module."""
    drained = {"address": {"type": "str", "required": True}, "name": {"type": "str", "required": True}}
    module = AnsibleModule(
        argument_spec={
            "etc_dir": {"type": "path", "default": "/etc/gridstead"},
            "library": {"type": "path", "required": True},
            "timeout": {"type": "int", "default": 300},
            "drained": {"type": "dict", "options": drained},
        },
        supports_check_mode=True,
    )
    sys.dont_write_bytecode = True
    sys.path.insert(0, module.params["library"])
    started, good = time.monotonic(), 0
    while True:
        gate = Gate(module)
        gate.look()
        good = 0 if gate.troubles else good + 1
        if good >= LOOKS:
            module.exit_json(changed=False, **gate.seen)
        if gate.troubles and time.monotonic() - started > module.params["timeout"]:
            module.fail_json(
                msg="After %d s the cluster could not lose a host: %s. Nothing further was done. Next: `gridstead doctor` on the hosts "
                "named, then the same playbook again" % (module.params["timeout"], "; ".join(gate.troubles)),
                troubles=gate.troubles,
            )
        time.sleep(PAUSE)


if __name__ == "__main__":
    main()
