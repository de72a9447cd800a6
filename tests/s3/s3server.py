"""Where the S3 server of these tests is, and what Hadoop's programs need to reach it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import yaml
from botocore.config import Config

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Server:
    """Where the server is, and its only account."""

    url: str
    access: str
    secret: str
    log: Path

    def client(self) -> Any:
        """A client of its own, beside Hadoop's."""
        keys = {"aws_access_key_id": self.access, "aws_secret_access_key": self.secret}
        style = Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1})
        return boto3.client("s3", endpoint_url=self.url, region_name="us-east-1", config=style, **keys)

    def requests(self) -> list[str]:
        """The kinds of all requests until now, as its access log names them."""
        return [word for line in self.log.read_text().splitlines() for word in line.split() if word.startswith("s3_")]

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """The keys of a bucket."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]


def settings_of(role: str, name: str) -> dict[str, str]:
    """Settings of a role's variables that are the same everywhere, without those that Ansible fills in."""
    values = yaml.safe_load((ROOT / "roles" / role / "vars" / "main.yml").read_text())[name]
    return {key: value for key, value in values.items() if "{{" not in value}


@dataclass(frozen=True)
class Hadoop:
    """What Hadoop's programs need to reach the server."""

    jars: str
    site: dict[str, str]
    credentials: Path
