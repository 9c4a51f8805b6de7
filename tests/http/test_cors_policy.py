"""Cross-origin access, row by row of the requirements (CORS-01 … CORS-10)."""

from __future__ import annotations

import pytest

from tusd_py.config import CorsConfig
from tusd_py.http.cors import MAX_ORIGIN_LENGTH, REQUEST_HEADERS, RESPONSE_HEADERS, CorsPolicy

pytestmark = pytest.mark.unit

APP = "https://app.example.com"
STRANGER = "https://evil.example"


def policy(**settings: object) -> CorsPolicy:
    return CorsPolicy(CorsConfig.model_validate({"allow_origins": ["*"]} | settings))


def names(value: str) -> list[str]:
    return value.split(", ")


@pytest.mark.parametrize("origins", [["*"], [APP], ["https://*.example.com"]])
def test_cors_01_a_response_names_the_origin_and_varies_by_it(origins: list[str]) -> None:
    headers = policy(allow_origins=origins).response_headers(APP)

    assert headers["Access-Control-Allow-Origin"] == APP
    assert headers["Vary"] == "Origin"


def test_cors_01_without_an_origin_there_are_no_headers() -> None:
    assert policy().response_headers(None) == {}
    assert policy().preflight(None, "POST", None) == {}
    assert not policy(allow_origins=[APP]).refuses(None)


@pytest.mark.parametrize("origins", [[APP], ["https://*.example.com"]])
def test_cors_02_credentials_come_with_the_explicit_origin(origins: list[str]) -> None:
    cors = policy(allow_origins=origins, allow_credentials=True)

    for headers in (cors.response_headers(APP), cors.preflight(APP, "PATCH", None)):
        assert headers["Access-Control-Allow-Credentials"] == "true"
        assert headers["Access-Control-Allow-Origin"] == APP
        assert "*" not in headers.values()


def test_cors_02_without_credentials_nothing_says_so() -> None:
    assert "Access-Control-Allow-Credentials" not in policy().response_headers(APP)
    assert "Access-Control-Allow-Credentials" not in policy().preflight(APP, "POST", None)


def test_cors_02_authorization_is_always_named() -> None:
    assert "Authorization" in names(policy().preflight(APP, "POST", None)["Access-Control-Allow-Headers"])


@pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE", "HEAD", "TRACE", "nonsense"])
def test_cors_03_every_preflight_of_an_allowed_origin_is_answered(method: str) -> None:
    headers = policy().preflight(APP, method, "tus-resumable")

    assert headers["Access-Control-Allow-Origin"] == APP
    assert "Access-Control-Expose-Headers" not in headers


def test_cors_03_options_without_a_requested_method_is_no_preflight() -> None:
    assert policy().preflight(APP, None, None) == policy().response_headers(APP)


def test_cors_04_the_methods_are_named() -> None:
    headers = policy().preflight(APP, "PATCH", None)

    assert headers["Access-Control-Allow-Methods"] == "POST, GET, HEAD, PATCH, DELETE, OPTIONS"


def test_cors_05_the_protocols_headers_and_the_configured_are_allowed() -> None:
    headers = policy(allow_headers=["X-App", "tus-resumable"]).preflight(APP, "POST", None)

    assert names(headers["Access-Control-Allow-Headers"]) == [*REQUEST_HEADERS, "X-App"]


@pytest.mark.parametrize(
    "header",
    [
        "Authorization", "Content-Type", "Tus-Resumable", "Upload-Length", "Upload-Offset", "Upload-Metadata",
        "Upload-Defer-Length", "Upload-Concat", "Upload-Checksum", "X-HTTP-Method-Override",
        "X-Requested-With", "X-Request-ID", "Upload-Complete", "Upload-Incomplete",
        "Upload-Draft-Interop-Version", "Content-Disposition", "Content-Digest", "Repr-Digest",
        "Want-Repr-Digest",
    ],
)  # fmt: skip
def test_cors_05_a_client_may_send(header: str) -> None:
    assert header in names(policy().preflight(APP, "POST", None)["Access-Control-Allow-Headers"])


@pytest.mark.parametrize("requested", ["x-my-app", "x-my-app,tus-resumable", "x-my-app , tus-resumable"])
def test_cors_05_the_requested_headers_are_repeated(requested: str) -> None:
    headers = policy().preflight(APP, "POST", requested)

    assert headers["Access-Control-Allow-Headers"] == requested


@pytest.mark.parametrize(
    "requested", ["", "x y", "x,,y", "x,", "x\r\nSet-Cookie: a=b", "é", "x: y", ",".join(["x-long"] * 1000)]
)
def test_cors_05_requested_headers_that_are_no_list_are_not_repeated(requested: str) -> None:
    headers = policy().preflight(APP, "POST", requested)

    assert headers["Access-Control-Allow-Headers"] == ", ".join(REQUEST_HEADERS)


