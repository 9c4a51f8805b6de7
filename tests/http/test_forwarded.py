"""What proxies say (CRE-06, CRE-07): believed from the trusted only, and never without a look."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from tusd_py.http.hosts import ExternalBase, TrustedProxies, client_address, external_base

pytestmark = pytest.mark.unit

PROXY = "10.0.0.1"
TRUSTED = TrustedProxies(["10.0.0.0/8", "fd00::/8"])


def base(
    headers: dict[str, str] | CIMultiDict[str],
    *,
    peer: str | None = PROXY,
    scheme: str = "http",
    host: str = "backend:1080",
) -> ExternalBase | None:
    return external_base(headers, peer, scheme, host, TRUSTED)


def url(headers: dict[str, str]) -> str | None:
    found = base(headers)
    return found.url("/files/x") if found else None


# --- whom to believe ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "trusted"),
    [
        ("10.255.0.1", True),
        ("11.0.0.1", False),
        ("::ffff:10.0.0.1", True),
        ("::ffff:11.0.0.1", False),
        ("fd00::1", True),
        ("fd00::1%eth0", True),
        ("fe80::1%eth0", False),
        ("10.0.0.1, 10.0.0.1", False),
        ("proxy.example.com", False),
        ("", False),
        (None, False),
    ],
)
def test_cre_07_only_listed_networks_are_trusted(peer: str | None, *, trusted: bool) -> None:
    assert TRUSTED.trusts(peer) is trusted


def test_cre_07_nobody_is_trusted_by_default() -> None:
    assert not TrustedProxies().trusts("127.0.0.1")


@pytest.mark.parametrize("peer", [None, ""])
def test_cre_07_a_unix_socket_is_trusted_by_name(peer: str | None) -> None:
    trusted = TrustedProxies(["unix"])

    assert trusted.trusts(peer)
    assert not trusted.trusts("127.0.0.1")
    assert external_base({}, peer, "http", "a", trusted) == ExternalBase("http", "a")
    assert client_address({"X-Forwarded-For": "192.0.2.1"}, peer, trusted) == "192.0.2.1"
    assert client_address({}, peer, trusted) is None


def test_cre_07_a_network_that_is_none_is_an_error() -> None:
    with pytest.raises(ValueError, match="network"):
        TrustedProxies(["example.com"])


@pytest.mark.parametrize("peer", ["192.0.2.7", "", None])
def test_cre_07_headers_of_others_are_ignored(peer: str | None) -> None:
    headers = {"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "https", "Forwarded": "host=evil"}

    assert base(headers, peer=peer) is None


# --- the external base ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, "http://backend:1080/files/x"),
        ({"X-Forwarded-Proto": "https"}, "https://backend:1080/files/x"),
        ({"X-Forwarded-Proto": "HTTPS", "X-Forwarded-Host": "Ex.com"}, "https://ex.com/files/x"),
        ({"x-forwarded-host": "ex.com"}, "http://ex.com/files/x"),
        ({"X-Forwarded-Host": "ex.com:8080"}, "http://ex.com:8080/files/x"),
        ({"X-Forwarded-Host": "ex.com:80"}, "http://ex.com/files/x"),
        ({"X-Forwarded-Host": "ex.com:443"}, "http://ex.com:443/files/x"),
        ({"X-Forwarded-Host": "ex.com:443", "X-Forwarded-Proto": "https"}, "https://ex.com/files/x"),
        ({"X-Forwarded-Host": "ex.com:80", "X-Forwarded-Proto": "https"}, "https://ex.com:80/files/x"),
        ({"X-Forwarded-Host": "first.com, second.com"}, "http://first.com/files/x"),
        ({"X-Forwarded-Proto": "https, http"}, "https://backend:1080/files/x"),
        ({"X-Forwarded-Host": "[2001:db8::1]:8443"}, "http://[2001:db8::1]:8443/files/x"),
        ({"X-Forwarded-Host": "[::1]:80"}, "http://[::1]/files/x"),
        ({"X-Forwarded-Prefix": "/api"}, "http://backend:1080/api/files/x"),
        ({"X-Forwarded-Prefix": "/api/v2/"}, "http://backend:1080/api/v2/files/x"),
        ({"X-Forwarded-Prefix": "/"}, "http://backend:1080/files/x"),
        ({"X-Forwarded-Host": ""}, "http://backend:1080/files/x"),
        ({"Forwarded": "proto=https;host=ex.com"}, "https://ex.com/files/x"),
        ({"Forwarded": 'for=192.0.2.1;Host="ex.com:8443";PROTO=https;by=_x'}, "https://ex.com:8443/files/x"),
        ({"Forwarded": 'host="ex.com", host=second.com'}, "http://ex.com/files/x"),
        ({"Forwarded": "for=192.0.2.1 , host=second.com"}, "http://backend:1080/files/x"),
        ({"Forwarded": 'host="e\\x.com"'}, "http://ex.com/files/x"),
        ({"Forwarded": 'for="a,b;host=no";host=ex.com'}, "http://ex.com/files/x"),
        ({"Forwarded": "proto=https", "X-Forwarded-Host": "ex.com"}, "https://ex.com/files/x"),
        ({"Forwarded": "host=ex.com", "X-Forwarded-Host": "EX.com"}, "http://ex.com/files/x"),
    ],
)
def test_cre_07_the_external_url(headers: dict[str, str], expected: str) -> None:
    assert url(headers) == expected


@pytest.mark.parametrize("header", ["X-Forwarded-Host", "Forwarded"])
@pytest.mark.parametrize(
    "host",
    [
        "evil.example/x",
        "evil.example\\x",
        "evil.example?x",
        "evil.example#x",
        "user@evil.example",
        "evil.example:port",
        "evil.example:0",
        "evil.example:65536",
        "evil.example:",
        "evil.example:80:80",
        ":80",
        "-evil.example",
        "[::1",
        "[evil]",
        "[:::]",
        "::1",
        "evil example",
        "evil.example\r\nSet-Cookie: a=b",
        "evil.example\n",
        "evil.example\0",
        "evil%2eexample",
        "évil.example",
        "<script>",
        "a" * 300,
    ],
)
def test_cre_07_a_host_that_is_none_leaves_a_path(header: str, host: str) -> None:
    quoted = host.replace("\\", "\\\\")
    value = f'host="{quoted}"' if header == "Forwarded" else host

    assert base({header: value}) is None


@pytest.mark.parametrize("proto", ["javascript", "ftp", "https:", "https://evil", "http\r\nX: y", "h ttp"])
def test_cre_07_a_scheme_that_is_none_leaves_a_path(proto: str) -> None:
    assert base({"X-Forwarded-Proto": proto}) is None
    assert base({"Forwarded": f'proto="{proto}"'}) is None


@pytest.mark.parametrize(
    "prefix",
    [
        "//evil.example",
        "/\\evil.example",
        "api",
        "https://evil.example",
        "@evil.example",
        ".evil.example",
        ":99",
        "/a//b",
        "/a/../b",
        "/..",
        "/./a",
        "/a?b",
        "/a#b",
        "/a b",
        "/%2e%2e",
        "/a\r\nSet-Cookie: a=b",
        "/é",
    ],
)
def test_cre_07_a_prefix_that_is_none_leaves_a_path(prefix: str) -> None:
    assert base({"X-Forwarded-Prefix": prefix}) is None


@pytest.mark.parametrize(
    "value",
    [
        "host",
        "host=",
        "=x",
        'host="open',
        "host=a;host=b",
        "host=a host=b",
        "host=a,,host=b",
        "host=a;;proto=https",
        'host="a"b',
        "host=[::1]",
        "\r\nhost=a",
        "host=a\n",
        "for=" + "1" * 9000,
    ],
)
def test_cre_07_a_malformed_forwarded_leaves_a_path(value: str) -> None:
    assert base({"Forwarded": value}) is None


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Forwarded-Host": "ex.com", "Forwarded": "host=evil.example"},
        {"X-Forwarded-Proto": "https", "Forwarded": "proto=http"},
    ],
)
def test_cre_07_headers_that_disagree_leave_a_path(headers: dict[str, str]) -> None:
    """The proxy wrote one of them and passed on the other, and nobody knows which."""
    assert base(headers) is None


@pytest.mark.parametrize("host", ["", "evil.example/x", "a b"])
def test_cre_07_our_own_host_header_is_checked_too(host: str) -> None:
    assert base({"X-Forwarded-Proto": "https"}, host=host) is None


@given(st.text(), st.text(), st.text(), st.text())
def test_cre_07_whatever_a_proxy_says_the_url_stays_one_line(
    host: str, proto: str, prefix: str, forwarded: str
) -> None:
    headers = {
        "X-Forwarded-Host": host,
        "X-Forwarded-Proto": proto,
        "X-Forwarded-Prefix": prefix,
        "Forwarded": forwarded,
    }

    if (found := base(headers)) is not None:
        assert found.url("/files").isascii()
        assert found.url("/files").isprintable()
        assert " " not in found.url("/files")


# --- the client's address -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1:4711", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:DB8:0::1]:4711", "2001:db8::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("6.6.6.6, 192.0.2.1", "192.0.2.1"),
        ("6.6.6.6, 192.0.2.1, 10.0.0.3", "192.0.2.1"),
        ("6.6.6.6,192.0.2.1,fd00::1 , 10.0.0.3", "192.0.2.1"),
        ("10.0.0.4, 10.0.0.3", "10.0.0.4"),
        ("192.0.2.1, unknown", PROXY),
        ("192.0.2.1, unknown, 10.0.0.3", "10.0.0.3"),
        ("192.0.2.1, _hidden", PROXY),
        ("192.0.2.1,", PROXY),
        ("", PROXY),
        ("192.0.2.1\r\nX: y", PROXY),
        ("fe80::1%evil<script>", PROXY),
        ("192.0.2.300", PROXY),
        ("1.2.3.4.5", PROXY),
        ("2001:80", PROXY),
    ],
)
def test_the_client_is_the_right_most_address_that_is_not_trusted(value: str, expected: str) -> None:
    assert client_address({"X-Forwarded-For": value}, PROXY, TRUSTED) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("for=192.0.2.1", "192.0.2.1"),
        ('For="[2001:db8::1]:4711";proto=https', "2001:db8::1"),
        ("for=6.6.6.6, for=192.0.2.1;by=10.0.0.1, for=10.0.0.3", "192.0.2.1"),
        ("for=192.0.2.1, for=unknown", PROXY),
        ("for=192.0.2.1, proto=https", PROXY),
        ("for=192.0.2.1, for", PROXY),
    ],
)
def test_the_client_stands_in_forwarded(value: str, expected: str) -> None:
    assert client_address({"Forwarded": value}, PROXY, TRUSTED) == expected


def test_a_forwarded_of_the_client_does_not_hide_x_forwarded_for() -> None:
    headers = {"Forwarded": "for=6.6.6.6", "X-Forwarded-For": "192.0.2.1"}

    assert client_address(headers, PROXY, TRUSTED) == "192.0.2.1"


def test_a_line_of_the_client_does_not_hide_the_line_of_the_proxy() -> None:
    headers = CIMultiDict([("X-Forwarded-For", "6.6.6.6"), ("X-Forwarded-For", "192.0.2.1")])

    assert client_address(headers, PROXY, TRUSTED) == "192.0.2.1"


@pytest.mark.parametrize(
    ("peer", "expected"),
    [("192.0.2.7", "192.0.2.7"), ("::ffff:192.0.2.7", "192.0.2.7"), ("", None), (None, None)],
)
def test_the_headers_of_others_are_ignored(peer: str | None, expected: str | None) -> None:
    assert client_address({"X-Forwarded-For": "6.6.6.6"}, peer, TRUSTED) == expected


@given(st.text())
def test_whatever_a_proxy_says_the_address_is_one(value: str) -> None:
    address = client_address({"X-Forwarded-For": value}, PROXY, TRUSTED)

    assert address is not None
    assert set(address) <= set("0123456789abcdef:.")
