"""The configuration: one TOML file, `TUSD_…` environment variables, all problems at once."""

from tusd_py.config.load import load_config
from tusd_py.config.model import Config
from tusd_py.config.sections import (
    AuthConfig,
    CleanupConfig,
    CorsConfig,
    DatabaseConfig,
    DownloadsConfig,
    FilesystemStoreConfig,
    JwtConfig,
    LimitsConfig,
    LoggingConfig,
    OperationsConfig,
    ProfileConfig,
    RufhConfig,
    S3StoreConfig,
    Section,
    ServerConfig,
    StagingConfig,
    StorageConfig,
    TransferConfig,
    TusConfig,
)

__all__ = [
    "AuthConfig",
    "CleanupConfig",
    "Config",
    "CorsConfig",
    "DatabaseConfig",
    "DownloadsConfig",
    "FilesystemStoreConfig",
    "JwtConfig",
    "LimitsConfig",
    "LoggingConfig",
    "OperationsConfig",
    "ProfileConfig",
    "RufhConfig",
    "S3StoreConfig",
    "Section",
    "ServerConfig",
    "StagingConfig",
    "StorageConfig",
    "TransferConfig",
    "TusConfig",
    "load_config",
]
