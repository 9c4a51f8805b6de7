"""The disk that receives the bytes: positioned writes, sync, one writer per file."""

from tusd_py.staging.area import StagingArea
from tusd_py.staging.scan import DirectoryScan

__all__ = ["DirectoryScan", "StagingArea"]
