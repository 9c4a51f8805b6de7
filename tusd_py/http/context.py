"""The context of the handlers, and typed keys of what they find on a request."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aiohttp import web

if TYPE_CHECKING:
    from tusd_py.config import Config
    from tusd_py.configured_stores import Stores
    from tusd_py.http.cors import CorsPolicy
    from tusd_py.http.hosts import HostPolicy, TrustedProxies
    from tusd_py.metrics import Metrics
    from tusd_py.ports import Authenticator, Body
    from tusd_py.protocol.dialect import Dialect
    from tusd_py.protocol.features import Features
    from tusd_py.protocol.upload import Upload
    from tusd_py.uploads.changes import ChangeNotifier
    from tusd_py.uploads.live_events import LiveEvents
    from tusd_py.uploads.service import UploadService


@dataclass(slots=True)
class HttpContext:
    """Everything the HTTP side needs, wired by the composition root."""

    config: Config
    features: Features
    uploads: UploadService
    changes: ChangeNotifier
    stores: Stores
    authenticator: Authenticator | None
    """None where everybody is anonymous: `auth.mode = "none"`."""
    cors: CorsPolicy
    trusted: TrustedProxies | None
    """The proxies whose headers are believed, None for none."""
    hosts: HostPolicy | None
    """The host names that are answered to; None where authentication protects from foreign pages."""
    metrics: Metrics
    live: LiveEvents
    bodies: set[Body] = field(default_factory=set)
    """Bodies being received, for the drain."""
    draining: bool = False
    clients: dict[str, int] = field(default_factory=dict)
    """Bodies under way per client address."""
    progress_seconds: float = 1.0
    """Shortest time between two reports of how much of a body is durable."""
    comment_seconds: float = 15.0
    """Longest silence of a stream of events: proxies and clients take a longer one for a lost connection."""
    stall_seconds: float = 30.0
    """How long a listener may take nothing of what is sent to it."""
    page_assets: Path = Path(__file__).resolve().parents[1] / "web" / "assets"
    """The directory of Uppy, if it was built."""

    @property
    def tells_of_requests(self) -> bool:
        """Return whether a hook or an event needs the request that creates or terminates an upload."""
        return self.uploads.hooks is not None or self.config.tells_in_format_of_tusd


CONTEXT: Final = web.AppKey("web", HttpContext)
UPLOAD_ID: Final = web.RequestKey("upload_id", object)
"""The public id of the upload that a request was about, for the log."""
RECORDED: Final[web.RequestKey[Upload]] = web.RequestKey("recorded")
"""The upload as it is after a request that failed, whose reply tells the true offset."""
BYTES_IN: Final = web.RequestKey("bytes_in", int)
KIND: Final = web.RequestKey("kind", str)
"""What the request does, one of `metrics.REQUEST_KINDS`; without it "other"."""
REQUEST_ID: Final = web.RequestKey("request_id", str)
CLOSE: Final = web.RequestKey("close", bool)
"""Drop the connection instead of answering."""
PROBLEM: Final = web.RequestKey("problem", bool)
"""Errors are answered as problem+json."""
DIALECT: Final[web.RequestKey[Dialect]] = web.RequestKey("dialect")
"""How the request speaks; ask `dialect_of`, which chooses."""
DESCRIPTION: Final[web.RequestKey[dict[str, str]]] = web.RequestKey("description")
"""Headers that tell of the upload whose bytes are the response."""
PUBLIC: Final = web.RequestKey("public", bool)
"""The response is an upload that everybody may download."""
METHOD: Final = web.RequestKey("method", str)
"""The method that an override made of the request's own."""
