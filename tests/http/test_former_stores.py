"""A server whose store was changed: what was stored before is served, shown and removed where it is."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.http.served import Serve, Served
from tests.support.fixtures import MakeConfig
from tests.support.http_client import OFFSET_TYPE
from tusd_py.commands.reconcile import reconcile_node
from tusd_py.errors import StoreNotConfigured

BODY = {"Content-Type": OFFSET_TYPE}
DATA = b"0123456789"


@pytest.fixture
async def before(serve: Serve) -> tuple[list[str], list[Path]]:
    """A server that has stored two uploads, and is stopped: their paths, and where the files are."""
    served = await serve()
    paths = [await served.create(len(DATA), BODY, DATA) for _ in range(2)]
    async with served.working():
        uploads = [await served.until_state(path, "stored") for path in paths]
    long_ago = "now() - interval '2 hours'"
    await served.core.database.execute(f"UPDATE uploads SET updated_at = {long_ago}, stored_at = {long_ago}")
    await served.stop()
    return paths, [served.config.store_directory / upload.object_key for upload in uploads]


async def show(served: Served, path: str) -> Any:
    """What the JSON API says of an upload."""
    return orjson.loads((await served.request("GET", f"/api/v1/uploads/{(await served.upload(path)).id}")).body)


def changed(tmp_path: Path, *former: dict[str, object]) -> dict[str, object]:
    """The storage section that stores elsewhere now."""
    return {"filesystem": {"directory": tmp_path / "elsewhere"}, "former": list(former)}


def was(tmp_path: Path, **changes: object) -> dict[str, object]:
    return {"filesystem": {"directory": tmp_path / "data" / "store"}} | changes


async def test_what_is_stored_in_a_former_store_is_served_shown_and_removed(
    serve: Serve, before: tuple[list[str], list[Path]], tmp_path: Path
) -> None:
    (path, _), (file, _) = before
    served = await serve(storage=changed(tmp_path, was(tmp_path)))
    upload = await served.upload(path)
    link = f"/download/{upload.id}"

    for target in (path, link):
        got = await served.request("GET", target)
        assert (got.status, got.body) == (200, DATA)
    shown = await show(served, path)
    directory = str(tmp_path / "data" / "store")
    assert shown["location"] == {"backend": "filesystem", "directory": directory, "key": upload.object_key}
    assert (await served.request("DELETE", path)).status == 204
    async with served.working():
        await served.until_state(path, "removed")
    assert not file.exists()


async def test_what_is_stored_elsewhere_is_not_lost_while_it_is_not_configured(
    serve: Serve, before: tuple[list[str], list[Path]], tmp_path: Path
) -> None:
    (path, other), (file, _) = before
    served = await serve(storage=changed(tmp_path))
    link = f"/download/{(await served.upload(path)).id}"

    for target in (path, link):
        refused = await served.request("GET", target)
        assert refused.status == 503
        assert b"ERR_STORE_NOT_CONFIGURED" in refused.body
        assert str(tmp_path).encode() not in refused.body
    assert (await served.request("DELETE", other)).status == 204
    async with served.working():
        async with asyncio.timeout(20):
            while (shown := await show(served, other))["error"] is None:
                await asyncio.sleep(0.01)
    assert (shown["state"], shown["error"]) == ("removing", StoreNotConfigured().detail)
    assert file.read_bytes() == DATA

    # A new upload is none the worse for it.
    fresh = await served.create(len(DATA), BODY, DATA)
    await served.until_state(fresh, "stored")
    assert (tmp_path / "elsewhere" / (await served.upload(fresh)).object_key).read_bytes() == DATA


async def test_a_staged_copy_is_served_while_the_store_is_not_configured(serve: Serve, tmp_path: Path) -> None:
    served = await serve(transfer={"delete_local": False})
    path = await served.create(len(DATA), BODY, DATA)
    async with served.working():
        await served.until_state(path, "stored")
    await served.stop()

    served = await serve(storage=changed(tmp_path))

    assert (await served.request("GET", path)).body == DATA


async def test_files_that_were_moved_are_served_from_the_current_store(
    serve: Serve, before: tuple[list[str], list[Path]], tmp_path: Path
) -> None:
    (path, _), _ = before
    (tmp_path / "data" / "store").rename(tmp_path / "elsewhere")

    served = await serve(storage=changed(tmp_path, was(tmp_path, moved=True)))

    assert (await served.request("GET", path)).body == DATA


async def test_a_data_directory_that_is_moved_as_a_whole_is_the_same_place(
    serve: Serve, before: tuple[list[str], list[Path]], tmp_path: Path
) -> None:
    (path, _), _ = before
    (tmp_path / "data").rename(tmp_path / "moved")

    served = await serve(data_dir=tmp_path / "moved")

    assert (await served.request("GET", path)).body == DATA


async def test_a_former_directory_that_is_not_there_stops_no_server_and_is_not_made(
    serve: Serve, before: tuple[list[str], list[Path]], tmp_path: Path
) -> None:
    (path, _), _ = before
    (tmp_path / "data" / "store").rename(tmp_path / "unmounted")

    served = await serve(storage=changed(tmp_path, was(tmp_path)))

    assert (await served.request("GET", path)).status == 503
    assert not (tmp_path / "data" / "store").exists()
    (tmp_path / "unmounted").rename(tmp_path / "data" / "store")
    assert (await served.request("GET", path)).body == DATA


async def test_reconcile_compares_former_stores_and_says_what_it_cannot_compare(
    serve: Serve, before: tuple[list[str], list[Path]], tmp_path: Path, make_config: MakeConfig
) -> None:
    _, files = before
    files[0].unlink()
    (tmp_path / "elsewhere").mkdir()
    lines: list[str] = []

    unknown = await reconcile_node(
        make_config(storage=changed(tmp_path)), repair=False, as_json=False, say=lines.append
    )
    known = await reconcile_node(
        make_config(storage=changed(tmp_path, was(tmp_path))), repair=False, as_json=False, say=lines.append
    )

    assert unknown.found == {}
    assert unknown.failed_checks == {
        "uploads in directory store": "2 are stored there: configure it as [[storage.former]]"
    }
    assert dict(known.found) == {"object_missing": 1}
    assert (known.failed_checks, known.uploads, known.objects) == ({}, 2, 1)