@pytest.mark.parametrize(
    "header",
    [
        "Location", "Upload-Id", "Upload-Offset", "Upload-Length", "Upload-Metadata", "Upload-Defer-Length",
        "Upload-Concat", "Upload-Expires", "Upload-Complete", "Upload-Incomplete", "Upload-Limit",
        "Upload-Draft-Interop-Version", "Tus-Version", "Tus-Resumable", "Tus-Extension", "Tus-Max-Size",
        "Tus-Checksum-Algorithm", "Repr-Digest", "Retry-After", "X-Request-ID",
    ],
)  # fmt: skip
def test_cors_06_a_client_may_read(header: str) -> None:
    assert header in names(policy().response_headers(APP)["Access-Control-Expose-Headers"])


def test_cors_06_configured_headers_are_exposed_once() -> None:
    headers = policy(expose_headers=["X-App", "location"]).response_headers(APP)

    assert names(headers["Access-Control-Expose-Headers"]) == [*RESPONSE_HEADERS, "X-App"]


def test_cors_07_a_preflight_may_be_cached() -> None:
    assert policy().preflight(APP, "POST", None)["Access-Control-Max-Age"] == "86400"
    assert policy(max_age="90.5").preflight(APP, "POST", None)["Access-Control-Max-Age"] == "90"
    assert policy(max_age=0).preflight(APP, "POST", None)["Access-Control-Max-Age"] == "0"


def test_cors_08_a_stranger_is_refused_and_gets_no_permission() -> None:
    cors = policy(allow_origins=[APP])

    assert cors.refuses(STRANGER)
    assert not cors.refuses(APP)
    assert cors.preflight(STRANGER, "POST", "x-app") == {"Vary": "Origin"}
    assert cors.response_headers(STRANGER) == {"Vary": "Origin"}


def test_cors_08_without_any_origin_allowed_everyone_is_refused() -> None:
    assert policy(allow_origins=[]).refuses(APP)


@pytest.mark.parametrize(
    ("pattern", "origin"),
    [
        ("https://*.example.com", "https://app.example.com"),
        ("https://*.example.com", "https://a.b.example.com"),
        ("https://*.example.com", "HTTPS://App.Example.com"),
        ("https://App.Example.com", "https://app.example.com"),
        ("https://app-*.example.com", "https://app-42.example.com"),
        ("http://localhost:*", "http://localhost:5173"),
        ("https://*.example.com:*", "https://app.example.com:8443"),
        ("https://*", "https://anything.example"),
        ("null", "null"),
        ("capacitor://localhost", "capacitor://localhost"),
        ("*", "null"),
        ("*", "file://"),
    ],
)
def test_cors_08_an_origin_matches(pattern: str, origin: str) -> None:
    assert not policy(allow_origins=[pattern]).refuses(origin)


@pytest.mark.parametrize(
    ("pattern", "origin"),
    [
        ("https://*.example.com", "https://example.com"),
        ("https://*.example.com", "https://.example.com"),
        ("https://*.example.com", "http://app.example.com"),
        ("https://*.example.com", "https://app.example.com:8443"),
        ("https://*.example.com", "https://app.example.com.evil.example"),
        ("https://*.example.com", "https://evil.example/.example.com"),
        ("https://*.example.com", "https://evil.example#.example.com"),
        ("https://*.example.com", "https://evil.example:1.example.com"),
        ("https://*.example.com", "https://user@app.example.com"),
        ("https://*.example.com", "https://appXexample.com"),
        ("https://*.example.com", "xhttps://app.example.com"),
        ("https://*.example.com", "https://app.example.com\n"),
        ("https://app.example.com", "https://app.example.com\n"),
        ("https://app.example.com", "https://appXexample.com"),
        ("https://app.example.com", "https://app.example.com/"),
        ("http://localhost:*", "http://localhost:"),
        ("http://localhost:*", "http://localhost.evil.example:80"),
        ("https://app.example.com", "null"),
        ("https://app.example.com", ""),
        ("*", ""),
        ("*", "https://a b"),
        ("*", "https://a\r\nSet-Cookie: a=b"),
        ("*", "https://é.example"),
        ("*", "https://" + "a" * MAX_ORIGIN_LENGTH),
    ],
)
def test_cors_08_an_origin_does_not_match(pattern: str, origin: str) -> None:
    cors = policy(allow_origins=[pattern])

    assert cors.refuses(origin)
    assert cors.response_headers(origin) == {"Vary": "Origin"}


def test_cors_09_switched_off_it_says_and_refuses_nothing() -> None:
    cors = policy(enabled=False, allow_origins=[APP])

    assert cors.response_headers(APP) == {}
    assert cors.preflight(APP, "POST", "x-app") == {}
    assert not cors.refuses(STRANGER)


def test_cors_10_what_protects_cookies_needs_a_preflight() -> None:
    """Tus-Resumable is no simple header, so a page of a stranger cannot create an upload unasked."""
    cors = policy(allow_origins=[APP], allow_credentials=True)

    assert "Tus-Resumable" in names(cors.preflight(APP, "POST", None)["Access-Control-Allow-Headers"])
    assert "Access-Control-Allow-Headers" not in cors.preflight(STRANGER, "POST", "tus-resumable")
    assert cors.refuses(STRANGER)


def test_an_answer_may_be_changed_without_harm() -> None:
    cors = policy()
    cors.response_headers(APP)["Vary"] = "nothing"

    assert cors.response_headers(APP)["Vary"] == "Origin"
