"""Resumable Uploads for HTTP of the IETF, in every interop version: create, ask, append, end."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.http.rufh import PARTIAL_TYPE, VERSIONS, Client
from tests.http.served import Serve, Served
from tests.http.support import eventually
from tests.support.http_client import OFFSET_TYPE, TUS, ConnectionLost, Response, chunked
from tusd_py.protocol.upload import State, UploadProtocol

CHUNKED = ("Transfer-Encoding", "chunked")


def problem(response: Response) -> Any:
    assert response.headers["content-type"] == "application/problem+json; charset=utf-8"
    return json.loads(response.body)


@pytest.fixture(params=VERSIONS, ids=lambda version: f"version-{version}")
def client(request: pytest.FixtureRequest, served: Served) -> Client:
    """A client of each version."""
    return Client(served, request.param)


@pytest.fixture
def newest(served: Served) -> Client:
    return Client(served, 8)


# --- which dialect -------------------------------------------------------------------------------


async def test_a_known_version_is_served_by_its_own_rules_and_echoed(client: Client) -> None:
    """GEN-02 RX-03"""
    created = await client.create(complete=False)

    assert created.status == 201
    assert created.headers.get("upload-draft-interop-version") == (str(client.version) if client.version else None)
    assert "tus-resumable" not in created.headers
    assert (await client.served.upload(created.headers["location"])).protocol is UploadProtocol.RUFH


@pytest.mark.parametrize("version", ["99", "2", "six", "?1", ""])
async def test_an_unknown_version_is_as_good_as_none(serve: Serve, version: str) -> None:
    """GEN-03 RC-02"""
    served = await serve(rufh={"interim_104": True})
    fields = [("Upload-Draft-Interop-Version", version), ("Upload-Complete", "?1")]

    created = await served.request("POST", "/files/", fields, b"hello")

    assert (created.status, created.headers["upload-complete"], created.interim) == (201, "?1", [])
    assert "upload-draft-interop-version" not in created.headers


async def test_a_version_is_read_as_a_structured_field(served: Served) -> None:
    """GEN-07"""
    created = await served.request(
        "POST", "/files/", [("Upload-Draft-Interop-Version", " 6;draft=x "), ("Upload-Complete", "?0;x")]
    )

    assert (created.status, created.headers["upload-draft-interop-version"]) == (201, "6")


@pytest.mark.parametrize("value", ["true", "1", "?2", "?", "", "?1, ?1", '"?1"'])
async def test_a_malformed_complete_field_makes_no_resumable_upload(served: Served, value: str) -> None:
    """GEN-07 GEN-03 GEN-04"""
    for mark in ([], [("Upload-Draft-Interop-Version", "8")], [("Upload-Draft-Interop-Version", "99")]):
        refused = await served.request("POST", "/files/", [*mark, ("Upload-Complete", value)], b"hello")

        assert_refused_in_the_dialect(refused)
        assert "location" not in refused.headers


def assert_refused_in_the_dialect(response: Response) -> None:
    """400 as problem details, and nothing of tus."""
    assert response.status == 400
    assert response.headers["content-type"].startswith("application/problem+json")
    assert json.loads(response.body)["code"] == "ERR_BAD_REQUEST"
    assert "tus-resumable" not in response.headers


@pytest.mark.parametrize("value", [None, "true", "1", "?2", "", "?1, ?1"])
async def test_an_append_says_whether_it_is_the_last_or_is_refused(client: Client, value: str | None) -> None:
    """GEN-07 RA-01"""
    path = await client.created()
    name = client.complete(True)[0]
    said = [] if value is None else [(name, value)]
    fields = [*client.version_headers, ("Content-Type", PARTIAL_TYPE), ("Upload-Offset", "0"), *said]

    response = await client.served.request("PATCH", path, fields, b"hello")

    if client.version == 3 and value is None:
        assert response.status == 204  # there, nothing said means that it was the last
        return
    assert_refused_in_the_dialect(response)
    assert not client.says_complete(response)
    assert await client.upload_headers(path) == (0, False)


@pytest.mark.parametrize("version", ["99", "six"])
async def test_a_creation_in_an_unknown_version_says_whether_it_is_complete(served: Served, version: str) -> None:
    """GEN-03"""
    assert_refused_in_the_dialect(
        await served.request("POST", "/files/", [("Upload-Draft-Interop-Version", version)], b"hello")
    )


@pytest.mark.parametrize(
    ("method", "field"),
    [
        ("HEAD", ("Upload-Offset", "0")),
        ("HEAD", ("Upload-Complete", "?1")),
        ("HEAD", ("Upload-Complete", "yes")),
        ("DELETE", ("Upload-Complete", "?1")),
    ],
)
async def test_an_unmarked_request_tells_no_server_what_it_is_to_find_out(
    served: Served, method: str, field: tuple[str, str]
) -> None:
    """RH-04"""
    ours = await Client(served, None).created(b"hello")
    tus = await served.create(5)

    for path in (ours, tus):
        refused = await served.request(method, path, [field])
        assert (refused.status, "tus-resumable" in refused.headers) == (400, False)
    assert (await served.upload(ours)).offset == 5
    assert (await served.request("HEAD", tus, [("Tus-Resumable", "1.0.0"), field])).status == 200


@pytest.mark.parametrize("value", ["abc", "-1", "1.0", "1" * 16, "?1", "", "0, 0", '"0"'])
async def test_a_malformed_offset_is_a_missing_one(newest: Client, value: str) -> None:
    """GEN-07 RA-01"""
    path = await newest.created()
    fields = [
        *newest.version_headers,
        ("Content-Type", PARTIAL_TYPE),
        ("Upload-Complete", "?1"),
        ("Upload-Offset", value),
    ]

    response = await newest.served.request("PATCH", path, fields, b"hello")

    assert response.status == 400
    assert await newest.upload_headers(path) == (0, False)


async def test_parameters_are_allowed_and_ignored(newest: Client) -> None:
    """GEN-07"""
    path = await newest.created(b"", ("Upload-Length", "5;unit=byte"))

    fields = [("Content-Type", PARTIAL_TYPE), ("Upload-Complete", "?1;a;b=2"), ("Upload-Offset", "0;x=1")]
    done = await newest.served.request("PATCH", path, [*newest.version_headers, *fields], b"hello")

    assert (done.status, done.headers["upload-complete"]) == (204, "?1")


async def test_a_malformed_length_is_as_good_as_none(newest: Client) -> None:
    """GEN-07"""
    path = await newest.created(b"", ("Upload-Length", "five"))

    assert (await newest.served.upload(path)).length is None


async def test_neither_protocol_appends_to_the_others_uploads(client: Client) -> None:
    """GEN-05"""
    served = client.served
    tus = await served.create(5)
    ours = await client.created(b"", ("Upload-Length", "5"))

    wrong = await client.append(tus, 0, b"hello", complete=True)
    reverse = await served.patch(ours, 0, b"hello")

    assert (wrong.status, problem(wrong)["code"]) == (400, "ERR_PROTOCOL_MISMATCH")
    assert (reverse.status, reverse.body.split(b":")[0]) == (400, b"ERR_PROTOCOL_MISMATCH")
    assert (await served.upload(tus)).offset == (await served.upload(ours)).offset == 0


async def test_either_protocol_tells_the_offset_of_every_upload(client: Client) -> None:
    """GEN-05"""
    served = client.served
    tus = await served.create(5, {"Content-Type": OFFSET_TYPE}, b"hel")
    ours = await client.created(b"hell", ("Upload-Length", "5"))

    if client.version is None:  # nothing says that it is not tus
        assert (await client.head(tus)).status == 200
    else:
        assert await client.upload_headers(tus) == (3, False)
    assert await served.offset(ours) == 4


async def test_either_protocol_ends_every_upload(client: Client) -> None:
    """GEN-05 RD-01"""
    served = client.served
    tus, ours = await served.create(5), await client.created()

    assert (await served.request("DELETE", tus, client.version_headers or [("Tus-Resumable", "1.0.0")])).status == 204
    assert (await served.request("DELETE", ours)).status == 204


async def test_without_any_mark_the_upload_decides(served: Served) -> None:
    """GEN-04"""
    ours, tus = await Client(served, 8).created(b"hel"), await served.create(5)

    asked = await served.request("HEAD", ours, [])
    read = await served.request("GET", ours, [])
    kept = await served.request("DELETE", tus, [])
    gone = await served.request("DELETE", ours, [])
    refused = await served.request("PATCH", ours, [("Upload-Offset", "3")], b"lo")

    assert (asked.status, asked.headers["upload-offset"], asked.headers["upload-complete"]) == (204, "3", "?0")
    assert (read.status, read.headers["upload-offset"]) == (204, "3")
    assert (kept.status, kept.headers["tus-version"]) == (412, "1.0.0")
    assert gone.status == 204
    assert refused.status == 412
    assert (await served.head(tus)).status == 200


@pytest.mark.parametrize("fields", [[("Upload-Draft-Interop-Version", "6")], []])
async def test_the_dialect_can_be_switched_off(serve: Serve, fields: list[tuple[str, str]]) -> None:
    """GEN-02 GEN-03 RL-03"""
    served = await serve(rufh={"enabled": False})

    created = await served.request("POST", "/files/", [*fields, ("Upload-Complete", "?1")], b"hello")
    options = await served.request("OPTIONS", "/files/", [])

    assert (created.status, created.headers["tus-resumable"]) == (412, "1.0.0")
    assert not {"upload-limit", "accept-patch"} & set(options.headers)


# --- creation ------------------------------------------------------------------------------------


async def test_everything_in_one_request(client: Client) -> None:
    """RC-01 RC-04 RC-06 RC-07"""
    created = await client.create(b"hello", complete=True)
    path = created.headers["location"]

    assert (created.status, created.headers["upload-offset"]) == (201, "5")
    assert client.says_complete(created)
    upload = await client.served.upload(path)
    assert (upload.state, upload.length, await client.served.staged(path)) == (State.COMPLETED, 5, b"hello")
    assert await client.served.count("jobs", upload, "transfer") == 1


async def test_everything_in_one_request_of_unknown_length(client: Client) -> None:
    """RC-04 RC-07"""
    created = await client.create(chunked(b"hel", b"lo"), CHUNKED, complete=True)

    assert (created.status, client.says_complete(created)) == (201, True)
    upload = await client.served.upload(created.headers["location"])
    assert (upload.state, upload.length) == (State.COMPLETED, 5)


async def test_a_beginning_stays_incomplete(client: Client) -> None:
    """RC-03 RC-06"""
    created = await client.create(b"hello", complete=False)
    path = created.headers["location"]

    assert (created.status, created.headers["upload-offset"], client.says_complete(created)) == (201, "5", False)
    assert await client.upload_headers(path) == (5, False)
    assert (await client.served.upload(path)).length is None


async def test_a_careful_creation_has_no_content(client: Client) -> None:
    """RC-08"""
    created = await client.create(complete=False)

    assert (created.status, created.headers["upload-offset"], client.says_complete(created)) == (201, "0", False)


async def test_an_empty_upload_may_be_complete_at_once(client: Client) -> None:
    """RC-08"""
    created = await client.create(complete=True)

    assert (created.status, created.headers["upload-offset"], client.says_complete(created)) == (201, "0", True)
    assert (await client.served.upload(created.headers["location"])).state is State.COMPLETED


@pytest.mark.parametrize("framing", [(), (CHUNKED,)])
async def test_a_length_of_zero_completes_nothing_by_itself(
    newest: Client, framing: tuple[()] | tuple[tuple[str, str], ...]
) -> None:
    """RC-08 RH-08"""
    path = await newest.created(chunked() if framing else b"", ("Upload-Length", "0"), *framing)
    assert await newest.upload_headers(path) == (0, False)

    done = await newest.append(path, 0, complete=True)

    assert (done.status, done.headers["upload-complete"]) == (204, "?1")


@pytest.mark.parametrize("length", [4, 6])
async def test_two_lengths_that_differ_are_refused(client: Client, length: int) -> None:
    """RC-07 RP-01"""
    refused = await client.create(b"hello", ("Upload-Length", str(length)), complete=True)

    assert (refused.status, client.says_complete(refused)) == (400, False)
    assert problem(refused)["type"].endswith("#inconsistent-upload-length")
    assert "location" not in refused.headers


async def test_a_last_body_of_unknown_length_that_is_too_short_is_refused(newest: Client) -> None:
    """RC-07"""
    refused = await newest.create(chunked(b"hel"), CHUNKED, ("Upload-Length", "5"), complete=True)

    assert (refused.status, refused.headers["upload-complete"]) == (400, "?0")
    assert problem(refused)["type"].endswith("#inconsistent-upload-length")


@pytest.mark.parametrize("framing", [(), (CHUNKED,)])
async def test_content_beyond_the_length_creates_nothing(
    newest: Client, framing: tuple[()] | tuple[tuple[str, str], ...]
) -> None:
    """RA-06 RC-07"""
    body = chunked(b"hello") if framing else b"hello"

    refused = await newest.create(body, ("Upload-Length", "4"), *framing, complete=False)

    assert (refused.status, refused.headers["upload-complete"]) == (400, "?0")
    assert "location" not in refused.headers


@pytest.mark.parametrize(
    ("fields", "filename", "content_type"),
    [
        ([("Content-Type", "text/plain"), ("Content-Disposition", 'x; filename="a b"')], "a b", "text/plain"),
        ([("Content-Disposition", "inline; filename=\"x\"; filename*=UTF-8''%C3%A4.txt")], "ä.txt", None),
        ([("Content-Disposition", r'attachment; filename="a\"b"')], 'a"b', None),
        ([("Content-Disposition", "attachment; filename=plain")], "plain", None),
        ([("Content-Disposition", "///;;=")], None, None),
        ([("Content-Disposition", "attachment; filename*=UTF-8''%ff%00")], None, None),
        ([("Content-Type", PARTIAL_TYPE)], None, None),
        ([("Upload-Metadata", "filename YS50eHQ=")], "a.txt", None),
    ],
)  # fmt: skip
async def test_type_and_name_of_the_file_are_kept(
    newest: Client, fields: list[tuple[str, str]], filename: str | None, content_type: str | None
) -> None:
    """RC-12"""
    path = await newest.created(b"hello", *fields)

    upload = await newest.served.upload(path)

    assert (upload.filename, upload.content_type) == (filename, content_type)


async def test_coded_bytes_are_stored_as_they_came(newest: Client) -> None:
    """GEN-14 RC-12 RA-14"""
    path = await newest.created(b"\x1f\x8bhel", ("Content-Encoding", "gzip"))
    done = await newest.append(path, 5, b"lo", ("Content-Encoding", "br"), complete=True)

    assert (done.status, await newest.served.staged(path)) == (204, b"\x1f\x8bhello")


async def test_a_creation_that_breaks_off_is_not_complete(client: Client) -> None:
    """RC-09"""
    connection = await client.begin(
        "POST", "/files/", [*client.version_headers, client.complete(True)], b"x" * 3_000_000, announced=4_000_000
    )
    await eventually(lambda: any(body.received for body in client.served.bodies))
    await connection.close()
    await eventually(lambda: not client.served.bodies)

    rows = await client.served.core.database.fetch("SELECT state, upload_offset FROM uploads")
    assert [row["state"] for row in rows] == ["uploading"]


# --- offset retrieval ----------------------------------------------------------------------------


async def test_head_tells_everything(client: Client) -> None:
    """RH-01 RH-02"""
    path = await client.created(b"hel", ("Upload-Length", "5"))

    response = await client.head(path)

    assert (response.status, response.body, response.headers["cache-control"]) == (204, b"", "no-store")
    assert (response.headers["upload-offset"], response.headers["upload-length"]) == ("3", "5")
    assert not client.says_complete(response)
    assert ("upload-limit" in response.headers) == (client.version not in {3, 4, 5})


async def test_head_answers_after_completion_too(client: Client) -> None:
    """RH-01"""
    path = (await client.create(b"hello", complete=True)).headers["location"]

    response = await client.head(path)

    assert (response.status, response.headers["upload-offset"], response.headers["upload-length"]) == (204, "5", "5")
    assert client.says_complete(response)


async def test_a_length_nobody_told_is_not_told_either(client: Client) -> None:
    """RH-01"""
    assert "upload-length" not in (await client.head(await client.created(b"hel"))).headers


async def test_an_offset_grows_and_lost_bytes_end_the_upload(newest: Client) -> None:
    """RH-03"""
    path = await newest.created(b"hello")
    newest.served.core.staging.path((await newest.served.upload(path)).id).unlink()

    response = await newest.head(path)

    assert response.status == 404
    assert "upload-offset" not in response.headers


@pytest.mark.parametrize("method", ["HEAD", "DELETE"])
async def test_a_question_may_tell_nothing(client: Client, method: str) -> None:
    """RH-04"""
    path = await client.created(b"hel")

    creations = [[*client.version_headers, client.complete(False)]]
    if client.version is not None:  # without a version an offset alone names no dialect
        creations.append([*client.version_headers, ("Upload-Offset", "3")])
    for fields in creations:
        assert (await client.served.request(method, path, fields)).status == 400
    assert await client.upload_headers(path) == (3, False)


async def test_get_of_an_unfinished_upload_is_a_question(client: Client) -> None:
    """RH-05"""
    path = await client.created(b"hel", ("Upload-Length", "5"))

    response = await client.served.request("GET", path, client.version_headers)

    assert (response.status, response.body, response.headers["upload-offset"]) == (204, b"", "3")
    if client.version is not None:
        assert not client.says_complete(response)


async def test_get_of_a_complete_upload_is_a_download(client: Client) -> None:
    """RH-05"""
    path = (await client.create(b"hello", complete=True)).headers["location"]

    response = await client.served.request("GET", path, client.version_headers)

    assert (response.status, response.body) == (200, b"hello")
    assert (response.headers["upload-offset"], response.headers["upload-length"]) == ("5", "5")
    if client.version is not None:
        assert client.says_complete(response)
    tus = await client.served.request("GET", path)
    assert (tus.status, "upload-offset" in tus.headers) == (200, False)


async def test_head_ends_a_running_append_and_tells_what_arrived(client: Client) -> None:
    """RH-06 RD-01"""
    path = await client.created()
    fields = client.append_fields(0, complete=True)
    connection = await client.begin("PATCH", path, fields, b"hel", announced=5)
    await eventually(lambda: any(body.received == 3 for body in client.served.bodies))

    assert await client.upload_headers(path) == (3, False)

    with pytest.raises(ConnectionLost):
        await connection.response("PATCH")


@pytest.mark.parametrize("method", ["HEAD", "DELETE", "PATCH", "GET"])
async def test_nothing_is_there_that_was_not_created(client: Client, method: str) -> None:
    """RH-07 RD-02"""
    fields = client.append_fields(0, complete=True) if method == "PATCH" else client.version_headers

    response = await client.served.request(method, "/files/" + "a" * 32, fields)

    assert response.status == 404
    assert "location" not in response.headers


# --- append --------------------------------------------------------------------------------------


async def test_bytes_are_appended_until_the_client_says_that_it_was_all(client: Client) -> None:
    """RA-01 RA-02 RA-03"""
    path = await client.created(b"he")

    more = await client.append(path, 2, b"ll", complete=False)
    last = await client.append(path, 4, b"o", complete=True)

    expected = 201 if client.version in {3, 4, 5, 6} else 204
    assert (more.status, more.headers["upload-offset"], client.says_complete(more)) == (expected, "4", False)
    assert (last.status, last.headers["upload-offset"], client.says_complete(last)) == (204, "5", True)
    upload = await client.served.upload(path)
    assert (upload.state, upload.length, await client.served.staged(path)) == (State.COMPLETED, 5, b"hello")


@pytest.mark.parametrize("last", [b"lo", b""])
async def test_a_chunked_last_body_completes_at_its_end(client: Client, last: bytes) -> None:
    """RA-03 RA-11 RA-14"""
    path = await client.created(b"hel" if last else b"hello")

    done = await client.append(path, 5 - len(last), chunked(last), CHUNKED, complete=True)

    assert (done.status, client.says_complete(done)) == (204, True)
    assert (await client.served.upload(path)).length == 5


@pytest.mark.parametrize("in_creation", [True, False])
@pytest.mark.parametrize("framing", [(), (CHUNKED,)])
@pytest.mark.parametrize("version", [3, 7, 8, None])
async def test_all_bytes_are_not_the_end_until_the_client_says_so(
    served: Served, version: int | None, in_creation: bool, framing: tuple[()] | tuple[tuple[str, str], ...]
) -> None:
    """RH-08 RA-11"""
    client = Client(served, version)
    body = chunked(b"hello") if framing else b"hello"
    if in_creation:
        path = await client.created(body, ("Upload-Length", "5"), *framing)
    else:
        path = await client.created(b"", ("Upload-Length", "5"))
        assert not client.says_complete(await client.append(path, 0, body, *framing, complete=False))
    assert await client.upload_headers(path) == (5, False)
    assert (await client.served.upload(path)).state is State.UPLOADING

    done = await client.append(path, 5, complete=True)

    assert (done.status, client.says_complete(done)) == (204, True)
    upload = await client.served.upload(path)
    assert upload.state is State.COMPLETED
    assert await client.served.count("jobs", upload, "transfer") == 1


@pytest.mark.parametrize("in_creation", [True, False])
@pytest.mark.parametrize("version", [4, 5, 6])
async def test_in_the_versions_of_tus_js_client_all_bytes_are_the_end(
    served: Served, version: int, in_creation: bool
) -> None:
    """RH-08 RA-10"""
    client = Client(served, version)
    if in_creation:
        reached = await client.create(b"hello", ("Upload-Length", "5"), complete=False)
        path = reached.headers["location"]
    else:
        path = await client.created(b"he", ("Upload-Length", "5"))
        reached = await client.append(path, 2, b"llo", complete=False)

    assert client.says_complete(reached)
    assert (await client.append(path, 5, complete=True)).status == 204
    upload = await served.upload(path)
    assert await served.count("jobs", upload, "transfer") == 1


@pytest.mark.parametrize("version", [4, 5, 6])
async def test_in_the_versions_of_tus_js_client_an_empty_file_is_complete_at_once(served: Served, version: int) -> None:
    """RC-08 RH-08"""
    created = await Client(served, version).create(b"", ("Upload-Length", "0"), complete=False)

    assert created.headers["upload-complete"] == "?1"


async def test_without_the_field_version_3_means_the_end(served: Served) -> None:
    """RA-01"""
    client = Client(served, 3)
    path = await client.created(b"hel")

    done = await served.request("PATCH", path, [*client.version_headers, ("Upload-Offset", "3")], b"lo")

    assert (done.status, client.says_complete(done)) == (204, True)


@pytest.mark.parametrize("version", [4, 5, 6, 7, 8])
@pytest.mark.parametrize("missing", ["Upload-Complete", "Upload-Offset"])
async def test_an_append_needs_its_fields(served: Served, version: int, missing: str) -> None:
    """RA-01 RC-06"""
    client = Client(served, version)
    path = await client.created(b"hel")
    fields = [field for field in client.append_fields(3, complete=True) if field[0] != missing]

    refused = await served.request("PATCH", path, fields, b"lo")

    assert (refused.status, refused.headers["upload-complete"]) == (400, "?0")
    assert await client.upload_headers(path) == (3, False)


@pytest.mark.parametrize("version", [6, 7, 8, None])
@pytest.mark.parametrize("content_type", [None, OFFSET_TYPE, "text/plain"])
async def test_an_append_has_a_type_of_its_own(served: Served, version: int | None, content_type: str | None) -> None:
    """RA-01"""
    client = Client(served, version)
    path = await client.created(b"hel")
    fields = [*client.version_headers, ("Upload-Complete", "?1"), ("Upload-Offset", "3")]
    fields += [("Content-Type", content_type)] if content_type else []

    refused = await served.request("PATCH", path, fields, b"lo")

    assert (refused.status, refused.headers["accept-patch"]) == (415, PARTIAL_TYPE)


@pytest.mark.parametrize("offset", [0, 2, 4])
async def test_another_offset_is_told_the_right_one(client: Client, offset: int) -> None:
    """RA-04 RP-01"""
    path = await client.created(b"hel")

    refused = await client.append(path, offset, b"lo", complete=True)

    assert (refused.status, refused.headers["upload-offset"], client.says_complete(refused)) == (409, "3", False)
    details = problem(refused)
    assert details["type"] == "https://iana.org/assignments/http-problem-types#mismatching-upload-offset"
    assert (details["status"], details["expected-offset"], details["provided-offset"]) == (409, 3, offset)
    assert (await client.append(path, 3, b"lo", complete=True)).status == 204


async def test_the_length_is_recorded_from_the_field(newest: Client) -> None:
    """RA-05"""
    path = await newest.created(b"he")

    await newest.append(path, 2, b"l", ("Upload-Length", "5"), complete=False)

    assert (await newest.head(path)).headers["upload-length"] == "5"


async def test_the_length_is_recorded_from_the_last_body_before_it_arrives(newest: Client) -> None:
    """RA-05 RA-08"""
    path = await newest.created(b"he")
    connection = await newest.begin("PATCH", path, newest.append_fields(2, complete=True), b"l", announced=3)
    await eventually(lambda: any(body.received == 1 for body in newest.served.bodies))
    await connection.close()

    response = await newest.head(path)

    assert (response.headers["upload-offset"], response.headers["upload-length"]) == ("3", "5")
    assert response.headers["upload-complete"] == "?0"
    assert (await newest.append(path, 3, b"lo", complete=True)).headers["upload-complete"] == "?1"


@pytest.mark.parametrize(
    ("length", "body", "complete"), [("6", b"lo", False), ("6", b"lo", True), ("4", b"l", False), (None, b"l", True)]
)
async def test_another_length_than_the_known_one_is_refused(
    newest: Client, length: str | None, body: bytes, complete: bool
) -> None:
    """RA-05 RP-01"""
    path = await newest.created(b"hel", ("Upload-Length", "5"))
    extra = [("Upload-Length", length)] if length else []

    refused = await newest.append(path, 3, body, *extra, complete=complete)

    assert (refused.status, refused.headers["upload-complete"]) == (400, "?0")
    assert problem(refused)["type"].endswith("#inconsistent-upload-length")
    assert await newest.upload_headers(path) == (3, False)


async def test_a_last_chunked_body_that_falls_short_is_told_so_and_kept(newest: Client) -> None:
    """RA-05"""
    path = await newest.created(b"he", ("Upload-Length", "5"))

    refused = await newest.append(path, 2, chunked(b"l"), CHUNKED, complete=True)

    assert (refused.status, refused.headers["upload-offset"]) == (400, "3")
    assert await newest.upload_headers(path) == (3, False)


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("framing", [(), (CHUNKED,)])
async def test_more_than_the_length_ends_the_upload_for_good(
    client: Client, framing: tuple[()] | tuple[tuple[str, str], ...], complete: bool
) -> None:
    """RA-06 RA-07"""
    path = await client.created(b"hel", ("Upload-Length", "5"))
    body = chunked(b"lo", b"!") if framing else b"lo!"

    refused = await client.append(path, 3, body, *framing, complete=complete)

    assert (refused.status, client.says_complete(refused)) == (400, False)
    assert (await client.head(path)).status == 404
    assert (await client.append(path, 3, b"lo", complete=True)).status == 404
    upload = await client.served.upload(path)
    assert upload.state is State.REMOVING
    assert await client.served.count("jobs", upload, "remove") == 1


async def test_tus_keeps_an_upload_that_was_sent_too_much(served: Served) -> None:
    """RA-06"""
    path = await served.create(5)

    assert (await served.patch(path, 0, b"hello!")).status == 413
    assert await served.offset(path) == 0


async def test_an_append_that_breaks_off_keeps_what_arrived(client: Client) -> None:
    """RA-08"""
    path = await client.created(b"he", ("Upload-Length", "9"))
    connection = await client.begin("PATCH", path, client.append_fields(2, complete=True), b"llo", announced=7)
    await eventually(lambda: any(body.received == 3 for body in client.served.bodies))
    await connection.close()

    assert await client.upload_headers(path) == (5, False)
    assert await client.served.staged(path) == b"hello"


@pytest.mark.parametrize(
    ("offset", "body", "complete", "status", "kind"),
    [
        (5, b"", True, 204, None),
        (4, b"", True, 409, "mismatching-upload-offset"),
        (5, b"!", True, 400, "inconsistent-upload-length"),
        (5, b"", False, 400, "completed-upload"),
    ],
)
async def test_a_complete_upload_takes_no_more(
    newest: Client, offset: int, body: bytes, complete: bool, status: int, kind: str | None
) -> None:
    """RA-10 RP-01"""
    path = (await newest.create(b"hello", complete=True)).headers["location"]

    response = await newest.append(path, offset, body, complete=complete)

    assert response.status == status
    assert kind is None or problem(response)["type"].endswith(f"#{kind}")
    assert await newest.upload_headers(path) == (5, True)


@pytest.mark.parametrize("length", ["2", "0"])
async def test_a_length_below_the_offset_is_refused(newest: Client, length: str) -> None:
    """RA-13"""
    path = await newest.created(b"hel")

    refused = await newest.append(path, 3, b"lo", ("Upload-Length", length), complete=False)

    assert refused.status == 400
    assert await newest.upload_headers(path) == (3, False)


# --- cancellation --------------------------------------------------------------------------------


async def test_delete_ends_an_upload_and_whoever_still_sends(client: Client) -> None:
    """RD-01 RH-07"""
    path = await client.created()
    connection = await client.begin("PATCH", path, client.append_fields(0, complete=True), b"hel", announced=5)
    await eventually(lambda: any(body.received == 3 for body in client.served.bodies))

    ended = await client.served.request("DELETE", path, client.version_headers)

    assert ended.status == 204
    assert (await client.head(path)).status == 404
    with pytest.raises(ConnectionLost):
        await connection.response("PATCH")


async def test_delete_can_be_off(serve: Serve) -> None:
    """RD-02"""
    served = await serve(tus={"disable": ["termination"]})
    client = Client(served, 8)
    path = await client.created()

    refused = await served.request("DELETE", path, client.version_headers)

    assert (refused.status, "DELETE" in refused.headers["allow"]) == (405, False)


async def test_a_page_of_another_origin_may_speak_it(serve: Serve) -> None:
    """CORS-05 CORS-06"""
    newest = Client(await serve(cors={"allow_origins": ["https://app.example"]}), 8)
    asked = ["Upload-Complete", "Upload-Draft-Interop-Version", "Content-Type"]
    origin = ("Origin", "https://app.example")
    preflight = await newest.served.request(
        "OPTIONS",
        "/files/",
        [origin, ("Access-Control-Request-Method", "POST"), ("Access-Control-Request-Headers", ", ".join(asked))],
    )
    created = await newest.create(b"hello", origin, complete=False)

    assert preflight.headers["access-control-allow-headers"] == ", ".join(asked)
    exposed = created.headers["access-control-expose-headers"].split(", ")
    assert {"Location", "Upload-Offset", "Upload-Complete", "Upload-Incomplete", "Upload-Limit"} <= set(exposed)


async def test_tus_wins_where_both_are_named(newest: Client) -> None:
    """GEN-01"""
    created = await newest.served.request(
        "POST", "/files/", [TUS, *newest.version_headers, ("Upload-Complete", "?1"), ("Upload-Length", "5")]
    )

    assert (created.status, created.headers["tus-resumable"]) == (201, "1.0.0")
    assert "upload-complete" not in created.headers
