"""Read the configuration from its sources and report every problem with its key path.

Order of precedence: command line, environment, TOML file, defaults.
"""

from __future__ import annotations

import os
import socket
import tomllib
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, get_origin

from pydantic import Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from tusd_py.config.checks import cross_problems
from tusd_py.config.places import store_directory
from tusd_py.config.sections import (
    AuthConfig,
    CleanupConfig,
    CorsConfig,
    DatabaseConfig,
    DownloadsConfig,
    IntegrityConfig,
    LimitsConfig,
    LoggingConfig,
    OperationsConfig,
    ProfileConfig,
    Profiles,
    RufhConfig,
    ServerConfig,
    StagingConfig,
    StorageConfig,
    TransferConfig,
    TusConfig,
)
from tusd_py.config.suggest import did_you_mean, keys, nearest_text, section_of
from tusd_py.errors import ConfigError
from tusd_py.protocol.upload import DEFAULT_PROFILE

MAX_PORT: Final = 65535
ENV_PREFIX: Final = "TUSD_"
ENV_DELIMITER: Final = "__"
RESERVED_ENV: Final = frozenset({"TUSD_READY_FILE", "TUSD_POSTGRES_BIN", "TUSD_TEST_DSN"})
"""Variables of our prefix that are not configuration."""


@dataclass(frozen=True, slots=True)
class _Sources:
    file: Mapping[str, Any] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()
    """Top-level keys to leave at their defaults, wherever they come from."""

    def kept(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if key not in self.ignored}


_NO_FILE: Final = _Sources()
_sources: ContextVar[_Sources] = ContextVar("_sources", default=_NO_FILE)
"""What the next `Config()` reads: pydantic-settings asks the class, not a call, for its sources."""


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


class Config(BaseSettings):
    """The whole configuration. Immutable; an adapter receives only its section."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter=ENV_DELIMITER,
        extra="forbid",
        frozen=True,
        validate_default=True,
    )

    data_dir: Path = Field(
        default=Path("tusd-data"), description="directory of all data, unless a section names another"
    )
    server: ServerConfig = Field(default_factory=ServerConfig)
    cors: CorsConfig = Field(default_factory=CorsConfig)
    limits: LimitsConfig = Field(default_factory=LimitsConfig)
    tus: TusConfig = Field(default_factory=TusConfig)
    rufh: RufhConfig = Field(default_factory=RufhConfig)
    staging: StagingConfig = Field(default_factory=StagingConfig)
    database: DatabaseConfig = Field(default_factory=DatabaseConfig)
    storage: StorageConfig = Field(default_factory=StorageConfig)
    transfer: TransferConfig = Field(default_factory=TransferConfig)
    integrity: IntegrityConfig = Field(default_factory=IntegrityConfig)
    auth: AuthConfig = Field(default_factory=AuthConfig)
    profiles: Profiles = Field(default_factory=lambda: {DEFAULT_PROFILE: ProfileConfig()})
    downloads: DownloadsConfig = Field(default_factory=DownloadsConfig)
    cleanup: CleanupConfig = Field(default_factory=CleanupConfig)
    operations: OperationsConfig = Field(default_factory=OperationsConfig)
    logging: LoggingConfig = Field(default_factory=LoggingConfig)

    @property
    def staging_directory(self) -> Path:
        """The directory of the staging files."""
        return (self.staging.directory or self.data_dir / "staging").absolute()

    @property
    def store_directory(self) -> Path:
        """The root of the filesystem store."""
        return store_directory(self, self.storage)

    @property
    def operations_port(self) -> int:
        """The port of the operations listener; 0 takes a free one."""
        if self.operations.port is not None:
            return self.operations.port
        return self.server.port + 1 if 0 < self.server.port < MAX_PORT else 0

    @property
    def node(self) -> str:
        """The name of this node, for people."""
        return self.server.node or socket.gethostname()

    def with_dsn(self, dsn: str) -> Config:
        """Return the same configuration with another database."""
        return self.model_copy(update={"database": self.database.model_copy(update={"dsn": SecretStr(dsn)})})

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Leave out dotenv and secret files; `load_config` supplies the values of the file."""
        del env_settings, dotenv_settings, file_secret_settings
        sources = _sources.get()
        file_settings = InitSettingsSource(settings_cls, init_kwargs=sources.kept(sources.file))
        return init_settings, _Environment(settings_cls), file_settings


def load_config(path: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Config:
    """Return the configuration from a file (None: defaults), the environment and `overrides`.

    Raises:
        ConfigError: with every problem found, each as `key.path: message`.
    """
    problems = _unknown_environment()
    values = _read_file(path) if path is not None else {}
    broken: frozenset[str] = frozenset()
    try:
        config = _build(_Sources(values), overrides or {})
    except ValidationError as error:
        problems += _validation_problems(error)
        # The valid sections can still be checked against each other, so that all problems are reported at once.
        broken = frozenset(str(problem["loc"][0]) for problem in error.errors())
        config = _build(_Sources(values, broken), overrides or {})
    if problems := problems + cross_problems(config, broken):
        raise ConfigError(problems)
    return config


def _build(sources: _Sources, overrides: Mapping[str, Any]) -> Config:
    token = _sources.set(sources)
    try:
        return Config(**sources.kept(overrides))
    finally:
        _sources.reset(token)


def _read_file(path: Path) -> dict[str, Any]:
    # pydantic-settings ignores a missing file; a service must not start without it.
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: is not valid TOML: {error}"]) from error


def _unknown_environment() -> list[str]:
    # pydantic-settings reads only the variables it knows, in upper or lower case, and ignores the others.
    variables = [_variable(path) for path in keys(Config)]
    return [
        f"environment: {name} names no key{nearest_text(name.upper(), variables) or _all_sections()}"
        for name in sorted(os.environ)
        if name.upper().startswith(ENV_PREFIX)
        and name not in RESERVED_ENV
        and not _may_name_a_key(name[len(ENV_PREFIX) :].lower().split(ENV_DELIMITER))
    ]


def _may_name_a_key(steps: list[str]) -> bool:
    """Return whether the model itself reads this variable, and refuses it if it is wrong."""
    known = Config.model_fields.get(steps[0])
    return known is not None and (len(steps) == 1 or section_of(known.annotation) is not None)


def _variable(path: Sequence[str]) -> str:
    return ENV_PREFIX + ENV_DELIMITER.join(path).upper()


def _all_sections() -> str:
    return f" (sections: {', '.join(Config.model_fields)})"


def _validation_problems(error: ValidationError) -> list[str]:
    problems = []
    for problem in error.errors(include_url=False, include_context=False):
        path = [str(step) for step in problem["loc"] if not str(step).startswith("function-")]
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = f"unknown key{_from_environment(path)}{did_you_mean(Config, path)}"
        problems.append(f"{'.'.join(path)}: {message}")
    return problems


def _from_environment(path: Sequence[str]) -> str:
    variable = _variable(path)
    return next((f" (from the environment: {name})" for name in os.environ if name.upper() == variable), "")
