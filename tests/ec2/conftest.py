"""One AWS for all tests of this directory, on loopback."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # aws.py
from aws import Aws, serve

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "plugins" / "module_utils"))  # gridstead_ec2


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    """The server; stopped at the end."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with serve(tmp_path_factory.mktemp("aws")) as aws:
        yield aws


@pytest.fixture(scope="module")
def aws(server: Aws) -> Aws:
    """An empty account, for all tests of a module."""
    server.reset()
    return server
