"""Events as receivers get them, against golden files; and that no token is ever in one."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.world import World, stored
from tusd_py.config import Config
from tusd_py.config.place import Place
from tusd_py.database.events import EventRecords
from tusd_py.ports.events import RecordedEvent
from tusd_py.ports.hooks import HookRequest
from tusd_py.protocol.events import EventKind
from tusd_py.protocol.upload import UploadId
from tusd_py.uploads.cloud_events import cloud_event, event_source
from tusd_py.uploads.kept_requests import kept_request
from tusd_py.uploads.snapshot import upload_from_snapshot
from tusd_py.uploads.tusd_events import HOOK_NAMES, tusd_event
from tusd_py.webhooks import parse_event

GOLDEN = Path(__file__).parent / "golden"
CONFIG = Config(data_dir=Path("/data"))
SOURCE = "https://uploads.example"
FOLDER = Place("filesystem", directory="store")
BUCKET = Place("s3", "https://s3.example", "files", "uploads")
UPLOAD_ID = UploadId(uuid.UUID("7f2f0e6c-1a0e-4b2e-8d7a-0f5b6c1d2e3f"))
SNAPSHOT: dict[str, Any] = {
    "id": str(UPLOAD_ID),
    "owner": "alice",
    "staging_id": "4e3c0000-0000-4000-8000-000000000001",
    "state": "created",
    "upload_length": 46205,
    "upload_offset": 0,
    "metadata": "filename Z3LDtsOfZS50eHQ=,empty,binary /w==",
    "filename": "größe.txt",
    "content_type": "text/plain",
    "concat": None,
    "crc64nvme": -1,
    "object_key": f"2026/11/{UPLOAD_ID}",
    "local_present": True,
    "remote_present": False,
    "hold": False,
    "created_at": "2026-11-21T12:00:00+00:00",
    "updated_at": "2026-11-21T12:00:00+00:00",
    "expires_at": "2026-11-22T12:00:00.5+00:00",
    "sha256": "\\x" + "ab" * 32,
    "place_id": 1,
    "profile": "default",
    "trigger": "complete",
    "protocol": "tus",
    "event_sequence": 1,
}
STORED = SNAPSHOT | {
    "state": "stored",
    "upload_offset": 46205,
    "remote_present": True,
    "expires_at": None,
    "completed_at": "2026-11-21T12:00:01+00:00",
    "stored_at": "2026-11-21T12:00:02+00:00",
}


def event(
    kind: EventKind, snapshot: dict[str, Any] = SNAPSHOT, *, sequence: int = 1, payload: dict[str, Any] | None = None
) -> RecordedEvent:
    return RecordedEvent(
        id=uuid.UUID("3e1f0c0e-6c1b-4b43-8e0d-6c6a9a2c7b11"),
        upload_id=UPLOAD_ID,
        kind=kind,
        sequence=sequence,
        created_at=datetime(2026, 11, 21, 12, 0, 2, 345678, tzinfo=UTC),
        payload=payload or {},
        snapshot=snapshot,
    )


FAILED = STORED | {"state": "transfer_failed", "remote_present": False, "stored_at": None, "error": "It is too large."}
REQUEST = {
    "Method": "DELETE",
    "URI": "/files/AbCd…",
    "RemoteAddr": "192.0.2.7:50712",
    "Header": {"X-Request-Id": ["7"]},
}
CREATION = REQUEST | {"Method": "POST", "URI": "/files/?project=7"}
CLOUD: dict[str, tuple[RecordedEvent, Place]] = {
    "created": (event(EventKind.CREATED), FOLDER),
    "stored-in-folder": (event(EventKind.STORED, STORED, sequence=4), FOLDER),
    "stored-in-bucket": (event(EventKind.STORED, STORED, sequence=4), BUCKET),
    "transfer-failed": (event(EventKind.TRANSFER_FAILED, FAILED, sequence=4, payload={"code": "E"}), BUCKET),
}
TUSD: dict[str, tuple[RecordedEvent, Place]] = {
    "post-create": (
        event(EventKind.CREATED, SNAPSHOT | {"upload_length": None}, payload={"request": CREATION}),
        FOLDER,
    ),
    "post-finish-folder": (event(EventKind.STORED, STORED), FOLDER),
    "post-finish-bucket": (event(EventKind.STORED, STORED), BUCKET),
    "post-terminate": (
        event(
            EventKind.TERMINATED,
            SNAPSHOT | {"state": "removing", "concat": "partial", "local_present": False},
            payload={"request": REQUEST},
        ),
        FOLDER,
    ),
}


@pytest.mark.parametrize("name", CLOUD)
def test_cloud_event_is_as_documented(name: str) -> None:
    recorded, place = CLOUD[name]

    body = orjson.dumps(cloud_event(recorded, CONFIG, place=place, source=SOURCE))

    assert json.loads(body) == json.loads((GOLDEN / f"cloud-{name}.json").read_text())
    parsed = parse_event(body)
    assert (parsed.subject, parsed.data.id, parsed.time) == (str(UPLOAD_ID), str(UPLOAD_ID), recorded.created_at)


@pytest.mark.parametrize("name", TUSD)
def test_event_in_the_format_of_tusd_is_as_its_documentation_says(name: str) -> None:
    recorded, place = TUSD[name]

    assert tusd_event(recorded, CONFIG, place=place) == json.loads((GOLDEN / f"{name}.json").read_text())


def test_only_what_tusd_knows_has_a_name_there() -> None:
    assert HOOK_NAMES == {
        "upload.created": "post-create",
        "upload.progress": "post-receive",
        "upload.stored": "post-finish",
        "upload.terminated": "post-terminate",
    }


def test_sequences_compare_as_text() -> None:
    numbers = [1, 2, 9, 10, 11, 99, 100, 2**63 - 1]
    texts = [
        cloud_event(event(EventKind.CREATED, sequence=number), CONFIG, place=None, source=SOURCE)["sequence"]
        for number in numbers
    ]
    assert texts == sorted(texts)
    assert {len(text) for text in texts} == {20}


def test_source_is_the_public_url_or_the_database() -> None:
    database_id = uuid.uuid4()
    assert event_source(CONFIG, database_id) == f"urn:tusd_py:{database_id}"
    public = CONFIG.model_copy(update={"server": CONFIG.server.model_copy(update={"public_url": SOURCE})})
    assert event_source(public, database_id) == SOURCE


# --- the request that has made an event ------------------------------------------------------------

ASKED = HookRequest(
    method="DELETE",
    uri="/files/AbCd…",
    remote_addr="192.0.2.7:50712",
    headers={
        "X-Request-Id": ["7"],
        "X-Other": ["secret"],
        "Authorization": ["secret"],
        "Cookie": ["secret"],
        "Proxy-Authorization": ["secret"],
    },
)
FORWARDED = ["x-request-id", "x-missing", "authorization", "cookie", "proxy-authorization"]
TUSD_WEBHOOK = {"url": "https://app.example/", "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "format": "tusd"}


@pytest.mark.parametrize(
    ("hooks", "webhooks"), [({}, [TUSD_WEBHOOK]), ({"file": "/hooks"}, [])], ids=["webhook", "programs"]
)
def test_only_headers_that_are_named_are_kept_and_no_credential_ever(
    hooks: dict[str, Any], webhooks: list[dict[str, Any]]
) -> None:
    config = Config.model_validate({"hooks": {"forward_headers": FORWARDED, **hooks}, "webhooks": webhooks})

    assert kept_request(config, ASKED) == REQUEST
    assert kept_request(config, None) is None


def test_nothing_is_kept_where_nobody_is_told_in_the_format_of_tusd() -> None:
    webhook = TUSD_WEBHOOK | {"format": "cloudevents"}
    hooks = {"http": "https://app.example/", "forward_headers": FORWARDED}

    assert kept_request(Config.model_validate({"hooks": hooks, "webhooks": [webhook]}), ASKED) is None


# --- snapshots -------------------------------------------------------------------------------------


async def test_snapshot_is_the_upload_as_it_was_read(world: World) -> None:
    upload = await world.received(
        metadata="filename YQ==", filename="a", content_type="text/plain", content_language="de", profile="default"
    )
    await world.sql(
        "UPDATE uploads SET md5 = $2, sha256 = $3, hold = true WHERE id = $1", upload.id, b"m" * 16, b"s" * 32
    )
    (job,) = await world.jobs().claim(1)
    await world.jobs().finish_transfers([(job, stored(job.upload, version_id="v"))])

    *_, last = await EventRecords(world.database).of_upload(upload.id)

    assert last.kind is EventKind.STORED
    assert upload_from_snapshot(last.snapshot) == await world.find(upload)


def test_snapshot_of_an_earlier_release_is_understood() -> None:
    least = {name: SNAPSHOT[name] for name in (
        "id", "staging_id", "state", "upload_offset", "object_key", "local_present", "remote_present", "hold",
        "created_at", "updated_at",
    )}  # fmt: skip
    upload = upload_from_snapshot(least)
    assert (upload.profile, upload.trigger, upload.length, upload.crc64nvme) == ("default", "complete", None, None)
    assert upload_from_snapshot(SNAPSHOT).crc64nvme == 2**64 - 1


# --- tokens ----------------------------------------------------------------------------------------

TOKENS = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", min_size=22, max_size=43)


@given(TOKENS, st.sampled_from(EventKind), st.sampled_from([FOLDER, BUCKET, None]))
def test_token_is_in_no_event_even_if_a_snapshot_had_it(token: str, kind: EventKind, place: Place | None) -> None:
    snapshot = STORED | {"concat": "final", "concat_header": f"final;/files/{token}", "token_hash": token}
    recorded = event(kind, snapshot)
    rendered = [orjson.dumps(cloud_event(recorded, CONFIG, place=place, source=SOURCE))]
    if kind in HOOK_NAMES:
        rendered.append(orjson.dumps(tusd_event(recorded, CONFIG, place=place)))
    assert not any(token.encode() in body for body in rendered)


async def test_token_is_in_no_record(world: World) -> None:
    secret = "very-secret-token-of-a-partial-upload"
    parts = [await world.part(b"hello"), await world.part(b"world")]
    final = await world.final(parts, concat_header=f"final;/files/{secret} /files/{secret}")
    await world.uploads.remove(final.id)

    texts = [str(row["text"]) for row in await world.sql("SELECT events::text AS text FROM events")]

    assert len(texts) >= 6
    hashes = [bytes(token).hex() for token in world.tokens.values()]
    assert not [text for text in texts if secret in text or any(token in text for token in hashes)]
    assert (await world.find(final)).concat_header is not None
