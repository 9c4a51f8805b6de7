"""What a stored event keeps of the client's request that has made it, for receivers in tusd's format.

Events are kept for long and may be read by others than the hooks that were asked: a header is kept only if
`hooks.forward_headers` names it, and a credential never.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tusd_py.hooks.messages import request_document

if TYPE_CHECKING:
    from tusd_py.config import Config
    from tusd_py.ports.hooks import HookRequest

NEVER_KEPT: Final = frozenset({"authorization", "cookie", "proxy-authorization"})


def kept_request(config: Config, request: HookRequest | None) -> dict[str, Any] | None:
    """Return a request as `HTTPRequest` of tusd has it, with the headers that may be kept; None if nobody reads it."""
    if request is None or not config.tells_in_format_of_tusd:
        return None
    named = frozenset(config.hooks.forward_headers) - NEVER_KEPT
    document = request_document(request)
    document["Header"] = {name: values for name, values in document["Header"].items() if name.lower() in named}
    return document
