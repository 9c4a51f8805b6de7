"""What all sections share: their base class, and the types of their keys."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from tusd_py.config.units import Bytes, Seconds, Secret

MIB: Final = 2**20
GIB: Final = 2**30
MAX_LENGTH: Final = 2**63 - 1
"""The largest length that the protocol's headers and a `bigint` can hold, in bytes."""

_URL: Final = re.compile(r"[Hh][Tt][Tt][Pp][Ss]?://(?:(?![?#])[!-~])+")


def _http_url(value: str) -> str:
    # urlsplit silently drops line breaks, and checks the port only when it is read.
    try:
        parts = urlsplit(value)
        usable = bool(_URL.fullmatch(value) and parts.hostname and parts.port != 0 and "@" not in parts.netloc)
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("an absolute http:// or https:// URL without user and query is expected")
    return value.rstrip("/")


def number_in_text(value: object) -> object:
    """Return the number in a text of digits, and anything else as it is."""
    # The environment knows only text, and a Literal of numbers is not converted.
    return int(value) if isinstance(value, str) and re.fullmatch("[0-9]{1,9}", value) else value


def empty_is_none(value: object) -> object:
    """Return None for an empty text, for TOML has no null, and anything else as it is."""
    return None if value == "" else value


def _endpoint_url(value: str) -> str:
    _http_url(value.partition("?")[0])
    if not re.fullmatch("(?!.*#)[!-~]+", value):
        raise ValueError("an absolute http:// or https:// URL without user and fragment is expected")
    return value


HttpUrl = Annotated[str, AfterValidator(_http_url)]
EndpointUrl = Annotated[str, AfterValidator(_endpoint_url)]
"""As it is written: a slash at its end, or a query, may matter to the receiver."""
OptionalEndpointUrl = Annotated[EndpointUrl | None, BeforeValidator(empty_is_none)]
OptionalHttpUrl = Annotated[HttpUrl | None, BeforeValidator(empty_is_none)]
OptionalPath = Annotated[Path | None, BeforeValidator(empty_is_none)]
OptionalSecret = Annotated[Secret | None, BeforeValidator(empty_is_none)]
OptionalText = Annotated[str | None, BeforeValidator(empty_is_none)]
Port = Annotated[int, Field(ge=0, le=65535)]
OptionalPort = Annotated[Port | None, BeforeValidator(empty_is_none)]
PositiveBytes = Annotated[Bytes, Field(gt=0)]
PositiveSeconds = Annotated[Seconds, Field(gt=0)]


class Section(BaseModel):
    """A table of the configuration file. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_booleans_as_numbers(cls, value: object, info: ValidationInfo) -> object:
        # pydantic reads true as 1: port = true would listen on port 1.
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation in {int, float}:
            raise ValueError("a number is expected, not true or false")
        return value
