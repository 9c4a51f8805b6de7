"""The dialect of a request, chosen at the door."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tusd_py.http.context import CONTEXT, DIALECT
from tusd_py.protocol import dialects

if TYPE_CHECKING:
    from aiohttp import web

    from tusd_py.protocol.dialect import Dialect


def dialect_of(request: web.Request) -> Dialect:
    """Return the dialect of a request."""
    dialect = request.get(DIALECT)
    if dialect is None:
        dialect = request[DIALECT] = dialects.choose(request.method, request.headers, request.app[CONTEXT].features)
    return dialect
