"""The types of fixtures that are functions."""

from __future__ import annotations

from typing import Protocol

from tusd_py.config import Config


class MakeConfig(Protocol):
    """Builds a configuration on the test's own database and folder; sections are merged by key."""

    def __call__(self, **sections: object) -> Config: ...
