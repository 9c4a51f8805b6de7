"""The disk that receives the bytes: positioned writes, sync, one writer per file."""

from tusd_py.staging.area import StagingArea

__all__ = ["StagingArea"]
