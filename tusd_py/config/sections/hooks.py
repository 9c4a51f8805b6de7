"""`[hooks]`: ask the application before something happens to an upload."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, model_validator

from tusd_py.config.sections.base import OptionalEndpointUrl, OptionalPath, OptionalText, PositiveSeconds, Section
from tusd_py.config.units import Seconds
from tusd_py.protocol.events import HookKind

_FIELD: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_REFERENCE: Final = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*(?:\.[^\W\d]\w*)*")


def _field_name(value: str) -> str:
    if not _FIELD.fullmatch(value):
        raise ValueError(f"{value!r} is not the name of a header field (RFC 9110)")
    return value.lower()


def _object(value: str | None) -> str | None:
    if value is not None and not _REFERENCE.fullmatch(value):
        raise ValueError(f'{value!r} does not have the form "package.module:object"')
    return value


FieldName = Annotated[str, AfterValidator(_field_name)]


class HooksConfig(Section):
    """Blocking hooks: the application is asked and may refuse. At most one of http, file and python."""

    http: OptionalEndpointUrl = Field(
        default=None, description="URL that is asked by POST, in the format of tusd's hooks"
    )
    file: OptionalPath = Field(
        default=None, description="directory with a program for each hook, named pre-create and so on"
    )
    python: Annotated[OptionalText, AfterValidator(_object)] = Field(
        default=None, description='callable in this process, "package.module:object"; see docs/events.md'
    )
    events: list[HookKind] = Field(
        default=[HookKind.PRE_CREATE],
        description="which hooks are asked: pre-create, pre-finish, pre-terminate, post-receive",
    )
    timeout: PositiveSeconds = Field(default=15, description="how long a hook may take, all its tries together")
    retries: Annotated[int, Field(ge=0, le=100)] = Field(
        default=3, description="further tries of an HTTP hook that could not be reached or failed with 429 or 5xx"
    )
    backoff: Seconds = Field(default=1, ge=0, description="wait between two tries")
    forward_headers: list[FieldName] = Field(
        default=[],
        description="header fields of the client's request that are sent on with an HTTP hook, and with events in the"
        " format of tusd",
    )
    on_error: Literal["deny", "allow"] = Field(
        default="deny", description='when a hook fails: "deny" (503, the client tries again) or "allow" (go on)'
    )

    @model_validator(mode="after")
    def _one_transport(self) -> HooksConfig:
        given = [name for name in ("http", "file", "python") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other: name the one that is to be asked")
        return self

    @property
    def enabled(self) -> bool:
        """Return whether a hook is configured."""
        return bool(self.events) and (self.http or self.file or self.python) is not None
