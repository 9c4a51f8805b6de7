"""What events keep of the request that has made them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.http.served import Serve, Served
from tests.support.http_client import OFFSET_TYPE
from tusd_py.app.endpoints import EventFormats
from tusd_py.database.events import EventRecords
from tusd_py.protocol.upload import Upload

WEBHOOK = {"url": "http://127.0.0.1:9/", "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}
HOOKS = {"forward_headers": ["x-project"]}
SENT = {"X-Project": "7", "X-Other": "8"}
WHOLE = SENT | {"Upload-Length": "5", "Content-Type": OFFSET_TYPE}
PARTIAL = {"Upload-Concat": "partial"}


async def payloads(served: Served, upload: Upload) -> dict[str, Any]:
    """Return what each event of an upload says beside the upload."""
    rows = await served.core.database.fetch("SELECT kind, payload FROM events WHERE upload_id = $1", upload.id)
    return {row["kind"].removeprefix("upload."): row["payload"] for row in rows}


@pytest.fixture
async def telling(serve: Serve) -> Served:
    return await serve(hooks=HOOKS, webhooks=[WEBHOOK | {"format": "tusd"}])


async def test_event_of_a_creation_keeps_it_and_that_of_the_completion_does_not(telling: Served) -> None:
    response = await telling.request("POST", "/files/?a=b", WHOLE, b"hello")

    found = await payloads(telling, await telling.upload(response.headers["location"]))
    request = found["created"]["request"]
    assert request.pop("RemoteAddr").startswith("127.0.0.1:")
    assert request == {"Method": "POST", "URI": "/files/?a=b", "Header": {"X-Project": ["7"]}}
    assert found["completed"] == {}


async def test_event_of_a_final_upload_keeps_its_own_creation(telling: Served) -> None:
    parts = [await telling.create(5, PARTIAL) for _ in range(2)]
    final = await telling.request("POST", "/files/", SENT | {"Upload-Concat": f"final;{' '.join(parts)}"})

    assert final.status == 201
    found = await payloads(telling, await telling.upload(final.headers["location"]))
    assert found["created"]["request"]["Header"] == {"X-Project": ["7"]}


@pytest.mark.parametrize("by_id", [False, True], ids=["tus", "api"])
async def test_event_of_a_termination_keeps_it(telling: Served, by_id: bool) -> None:
    path = await telling.create(5)
    upload = await telling.upload(path)
    target = f"/api/v1/uploads/{upload.id}" if by_id else path

    assert (await telling.request("DELETE", target, SENT)).status == 204

    request = (await payloads(telling, upload))["terminated"]["request"]
    assert (request["Method"], request["Header"]) == ("DELETE", {"X-Project": ["7"]})
    assert path.rpartition("/")[2] not in request["URI"]
    if by_id:
        assert request["URI"] == target


@pytest.mark.parametrize("webhooks", [[], [WEBHOOK]], ids=["nobody", "cloudevents"])
async def test_nothing_is_kept_where_nobody_is_told_in_the_format_of_tusd(
    serve: Serve, webhooks: list[dict[str, str]]
) -> None:
    served = await serve(hooks=HOOKS, webhooks=webhooks)
    path = await served.create(5)
    upload = await served.upload(path)
    assert (await served.request("DELETE", path, SENT)).status == 204

    assert await payloads(served, upload) == {"created": {}, "terminated": {}}


async def test_event_of_a_final_upload_names_its_partial_uploads(telling: Served) -> None:
    partials = [await telling.create(5, PARTIAL | {"Content-Type": OFFSET_TYPE}, b"hello") for _ in range(2)]
    final = await telling.create(None, {"Upload-Concat": f"final;{' '.join(partials)}"})
    upload = await telling.upload(final)

    events = await EventRecords(telling.core.database).of_upload(upload.id)
    message = await EventFormats(telling.core).tusd(events[0])

    described = json.loads(message.body)["Event"]["Upload"]
    assert described["IsFinal"] is True
    assert described["PartialUploads"] == [str((await telling.upload(each)).id) for each in partials]
    assert described["Storage"] is None
