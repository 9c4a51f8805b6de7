"""Read the configuration from its sources and report every problem with its key path.

Order of precedence: command line, environment, TOML file, defaults.
"""

from __future__ import annotations

import os
import socket
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from tusd_py.config.checks import cross_problems
from tusd_py.config.sections import (
    AuthConfig,
    CleanupConfig,
    CorsConfig,
    DatabaseConfig,
    DownloadsConfig,
    LimitsConfig,
    LoggingConfig,
    OperationsConfig,
    ServerConfig,
    StagingConfig,
    StorageConfig,
    TransferConfig,
    TusConfig,
)
from tusd_py.errors import ConfigError

ENV_PREFIX: Final = "TUSD_"
ENV_DELIMITER: Final = "__"
RESERVED_ENV: Final = frozenset({"TUSD_READY_FILE", "TUSD_POSTGRES_BIN", "TUSD_TEST_DSN"})
"""Variables of our prefix that are not configuration."""


class Config(BaseSettings):
    """The whole configuration. Immutable; every adapter receives only its own section."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_nested_delimiter=ENV_DELIMITER, extra="forbid", frozen=True, validate_default=True
    )

    data_dir: Path = Field(Path("tusd-data"), description="everything that is kept, unless a section says otherwise")
    server: ServerConfig = Field(default_factory=ServerConfig)
    cors: CorsConfig = Field(default_factory=CorsConfig)
    limits: LimitsConfig = Field(default_factory=LimitsConfig)
    tus: TusConfig = Field(default_factory=TusConfig)
    staging: StagingConfig = Field(default_factory=StagingConfig)
    database: DatabaseConfig = Field(default_factory=DatabaseConfig)
    storage: StorageConfig = Field(default_factory=StorageConfig)
    transfer: TransferConfig = Field(default_factory=TransferConfig)
    auth: AuthConfig = Field(default_factory=AuthConfig)
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
        return (self.storage.filesystem.directory or self.data_dir / "store").absolute()

    @property
    def node(self) -> str:
        """The name under which this node's staging files are recorded."""
        return self.server.node or socket.gethostname()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Leave out the sources nobody asked for; the file's values come in by `load_config`."""
        del dotenv_settings, file_secret_settings
        file_values = _file_values.get(settings_cls, {})
        return init_settings, env_settings, InitSettingsSource(settings_cls, init_kwargs=dict(file_values))


_file_values: dict[type[BaseSettings], Mapping[str, Any]] = {}
"""The parsed file of the class being built: pydantic-settings asks the class, not a call, for sources."""


def load_config(path: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Config:
    """Build the configuration from a file (None: defaults), the environment and `overrides`.

    Raises:
        ConfigError: with every problem found, each as `key.path: message`.
    """
    problems = _unknown_environment()
    values = _read_file(path) if path is not None else {}

    class Loaded(Config):
        """A class of its own per call, so that its file is its own."""

    _file_values[Loaded] = values
    try:
        config = Loaded(**(overrides or {}))
    except ValidationError as error:
        raise ConfigError(problems + _validation_problems(error)) from None
    except SettingsError as error:
        raise ConfigError([*problems, f"environment: {error}"]) from None
    finally:
        del _file_values[Loaded]
    if problems := problems + cross_problems(config):
        raise ConfigError(problems)
    return config


def _read_file(path: Path) -> dict[str, Any]:
    # pydantic-settings passes over a file that is not there; a service must not start without it.
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: is not valid TOML: {error}"]) from error


def _unknown_environment() -> list[str]:
    sections = Config.model_fields.keys()
    return [
        f"environment: {name} names no key (sections: {', '.join(sections)})"
        for name in sorted(os.environ)
        if name.startswith(ENV_PREFIX)
        and name not in RESERVED_ENV
        and name[len(ENV_PREFIX) :].split(ENV_DELIMITER)[0].lower() not in sections
    ]


def _validation_problems(error: ValidationError) -> list[str]:
    problems = []
    for problem in error.errors(include_url=False, include_context=False):
        path = ".".join(str(step) for step in problem["loc"] if not str(step).startswith("function-"))
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "unknown key"
        problems.append(f"{path}: {message}")
    return problems
