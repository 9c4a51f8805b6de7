"""`[storage]`, `[storage.filesystem]` and `[[storage.former]]`: where finished uploads go."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tusd_py.config.sections.base import OptionalPath, Section
from tusd_py.config.sections.storage_s3 import S3StoreConfig


class FilesystemStoreConfig(Section):
    """The store of finished uploads on a disk."""

    directory: OptionalPath = Field(default=None, description="empty: <data_dir>/store")


class FormerStoreConfig(Section):
    """A store that was in use before and still holds uploads, as [storage] configured it then."""

    backend: Literal["filesystem", "s3"] = Field(default="filesystem", description="what storage.backend was")
    moved: bool = Field(
        default=False, description="its objects are in the current store now, under the same keys below its location"
    )
    filesystem: FilesystemStoreConfig = Field(default_factory=FilesystemStoreConfig)
    s3: S3StoreConfig = Field(default_factory=S3StoreConfig)


class StorageConfig(Section):
    """Where finished uploads go."""

    backend: Literal["filesystem", "s3"] = Field(
        default="filesystem", description="kind of store; clients notice no difference"
    )
    key_template: str = Field(
        default="{yyyy}/{mm}/{dd}/{id}",
        description="key of a finished upload from {id} {yyyy} {mm} {dd} {owner_hash}; must contain {id}",
    )
    filesystem: FilesystemStoreConfig = Field(default_factory=FilesystemStoreConfig)
    s3: S3StoreConfig = Field(default_factory=S3StoreConfig)
    former: list[FormerStoreConfig] = Field(
        default=[],
        description="[[storage.former]]: stores of before a change, which still hold uploads; see docs/stores.md",
    )
