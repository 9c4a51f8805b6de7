"""A request for bytes that lie in another staging directory, in the IETF's dialect; tus has real processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.http.rufh import Client
from tests.http.served import Serve


@pytest.mark.parametrize("version", [3, 6, 8, None])
async def test_the_wrong_node_refuses_before_it_reads_or_opens_anything(
    serve: Serve, tmp_path: Path, version: int | None
) -> None:
    """An announced body is cut off, as for every passing fault; the client asks for the offset, and is told 423."""
    right, wrong = Client(await serve(), version), Client(await serve(data_dir=tmp_path / "other"), version)
    path = await right.created(b"0123")
    before = await right.served.upload(path)

    begun = await wrong.begin("PATCH", path, wrong.append_fields(4, complete=True), b"45", announced=6)
    appended = await begun.closed()
    asked = await wrong.head(path)
    cancelled = await wrong.served.request("DELETE", path, wrong.version_headers)

    assert b" 204 " not in appended
    assert asked.status == 423
    assert cancelled.status == 503
    assert await right.served.upload(path) == before
    assert not list((tmp_path / "other" / "staging").glob("??/*"))
    assert await right.upload_headers(path) == (4, False)
    assert (await right.append(path, 4, b"456789", complete=True)).status in {200, 204}
