"""An S3 that is away delays and never loses."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from tests.acceptance.test_operations import create, get
from tests.support.files import download, files_under
from tests.support.ports import is_listening
from tests.support.process import wait_until
from tests.support.s3_servers import rclone_s3
from tests.support.server import StartServer

pytestmark = pytest.mark.acceptance


def test_uploads_complete_and_are_served_from_staging_until_s3_is_back(
    start_server: StartServer, tmp_path: Path
) -> None:
    content = os.urandom(300_000)
    with rclone_s3(tmp_path) as s3:
        transfer = {"retry_delay": "500ms", "retry_max_delay": "1s", "max_retries": 1000}
        client = {"connect_timeout": "1s", "max_attempts": 1}
        storage = s3.storage_config()
        storage["s3"]["client"] = client
        server = start_server({"storage": storage, "transfer": transfer})
        s3.child.stop()

        path, upload_id = create(server.url, content)
        seen = wait_until(
            lambda: (view := server.upload_json(upload_id))["last_error"] and view, deadline=20, what="a try has failed"
        )
        assert seen["state"] == "transferring"
        assert get(f"{server.origin}{path}") == (200, content)
        ready, _ = get(f"{server.ready.operations_url}/readyz")
        assert ready == 503

        s3.child.start()
        s3.child.wait_ready(lambda: is_listening(s3.port), deadline=10, what="rclone listens again")
        stored = server.wait_for_state(upload_id, "stored", deadline=30)

        assert stored["attempts"] > 1
        assert server.metrics()['tusd_transfers_total{outcome="retry"}'] == stored["attempts"] - 1
        _, history = get(f"{server.origin}/api/v1/uploads/{upload_id}/attempts")
        outcomes = [past["outcome"] for past in json.loads(history)["attempts"]]
        assert outcomes == ["succeeded", *["retry"] * (stored["attempts"] - 1)]
        assert download(f"{server.origin}/download/{upload_id}").sha256 == hashlib.sha256(content).hexdigest()
        assert len(s3.object_keys()) == 1
        wait_until(lambda: not files_under(server.staging), deadline=10, what="staging is empty")
