"""Outcomes to replies, by the rules of one interop version."""

from __future__ import annotations

import http
import json
from datetime import UTC, datetime
from typing import Any, Final

from tusd_py.errors import (
    ChecksumMismatch,
    InvalidContentType,
    LengthConflict,
    LengthExceeded,
    OffsetMismatch,
    StagingDamaged,
    StagingMissing,
    TusdError,
    UploadCompleted,
    UploadTooLarge,
    WholeChecksumMismatch,
)
from tusd_py.protocol import fields
from tusd_py.protocol.dialect import Reply, error_headers
from tusd_py.protocol.features import Features
from tusd_py.protocol.rufh import structured
from tusd_py.protocol.rufh.digests import render_digests
from tusd_py.protocol.rufh.versions import NEWEST, Version
from tusd_py.protocol.upload import RECEIVING, Upload

PROBLEM_MEDIA_TYPE: Final = "application/problem+json"
_PROBLEM_TYPES: Final = "https://iana.org/assignments/http-problem-types#"
_PROBLEMS: Final[dict[type[TusdError], tuple[str, str]]] = {
    OffsetMismatch: ("mismatching-upload-offset", "Mismatching Upload Offset"),
    LengthConflict: ("inconsistent-upload-length", "Inconsistent Upload Length"),
    LengthExceeded: ("inconsistent-upload-length", "Inconsistent Upload Length"),
    UploadCompleted: ("completed-upload", "Upload Completed"),
}
_STATUSES: Final[dict[type[TusdError], int]] = {
    LengthExceeded: 400,
    ChecksumMismatch: 400,
    StagingDamaged: 404,
    StagingMissing: 404,
}
"""Errors whose status is another one than in tus."""
_WITH_CONTENT: Final = frozenset({"POST", "PATCH", "PUT"})


def limits(features: Features, version: Version = NEWEST, upload: Upload | None = None) -> dict[str, str]:
    """Return `Upload-Limit` (draft §Limits): a Dictionary that is never empty, hence `min-size=0`."""
    if not version.tells_limits:
        return {}
    members = {
        "max-size": features.max_size,
        "max-append-size": features.max_append_size,
        "max-age": _max_age_seconds(features, upload),
    }
    if version.calls_max_age_expires:
        members["expires"] = members["max-age"]
    told = {key: value for key, value in members.items() if value is not None}
    return {fields.UPLOAD_LIMIT: structured.render_integers(told or {"min-size": 0})}


def _max_age_seconds(features: Features, upload: Upload | None) -> int | None:
    if upload is None:
        return features.max_age_seconds
    if upload.expires_at is None or upload.state not in RECEIVING:
        return None
    return max(0, int((upload.expires_at - datetime.now(UTC)).total_seconds()))


def complete_header(version: Version, *, complete: bool) -> dict[str, str]:
    """Return the field that tells whether the upload is complete, as the version calls it."""
    if version.says_incomplete:
        return {fields.UPLOAD_INCOMPLETE: structured.render_boolean(not complete)}
    return {fields.UPLOAD_COMPLETE: structured.render_boolean(complete)}


def upload_headers(upload: Upload, features: Features, version: Version) -> dict[str, str]:
    """Return what every success tells of the upload, more of it than any one version demands."""
    digest = {}
    if upload.complete and upload.repr_digest is not None:
        digest[fields.REPR_DIGEST] = render_digests(upload.repr_digest)
    return digest | {
        fields.UPLOAD_OFFSET: str(upload.offset),
        fields.UPLOAD_ID: str(upload.id),
        **complete_header(version, complete=upload.complete),
        **limits(features, version, upload),
    }


def render_options(features: Features) -> Reply:
    """Return what a client may find out before it begins (draft §Limits)."""
    return Reply(200, {fields.ACCEPT_PATCH: fields.PARTIAL_MEDIA_TYPE, **limits(features)})


def render_interim(upload: Upload, location: str | None, features: Features, version: Version) -> Reply | None:
    """Announce the URL of a creation, and tell what is durable of anything (draft §Informational Response)."""
    progress = {fields.UPLOAD_OFFSET: str(upload.offset)} if upload.offset else {}
    if progress and not version.tells_progress:
        return None
    url = {} if location is None else {fields.LOCATION: location}
    mark = {fields.UPLOAD_DRAFT_INTEROP_VERSION: str(version.number)}
    return Reply(104, url | mark | progress | limits(features, version, upload))


def render_created(upload: Upload, location: str, features: Features, version: Version) -> Reply:
    """Return 201, complete or not."""
    return Reply(201, {fields.LOCATION: location, **upload_headers(upload, features, version)})


def render_status(upload: Upload, features: Features, version: Version) -> Reply:
    """Return 204, which every version takes (draft §Offset Retrieval)."""
    length = {} if upload.length is None else {fields.UPLOAD_LENGTH: str(upload.length)}
    return Reply(204, upload_headers(upload, features, version) | length)


def render_appended(upload: Upload, features: Features, version: Version) -> Reply:
    """Return an append; one that was not the last has a status of its own in older versions."""
    status = 204 if upload.complete else version.more_to_come_status
    return Reply(status, upload_headers(upload, features, version))


def render_error(
    error: TusdError, method: str, features: Features, version: Version, recorded: Upload | None = None
) -> Reply:
    """Return an error as problem details (RFC 9457)."""
    status = _STATUSES.get(type(error), error.status)
    headers = error_headers(error)
    if method in _WITH_CONTENT:
        # It is the protocol that refuses, and not what an upload was made for; but to resume what is
        # complete and wrong would help nobody.
        headers |= complete_header(version, complete=isinstance(error, WholeChecksumMismatch))
    if isinstance(error, UploadTooLarge):
        headers |= limits(features, version)
    if isinstance(error, InvalidContentType):
        headers[fields.ACCEPT_PATCH] = fields.PARTIAL_MEDIA_TYPE
    if recorded is not None and method == "PATCH":
        headers[fields.UPLOAD_OFFSET] = str(recorded.offset)
    body = None if method == "HEAD" else json.dumps(_problem(error, status)) + "\n"
    return Reply(status, headers, body, PROBLEM_MEDIA_TYPE)


def _problem(error: TusdError, status: int) -> dict[str, Any]:
    kind, title = _PROBLEMS.get(type(error), (None, http.HTTPStatus(status).phrase))
    problem: dict[str, Any] = {
        "type": f"{_PROBLEM_TYPES}{kind}" if kind else "about:blank",
        "title": title,
        "status": status,
        "detail": error.detail,
        "code": error.code,
    }
    if isinstance(error, OffsetMismatch):
        problem |= {
            "expected-offset": error.context.get("current"),
            "provided-offset": error.context.get("received"),
        }
    return problem
