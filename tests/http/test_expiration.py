"""tus 1.0.0 §expiration."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import pytest

from tests.http.served import Serve, Served
from tests.http.support import eventually
from tests.support.http_client import OFFSET_TYPE

IMF_FIXDATE = re.compile(
    r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d (Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) \d{4} "
    r"\d\d:\d\d:\d\d GMT"
)


async def age(served: Served, path: str, seconds: float) -> None:
    """Let time pass for one upload."""
    await served.core.database.execute(
        "UPDATE uploads SET expires_at = expires_at - make_interval(secs => $2) WHERE id = $1",
        (await served.upload(path)).id,
        float(seconds),
    )


async def test_every_answer_about_an_unfinished_upload_says_when_it_expires(served: Served) -> None:
    """EXP-02 EXP-03 EXP-04"""
    created = await served.request("POST", "/files/", {"Upload-Length": "5"})
    path = created.headers["location"]
    answers = [
        created,
        await served.head(path),
        await served.patch(path, 0, b"he"),
        await served.patch(path, 1, b"x"),
        await served.patch(path, 2, b""),
    ]

    for response in answers:
        assert IMF_FIXDATE.fullmatch(response.headers["upload-expires"]), response
    assert answers[3].status == 409


async def test_a_finished_upload_does_not_expire(served: Served) -> None:
    """EXP-02 EXP-09"""
    path = await served.create(5)

    done = await served.patch(path, 0, b"hello")

    assert "upload-expires" not in done.headers
    assert "upload-expires" not in (await served.head(path)).headers
    assert (await served.upload(path)).expires_at is None


async def test_where_nothing_expires_nothing_is_said(serve: Serve) -> None:
    """EXP-01"""
    served = await serve(tus={"expire_after": 0})
    path = await served.create(5, {"Content-Type": OFFSET_TYPE}, b"he")

    assert "upload-expires" not in (await served.head(path)).headers
    assert "upload-expires" not in (await served.patch(path, 2, b"l")).headers


async def test_every_byte_extends_the_time_and_nothing_shortens_it(served: Served) -> None:
    """EXP-05"""
    path = await served.create(5)
    await age(served, path, 86400)
    before = parsedate_to_datetime((await served.head(path)).headers["upload-expires"])

    after = parsedate_to_datetime((await served.patch(path, 0, b"he")).headers["upload-expires"])
    refused = parsedate_to_datetime((await served.patch(path, 0, b"he")).headers["upload-expires"])

    assert after - before >= timedelta(seconds=86399)
    assert refused == after


@pytest.mark.parametrize("status", [404, 410])
async def test_an_overdue_upload_is_gone_at_once(serve: Serve, status: int) -> None:
    """EXP-06 EXP-08"""
    served = await serve(tus={"gone_status": status})
    path = await served.create(5, {"Content-Type": OFFSET_TYPE}, b"he")
    await age(served, path, 10 * 86400)

    answers = [
        await served.head(path),
        await served.patch(path, 2, b"llo"),
        await served.request("GET", path),
        await served.request("DELETE", path),
    ]

    assert [response.status for response in answers] == [status] * 4
    assert "upload-offset" not in answers[0].headers
    assert (await served.head("/files/" + "x" * 32)).status == 404


async def test_an_overdue_part_cannot_be_used_or_downloaded(served: Served) -> None:
    """EXP-08 CAT-06"""
    path = await served.create(5, {"Upload-Concat": "partial", "Content-Type": OFFSET_TYPE}, b"hello")
    upload_id = (await served.upload(path)).id
    await age(served, path, 10 * 86400)

    final = await served.request("POST", "/files/", {"Upload-Concat": f"final;{path}"})

    assert final.status == 400
    assert (await served.request("GET", f"/download/{upload_id}")).status == 404


async def test_the_reaper_frees_what_is_overdue(served: Served) -> None:
    """EXP-01 EXP-06"""
    path = await served.create(5, {"Content-Type": OFFSET_TYPE}, b"he")
    await age(served, path, 10 * 86400)
    staged = served.core.staging.path((await served.upload(path)).id)

    assert await served.work.cleanup.expire() == 1
    async with served.working():
        await eventually(lambda: not staged.exists())

    assert (await served.head(path)).status == 404


@pytest.mark.parametrize("there", [0, 2])
async def test_an_append_that_began_in_time_may_finish(served: Served, there: int) -> None:
    """EXP-07"""
    path = await served.create(5, {"Content-Type": OFFSET_TYPE}, b"hello"[:there])
    connection = await served.begin(path, there, b"hello"[there:3], ("Content-Length", str(5 - there)))
    await age(served, path, 10 * 86400)

    assert await served.work.cleanup.expire() == 0
    await connection.send(b"lo")

    assert (await connection.response()).status == 204
    assert (await served.upload(path)).complete
    assert await served.staged(path) == b"hello"


async def test_a_finished_upload_outlives_the_reaper(served: Served) -> None:
    """EXP-09"""
    path = await served.create(5, {"Content-Type": OFFSET_TYPE}, b"hello")
    await served.core.database.execute("UPDATE uploads SET created_at = created_at - interval '1 year'")

    assert await served.work.cleanup.expire() == 0
    assert (await served.upload(path)).expires_at is None
    assert (await served.head(path)).status == 200


async def test_the_date_is_the_recorded_one(served: Served) -> None:
    """EXP-04"""
    path = await served.create(5)
    shown = parsedate_to_datetime((await served.head(path)).headers["upload-expires"])

    assert abs(shown - await served.expires_at(path)) < timedelta(seconds=1)
    assert timedelta(days=6) < shown - datetime.now(UTC) < timedelta(days=8)
