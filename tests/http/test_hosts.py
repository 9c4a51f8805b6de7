"""Which host names an open server answers to."""

from __future__ import annotations

import pytest

from tusd_py.config import load_config
from tusd_py.http.hosts import HostPolicy, public_names

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "host",
    [
        "", "localhost", "LocalHost:1080", "localhost.", "app.localhost:3000", "127.0.0.1", "127.0.0.1:1080",
        "192.0.2.7:80", "[::1]:1080", "[2001:db8::1]", "uploads.example.com", "UPLOADS.example.com.:443",
    ],
)  # fmt: skip
def test_names_of_ours_and_addresses_are_answered(host: str) -> None:
    assert not HostPolicy(["Uploads.Example.com"]).refuses(host)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:1080", "localhost.evil.example", "127.0.0.1.evil.example", "notlocalhost",
        "uploads.example.com.evil.example", "evil.uploads.example.com", "2130706433", "0x7f000001", "127.0.0.1:x",
        "user@localhost", "localhost/", "localhost evil.example", "localhost,evil.example", "[localhost]", "[", "é",
        "::1", "[127.0.0.1", ".", ":80", "localhost:", "a" * 5000,
    ],
)  # fmt: skip
def test_other_names_and_what_is_no_host_are_refused(host: str) -> None:
    assert HostPolicy(["uploads.example.com"]).refuses(host)


def test_the_configuration_names_the_address_listened_on_the_public_url_and_more() -> None:
    server = {"host": "box.lan", "public_url": "https://up.example:8443/a", "allowed_hosts": ["More.example"]}
    config = load_config(None, {"server": server, "auth": {"allow_anonymous": True}})

    assert public_names(config.server) == ["box.lan", "up.example", "more.example"]
