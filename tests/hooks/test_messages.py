"""The JSON of hooks, against golden files made from the documented structures of tusd."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tusd_py.errors import HookInvalid
from tusd_py.hooks import (
    FileInfoChanges,
    HookEvent,
    HookKind,
    HookReply,
    HookRequest,
    HookResponse,
    HookUpload,
)
from tusd_py.hooks.messages import decode_reply, encode_event

GOLDEN = Path(__file__).parent / "golden"
REQUEST = HookRequest(
    method="POST",
    uri="/files/",
    remote_addr="192.0.2.7:50712",
    headers={
        "Host": ["uploads.example"],
        "Tus-Resumable": ["1.0.0"],
        "Upload-Length": ["46205"],
        "X-Forwarded-For": ["198.51.100.1", "192.0.2.1"],
    },
)
EVENTS = {
    "pre-create": HookEvent(
        kind=HookKind.PRE_CREATE,
        upload=HookUpload(id="", size=46205, offset=0, metadata={"filename": "transfer.png", "empty": ""}),
        request=REQUEST,
    ),
    "pre-create-deferred-partial": HookEvent(
        kind=HookKind.PRE_CREATE,
        upload=HookUpload(id="", size=None, offset=0, metadata={}, is_partial=True),
        request=REQUEST,
    ),
    "pre-finish-final": HookEvent(
        kind=HookKind.PRE_FINISH,
        upload=HookUpload(
            id="7f2f0e6c-1a0e-4b2e-8d7a-0f5b6c1d2e3f",
            size=12,
            offset=12,
            metadata={"filename": "größe.txt"},
            is_final=True,
            partial_uploads=["aaaaaaaa-0000-4000-8000-000000000001", "aaaaaaaa-0000-4000-8000-000000000002"],
            storage={"Type": "filestore", "Path": "/data/staging/3f/7f2f0e6c-1a0e-4b2e-8d7a-0f5b6c1d2e3f"},
        ),
        request=REQUEST,
    ),
}


@pytest.mark.parametrize("name", EVENTS)
def test_question_has_the_documented_structure(name: str) -> None:
    assert json.loads(encode_event(EVENTS[name])) == json.loads((GOLDEN / f"{name}.json").read_text())


@pytest.mark.parametrize(
    ("document", "reply"),
    [
        ({}, HookReply()),
        ({"HTTPResponse": None, "ChangeFileInfo": None}, HookReply()),
        ({"Unknown": [1]}, HookReply()),
        (
            {"RejectUpload": True, "HTTPResponse": {"StatusCode": 403, "Body": "no", "Header": {"X-Why": "size"}}},
            HookReply(reject_upload=True, response=HookResponse(status_code=403, body="no", headers={"X-Why": "size"})),
        ),
        ({"RejectTermination": True}, HookReply(reject_termination=True)),
        ({"StopUpload": True}, HookReply(stop_upload=True)),
        (
            {"ChangeFileInfo": {"ID": "my-id", "MetaData": {"filename": "a"}, "Storage": {"Path": "a/b"}}},
            HookReply(change_file_info=FileInfoChanges(id="my-id", metadata={"filename": "a"}, storage_path="a/b")),
        ),
        ({"ChangeFileInfo": {"ID": "", "MetaData": {}}}, HookReply(change_file_info=FileInfoChanges(metadata={}))),
        ({"ChangeFileInfo": {"Storage": {}}}, HookReply()),
    ],
)
def test_reply_is_read(document: dict[str, object], reply: HookReply) -> None:
    assert decode_reply(json.dumps(document).encode()) == reply


@pytest.mark.parametrize(
    "body",
    [
        b"no",
        b"[]",
        b"1",
        b"\xff",
        b'{"RejectUpload": "yes"}',
        b'{"RejectUpload": 1}',
        b'{"HTTPResponse": []}',
        b'{"HTTPResponse": {"StatusCode": "400"}}',
        b'{"HTTPResponse": {"StatusCode": true}}',
        b'{"HTTPResponse": {"StatusCode": 101}}',
        b'{"HTTPResponse": {"StatusCode": 1000}}',
        b'{"HTTPResponse": {"Header": {"A": ["b"]}}}',
        b'{"HTTPResponse": {"Header": {"A": "b\\r\\nSet-Cookie: c"}}}',
        b'{"HTTPResponse": {"Header": {"": "b"}}}',
        b'{"ChangeFileInfo": {"MetaData": {"a": 1}}}',
        b'{"ChangeFileInfo": {"ID": 7}}',
    ],
)
def test_unusable_reply_is_an_error(body: bytes) -> None:
    with pytest.raises(HookInvalid):
        decode_reply(body)
