#!/usr/bin/python
# The gate of HDFS: an active NameNode that takes writes.
"""Ansible module: wait until HDFS takes writes, and say which NameNode is active."""

from __future__ import annotations

DOCUMENTATION = r"""
module: hdfs_health
short_description: Wait until HDFS takes writes
description: [Waits until one NameNode is active and out of safe mode and has enough live DataNodes; changes nothing.]
options:
  namenodes: {description: host:port of every NameNode's web address., type: list, elements: str, required: true}
  live_datanodes: {description: DataNodes that must be live., type: int, default: 1}
  timeout: {description: Seconds to wait., type: int, default: 180}
author: [Gridstead]
"""

EXAMPLES = r"""
- name: Wait for HDFS
  hdfs_health: {namenodes: ["m1:9870", "m2:9870"], live_datanodes: 3}
"""

RETURN = r"""
active: {description: host:port of the active NameNode's web address., type: str, returned: success}
"""

import json
import time
import urllib.request

from ansible.module_utils.basic import AnsibleModule


def trouble(namenode, wanted):
    """Return what keeps this NameNode from taking writes; empty if nothing does."""
    beans = {}
    for name in ("NameNodeStatus", "FSNamesystemState"):
        url = "http://%s/jmx?qry=Hadoop:service=NameNode,name=%s" % (namenode, name)
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                for bean in json.loads(answer.read())["beans"]:
                    beans.update(bean)
        except (OSError, ValueError, KeyError) as error:
            return "does not answer (%s)" % error
    state, mode, live = beans.get("State"), beans.get("FSState"), beans.get("NumLiveDataNodes", 0)
    if state != "active":
        return "is %s" % (state or "starting")
    if mode != "Operational":
        return "is active, in the state %s" % mode
    return "" if live >= wanted else "is active with %d live DataNodes of %d" % (live, wanted)


def main():
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "namenodes": {"type": "list", "elements": "str", "required": True},
            "live_datanodes": {"type": "int", "default": 1},
            "timeout": {"type": "int", "default": 180},
        },
        supports_check_mode=True,
    )
    deadline = time.monotonic() + module.params["timeout"]
    while True:
        troubles = {namenode: trouble(namenode, module.params["live_datanodes"]) for namenode in module.params["namenodes"]}
        for namenode, what in troubles.items():
            if not what:
                module.exit_json(changed=False, active=namenode)
        if time.monotonic() > deadline:
            said = "; ".join("%s %s" % pair for pair in troubles.items())
            module.fail_json(msg="HDFS takes no writes after %d s: %s" % (module.params["timeout"], said))
        time.sleep(1)


if __name__ == "__main__":
    main()
