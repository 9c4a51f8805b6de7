"""The types of fixtures that are functions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tusd_py.config import Config
from tusd_py.ports import ObjectStore, Segment

if TYPE_CHECKING:
    from tests.support.destinations import Destination


class MakeConfig(Protocol):
    """Builds a configuration on the test's own database and folder; sections are merged by key."""

    def __call__(self, **sections: object) -> Config: ...


class MakeFile(Protocol):
    """Writes a file of random bytes; returns its path and its SHA-256."""

    def __call__(self, name: str, size: int) -> tuple[Path, str]: ...


class OpenStore(Protocol):
    """Opens a destination's store with changed settings; it is closed with the test."""

    async def __call__(self, destination: Destination, **changes: Any) -> ObjectStore: ...


class Stage(Protocol):
    """Writes pieces of content into staged files; returns them as segments."""

    def __call__(self, *pieces: bytes) -> list[Segment]: ...


class Content(Protocol):
    """Returns so many bytes, the same ones every time."""

    def __call__(self, length: int) -> bytes: ...
