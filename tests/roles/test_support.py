"""No secret of a host gets into what is packed for those who help (library/gridstead_support.py)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from role_files import ROOT

spec = importlib.util.spec_from_file_location("gridstead_support", ROOT / "library" / "gridstead_support.py")
assert spec and spec.loader
support: Any = importlib.util.module_from_spec(spec)
spec.loader.exec_module(support)

FILES = {
    "activemq/artemis-users.properties": "gridstead = hunter2\n",
    "activemq/broker.xml": "<cluster-password>Zk9wQ2b7Lm3x</cluster-password><name>site</name>",
    "clients/stomp.json": '{"username": "gridstead", "password": "s3cr3t-of-clients"}',
    "hadoop/core-site.xml": "<property><name>fs.s3a.secret.key</name><value>AbCd1234EfGh</value></property>",
    "hdfs-fence/id_ed25519": "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmU\n-----END OPENSSH PRIVATE KEY-----\n",
    "hdfs-fence/id_ed25519.pub": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5 hdfs-fence@m1\n",
    "pseudonyms/keys": "1 00112233445566778899aabbccddeeff 2026-01-01T00:00:00Z\n",
    "kafka/server.properties": "node.id=1\nssl.keystore.password=changeit99\n",
    "gridstead/gridstead.toml": '[appliance]\nname = "site"\n',
}
SECRETS = [
    "hunter2",
    "Zk9wQ2b7Lm3x",
    "s3cr3t-of-clients",
    "AbCd1234EfGh",
    "b3BlbnNzaC1rZXktdjEAAAAABG5vbmU",
    "00112233445566778899aabbccddeeff",
    "changeit99",
]


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    (tmp_path / "elasticsearch.keystore").write_bytes(b"\x00\x01")
    return tmp_path


def test_what_is_nothing_but_secret_is_left_out_and_the_rest_is_there(etc: Path) -> None:
    texts, left_out, _secrets = support.configuration(str(etc))
    assert sorted(Path(path).relative_to(etc).as_posix() for path in left_out) == [
        "activemq/artemis-users.properties",
        "elasticsearch.keystore",
        "hdfs-fence/id_ed25519",
        "pseudonyms/keys",
    ]
    assert set(texts) == {
        f"etc/{name}" for name in FILES if name not in ("activemq/artemis-users.properties", "hdfs-fence/id_ed25519", "pseudonyms/keys")
    }


@pytest.mark.parametrize("secret", SECRETS)
def test_no_secret_of_the_configuration_is_left_anywhere(etc: Path, secret: str) -> None:
    texts, _left_out, secrets = support.configuration(str(etc))
    log = f"2026-01-01 INFO connecting with {secret} as gridstead\n"
    for text in (*texts.values(), log):
        assert secret not in support.without(text, secrets)
    assert support.without(log, secrets) == log.replace(secret, support.INSTEAD)
    assert any(secret in text for text in FILES.values()), "the test looks for what was there"


def test_what_is_no_secret_stays(etc: Path) -> None:
    texts, _left_out, secrets = support.configuration(str(etc))
    assert support.without(texts["etc/gridstead/gridstead.toml"], secrets) == FILES["gridstead/gridstead.toml"]
    assert "node.id=1" in support.without(texts["etc/kafka/server.properties"], secrets)
    assert "AAAAC3NzaC1lZDI1NTE5" in support.without(texts["etc/hdfs-fence/id_ed25519.pub"], secrets)
