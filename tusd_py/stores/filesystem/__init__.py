"""The store that is a directory."""

from tusd_py.stores.filesystem.store import FilesystemStore

__all__ = ["FilesystemStore"]
