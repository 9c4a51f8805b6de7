"""`object_parameters` of `[storage.s3]` and of profiles: what is sent along with an object."""

from __future__ import annotations

import re
from datetime import UTC
from email.utils import format_datetime, parsedate_to_datetime
from typing import Annotated, Any, Final, Literal, Protocol

from pydantic import AfterValidator, BeforeValidator, Field

from tusd_py.config.sections.base import Section, empty_is_none

MAX_TAGS: Final = 10
"""Of one object, says S3."""

_METADATA_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_OUR_METADATA: Final = "tusd-"


def _http_date(value: str) -> str:
    try:
        return value and format_datetime(parsedate_to_datetime(value).astimezone(UTC), usegmt=True)
    except ValueError:
        raise ValueError('a date like "Thu, 31 Dec 2026 23:59:59 GMT" is expected') from None


def _metadata(value: dict[str, str]) -> dict[str, str]:
    for name in value:
        if not _METADATA_NAME.fullmatch(name) or name.startswith(_OUR_METADATA):
            raise ValueError(f"{name!r} is no name for metadata: a-z, 0-9 and -, and not tusd-…")
    return value


class ObjectHeaders(Section):
    """What may be sent with an object beside its type. Empty: it is not sent."""

    cache_control: str = Field(default="", description="Cache-Control of downloads from the store")
    content_disposition: str = Field(default="", description="Content-Disposition of downloads that bypass our links")
    content_language: str = Field(default="", description="Content-Language")
    expires: Annotated[str, AfterValidator(_http_date)] = Field(default="", description="Expires, an HTTP date")
    tagging: Annotated[dict[str, str], Field(max_length=MAX_TAGS)] = Field(
        default={}, description="tags of the object; needs the permission s3:PutObjectTagging"
    )
    metadata: Annotated[dict[str, str], AfterValidator(_metadata)] = Field(
        default={}, description="x-amz-meta-*, in addition to our tusd-upload-id and tusd-filename"
    )
    bucket_key_enabled: Annotated[bool | None, BeforeValidator(empty_is_none)] = Field(
        default=None, description="S3 Bucket Keys, which make sse = aws:kms cheaper"
    )

    def s3_parameters(self) -> dict[str, Any]:
        """Return what is set, by the names of S3. Tags and metadata stay tables, to be merged."""
        named = {
            "CacheControl": self.cache_control,
            "ContentDisposition": self.content_disposition,
            "ContentLanguage": self.content_language,
            "Expires": parsedate_to_datetime(self.expires) if self.expires else None,
            "Tagging": self.tagging,
            "Metadata": self.metadata,
            "BucketKeyEnabled": self.bucket_key_enabled,
        }
        return {name: value for name, value in named.items() if value or value is False}


class ObjectParameters(ObjectHeaders):
    """Sent with every object; a profile may override them. Empty: not sent."""

    cache_control: str = Field(
        default="private, max-age=86400", description="Cache-Control of downloads from the store"
    )


class ProfileObjectParameters(ObjectHeaders):
    """Sent with the objects of a profile. Empty: what [storage.s3] says."""

    acl: str = Field(default="", description="canned ACL")
    storage_class: str = Field(default="", description="for example GLACIER_IR")
    sse: Literal["", "AES256", "aws:kms"] = Field(default="", description="server-side encryption")
    sse_kms_key_id: str = Field(default="", description="key for aws:kms")

    def s3_parameters(self) -> dict[str, Any]:
        """Return what is set, by the names of S3."""
        return super().s3_parameters() | storage_parameters(self)


class StorageSettings(Protocol):
    """What `[storage.s3]` and a profile both say about how S3 keeps an object."""

    acl: str
    storage_class: str
    sse: Literal["", "AES256", "aws:kms"]
    sse_kms_key_id: str


def storage_parameters(settings: StorageSettings) -> dict[str, Any]:
    """Return those of the settings that are not empty, by the names of S3."""
    named = {
        "ACL": settings.acl,
        "StorageClass": settings.storage_class,
        "ServerSideEncryption": settings.sse,
        "SSEKMSKeyId": settings.sse_kms_key_id,
    }
    return {name: value for name, value in named.items() if value}
