"""Nobody is asked who they are: `auth.mode = "none"`."""

from __future__ import annotations

from tusd_py.authorization import ANONYMOUS, Principal
from tusd_py.ports import Authenticator


class AnonymousAuthenticator(Authenticator):
    """Takes every request for the same nobody, whatever credential it carries."""

    def authenticate(self, authorization_header: str | None) -> Principal:
        del authorization_header
        return ANONYMOUS
