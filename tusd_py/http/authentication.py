"""Who is asking, by the header that says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tusd_py.errors import ProtocolError
from tusd_py.http.context import CONTEXT
from tusd_py.protocol.fields import single

if TYPE_CHECKING:
    from aiohttp import web

    from tusd_py.authorization import Principal

AUTHORIZATION: Final = "Authorization"


def principal_of(request: web.Request) -> Principal:
    """Return who is asking.

    Raises:
        Unauthenticated: a credential is needed and is not there, or is not accepted.
        ProtocolError: there are several, and a proxy may have looked at another one than we would.
    """
    try:
        credential = single(request.headers, AUTHORIZATION)
    except ValueError as error:
        raise ProtocolError(f"{error}.") from error
    return request.app[CONTEXT].authenticator.authenticate(credential)
