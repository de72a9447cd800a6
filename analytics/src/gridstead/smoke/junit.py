"""The outcomes as JUnit XML, as CI servers read it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

from gridstead.smoke.runner import Outcome

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write one test suite with one test case a check; times in seconds. Raises OSError."""
    failures = sum(not outcome.ok for outcome in outcomes)
    seconds = sum(outcome.seconds for outcome in outcomes)
    figures = {"tests": str(len(outcomes)), "failures": str(failures), "errors": "0", "time": f"{seconds:.3f}"}
    root = ET.Element("testsuites", figures)
    suite = ET.SubElement(root, "testsuite", {"name": "gridstead.smoke", **figures})
    for outcome in outcomes:
        attributes = {"classname": "gridstead.smoke", "name": outcome.name, "time": f"{outcome.seconds:.3f}"}
        case = ET.SubElement(suite, "testcase", attributes)
        if outcome.ok:
            ET.SubElement(case, "system-out").text = _clean(outcome.message)
        else:
            first = outcome.message.splitlines()[0] if outcome.message else "failed"
            failure = ET.SubElement(case, "failure", {"message": _clean(first), "type": "SmokeError"})
            logs = "".join(f"\n--- {name}\n" + "\n".join(lines) for name, lines in outcome.logs.items())
            failure.text = _clean(outcome.message + logs)
    ET.indent(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    ET.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def _clean(text: str) -> str:
    return _NOT_XML.sub("�", text)
