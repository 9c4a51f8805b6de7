"""The upload page as it is served; what it does in a browser is tested in `tests/process`."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin

import pytest

from tests.http.served import Serve, Served
from tests.http.support import hosted
from tests.support.fixtures import MakeConfig
from tests.support.tools import ROOT
from tusd_py.http import upload_page

FRONTEND = ROOT / "frontend"
CONTEXT = ROOT / "tusd_py" / "web"
SECRET = "0123456789abcdef0123456789abcdef"


class Addresses(HTMLParser):
    """Collects what a page refers to, and the data attributes of its body."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.settings: dict[str, str] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attributes if name in {"src", "href"}]
        if tag == "body":
            self.settings = {name: value or "" for name, value in attributes}


async def test_the_root_shows_the_page_with_a_strict_policy(served: Served) -> None:
    response = await served.request("GET", "/", {"Tus-Resumable": None})

    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert response.status == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "tus-resumable" not in response.headers
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert "unsafe" not in response.headers["content-security-policy"]
    assert b"<script>" not in response.body
    assert b"style=" not in response.body.replace(b"data-style=", b"")


async def test_head_answers_without_a_body(served: Served) -> None:
    response = await served.request("HEAD", "/")

    assert (response.status, response.body) == (200, b"")
    assert int(response.headers["content-length"]) > 1000


@pytest.mark.parametrize(
    ("name", "content_type"),
    [
        ("page.js", "text/javascript; charset=utf-8"),
        ("page.css", "text/css; charset=utf-8"),
        ("icon.svg", "image/svg+xml; charset=utf-8"),
    ],
)
async def test_an_asset_has_its_type_and_is_revalidated(served: Served, name: str, content_type: str) -> None:
    path = f"/assets/{name}"

    first = await served.request("GET", path)
    second = await served.request("GET", path, {"If-None-Match": first.headers["etag"]})

    assert (first.status, first.headers["content-type"]) == (200, content_type)
    assert first.headers["cache-control"] == "no-cache"
    assert first.headers["x-content-type-options"] == "nosniff"
    assert first.body == (CONTEXT / name).read_bytes()
    assert (second.status, second.body) == (304, b"")


@pytest.mark.parametrize(
    "path",
    ["/assets/", "/assets/index.html", "/assets/..%2findex.html", "/assets/.done", "/assets/x/page.js", "/page.js"],
)
async def test_nothing_else_is_served(served: Served, path: str) -> None:
    assert (await served.request("GET", path)).status == 404


async def test_another_method_is_refused(served: Served) -> None:
    response = await served.request("POST", "/")

    assert response.status == 405
    assert "GET" in response.headers["allow"]


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({}, True),
        ({"server": {"host": "::1"}}, True),
        ({"server": {"page": "off"}}, False),
        ({"server": {"host": "0.0.0.0"}, "auth": {"allow_anonymous": True}}, False),
        ({"server": {"host": "0.0.0.0", "page": "on"}, "auth": {"allow_anonymous": True}}, True),
        ({"auth": {"mode": "jwt", "jwt": {"secret": SECRET}}}, False),
        ({"auth": {"mode": "jwt", "jwt": {"secret": SECRET}}, "server": {"page": "on"}}, True),
    ],
)
def test_the_page_is_wanted_in_the_zero_configuration_mode_or_as_configured(
    make_config: MakeConfig,
    sections: dict[str, dict[str, str] | dict[str, bool] | dict[str, str | dict[str, str]]],
    expected: bool,
) -> None:
    assert upload_page.wanted(make_config(**sections)) is expected


async def test_without_the_page_its_addresses_are_unknown(serve: Serve) -> None:
    served = await serve(server={"page": "off", "port": 0})

    for path in ("/", "/assets/page.js"):
        response = await served.request("GET", path)
        assert response.status == 404
        assert "content-security-policy" not in response.headers


async def test_the_page_knows_what_the_server_offers(serve: Serve) -> None:
    served = await serve(
        server={"base_path": "/up/loads", "port": 0},
        limits={"max_size": 1000},
        tus={"disable": ["concatenation"]},
    )

    settings = Addresses((await served.request("GET", "/")).body.decode()).settings

    assert settings["data-endpoint"] == "up/loads/"
    assert settings["data-max-size"] == "1000"
    assert settings["data-parallel"] == "false"
    assert settings["data-token"] == "false"


async def test_the_page_asks_for_a_token_where_the_server_does(serve: Serve) -> None:
    served = await serve(server={"page": "on", "port": 0}, auth={"mode": "jwt", "jwt": {"secret": SECRET}})

    page = await served.request("GET", "/", {"Tus-Resumable": None})
    listed = await served.request("GET", "/api/v1/uploads", [])

    assert (page.status, listed.status) == (200, 401)
    assert Addresses(page.body.decode()).settings["data-token"] == "true"


async def test_below_a_prefix_everything_is_found_by_relative_addresses(make_config: MakeConfig) -> None:
    async with hosted(make_config(), "/media") as client:
        page = await client.request("GET", "/media/", [])
        found = Addresses(page.body.decode())
        assert len(found.found) >= 3
        for address in found.found:
            assert not address.startswith(("/", "http"))
            assert (await client.request("GET", urljoin("/media/", address), [])).status == 200, address
        endpoint = urljoin("/media/", found.settings["data-endpoint"])
        assert (await client.request("POST", endpoint, {"Upload-Length": "0"})).status == 201


def test_no_script_names_an_address_from_the_root() -> None:
    for script in CONTEXT.glob("*.js"):
        assert re.findall(r"""["'`]/[a-z]""", script.read_text(encoding="utf-8")) == [], script.name


# --- where Uppy comes from ---------------------------------------------------------------------------


async def test_without_built_files_exactly_two_files_of_a_cdn_are_trusted(serve: Serve, tmp_path: Path) -> None:
    served = await serve(context={"page_assets": tmp_path})
    response = await served.request("GET", "/")

    settings = Addresses(response.body.decode()).settings
    policy = response.headers["content-security-policy"]
    assert settings["data-script"] == upload_page.CDN.script
    assert settings["data-style"] == upload_page.CDN.style
    assert settings["data-script-integrity"].startswith("sha384-")
    assert settings["data-style-integrity"].startswith("sha384-")
    assert f"script-src 'self' {upload_page.CDN.script};" in policy
    assert f"style-src 'self' {upload_page.CDN.style};" in policy
    assert "connect-src 'self';" in policy


def test_the_cdn_serves_the_version_that_the_frontend_builds() -> None:
    package = json.loads((FRONTEND / "package.json").read_text())
    lock = json.loads((FRONTEND / "package-lock.json").read_text())["packages"]
    parts = ("@uppy/core", "@uppy/dashboard", "@uppy/tus")

    assert lock["node_modules/uppy"]["version"] == package["devDependencies"]["uppy"] == upload_page.UPPY_VERSION
    assert {part: package["dependencies"][part] for part in parts} == {
        part: lock["node_modules/uppy"]["dependencies"][part] for part in parts
    }
    assert all(lock[f"node_modules/{part}"]["version"] == package["dependencies"][part] for part in parts)


@pytest.mark.parametrize("folder", ["frontend", "examples/uppy"])
def test_a_lock_file_names_no_registry(folder: str) -> None:
    lock = json.loads((ROOT / folder / "package-lock.json").read_text())["packages"]

    assert [name for name, entry in lock.items() if "resolved" in entry] == []
    assert [name for name, entry in lock.items() if name and "integrity" not in entry] == []
