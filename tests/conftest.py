"""The appliance under test: started once for the whole session, on ports of its own, and removed at the end."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance import Appliance, run


@pytest.fixture(scope="session")
def appliance() -> Iterator[Appliance]:
    """A running appliance; set GRIDSTEAD_TEST_ROOT to keep one between runs."""
    kept = os.environ.get("GRIDSTEAD_TEST_ROOT")
    root = Path(kept) if kept else Path(tempfile.mkdtemp(prefix="gridstead-test-"))
    root.mkdir(parents=True, exist_ok=True)
    root.chmod(0o755)
    under_test = Appliance(root, int(os.environ.get("GRIDSTEAD_TEST_OFFSET", "1000")))
    started = time.monotonic()
    run(["ansible-playbook", "playbooks/site.yml"], env=under_test.environment, timeout=900)
    print(f"\nappliance up in {time.monotonic() - started:.0f} s in {root}")
    yield under_test
    if not kept:
        under_test.playbook("down")
        shutil.rmtree(root)
