"""The IETF's dialect without a socket: the choice, the commands, the replies."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from tests.support.uploads import upload
from tusd_py.errors import (
    LengthConflict,
    LengthExceeded,
    OffsetMismatch,
    TusdError,
    UploadCompleted,
    UploadLocked,
)
from tusd_py.protocol import negotiation, tus_v1
from tusd_py.protocol.checksum import DigestSet
from tusd_py.protocol.dialect import Dialect
from tusd_py.protocol.features import Features
from tusd_py.protocol.negotiation import NEWEST_RUFH, UNDECLARED, choose
from tusd_py.protocol.upload import Append, State, UploadProtocol, plan_append

pytestmark = pytest.mark.unit

ALL = Features.derive(max_size=10**9, max_append_size=10**6, expires_after_seconds=60)
NAMES = st.sampled_from([
    "Tus-Resumable", "Upload-Complete", "Upload-Incomplete", "Upload-Draft-Interop-Version", "Upload-Length",
    "Upload-Offset", "Upload-Metadata", "Content-Type", "Content-Disposition", "Content-Digest", "Content-Length",
    "Transfer-Encoding",
])  # fmt: skip
EMPTY_SHA256 = "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"
VALUES = st.text(max_size=30) | st.sampled_from([
    "?1", "?0", "3", "5", "6", "8", "9" * 15, "9" * 30, "-1", "application/partial-upload", "chunked", "5;x=1",
    "a; filename*=UTF-8''%ff", 'a; filename="x', "sha-256=:AAAA:", EMPTY_SHA256, "filename YQ==", "1.0.0",
])  # fmt: skip
HEADERS = st.lists(st.tuples(NAMES, VALUES), max_size=9).map(CIMultiDict)


def speaking(method: str = "POST", **headers: str) -> Dialect:
    return choose(method, CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()}), ALL)


@given(HEADERS, st.sampled_from(["POST", "PATCH", "HEAD", "GET", "DELETE", "OPTIONS", "PUT"]))
def test_any_headers_are_understood_or_refused(headers: CIMultiDict[str], method: str) -> None:
    """GEN-07"""
    dialect = choose(method, headers, ALL)
    for read in (
        lambda: dialect.check_request(method, headers),
        lambda: dialect.parse_create(headers, ALL),
        lambda: dialect.parse_append(headers, ALL),
    ):
        try:
            read()
        except TusdError as error:
            assert 400 <= error.status < 500  # noqa: PT017 -- refusing is one of two right answers
            reply = dialect.render_error(error, method, ALL)
            assert reply.body is None or reply.body.count("\n") == 1
            assert all(value.isprintable() for value in reply.headers.values())


@pytest.mark.parametrize("version", ["3", "4", "5", "6", "7", "8"])
def test_tus_wins_and_else_the_version_decides(version: str) -> None:
    """GEN-01 GEN-02"""
    assert speaking(Tus_Resumable="1.0.0", Upload_Draft_Interop_Version=version, Upload_Complete="?1") is tus_v1
    assert speaking(Tus_Resumable="9.9.9", Upload_Complete="?1") is tus_v1
    chosen = speaking(Upload_Draft_Interop_Version=version)
    assert dict(chosen.version_headers) == {"Upload-Draft-Interop-Version": version}
    assert chosen.supports_interim


def test_an_unknown_version_and_none_mean_the_newest_rules() -> None:
    """GEN-03"""
    newest = speaking(Upload_Complete="?0")

    assert newest is speaking(Upload_Draft_Interop_Version="9", Upload_Complete="?1")
    assert not newest.supports_interim
    assert dict(newest.version_headers) == {}
    assert newest is speaking(Upload_Draft_Interop_Version="9")
    assert newest is speaking(Upload_Draft_Interop_Version="nine")
    assert speaking() is UNDECLARED


@pytest.mark.parametrize("value", ["yes", "", "1", "?2", "?1, ?1"])
@pytest.mark.parametrize("method", ["POST", "PATCH", "HEAD", "DELETE", "GET"])
def test_a_malformed_mark_is_a_mark(method: str, value: str) -> None:
    """GEN-03 GEN-07"""
    assert speaking(method, Upload_Complete=value) is NEWEST_RUFH


def test_what_only_the_newest_dialect_knows_marks_a_request() -> None:
    """GEN-03 RH-04"""
    assert speaking("PATCH", Content_Type="application/partial-upload; a=b", Upload_Offset="0") is NEWEST_RUFH
    assert speaking("PATCH", Content_Type="application/offset+octet-stream", Upload_Offset="0") is UNDECLARED
    assert speaking("HEAD", Upload_Offset="0") is NEWEST_RUFH
    assert speaking("DELETE", Upload_Offset="0") is UNDECLARED
    assert speaking("HEAD", Upload_Offset="0", Tus_Resumable="1.0.0") is tus_v1


def test_switched_off_everything_is_tus() -> None:
    """GEN-02 GEN-03"""
    off = Features.derive(rufh=False)

    for headers in ({"Upload-Draft-Interop-Version": "8"}, {"Upload-Complete": "?1"}, {}):
        assert choose("POST", CIMultiDict(headers), off) is tus_v1
    assert "Upload-Limit" not in negotiation.render_options(off).headers
    assert "Upload-Limit" in negotiation.render_options(ALL).headers


def test_a_status_is_told_in_the_dialect_of_the_upload_where_none_is_named() -> None:
    """GEN-04"""
    ours = UNDECLARED.render_status(upload(protocol=UploadProtocol.RUFH), ALL)
    tus = UNDECLARED.render_status(upload(), ALL)

    assert (ours.status, ours.headers["Upload-Complete"]) == (204, "?0")
    assert (tus.status, "Upload-Complete" in tus.headers) == (200, False)
    assert UNDECLARED.render_unfinished(upload(), ALL) is None


def test_a_last_body_fixes_the_length_and_a_beginning_does_not() -> None:
    """RC-07"""
    dialect = speaking(Upload_Draft_Interop_Version="8")
    last = dialect.parse_create(CIMultiDict({"Upload-Complete": "?1", "Content-Length": "5"}), ALL)
    first = dialect.parse_create(CIMultiDict({"Upload-Complete": "?0", "Content-Length": "5"}), ALL)

    assert (last.length, last.completes, last.has_body) == (5, True, True)
    assert (first.length, first.completes, first.has_body) == (None, False, True)
    assert last.protocol is first.protocol is UploadProtocol.RUFH


def test_version_3_says_the_opposite() -> None:
    """RA-01 RC-03"""
    dialect = speaking(Upload_Draft_Interop_Version="3")
    append = dialect.parse_append(CIMultiDict({"Upload-Offset": "0", "Upload-Incomplete": "?1"}), ALL)

    assert append.completes is False
    assert dialect.parse_append(CIMultiDict({"Upload-Offset": "0"}), ALL).completes is True
    assert dialect.render_status(upload(), ALL).headers["Upload-Incomplete"] == "?1"


def test_several_digests_must_all_be_right() -> None:
    """RG-01"""
    digests = ("Content-Digest", f"{EMPTY_SHA256}, sha-512=:AAAA:, x=:AAAA:")
    headers = CIMultiDict([("Upload-Incomplete", "?0"), ("Upload-Offset", "0"), digests])
    checksum = speaking(Upload_Draft_Interop_Version="3").parse_append(headers, ALL).checksum

    assert isinstance(checksum, DigestSet)
    assert [one.algorithm for one in checksum.checksums] == ["sha256"]
    assert checksum.hasher().digest() == checksum.digest


# --- what an append may do -------------------------------------------------------------------------


def append(completes: bool | None, content_length: int | None = 30, **changes: Any) -> Append:
    return Append(offset=70, content_length=content_length, completes=completes, **changes)


def test_the_last_body_tells_the_length() -> None:
    """RA-05"""
    plan = plan_append(upload(length=None), append(True), max_size=None)

    assert plan.length == 100
    assert plan_append(upload(length=None), append(False), max_size=None).length is None
    assert plan_append(upload(length=None), append(True, None), max_size=None).length is None


@pytest.mark.parametrize(
    ("completes", "content_length", "length", "error"),
    [
        (True, 29, None, LengthConflict),
        (True, 31, None, LengthExceeded),
        (False, 31, None, LengthExceeded),
        (True, 30, 99, LengthConflict),
        (False, 0, 69, LengthConflict),
    ],
)
def test_lengths_that_do_not_fit_are_refused(
    completes: bool, content_length: int, length: int | None, error: type[Exception]
) -> None:
    """RA-05 RA-06 RA-13"""
    with pytest.raises(error):
        plan_append(upload(), append(completes, content_length, length=length), max_size=None)


def test_a_complete_upload_is_not_continued() -> None:
    """RA-10"""
    done = upload(state=State.COMPLETED, length=70)

    assert plan_append(done, append(True, 0), max_size=None).max_bytes == 0
    with pytest.raises(UploadCompleted):
        plan_append(done, append(False, 0), max_size=None)


# --- errors ------------------------------------------------------------------------------------------


def test_an_offset_mismatch_names_both_offsets() -> None:
    """RA-04 RP-01"""
    reply = speaking(Upload_Complete="?1").render_error(OffsetMismatch(current=70, received=3), "PATCH", ALL)

    assert (reply.status, reply.media_type, reply.headers["Upload-Complete"]) == (409, "application/problem+json", "?0")
    assert json.loads(reply.body or "")["expected-offset"] == 70


def test_an_error_tells_the_offset_only_where_it_is_known() -> None:
    """GEN-16 RC-06"""
    dialect = speaking(Upload_Draft_Interop_Version="3")
    error = UploadLocked()
    assert "Upload-Offset" not in dialect.render_error(error, "PATCH", ALL).headers

    known = upload()

    told = dialect.render_error(error, "PATCH", ALL, known).headers
    assert (told["Upload-Offset"], told["Upload-Incomplete"], told["Retry-After"]) == ("70", "?1", "1")
    asked = dialect.render_error(error, "HEAD", ALL, known)
    assert not {"Upload-Offset", "Upload-Incomplete"} & set(asked.headers)
    assert asked.body is None
