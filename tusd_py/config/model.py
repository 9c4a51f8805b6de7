"""The whole configuration: its tables, and what follows from more than one of them."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Final

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from tusd_py.config.sections import (
    AuthConfig,
    CleanupConfig,
    CorsConfig,
    DatabaseConfig,
    DownloadsConfig,
    EventsConfig,
    FormerStoreConfig,
    HooksConfig,
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
    WebhookConfig,
)
from tusd_py.config.sources import ENV_DELIMITER, ENV_PREFIX, settings_sources
from tusd_py.protocol.upload import DEFAULT_PROFILE

MAX_PORT: Final = 65535


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
    webhooks: list[WebhookConfig] = Field(
        default=[], description="[[webhooks]]: endpoints that are told of events; see docs/events.md"
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
    events: EventsConfig = Field(default_factory=EventsConfig)
    hooks: HooksConfig = Field(default_factory=HooksConfig)
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
        return self.directory_of(self.storage)

    def directory_of(self, storage: StorageConfig | FormerStoreConfig) -> Path:
        """Return the root of the filesystem store that `storage` configures."""
        return (storage.filesystem.directory or self.data_dir / "store").absolute()

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

    @property
    def tells_in_format_of_tusd(self) -> bool:
        """Return whether an endpoint, or a directory of programs, wants events in the format of tusd's hooks."""
        return self.hooks.file is not None or any(webhook.format == "tusd" for webhook in self.webhooks)

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
        return settings_sources(settings_cls, init_settings)
