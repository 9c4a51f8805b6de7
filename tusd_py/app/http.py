"""The HTTP side, wired, and what people ask of uploads by a command."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING
from uuid import UUID

from tusd_py.app.core import Core, add_hooks
from tusd_py.config import Config
from tusd_py.database.events import EventRecords
from tusd_py.database.lists import UploadLists
from tusd_py.database.notifier import (
    LISTENERS_CHANNEL,
    NOTIFY,
    PROGRESS_CHANNEL,
    RELEASE_CHANNEL,
    UPLOADS_CHANNEL,
)
from tusd_py.errors import DatabaseUnavailable
from tusd_py.http.context import HttpContext
from tusd_py.http.cors import CorsPolicy
from tusd_py.http.hosts import HostPolicy, TrustedProxies, public_names
from tusd_py.locks import LocalLocks
from tusd_py.protocol.features import Features
from tusd_py.protocol.upload import UploadId
from tusd_py.uploads.changes import ChangeNotifier
from tusd_py.uploads.live_events import ListenerLimits, LiveEvents
from tusd_py.uploads.service import Timing, UploadService

if TYPE_CHECKING:
    from tusd_py.ports import Authenticator


def derive_features(config: Config) -> Features:
    """Return what the server offers under a configuration."""
    return Features.derive(
        disabled=config.tus.disable,
        checksum_trailer=config.tus.checksum_trailer,
        expires=config.tus.expire_after > 0,
        max_size=config.limits.max_size,
        max_metadata=config.limits.max_metadata,
        max_partials=config.limits.max_parts,
        base_path=config.server.base_path,
        downloads=config.downloads.enabled,
        rufh=config.rufh.enabled,
        max_append_size=config.rufh.max_append_size,
        expires_after_seconds=config.tus.expire_after,
    )


def make_authenticator(config: Config) -> Authenticator | None:
    """Return what finds out who is asking, None where nobody is asked."""
    if config.auth.mode == "none":
        return None
    from tusd_py.auth.jwt import JwtAuthenticator

    return JwtAuthenticator(config.auth.jwt)


def make_http_context(
    core: Core,
    *,
    changes: ChangeNotifier | None = None,
    timing: Timing | None = None,
    listeners: ListenerLimits | None = None,
) -> HttpContext:
    """Wire the HTTP side."""
    config = core.config
    add_hooks(core)
    uploads = make_upload_service(core, changes=changes, timing=timing)
    live = LiveEvents(EventRecords(core.database), core.uploads, core.notifier, listeners)
    core.notifications.subscribe(UPLOADS_CHANNEL, live.changed)
    core.notifications.subscribe(PROGRESS_CHANNEL, live.progressed)
    core.notifications.subscribe(LISTENERS_CHANNEL, core.notifier.someone_listens)
    return HttpContext(
        config=config,
        features=uploads.features,
        uploads=uploads,
        changes=uploads.changes,
        stores=core.stores,
        authenticator=make_authenticator(config),
        cors=CorsPolicy(config.cors),
        trusted=TrustedProxies(proxies) if (proxies := config.server.trusted_proxies) else None,
        hosts=HostPolicy(public_names(config.server)) if config.auth.mode == "none" else None,
        metrics=core.metrics,
        live=live,
    )


def make_upload_service(
    core: Core, *, changes: ChangeNotifier | None = None, timing: Timing | None = None
) -> UploadService:
    """Wire what is done with uploads, with who tells of their changes. To be said before anything is opened."""
    config = core.config

    async def ask_others(upload_id: str) -> None:
        with contextlib.suppress(DatabaseUnavailable):
            await core.database.execute(NOTIFY, RELEASE_CHANNEL, f"{os.getpid()}:{upload_id}")

    locks = LocalLocks(timeout_seconds=config.staging.lock_timeout, ask_others=ask_others)
    core.notifications.subscribe(RELEASE_CHANNEL, lambda payload: _asked(locks, payload))
    changes = changes or ChangeNotifier()
    core.notifications.subscribe(UPLOADS_CHANNEL, changes.changed)
    return UploadService(
        config,
        derive_features(config),
        uploads=core.uploads,
        lists=UploadLists(core.database),
        transfers=core.transfers,
        staging=core.staging,
        stores=core.stores,
        locks=locks,
        changes=changes,
        timing=timing,
        hooks=core.hooks,
    )


def _asked(locks: LocalLocks, payload: str) -> None:
    sender, _, upload_id = payload.partition(":")
    if upload_id and sender != str(os.getpid()):
        locks.asked(UploadId(UUID(upload_id)))
