"""Who may use which upload: every use-case begins here, before a byte is read or anything is locked."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tusd_py.authorization import Action, Principal, Rules, authorize
from tusd_py.errors import TusdError, UploadGone, UploadNotFound
from tusd_py.protocol.fields import is_upload_token
from tusd_py.protocol.upload import DEFAULT_PROFILE, TokenHash, Trigger, Upload, UploadId

if TYPE_CHECKING:
    from tusd_py.database.uploads import PostgresUploads
    from tusd_py.uploads.buffers import AppendSettings


@dataclass(frozen=True, slots=True)
class UploadSettings:
    """What the use-cases need to know of the configuration."""

    key_template: str
    append: AppendSettings
    allow_unfinished_parts: bool
    allow_repeated_parts: bool
    reserve: int
    """Bytes that stay free, in the store as in staging."""
    max_empty_patches: int
    gone_status: int
    rules: Rules
    triggers: Mapping[str, Trigger]
    """By profile: what begins the transfer of its uploads."""


def hash_token(token: str) -> TokenHash:
    """Return what the database knows of a token."""
    return TokenHash(hashlib.sha256(token.encode("ascii")).digest())


class Access:
    """Finds uploads for those who may use them."""

    def __init__(self, uploads: PostgresUploads, settings: UploadSettings) -> None:
        self._uploads = uploads
        self._settings = settings

    @property
    def rules(self) -> Rules:
        """The rules that hold here."""
        return self._settings.rules

    def permit(
        self, principal: Principal, action: Action, owner: str | None = None, *, profile: str = DEFAULT_PROFILE
    ) -> None:
        """Raise unless `principal` may do this; see `authorization.authorize`."""
        authorize(principal, action, owner, self.rules, profile=profile)

    async def load(self, principal: Principal, token: str, action: Action) -> Upload:
        """Return the upload behind a tus URL, for somebody who may use it so.

        Raises:
            UploadNotFound, UploadGone, AccessError.
        """
        upload = await self._uploads.find_by_token(hash_token(token)) if is_upload_token(token) else None
        return self._usable(upload, principal, action)

    async def usable(self, principal: Principal, upload_id: UploadId, action: Action) -> Upload:
        """Return an upload by its public id, for somebody who may use it so; raises as `load` does."""
        return self._usable(await self._uploads.find(upload_id), principal, action)

    async def view(self, principal: Principal, upload_id: UploadId, action: Action) -> Upload:
        """Return an upload by its public id, for somebody who may see it; gone ones as well."""
        upload = await self._uploads.find(upload_id)
        self._permit_on(upload, principal, action)
        if upload is None:
            raise UploadNotFound
        return upload

    def _usable(self, upload: Upload | None, principal: Principal, action: Action) -> Upload:
        self._permit_on(upload, principal, action)
        if upload is None:
            raise UploadNotFound
        if upload.gone(datetime.now(UTC)):
            raise self.gone()
        return upload

    def _permit_on(self, upload: Upload | None, principal: Principal, action: Action) -> None:
        # An unknown upload is checked as one's own: an invalid token is told so, everybody else gets 404.
        owner, profile = (principal.subject, "") if upload is None else (upload.owner, upload.profile)
        self.permit(principal, action, owner, profile=profile)

    def gone(self) -> TusdError:
        """Return the error for an upload that is there no more."""
        return UploadGone() if self._settings.gone_status == UploadGone.status else UploadNotFound()

    async def reload(self, upload_id: UploadId) -> Upload:
        """Return the upload as it stands now, for somebody who was permitted already.

        Raises:
            UploadNotFound, UploadGone.
        """
        upload = await self._uploads.find(upload_id)
        if upload is None or upload.gone(datetime.now(UTC)):
            raise self.gone()
        return upload
