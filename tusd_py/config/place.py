"""The place of a store: if it changes, the objects stored there are out of reach. Pure."""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from tusd_py.config.model import Config
from tusd_py.config.sections import FormerStoreConfig, StorageConfig


@dataclass(frozen=True, slots=True)
class Place:
    """A bucket and prefix at an endpoint, or a directory. Fields that do not apply are empty."""

    backend: str
    endpoint: str = ""
    """Empty: AWS."""
    bucket: str = ""
    prefix: str = ""
    directory: str = ""
    """Relative to the data directory where it lies in it, so that the two may be moved together."""

    def __str__(self) -> str:
        if self.backend == "filesystem":
            return f"directory {self.directory}"
        at = f" at {self.endpoint}" if self.endpoint else ""
        return f"bucket {self.bucket}{at}{f', location {self.prefix}' if self.prefix else ''}"


def place_of(config: Config, storage: StorageConfig | FormerStoreConfig) -> Place:
    """Return the place of the store that `storage` configures."""
    if storage.backend == "s3":
        s3 = storage.s3
        return Place("s3", _endpoint(s3.endpoint_url), s3.bucket, s3.location.strip("/"))
    data, directory = os.path.abspath(config.data_dir), os.path.abspath(config.directory_of(storage))  # noqa: PTH100
    inside = os.path.relpath(directory, data)
    return Place("filesystem", directory=directory if inside.split("/")[0] == ".." else inside)


def _endpoint(url: str | None) -> str:
    if url is None:
        return ""
    parts = urlsplit(url)
    return parts._replace(scheme=parts.scheme.lower(), netloc=parts.netloc.lower()).geturl()
