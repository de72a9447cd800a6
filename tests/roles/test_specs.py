"""What the roles say of themselves agrees: argument specs, defaults, handlers, READMEs, ports and sizes."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from role_files import ROLES, ROOT, defaults_of, load, options_of

LONGEST_DEFAULT = 120  # a longer default may be left out of a spec; its README then points to the file
EACH_ROLE = pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
COMMON = defaults_of(ROOT / "roles" / "common")


@EACH_ROLE
def test_spec_describes_exactly_the_defaults(role: Path) -> None:
    assert list(options_of(role)) == list(defaults_of(role)), f"correct {role.name}/meta/argument_specs.yml: same variables, same order"


@EACH_ROLE
def test_spec_gives_type_and_description(role: Path) -> None:
    spec = load(role / "meta" / "argument_specs.yml")["argument_specs"]["main"]
    assert spec["short_description"] and spec["description"]
    for name, option in spec["options"].items():
        assert str(option.get("description", "")).endswith("."), f"{name} has no sentence that describes it"
        assert option.get("type") in {"str", "int", "float", "bool", "list", "dict", "path"}, name
        assert option["type"] != "list" or "elements" in option, f"{name}: a list of what?"
        assert "password" not in name or option.get("no_log"), f"{name} may be shown: add no_log"


@EACH_ROLE
def test_spec_repeats_the_defaults_truly(role: Path) -> None:
    defaults = defaults_of(role)
    for name, option in options_of(role).items():
        if option.get("no_log"):
            assert "{{" not in option["default"], f"{name}: Ansible would evaluate this; describe it instead"
        elif "default" in option:
            assert option["default"] == defaults[name], f"{name}: spec and defaults/ differ"
        else:
            assert len(str(defaults[name])) > LONGEST_DEFAULT, f"{name}: state its default in the spec"


@pytest.mark.parametrize(
    ("variable", "value"),
    [("gridstead_supervisor", "upstart"), ("gridstead_size", "huge"), ("gridstead_port_offset", 500), ("gridstead_base_ports", "9092")],
)
def test_wrong_value_is_refused(variable: str, value: Any) -> None:
    option = options_of(ROOT / "roles" / "common")[variable]
    validate = ArgumentSpecValidator({variable: option}).validate
    assert not validate({variable: COMMON[variable]}).error_messages
    assert variable in " ".join(validate({variable: value}).error_messages)


def test_readmes_are_fresh() -> None:
    tool = [sys.executable, ROOT / "tools" / "role_docs.py", "--check"]
    done = subprocess.run(tool, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_stale_readme_is_found(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "roles" / "kafka", tmp_path / "kafka")
    tool = [sys.executable, ROOT / "tools" / "role_docs.py", "--check", "--roles", tmp_path]
    assert subprocess.run(tool, check=False).returncode == 0
    spec = tmp_path / "kafka" / "meta" / "argument_specs.yml"
    spec.write_text(spec.read_text().replace("Heap of the broker.", "Memory of the broker."))
    done = subprocess.run(tool, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "kafka/README.md is stale" in done.stderr


def test_ports_of_side_by_side_appliances_differ() -> None:
    offsets = options_of(ROOT / "roles" / "common")["gridstead_port_offset"]["choices"]
    assert offsets == [0, 1000, 2000, 3000]
    users = Counter(port + offset for port, offset in itertools.product(COMMON["gridstead_base_ports"].values(), offsets))
    assert [port for port, count in users.items() if count > 1] == []


@pytest.mark.parametrize("offset", [0, 1000, 2000, 3000])
def test_ports_are_outside_the_kernels_own_range(offset: int) -> None:
    for name, port in COMMON["gridstead_base_ports"].items():
        assert 1024 <= port + offset < 65536, f"{name}: below, only root may bind it; above, there is no such port"
        assert not 32768 <= port + offset <= 60999, f"{name}: the kernel gives it to any outgoing connection (ip_local_port_range)"


def uses(variable: str) -> set[str]:
    """Return the keys of a variable of the role common that the defaults of roles use."""
    text = "".join(path.read_text() for path in ROOT.glob("roles/*/defaults/main.yml"))
    return set(re.findall(rf"\b{variable}\.(\w+)", text))


def test_every_port_is_used_by_a_role() -> None:
    assert uses("gridstead_ports") == COMMON["gridstead_base_ports"].keys()


def test_sizes_have_the_same_keys_and_roles_use_each() -> None:
    sizes = COMMON["gridstead_profiles"]
    assert list(sizes) == options_of(ROOT / "roles" / "common")["gridstead_size"]["choices"]
    for size, profile in sizes.items():
        assert profile.keys() == uses("gridstead_profile"), size
