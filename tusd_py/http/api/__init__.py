"""The JSON API and the download links: uploads by their public id."""

from __future__ import annotations

from aiohttp import web

from tusd_py.http.api import actions, event_routes, uploads
from tusd_py.http.api import downloads as files


def routes(*, downloads: bool) -> list[web.RouteDef]:
    """Return the routes below the application's root."""
    return [*uploads.routes(), *actions.routes(), *event_routes.routes(), *(files.routes() if downloads else ())]
