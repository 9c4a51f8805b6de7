"""`check-config --connect` on every destination: all rights shown, none left untried, nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.stores.test_object_store import assert_nothing
from tests.support.destinations import Destination, FilesystemDestination, S3Account, S3Destination
from tests.support.fixtures import OpenStore
from tests.support.ports import free_port
from tests.support.s3_proxy import ACTIONS, S3Proxy, s3_proxy
from tusd_py.errors import PermanentStoreError
from tusd_py.ports import Checkable, CheckResult, Outcome
from tusd_py.stores.s3.client import Bucket

EVERY_ACTION = sorted(set(ACTIONS.values()))


async def run_checks(store: Checkable) -> list[CheckResult]:
    async with contextlib.aclosing(store.check()) as results:
        return [result async for result in results]


def failed(results: list[CheckResult]) -> dict[str, str]:
    return {result.subject: result.detail for result in results if result.outcome is Outcome.FAILED}


@pytest.fixture
async def proxied(moto_server: S3Account) -> AsyncIterator[tuple[S3Destination, S3Proxy]]:
    async with s3_proxy(moto_server.endpoint_url) as proxy:
        yield S3Destination(moto_server, moto_server.shared_client, f"results-{os.urandom(4).hex()}"), proxy


async def test_a_store_that_may_do_everything_shows_it(destination: Destination, open_store: OpenStore) -> None:
    results = await run_checks(await open_store(destination))

    assert [result.outcome for result in results] == [Outcome.OK] * len(results), results
    assert_nothing(destination)
    if isinstance(destination, S3Destination):
        assert {result.subject.partition(" ")[0] for result in results} == set(EVERY_ACTION)
    else:
        assert [result.subject for result in results] == [
            "store: create", "store: write and sync", "store: rename", "store: remove",
        ]  # fmt: skip


async def test_every_call_of_a_transfer_is_tried(proxied: tuple[S3Destination, S3Proxy], open_store: OpenStore) -> None:
    destination, proxy = proxied

    await run_checks(await open_store(destination, endpoint_url=proxy.url))

    # Completing needs no right of its own, and HeadBucket the one that listing shows.
    assert {seen.operation for seen in proxy.seen} == set(ACTIONS) - {"CompleteMultipartUpload", "HeadBucket"}
    keys = {seen.path for seen in proxy.seen if seen.path.count("/") > 1}
    assert all(path.startswith(f"/{destination.account.bucket}/{destination.prefix}/tusd-py-check-") for path in keys)


@pytest.mark.parametrize("action", EVERY_ACTION)
async def test_each_missing_right_is_named(
    proxied: tuple[S3Destination, S3Proxy], open_store: OpenStore, action: str
) -> None:
    destination, proxy = proxied
    proxy.denied = {action}

    results = await run_checks(await open_store(destination, endpoint_url=proxy.url))

    found = failed(results)
    resource = f"{destination.account.bucket}/{destination.prefix}/*"
    if action in {"s3:ListBucket", "s3:ListBucketMultipartUploads"}:
        resource = destination.account.bucket
    named = {subject: detail for subject, detail in found.items() if subject.startswith(f"{action} ")}
    assert named
    assert set(named.values()) == {f"denied: allow {action} on arn:aws:s3:::{resource}"}
    # Nobody is sent to look for a right that is there.
    assert set(found) - set(named) <= {"clean up"}
    assert not any(result.outcome is Outcome.SKIPPED for result in results)
    assert_left(destination, action, found)


def assert_left(destination: S3Destination, action: str, found: dict[str, str]) -> None:
    """Only what cannot be removed stays, and that is said."""
    if action == "s3:DeleteObject":
        (key,) = destination.keys()
        assert f"an object may be left at {destination.prefix}/{key}" == found["clean up"]
    elif action == "s3:AbortMultipartUpload":
        assert len(destination.unfinished()) == 1
        assert "an unfinished upload may be left" in found["clean up"]
    else:
        assert_nothing(destination)


async def test_several_missing_rights_are_named_at_once(
    proxied: tuple[S3Destination, S3Proxy], open_store: OpenStore
) -> None:
    destination, proxy = proxied
    proxy.denied = set(EVERY_ACTION)

    results = await run_checks(await open_store(destination, endpoint_url=proxy.url))

    assert {subject.partition(" ")[0] for subject in failed(results)} == set(EVERY_ACTION)
    assert_nothing(destination)


async def test_what_the_settings_need_beside_it_is_named_too(
    proxied: tuple[S3Destination, S3Proxy], open_store: OpenStore
) -> None:
    destination, proxy = proxied
    proxy.denied = {"s3:PutObject"}
    settings = {"acl": "private", "sse": "aws:kms", "object_parameters": {"tagging": {"a": "b"}}}

    found = failed(await run_checks(await open_store(destination, endpoint_url=proxy.url, **settings)))

    needed = "s3:PutObject, s3:PutObjectTagging, s3:PutObjectAcl, kms:GenerateDataKey, kms:Decrypt"
    assert found["s3:PutObject (put)"].startswith(f"denied: allow {needed} on ")


async def test_the_sample_is_sent_with_the_configured_parameters(
    proxied: tuple[S3Destination, S3Proxy], open_store: OpenStore
) -> None:
    destination, proxy = proxied

    await run_checks(await open_store(destination, endpoint_url=proxy.url, sse="AES256", storage_class="STANDARD_IA"))

    for seen in proxy.requests("PutObject") + proxy.requests("CreateMultipartUpload"):
        assert seen.headers["x-amz-server-side-encryption"] == "AES256"
        assert seen.headers["x-amz-storage-class"] == "STANDARD_IA"


@pytest.mark.parametrize("reason", ["no bucket", "nobody there"])
async def test_what_fails_for_another_reason_is_said_once(
    proxied: tuple[S3Destination, S3Proxy], open_store: OpenStore, reason: str
) -> None:
    destination, proxy = proxied
    client = {"max_attempts": 1, "connect_timeout": 2}
    changes: dict[str, Any] = {"bucket": "no-such-bucket", "endpoint_url": proxy.url}
    if reason == "nobody there":
        changes = {"endpoint_url": f"http://127.0.0.1:{free_port()}"}

    results = await run_checks(await open_store(destination, client=client, **changes))

    assert [result.outcome for result in results] == [Outcome.FAILED] + [Outcome.SKIPPED] * (len(results) - 1)
    assert ("NoSuchBucket" if reason == "no bucket" else "Connect") in results[0].detail


async def test_a_store_without_a_list_of_unfinished_uploads_can_be_used(
    proxied: tuple[S3Destination, S3Proxy], open_store: OpenStore
) -> None:
    destination, proxy = proxied
    proxy.unknown = {"ListMultipartUploads"}

    results = await run_checks(await open_store(destination, endpoint_url=proxy.url))

    assert [result.outcome for result in results] == [Outcome.OK] * len(results)
    (unknown,) = [result for result in results if result.subject.startswith("s3:ListBucketMultipartUploads")]
    assert "not known to this store" in unknown.detail


async def test_a_call_that_is_needed_must_be_known(
    proxied: tuple[S3Destination, S3Proxy], open_store: OpenStore
) -> None:
    destination, proxy = proxied
    proxy.unknown = {"CreateMultipartUpload"}

    results = await run_checks(await open_store(destination, endpoint_url=proxy.url))

    assert list(failed(results)) == ["s3:PutObject (multipart)"]
    assert results[-1].outcome is Outcome.SKIPPED
    assert_nothing(destination)


async def test_a_check_that_is_cancelled_cleans_up(
    proxied: tuple[S3Destination, S3Proxy], open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination, _ = proxied
    reached = asyncio.Event()

    async def stuck(*_: Any) -> None:
        reached.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(Bucket, "list_parts", stuck)
    checking = asyncio.create_task(run_checks(await open_store(destination)))
    await reached.wait()
    assert destination.keys()
    assert destination.unfinished()

    checking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await checking

    assert_nothing(destination)


async def test_a_store_that_answers_something_else_is_no_store(
    proxied: tuple[S3Destination, S3Proxy], open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination, _ = proxied

    async def other(*_: Any) -> bytes:
        return b"other bytes"

    monkeypatch.setattr(Bucket, "get", other)

    found = failed(await run_checks(await open_store(destination)))

    assert list(found) == ["s3:GetObject (head and get)"]
    assert PermanentStoreError.__name__ not in found["s3:GetObject (head and get)"]
    assert_nothing(destination)


# --- directories -----------------------------------------------------------------------------------


async def test_a_store_that_is_not_there_yet_is_left_alone(tmp_path: Path) -> None:
    destination = FilesystemDestination(tmp_path / "deep" / "down" / "store")
    store = destination.store()

    results = await run_checks(store)

    assert failed(results) == {}
    assert list(tmp_path.iterdir()) == []
    await store.close()


@pytest.mark.parametrize(("step", "method"), [("create", "mkdir"), ("rename", "rename"), ("remove", "unlink")])
async def test_a_directory_that_cannot_be_used_says_at_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, method: str
) -> None:
    store = FilesystemDestination(tmp_path / "store").store()

    def refuse(path: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, method, refuse)
    found = failed(await run_checks(store))
    monkeypatch.undo()

    assert list(found) == [f"store: {step}"]
    assert "Permission denied" in found[f"store: {step}"]
    await store.close()


async def test_a_file_where_the_directory_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "store").write_bytes(b"")
    store = FilesystemDestination(tmp_path / "store").store()

    found = failed(await run_checks(store))

    assert str(tmp_path / "store") in found["store: create"]
    assert (tmp_path / "store").read_bytes() == b""
    await store.close()
