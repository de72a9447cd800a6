#!/usr/bin/python
# Directories of HDFS, by WebHDFS.
"""Ansible module: create directories of HDFS with their owner and mode, and change nothing that is as it should be."""

from __future__ import annotations

DOCUMENTATION = r"""
module: hdfs_directory
short_description: Directories of HDFS
description: [Creates directories of HDFS and sets their owner and mode through WebHDFS; changes only what differs.]
options:
  namenode: {description: host:port of the NameNode's web address., type: str, required: true}
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
    namenode: 127.0.0.1:9870
    user: hdfs
    directories: [{path: /apps, owner: hdfs}]
"""

import json
import urllib.error
import urllib.parse
import urllib.request

from ansible.module_utils.basic import AnsibleModule


def call(module, method, path, operation, **query):
    """One WebHDFS request (Hadoop documentation, WebHDFS REST API); return its JSON, or None if there is no such file."""
    query = urllib.parse.urlencode({"op": operation, "user.name": module.params["user"], **query})
    url = "http://%s/webhdfs/v1%s?%s" % (module.params["namenode"], urllib.parse.quote(path), query)
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=30) as answer:
            return json.loads(answer.read() or b"{}")
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        module.fail_json(msg="WebHDFS %s %s: %s" % (operation, path, error.read().decode(errors="replace")[:500]))
    except OSError as error:
        if module.check_mode:
            module.exit_json(changed=True, msg="the NameNode does not run yet")
        module.fail_json(msg="the NameNode does not answer at %s: %s" % (module.params["namenode"], error))


def main():
    """Entry point of the module."""
    directory = {
        "path": {"type": "str", "required": True},
        "owner": {"type": "str", "required": True},
        "mode": {"type": "str", "default": "755"},
    }
    module = AnsibleModule(
        argument_spec={
            "namenode": {"type": "str", "required": True},
            "user": {"type": "str", "required": True},
            "directories": {"type": "list", "elements": "dict", "required": True, "options": directory},
        },
        supports_check_mode=True,
    )
    changed = []
    for wanted in module.params["directories"]:
        path = wanted["path"]
        status = (call(module, "GET", path, "GETFILESTATUS") or {}).get("FileStatus")
        if status is None:
            changed.append(path)
            if not module.check_mode:
                call(module, "PUT", path, "MKDIRS")
        if status is None or int(status["permission"], 8) != int(wanted["mode"], 8) or status["owner"] != wanted["owner"]:
            if path not in changed:
                changed.append(path)
            if not module.check_mode:
                call(module, "PUT", path, "SETPERMISSION", permission=wanted["mode"])
                call(module, "PUT", path, "SETOWNER", owner=wanted["owner"])
    module.exit_json(changed=bool(changed), directories=changed)


if __name__ == "__main__":
    main()
