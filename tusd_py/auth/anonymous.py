"""No authentication: `auth.mode = "none"`."""

from __future__ import annotations

from tusd_py.authorization import ANONYMOUS, Principal
from tusd_py.ports import Authenticator


class AnonymousAuthenticator(Authenticator):
    """Treats every request as anonymous, whatever credential it carries."""

    def authenticate(self, authorization_header: str | None) -> Principal:
        del authorization_header
        return ANONYMOUS
