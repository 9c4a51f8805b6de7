"""The JSON API and the download links: uploads by their public id."""

from __future__ import annotations

from aiohttp import web

from tusd_py.http.api import downloads as files
from tusd_py.http.api import uploads


def routes(*, downloads: bool) -> list[web.RouteDef]:
    """Answer the routes below the application's root."""
    return [*uploads.routes(), *(files.routes() if downloads else ())]
