"""The dialect, without a socket."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from tests.support.uploads import upload
from tusd_py.errors import (
    InvalidConcat,
    InvalidMethodOverride,
    MethodNotAllowed,
    OffsetMismatch,
    ProtocolError,
    TusdError,
    UnsupportedVersion,
    UploadTooLarge,
)
from tusd_py.protocol import tus_v1
from tusd_py.protocol.features import Features
from tusd_py.protocol.fields import content_length
from tusd_py.protocol.negotiation import effective_method
from tusd_py.protocol.upload import Concat, State

pytestmark = pytest.mark.unit

ALL = Features.derive(checksum_trailer=True)
NAMES = st.sampled_from([
    "Tus-Resumable", "Upload-Length", "Upload-Offset", "Upload-Metadata", "Upload-Defer-Length", "Upload-Concat",
    "Upload-Checksum", "Content-Type", "Content-Encoding", "Content-Length", "Transfer-Encoding", "Trailer",
    "X-HTTP-Method-Override",
])  # fmt: skip
VALUES = st.text(max_size=30) | st.sampled_from([
    "", "1", "5", "-1", "1.0.0", "9" * 30, "partial", "final;", "final;a b", "final;http://[", "final;//[::1",
    "sha1 AAAA",
    "a Yg==", "application/offset+octet-stream", "chunked", "gzip", "Upload-Checksum", "PATCH",
])  # fmt: skip
HEADERS = st.lists(st.tuples(NAMES, VALUES), max_size=8).map(CIMultiDict)


@given(HEADERS, st.sampled_from(["POST", "PATCH", "HEAD", "GET", "DELETE", "OPTIONS", "PUT"]))
def test_any_headers_are_understood_or_refused(headers: CIMultiDict[str], method: str) -> None:
    """GEN-06 GEN-08"""
    for read in (
        lambda: effective_method(method, headers),
        lambda: tus_v1.check_request(method, headers),
        lambda: tus_v1.parse_create(headers, ALL),
        lambda: tus_v1.parse_append(headers, ALL),
    ):
        try:
            read()
        except TusdError as error:
            assert 400 <= error.status < 500  # noqa: PT017 -- refusing is one of two right answers
            reply = tus_v1.render_error(error, method, ALL)
            assert reply.body is None or reply.body.count("\n") == 1


@given(st.text())
def test_any_part_url_yields_a_segment_or_a_refusal(url: str) -> None:
    """CAT-05 CAT-06"""
    try:
        token = tus_v1.partial_token(url, "/files")
    except InvalidConcat:
        return
    assert "/" not in token


@pytest.mark.parametrize(
    "url",
    [
        "/files/T",
        "/files/T/",
        "http://h/files/T",
        "//h/files/T?q=/files/x#f",
        "https://h/a/files/T",
        "/files/x/files/T",
        "h/T",
        "T",
    ],
)
def test_the_part_is_found_behind_any_prefix(url: str) -> None:
    """CAT-05"""
    assert tus_v1.partial_token(url, "/files") == "T"


def test_extensions_stand_and_fall_together() -> None:
    """CORE-05"""
    assert not Features.derive().offers("checksum-trailer")
    assert not Features.derive(disabled=["checksum"], checksum_trailer=True).offers("checksum-trailer")
    assert not Features.derive(disabled=["concatenation"]).offers("concatenation-unfinished")
    assert not Features.derive(expires=False).offers("expiration")
    assert "tus-extension" not in {name.lower() for name in tus_v1.render_options(Features(frozenset())).headers}


def test_lists_have_no_spaces() -> None:
    """CORE-04 CORE-05 CSUM-01"""
    for value in tus_v1.render_options(Features.derive(max_size=5)).headers.values():
        assert " " not in value


@pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE", "PUT"])
@pytest.mark.parametrize("lines", [[], ["1.0"], ["1.0.0", "1.0.0"], [" 1.0.0"]])
def test_versions(method: str, lines: list[str]) -> None:
    """CORE-02 CORE-03"""
    with pytest.raises(UnsupportedVersion):
        tus_v1.check_request(method, CIMultiDict([("Tus-Resumable", line) for line in lines]))


def test_override_is_for_post_and_three_methods() -> None:
    """CORE-07"""
    wish = CIMultiDict({"X-HTTP-Method-Override": "DELETE"})

    assert effective_method("POST", wish) == "DELETE"
    assert effective_method("GET", wish) == "GET"
    with pytest.raises(InvalidMethodOverride):
        effective_method("POST", CIMultiDict({"X-HTTP-Method-Override": "OPTIONS"}))


@pytest.mark.parametrize(
    ("headers", "length"),
    [
        ({"Content-Length": "5"}, 5),
        ({}, 0),
        ({"Transfer-Encoding": "chunked"}, None),
        ({"Transfer-Encoding": "chunked", "Content-Length": "5"}, None),
    ],
)
def test_the_length_of_a_body(headers: dict[str, str], length: int | None) -> None:
    """CORE-24"""
    assert content_length(CIMultiDict(headers)) == length


def test_what_a_creation_must_not_bring_is_known_before_or_after_the_body() -> None:
    """CRE-12 CAT-04"""
    kinds = CIMultiDict({"Upload-Length": "5", "Content-Type": "text/plain"})

    assert tus_v1.parse_create(kinds, ALL).unwanted_body is None
    framed = CIMultiDict([*kinds.items(), ("Transfer-Encoding", "chunked")])
    unwanted = tus_v1.parse_create(framed, ALL).unwanted_body
    assert unwanted is not None
    assert unwanted.status == 415
    assert not tus_v1.parse_create(framed, ALL).has_body
    with pytest.raises(ProtocolError):
        tus_v1.parse_create(CIMultiDict([*kinds.items(), ("Content-Length", "5")]), ALL)


def test_the_offset_stands_on_a_failed_patch_alone() -> None:
    """GEN-16"""
    error = OffsetMismatch()
    known = upload()

    assert tus_v1.render_error(error, "PATCH", ALL, known).headers["Upload-Offset"] == "70"
    for method in ("HEAD", "POST", "GET", "DELETE"):
        assert "Upload-Offset" not in tus_v1.render_error(error, method, ALL, known).headers
    final = upload(concat=Concat.FINAL)
    assert "Upload-Offset" not in tus_v1.render_error(error, "PATCH", ALL, final).headers


def test_errors_bring_the_headers_that_belong_to_them() -> None:
    """CORE-02 CRE-05 GEN-11 GEN-12"""
    limited = Features.derive(max_size=5)
    refused = MethodNotAllowed(("GET", "HEAD"))

    assert tus_v1.render_error(UnsupportedVersion(), "POST", ALL).headers["Tus-Version"] == "1.0.0"
    assert tus_v1.render_error(UploadTooLarge(), "POST", limited).headers["Tus-Max-Size"] == "5"
    assert tus_v1.render_error(refused, "PUT", ALL).headers["Allow"] == "GET, HEAD"
    assert tus_v1.render_error(refused, "HEAD", ALL).body is None
    body = tus_v1.render_error(refused, "PUT", ALL).body
    assert body is not None
    assert body.startswith("ERR_METHOD_NOT_ALLOWED: ")


@pytest.mark.parametrize(
    ("changes", "present", "absent"),
    [
        ({}, {"Upload-Offset", "Upload-Length"}, {"Upload-Defer-Length", "Upload-Concat", "Upload-Metadata"}),
        ({"length": None}, {"Upload-Offset", "Upload-Defer-Length"}, {"Upload-Length"}),
        ({"concat": Concat.FINAL, "concat_header": "final;x"}, {"Upload-Length", "Upload-Concat"}, {"Upload-Offset"}),
        ({"concat": Concat.FINAL, "length": None}, set(), {"Upload-Offset", "Upload-Length", "Upload-Defer-Length"}),
        ({"concat": Concat.FINAL, "state": State.COMPLETED, "offset": 100}, {"Upload-Offset"}, set()),
        ({"metadata": "a Yg=="}, {"Upload-Metadata"}, set()),
    ],
)
def test_a_head_tells_what_is_known_and_nothing_else(
    changes: dict[str, object], present: set[str], absent: set[str]
) -> None:
    """CORE-08 CORE-09 DEF-02 CATU-02 CRE-09"""
    headers = set(tus_v1.render_status(upload(**changes), ALL).headers)

    assert present <= headers
    assert not absent & headers
