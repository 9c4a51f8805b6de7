"""The JSON of tusd's hooks, version 2: what is sent, and what may come back.

The names and the shapes are those of the documentation of tusd ("Hooks"), so that a hook that was written for
it runs unchanged. Differences that protect the right to write are listed in docs/coming-from-tusd.md: `ID` is
the public id, and the token in `URI` is shortened.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

from tusd_py.errors import HookInvalid
from tusd_py.hooks.replies import check_response
from tusd_py.ports.hooks import FileInfoChanges, HookEvent, HookReply, HookRequest, HookResponse, HookUpload

MAX_REPLY_BYTES: Final = 64 * 1024


def encode_event(event: HookEvent) -> bytes:
    """Return the JSON of a question."""
    return orjson.dumps(hook_document(event.kind.value, event.upload, request_document(event.request)))


def hook_document(kind: str, upload: HookUpload, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document of a blocking hook or of a notification in tusd's format."""
    return {
        "Type": kind,
        "Event": {
            "Upload": {
                "ID": upload.id,
                "Size": upload.size or 0,
                "SizeIsDeferred": upload.size is None,
                "Offset": upload.offset,
                "MetaData": dict(upload.metadata),
                "IsPartial": upload.is_partial,
                "IsFinal": upload.is_final,
                "PartialUploads": None if upload.partial_uploads is None else list(upload.partial_uploads),
                "Storage": None if upload.storage is None else dict(upload.storage),
            },
            "HTTPRequest": request,
        },
    }


def request_document(request: HookRequest) -> dict[str, Any]:
    """Return the client's request as `HTTPRequest` has it."""
    return {
        "Method": request.method,
        "URI": request.uri,
        "RemoteAddr": request.remote_addr,
        "Header": {name: list(values) for name, values in request.headers.items()},
    }


def decode_reply(body: bytes) -> HookReply:
    """Return the reply in a hook's JSON; unknown fields are ignored, as tusd does.

    Raises:
        HookInvalid: it is not JSON, or a field has the wrong type.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise HookInvalid("The reply is not JSON.", cause=str(error)) from error
    fields = _Fields(document, "the reply")
    return HookReply(
        response=_response(fields.table("HTTPResponse")),
        reject_upload=fields.flag("RejectUpload"),
        reject_termination=fields.flag("RejectTermination"),
        change_file_info=_changes(fields.table("ChangeFileInfo")),
        stop_upload=fields.flag("StopUpload"),
    )


def _response(fields: _Fields) -> HookResponse:
    response = HookResponse(
        status_code=fields.number("StatusCode"),
        body=fields.text("Body") or "",
        headers=fields.texts("Header") or {},
    )
    check_response(response)
    return response


def _changes(fields: _Fields) -> FileInfoChanges | None:
    changes = FileInfoChanges(
        id=fields.text("ID") or None,
        metadata=fields.texts("MetaData"),
        storage_path=fields.table("Storage").text("Path") or None,
    )
    return None if changes == FileInfoChanges() else changes


class _Fields:
    """The fields of a JSON object, with their types checked. null is as good as none."""

    def __init__(self, document: object, name: str) -> None:
        if not isinstance(document, dict):
            raise HookInvalid(f"{name} is not a JSON object.")
        self._document = document
        self._name = name

    def _get(self, name: str, kind: type, what: str) -> Any:
        value = self._document.get(name)
        if value is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
            raise HookInvalid(f"{name} in {self._name} is not {what}.")
        return value

    def flag(self, name: str) -> bool:
        return bool(self._get(name, bool, "true or false"))

    def number(self, name: str) -> int:
        return self._get(name, int, "an integer") or 0

    def text(self, name: str) -> str | None:
        value: str | None = self._get(name, str, "a text")
        return value

    def table(self, name: str) -> _Fields:
        return _Fields(self._get(name, dict, "an object") or {}, name)

    def texts(self, name: str) -> dict[str, str] | None:
        table: dict[str, str] | None = self._get(name, dict, "an object")
        if table is not None and not all(isinstance(value, str) for value in table.values()):
            raise HookInvalid(f"{name} in {self._name} has a value that is not a text.")
        return table
