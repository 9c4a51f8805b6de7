"""`[downloads]`: links to finished uploads."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from tusd_py.config.sections.base import Section
from tusd_py.config.units import Seconds

_MEDIA_TYPE: Final = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]*/[a-z0-9][a-z0-9!#$&^_.+-]*")


def _media_type(value: str) -> str:
    if not _MEDIA_TYPE.fullmatch(lowered := value.lower()):
        raise ValueError(f'{value!r} is not a media type like "image/png"')
    return lowered


MediaType = Annotated[str, AfterValidator(_media_type)]


class DownloadsConfig(Section):
    """Links to finished uploads."""

    enabled: bool = Field(default=True, description="off: GET answers 405")
    url_expiry: Annotated[Seconds, Field(ge=1, le=604800)] = Field(
        default=300, description="lifetime of a presigned URL; each download gets a new one"
    )
    inline_types: list[MediaType] = Field(
        default=[
            "image/png", "image/jpeg", "image/gif", "image/webp", "image/avif", "image/bmp",
            "video/mp4", "video/webm", "audio/mpeg", "audio/mp4", "audio/ogg", "audio/wav", "audio/webm",
            "application/pdf", "text/plain",
        ],
        description="types a browser may show; everything else is saved as a file",
    )  # fmt: skip
