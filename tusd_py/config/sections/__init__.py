"""The sections of the configuration: every key, its type, its default and one line of why.

`config.example.toml` and the reference in the documentation are generated from these classes, so a
key's description is written there and nowhere else. One module per concern.
"""

from tusd_py.config.sections.access import AuthConfig, DownloadsConfig, JwtConfig
from tusd_py.config.sections.base import Section
from tusd_py.config.sections.http import UNIX_PEER, CorsConfig, LoggingConfig, OperationsConfig, ServerConfig
from tusd_py.config.sections.local import FEW_CONNECTIONS, DatabaseConfig, StagingConfig
from tusd_py.config.sections.objects import ObjectParameters, ProfileObjectParameters
from tusd_py.config.sections.profiles import ProfileConfig, Profiles
from tusd_py.config.sections.s3 import S3ClientConfig, S3ProxiesConfig, S3StoreConfig
from tusd_py.config.sections.storage import FilesystemStoreConfig, FormerStoreConfig, StorageConfig
from tusd_py.config.sections.uploads import LimitsConfig, RufhConfig, TusConfig
from tusd_py.config.sections.work import CleanupConfig, IntegrityConfig, TransferConfig

__all__ = [
    "FEW_CONNECTIONS",
    "UNIX_PEER",
    "AuthConfig",
    "CleanupConfig",
    "CorsConfig",
    "DatabaseConfig",
    "DownloadsConfig",
    "FilesystemStoreConfig",
    "FormerStoreConfig",
    "IntegrityConfig",
    "JwtConfig",
    "LimitsConfig",
    "LoggingConfig",
    "ObjectParameters",
    "OperationsConfig",
    "ProfileConfig",
    "ProfileObjectParameters",
    "Profiles",
    "RufhConfig",
    "S3ClientConfig",
    "S3ProxiesConfig",
    "S3StoreConfig",
    "Section",
    "ServerConfig",
    "StagingConfig",
    "StorageConfig",
    "TransferConfig",
    "TusConfig",
]
