"""The upload page: `GET /` and what it loads, where the configuration wants it.

Everything is read once, at the start, and every address in it is relative: the page works below any
prefix. Uppy comes from `web/assets` where it was built (`frontend/`), and otherwise, in the same version,
from a CDN, pinned by its digests.
"""

from __future__ import annotations

import hashlib
import html
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Final

from aiohttp import ETag, web

from tusd_py.config.sections import is_loopback
from tusd_py.errors import UploadNotFound
from tusd_py.http.context import KIND, PROBLEM, HttpContext
from tusd_py.protocol import fields

if TYPE_CHECKING:
    from tusd_py.config import Config
    from tusd_py.protocol.features import Features

ASSETS_PATH: Final = "/assets"
UPPY_VERSION: Final = "6.0.1"
"""Of the npm package `uppy`, whose prebuilt files a CDN serves; frontend/ builds the same from its parts."""

_WEB: Final = Path(__file__).resolve().parents[1] / "web"
_OWN: Final = ("page.css", "page.js", "access.js", "live.js", "recent.js", "rows.js", "uploader.js", "icon.svg")
_BUILT: Final = ("uppy.js", "uppy.css", "licenses.txt")
_TYPES: Final = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
}


@dataclass(frozen=True, slots=True)
class Uppy:
    """The source from which the page loads Uppy."""

    script: str
    style: str
    script_integrity: str = ""
    style_integrity: str = ""


LOCAL: Final = Uppy("assets/uppy.js", "assets/uppy.css")
CDN: Final = Uppy(
    f"https://cdn.jsdelivr.net/npm/uppy@{UPPY_VERSION}/dist/uppy.min.js",
    f"https://cdn.jsdelivr.net/npm/uppy@{UPPY_VERSION}/dist/uppy.min.css",
    "sha384-QPH9Dl8VQ2XNehOqPB9va+0KSja3toj1NUEXVbP8oNAJ0iGMpgaz5ecDrwTK+ciO",
    "sha384-mrtEQQ4LVy5xVIhmsZQL/qDhY5S+hOl9KZCOjtObtWSmsx0PI9RUdc6nyFftj/Jx",
)


@dataclass(frozen=True, slots=True)
class Document:
    """A file as it is served."""

    body: bytes
    content_type: str
    tag: str
    headers: dict[str, str]


def wanted(config: Config) -> bool:
    """Return whether `GET /` shows the page; "auto": where only this machine can reach an open server."""
    if config.server.page == "auto":
        return config.auth.mode == "none" and is_loopback(config.server.host)
    return config.server.page == "on"


def routes(context: HttpContext) -> list[web.RouteDef]:
    """Return the routes of the page and its assets, none where it is not wanted."""
    if not wanted(context.config):
        return []
    assets = _read(_WEB, _OWN) | _read(context.page_assets, _BUILT)
    page = _page(LOCAL if assets.keys() >= {"uppy.js", "uppy.css"} else CDN, context.config, context.features)

    async def show_page(request: web.Request) -> web.Response:
        return _answer(request, page)

    async def show_asset(request: web.Request) -> web.Response:
        return _answer(request, assets.get(request.match_info["name"]))

    return [web.get("/", show_page), web.get(f"{ASSETS_PATH}/{{name}}", show_asset)]


def _page(uppy: Uppy, config: Config, features: Features) -> Document:
    values = {
        "endpoint": f"{config.server.base_path.removeprefix('/')}/",
        "parallel": "true" if features.offers("concatenation") else "false",
        "max_size": str(features.max_size or ""),
        "token": "true" if config.auth.mode == "jwt" else "false",
        "script": uppy.script,
        "script_integrity": uppy.script_integrity,
        "style": uppy.style,
        "style_integrity": uppy.style_integrity,
    }
    template = Template((_WEB / "index.html").read_text(encoding="utf-8"))
    text = template.substitute({name: html.escape(value) for name, value in values.items()})
    return _document(text.encode(), ".html", {"Content-Security-Policy": _policy(uppy)})


def _policy(uppy: Uppy) -> str:
    # A CDN is trusted with exactly the two files that the page asks of it.
    script, style = ("", "") if uppy is LOCAL else (f" {uppy.script}", f" {uppy.style}")
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src 'self'{script}",
            f"style-src 'self'{style}",
            "img-src 'self' blob: data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )


def _read(directory: Path, names: tuple[str, ...]) -> dict[str, Document]:
    paths = [directory / name for name in names]
    return {path.name: _document(path.read_bytes(), path.suffix, {}) for path in paths if path.is_file()}


def _document(body: bytes, suffix: str, headers: dict[str, str]) -> Document:
    # Kept by the browser but asked about each time, so that an upgrade is seen at once.
    common = {fields.CACHE_CONTROL: "no-cache", "Referrer-Policy": "no-referrer"}
    return Document(body, _TYPES[suffix], hashlib.sha256(body).hexdigest()[:32], common | headers)


def _answer(request: web.Request, document: Document | None) -> web.Response:
    request[PROBLEM] = True
    request[KIND] = "page"
    if document is None:
        raise UploadNotFound("There is nothing here.")
    if request.if_none_match and any(seen.value in {"*", document.tag} for seen in request.if_none_match):
        response = web.Response(status=304, headers=document.headers)
    else:
        response = web.Response(
            body=document.body, content_type=document.content_type, charset="utf-8", headers=document.headers
        )
    response.etag = ETag(document.tag)
    return response
