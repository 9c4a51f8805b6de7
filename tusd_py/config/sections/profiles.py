"""`[profiles.NAME]`: rules for the uploads of one application among several."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from tusd_py.config.sections.base import Section
from tusd_py.config.sections.object_parameters import ProfileObjectParameters
from tusd_py.config.sections.transfer import OptionalTrigger
from tusd_py.protocol.upload import DEFAULT_PROFILE

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_SCOPE: Final = re.compile(r"[!#-\[\]-~]+")


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError("a name of at most 63 letters a-z, digits, - and _ is expected")
    return value


def _scope(value: str) -> str:
    if not _SCOPE.fullmatch(value):
        raise ValueError('"owner", "public" or a scope (RFC 6749) is expected')
    return value


def _with_default(profiles: dict[str, ProfileConfig]) -> dict[str, ProfileConfig]:
    return {DEFAULT_PROFILE: ProfileConfig()} | profiles


class ProfileConfig(Section):
    """Rules for uploads whose token names this profile; "default" is for all others."""

    trigger: OptionalTrigger = Field(default=None, description="empty: transfer.trigger")
    perm_download: Annotated[str, AfterValidator(_scope)] = Field(
        default="owner",
        description='who may download: "owner", "public" (everybody), or a scope (the owner and whoever has it)',
    )
    object_parameters: ProfileObjectParameters = Field(default_factory=ProfileObjectParameters)


Profiles = Annotated[dict[Annotated[str, AfterValidator(_name)], ProfileConfig], AfterValidator(_with_default)]
"""By name. "default" always exists."""
