"""`[integrity]`: digests of uploads."""

from __future__ import annotations

from pydantic import Field

from tusd_py.config.sections.base import Section


class IntegrityConfig(Section):
    """Digests that the worker computes of each upload, besides its CRC-64/NVME."""

    sha256: bool = Field(default=False, description="record the SHA-256 of every upload")
    md5: bool = Field(default=False, description="record the MD5 of every upload")

    @property
    def digests(self) -> frozenset[str]:
        """The names of the wanted digests."""
        return frozenset(name for name in ("sha256", "md5") if getattr(self, name))
