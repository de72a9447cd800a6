#!/usr/bin/python
# Directories of HDFS, by WebHDFS.
"""Ansible module: create directories of HDFS with their owner and mode, and change nothing that is as it should be."""

from __future__ import annotations

DOCUMENTATION = r"""
module: hdfs_directory
short_description: Directories of HDFS
description: [Creates directories of HDFS and sets their owner and mode through WebHDFS; changes only what differs.]
options:
  namenodes: {description: host:port of every NameNode's web address; the active one is asked., type: list, elements: str, required: true}
  user: {description: Superuser of HDFS., type: str, required: true}
  directories:
    description: Directories, parents first.
    type: list
    elements: dict
    required: true
    options:
      path: {description: Absolute path., type: str, required: true}
      owner: {description: Owner., type: str, required: true}
      mode: {description: Octal permission., type: str, default: "755"}
author: [Gridstead]
"""

EXAMPLES = r"""
- name: Create the home of an application
  hdfs_directory:
    namenodes: [127.0.0.1:9870]
    user: hdfs
    directories: [{path: /apps, owner: hdfs}]
"""

import json
import urllib.error
import urllib.parse
import urllib.request

from ansible.module_utils.basic import AnsibleModule


class Hdfs:
    """WebHDFS (Hadoop documentation, WebHDFS REST API) of whichever NameNode is active."""

    def __init__(self, module):
        """Keep the module for its parameters and its errors."""
        self.module = module
        self.namenodes = list(module.params["namenodes"])

    def call(self, method, path, operation, **query):
        """One request; return its JSON, or None if there is no such file."""
        query = urllib.parse.urlencode({"op": operation, "user.name": self.module.params["user"], **query})
        failures = []
        for namenode in list(self.namenodes):
            url = "http://%s/webhdfs/v1%s?%s" % (namenode, urllib.parse.quote(path), query)
            try:
                with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=30) as answer:
                    found = json.loads(answer.read() or b"{}")
            except urllib.error.HTTPError as error:
                text = error.read().decode(errors="replace")[:500]
                if "StandbyException" in text:
                    failures.append("%s is on standby" % namenode)
                    continue
                if error.code != 404:
                    self.module.fail_json(msg="WebHDFS %s %s: %s" % (operation, path, text))
                found = None
            except OSError as error:
                failures.append("%s does not answer: %s" % (namenode, error))
                continue
            self.namenodes.sort(key=lambda name: name != namenode)  # asked first from now on
            return found
        if self.module.check_mode:
            self.module.exit_json(changed=True, msg="no NameNode is active yet")
        return self.module.fail_json(msg="no NameNode is active; " + "; ".join(failures))


def main():
    """Entry point of the module."""
    directory = {
        "path": {"type": "str", "required": True},
        "owner": {"type": "str", "required": True},
        "mode": {"type": "str", "default": "755"},
    }
    module = AnsibleModule(
        argument_spec={
            "namenodes": {"type": "list", "elements": "str", "required": True},
            "user": {"type": "str", "required": True},
            "directories": {"type": "list", "elements": "dict", "required": True, "options": directory},
        },
        supports_check_mode=True,
    )
    hdfs = Hdfs(module)
    changed = []
    for wanted in module.params["directories"]:
        path = wanted["path"]
        status = (hdfs.call("GET", path, "GETFILESTATUS") or {}).get("FileStatus")
        if status is None:
            changed.append(path)
            if not module.check_mode:
                hdfs.call("PUT", path, "MKDIRS")
        if status is None or int(status["permission"], 8) != int(wanted["mode"], 8) or status["owner"] != wanted["owner"]:
            if path not in changed:
                changed.append(path)
            if not module.check_mode:
                hdfs.call("PUT", path, "SETPERMISSION", permission=wanted["mode"])
                hdfs.call("PUT", path, "SETOWNER", owner=wanted["owner"])
    module.exit_json(changed=bool(changed), directories=changed)


if __name__ == "__main__":
    main()
