"""The sections of the configuration: every key, its type, its default and one line of why.

`config.example.toml` and the reference in the documentation are generated from these classes, so a
key's description is written there and nowhere else. One module per table.
"""

from tusd_py.config.sections.auth import AuthConfig, JwtConfig
from tusd_py.config.sections.base import Section
from tusd_py.config.sections.cleanup import CleanupConfig
from tusd_py.config.sections.cors import CorsConfig
from tusd_py.config.sections.database import FEW_CONNECTIONS, DatabaseConfig
from tusd_py.config.sections.downloads import DownloadsConfig
from tusd_py.config.sections.events import EventsConfig
from tusd_py.config.sections.hooks import HooksConfig
from tusd_py.config.sections.integrity import IntegrityConfig
from tusd_py.config.sections.limits import LimitsConfig
from tusd_py.config.sections.logging import LoggingConfig
from tusd_py.config.sections.object_parameters import ObjectParameters, ProfileObjectParameters
from tusd_py.config.sections.operations import OperationsConfig
from tusd_py.config.sections.profiles import ProfileConfig, Profiles
from tusd_py.config.sections.rufh import RufhConfig
from tusd_py.config.sections.server import UNIX_PEER, ServerConfig, is_loopback
from tusd_py.config.sections.staging import StagingConfig
from tusd_py.config.sections.storage import FilesystemStoreConfig, FormerStoreConfig, StorageConfig
from tusd_py.config.sections.storage_s3 import S3ClientConfig, S3ProxiesConfig, S3StoreConfig
from tusd_py.config.sections.transfer import TransferConfig
from tusd_py.config.sections.tus import TusConfig
from tusd_py.config.sections.webhooks import WebhookConfig

__all__ = [
    "FEW_CONNECTIONS",
    "UNIX_PEER",
    "AuthConfig",
    "CleanupConfig",
    "CorsConfig",
    "DatabaseConfig",
    "DownloadsConfig",
    "EventsConfig",
    "FilesystemStoreConfig",
    "FormerStoreConfig",
    "HooksConfig",
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
    "WebhookConfig",
    "is_loopback",
]
