"""Each command on the pages about clusters is run by a test on real hosts."""

from __future__ import annotations

import re

import pytest

from documented import commands
from role_files import ROOT

PAGES = ["add-node", "cluster", "drain-node", "rolling-restart", "support-bundle", "upgrade"]


@pytest.mark.parametrize("page", PAGES)
def test_each_command_of_a_page_is_run_by_a_test(page: str) -> None:
    source = (ROOT / "tests" / "lab" / "test_ha.py").read_text()
    used = {int(number) for number in re.findall(rf'documented(?:\.command)?\("{page}", (\d+)', source)}
    assert used == set(range(len(commands(page)))), commands(page)
