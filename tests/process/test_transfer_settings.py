"""The settings of transfers and S3 in the real process, from the file to the store and to the browser."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.support.blocking_client import get, upload_whole
from tests.support.files import location_of
from tests.support.s3_servers import ministack_s3
from tests.support.server import StartServer, tusd_py

pytestmark = pytest.mark.acceptance

LIMIT = 256 * 2**10


def test_what_the_file_says_reaches_the_store_and_the_browser(start_server: StartServer, tmp_path: Path) -> None:
    content = os.urandom(2 * LIMIT)
    with ministack_s3(tmp_path) as s3:
        storage = s3.storage_config()
        storage["s3"] |= {"location": "up", "object_parameters": {"cache_control": "no-cache"}}
        server = start_server(
            {
                "storage": storage,
                "downloads": {"url_expiry": "60s"},
                "integrity": {"sha256": True, "md5": True},
                "transfer": {"bandwidth_limit": "256KiB"},
            }
        )
        started = time.monotonic()

        _, upload_id = upload_whole(server.url, content)
        stored = server.wait_for_state(upload_id, "stored", deadline=30)

        assert time.monotonic() - started >= len(content) / LIMIT * 0.8
        assert stored["sha256"] == hashlib.sha256(content).hexdigest()
        assert stored["md5"] == hashlib.md5(content, usedforsecurity=False).hexdigest()
        (key,) = s3.object_keys()
        assert key.startswith("up/")
        assert s3.client().head_object(Bucket=s3.bucket, Key=key)["CacheControl"] == "no-cache"
        link = location_of(f"{server.origin}/download/{upload_id}")
        assert parse_qs(urlsplit(link).query)["X-Amz-Expires"] == ["60"]
        assert get(link) == (200, content)


def test_a_check_beside_a_running_server_disturbs_nobody(start_server: StartServer) -> None:
    server = start_server()

    result = tusd_py("check-config", "--connect", "--data-dir", str(server.data_dir))

    assert result.returncode == 0, result.stdout + result.stderr
    _, upload_id = upload_whole(server.url, b"still there")
    server.wait_for_state(upload_id, "stored", deadline=20)
