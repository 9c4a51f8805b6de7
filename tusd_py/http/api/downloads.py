"""Download links: finished uploads by their public id."""

from __future__ import annotations

from aiohttp import web

from tusd_py.authorization import UNAUTHENTICATED, Action, Principal
from tusd_py.errors import Unauthenticated
from tusd_py.http.api.requests import flag, resource, upload_id_of
from tusd_py.http.context import CONTEXT
from tusd_py.http.download_routes import download
from tusd_py.http.middleware import principal_of
from tusd_py.uploads.view import DOWNLOAD_PATH


def routes() -> list[web.RouteDef]:
    """Return the routes of downloads."""
    served = {"GET": download_by_id, "HEAD": download_by_id}
    paths = (f"{DOWNLOAD_PATH}/{{id}}", f"{DOWNLOAD_PATH}/{{id}}/{{filename}}")
    return [resource(path, kind="download", query=None, **served) for path in paths]


async def download_by_id(request: web.Request) -> web.StreamResponse:
    """Serve a complete upload; a filename in the path is for people and changes nothing.

    `?redirect=0` tells a URL of the store by a 204 instead of a redirect to it.
    """
    redirect = flag(request, "redirect", default=True)
    upload = await request.app[CONTEXT].uploads.get_by_id(
        _reader(request), upload_id_of(request), Action.DOWNLOAD, gone_too=True
    )
    return await download(request, upload, redirect=redirect)


def _reader(request: web.Request) -> Principal:
    """Return who is asking; nobody in particular will do where some uploads are for everybody."""
    try:
        return principal_of(request)
    except Unauthenticated:
        if not request.app[CONTEXT].uploads.rules.has_public_uploads:
            raise
        return UNAUTHENTICATED
