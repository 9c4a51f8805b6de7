"""The HTTP side, wired, and what people ask of uploads by a command."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING
from uuid import UUID

from tusd_py.app.core import Core, Records
from tusd_py.authorization import Rules
from tusd_py.config import Config
from tusd_py.database.lists import UploadLists
from tusd_py.database.notifier import NOTIFY, RELEASE_CHANNEL, UPLOADS_CHANNEL
from tusd_py.errors import DatabaseUnavailable
from tusd_py.http.context import HttpContext
from tusd_py.http.cors import CorsPolicy
from tusd_py.http.hosts import HostPolicy, TrustedProxies, public_names
from tusd_py.locks import LocalLocks
from tusd_py.protocol.features import Features
from tusd_py.protocol.upload import Trigger, UploadId
from tusd_py.uploads.access import Access, UploadSettings
from tusd_py.uploads.buffers import AppendSettings
from tusd_py.uploads.catalog import Catalog
from tusd_py.uploads.changes import ChangeNotifier
from tusd_py.uploads.creation import Creator
from tusd_py.uploads.locate import Locator
from tusd_py.uploads.service import UploadService

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
        max_parts=config.limits.max_parts,
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


def make_http_context(core: Core) -> HttpContext:
    """Wire the HTTP side."""
    config = core.config

    async def ask_others(upload_id: str) -> None:
        with contextlib.suppress(DatabaseUnavailable):
            await core.database.execute(NOTIFY, RELEASE_CHANNEL, f"{os.getpid()}:{upload_id}")

    locks = LocalLocks(timeout_seconds=config.staging.lock_timeout, ask_others=ask_others)
    core.notifications.subscribe(RELEASE_CHANNEL, lambda payload: _asked(locks, payload))
    features = derive_features(config)
    settings = upload_settings(config, features)
    access = Access(core.uploads, settings)
    uploads = UploadService(core.uploads, core.staging, locks, access, settings)
    changes = make_watch(core)
    return HttpContext(
        config=config,
        features=features,
        uploads=uploads,
        creator=Creator(core.uploads, core.staging, uploads, access, stores=core.stores, settings=settings),
        catalog=Catalog(core.uploads, UploadLists(core.database), core.transfers, access, changes),
        locator=Locator(
            core.uploads, core.staging, access, core.stores, url_expiry_seconds=int(config.downloads.url_expiry)
        ),
        changes=changes,
        stores=core.stores,
        authenticator=make_authenticator(config),
        cors=CorsPolicy(config.cors),
        trusted=TrustedProxies(proxies) if (proxies := config.server.trusted_proxies) else None,
        hosts=HostPolicy(public_names(config.server)) if config.auth.mode == "none" else None,
        metrics=core.metrics,
    )


def make_watch(records: Records) -> ChangeNotifier:
    """Wire who waits for uploads with who tells of their changes. To be said before anything is opened."""
    changes = ChangeNotifier()
    records.notifications.subscribe(UPLOADS_CHANNEL, changes.changed)
    return changes


def make_catalog(records: Records) -> Catalog:
    """Wire what people ask of uploads, for a command. To be said before anything is opened."""
    settings = upload_settings(records.config, derive_features(records.config))
    return Catalog(
        records.uploads,
        UploadLists(records.database),
        records.transfers,
        Access(records.uploads, settings),
        make_watch(records),
    )


def _asked(locks: LocalLocks, payload: str) -> None:
    sender, _, upload_id = payload.partition(":")
    if upload_id and sender != str(os.getpid()):
        locks.asked(UploadId(UUID(upload_id)))


def upload_settings(config: Config, features: Features) -> UploadSettings:
    """Return the part of the configuration that the use-cases need."""
    return UploadSettings(
        key_template=config.storage.key_template,
        append=AppendSettings(
            max_size=features.max_size,
            block_size=config.staging.block_size,
            buffer_budget=config.staging.buffer_budget,
            checkpoint_bytes=config.staging.checkpoint_bytes,
            checkpoint_seconds=config.staging.checkpoint_seconds,
            expires_after_seconds=config.tus.expire_after if features.offers("expiration") else 0,
            min_rate=config.limits.min_rate,
        ),
        allow_unfinished_parts=features.offers("concatenation-unfinished"),
        allow_repeated_parts=config.limits.allow_repeated_partials,
        reserve=config.staging.reserve,
        max_empty_patches=config.limits.max_empty_patches,
        gone_status=config.tus.gone_status,
        rules=Rules(
            create_scope=config.auth.jwt.create_scope,
            read_any_scope=config.auth.jwt.read_any_scope,
            admin_scope=config.auth.jwt.admin_scope,
            downloads={name: profile.perm_download for name, profile in config.profiles.items()},
        ),
        triggers={
            name: Trigger(profile.trigger or config.transfer.trigger) for name, profile in config.profiles.items()
        },
    )
