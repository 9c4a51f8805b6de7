"""The types of fixtures that are functions."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from tusd_py.config import Config


class MakeConfig(Protocol):
    """Builds a configuration on the test's own database and folder; sections are merged by key."""

    def __call__(self, **sections: object) -> Config: ...


class MakeFile(Protocol):
    """Writes a file of random bytes; returns its path and its SHA-256."""

    def __call__(self, name: str, size: int) -> tuple[Path, str]: ...
