"""Where the values of a configuration come from: arguments, environment, file. An earlier one wins.

pydantic-settings asks the class for its sources, not a call. So what the next `Config()` reads is a context
variable, set by `reading`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, get_origin

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, InitSettingsSource, PydanticBaseSettingsSource

ENV_PREFIX: Final = "TUSD_"
ENV_DELIMITER: Final = "__"


@dataclass(frozen=True, slots=True)
class Sources:
    """What a configuration is read from besides the environment."""

    file: Mapping[str, Any] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()
    """Top-level keys to leave at their defaults, wherever they come from."""

    def kept(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values whose keys are not ignored."""
        return {key: value for key, value in values.items() if key not in self.ignored}


_NO_FILE: Final = Sources()
_sources: ContextVar[Sources] = ContextVar("_sources", default=_NO_FILE)


@contextlib.contextmanager
def reading(sources: Sources) -> Iterator[None]:
    """Make these the sources of every configuration that is built inside the block."""
    token = _sources.set(sources)
    try:
        yield
    finally:
        _sources.reset(token)


def settings_sources(
    settings_cls: type[BaseSettings], arguments: PydanticBaseSettingsSource
) -> tuple[PydanticBaseSettingsSource, ...]:
    """Return what pydantic-settings reads, in order of precedence."""
    sources = _sources.get()
    file = InitSettingsSource(settings_cls, init_kwargs=sources.kept(sources.file))
    return arguments, _Environment(settings_cls), file


class _Environment(EnvSettingsSource):
    """The `TUSD_…` variables. A list is JSON or separated by commas.

    A value that does not parse is passed on as text: the model then reports it with its key path,
    together with all other problems, where the base class would stop at the first.
    """

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            if get_origin(field.annotation) is list:
                return [item.strip() for item in value.split(",") if item.strip()]
            return value

    def __call__(self) -> dict[str, Any]:
        return _sources.get().kept(super().__call__())
