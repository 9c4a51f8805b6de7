"""`[[webhooks]]`: tell applications what has happened to uploads."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, model_validator

from tusd_py.config.sections.base import EndpointUrl, OptionalSecret, OptionalText, PositiveSeconds, Section
from tusd_py.config.units import Secret
from tusd_py.protocol.events import EventKind, kinds_matching
from tusd_py.webhooks.signatures import signing_key

HOOKS_ENDPOINT: Final = "hooks"
"""Under this name the programs in `hooks.file` are told of events."""
_NAME: Final = re.compile(r"[!-~]{1,255}")


def _name(value: str | None) -> str | None:
    if value is not None and not _NAME.fullmatch(value):
        raise ValueError("a name of at most 255 printable characters without spaces is expected")
    return value


def _pattern(value: str) -> str:
    if not kinds_matching([value]):
        known = ", ".join(sorted(kind.value for kind in EventKind))
        raise ValueError(f'{value!r} matches no event; there are {known}, and patterns such as "upload.*"')
    return value


def _signing_secret(value: Secret) -> Secret:
    signing_key(value.get_secret_value())
    return value


SigningSecret = Annotated[Secret, AfterValidator(_signing_secret)]


class WebhookConfig(Section):
    """An endpoint that is told of events. Each one is delivered to independently of the others."""

    name: Annotated[OptionalText, AfterValidator(_name)] = Field(
        default=None, description="under which deliveries are recorded and counted; empty: the URL without its query"
    )
    url: EndpointUrl = Field(description="where events are sent by POST")
    secret: OptionalSecret = Field(default=None, description='signs the messages: "whsec_" and a key in base64')
    secrets: list[SigningSecret] = Field(
        default=[], description="several secrets, while one is being replaced: each signs"
    )
    events: list[Annotated[str, AfterValidator(_pattern)]] = Field(
        default=["upload.*"], description='which events; "upload.*" is all but upload.progress'
    )
    format: Literal["cloudevents", "tusd"] = Field(
        default="cloudevents", description="CloudEvents 1.0 in JSON, or what tusd's HTTP hooks send"
    )
    profiles: list[str] = Field(default=[], description="only uploads of these profiles; empty: of all")
    timeout: PositiveSeconds = Field(default=15, description="how long one delivery may take")
    concurrency: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=8, description="deliveries at the same time, per worker process"
    )
    allow_private: bool = Field(
        default=True, description="off: an address of a private network, or of this machine, is refused"
    )

    @model_validator(mode="after")
    def _one_kind_of_secret(self) -> WebhookConfig:
        if self.secret is not None:
            if self.secrets:
                raise ValueError("secret and secrets exclude each other: put all of them into secrets")
            signing_key(self.secret.get_secret_value())
        return self

    @property
    def endpoint(self) -> str:
        """The name under which its deliveries are recorded."""
        return self.name or self.url.partition("?")[0]

    @property
    def signing_secrets(self) -> list[str]:
        """The secrets that sign each message; none: messages are not signed."""
        given = [self.secret] if self.secret is not None else self.secrets
        return [secret.get_secret_value() for secret in given]
