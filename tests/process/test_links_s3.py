"""Redirects to S3 servers that check signatures: GET and HEAD, and what the creation said of its bytes."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from tests.support.blocking_client import fetch
from tests.support.files import location_of
from tests.support.s3_servers import S3_SERVERS
from tests.support.server import StartServer

pytestmark = pytest.mark.acceptance

CODED = gzip.compress(b"a line of text\n" * 1000, mtime=0)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ["rclone", "ministack"])
def test_links_to_s3_answer_get_and_head_with_the_coding_of_the_bytes(
    name: str, start_server: StartServer, tmp_path: Path
) -> None:
    with S3_SERVERS[name](tmp_path) as bucket:
        server = start_server({"storage": bucket.storage_config()})
        fields = {"Upload-Complete": "?1", "Content-Encoding": "gzip", "Content-Language": "de"}
        upload_id = fetch(server.url, "POST", fields, CODED).headers["upload-id"]
        server.wait_for_state(upload_id, "stored", deadline=60)

        for method in ("GET", "HEAD"):
            url = location_of(f"{server.origin}/download/{upload_id}", method)
            assert url.startswith(bucket.endpoint_url)
            answer = fetch(url, method)
            assert (answer.status, answer.body) == (200, CODED if method == "GET" else b"")
            assert answer.headers["content-length"] == str(len(CODED))
            assert (answer.headers["content-encoding"], answer.headers["content-language"]) == ("gzip", "de")
