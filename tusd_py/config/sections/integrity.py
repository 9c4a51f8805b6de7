"""`[integrity]`: digests of uploads."""

from __future__ import annotations

from pydantic import Field

from tusd_py.config.sections.base import Section


class IntegrityConfig(Section):
    """What is computed of an upload beside its CRC-64/NVME, by the worker that stores it."""

    sha256: bool = Field(default=False, description="record the SHA-256 of every upload")
    md5: bool = Field(default=False, description="record the MD5, for those who still compare it")

    @property
    def digests(self) -> frozenset[str]:
        """The names of what is wanted."""
        return frozenset(name for name in ("sha256", "md5") if getattr(self, name))
