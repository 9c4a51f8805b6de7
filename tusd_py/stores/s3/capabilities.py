"""What a store understands, found out from its responses and remembered by the process.

A store cannot be asked beforehand: some accept checksums that they never verify. So an unknown one
gets CRC64NVME and Content-MD5 until it has returned the former, which only those do that know it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from tusd_py.config.sections import S3StoreConfig
from tusd_py.errors import PermanentStoreError
from tusd_py.stores.s3.errors import UNSUPPORTED, code_of

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What this process sends to its store, as far as the store has shown what it understands."""

    checksum_setting: str
    """`storage.s3.checksum`."""
    crc64nvme: bool | None
    """True if the store verifies it; None: nothing is known yet."""
    precondition: bool
    """True while If-None-Match and If-Match are sent; a store that ignores them does no harm."""

    @classmethod
    def at_start(cls, config: S3StoreConfig) -> Capabilities:
        """Return what can be known from the configuration alone."""
        crc: bool | None = config.checksum == "crc64nvme"
        if config.checksum == "auto":
            # AWS is known to verify it. Others are asked by the first object they get.
            crc = None if config.endpoint_url else True
        return cls(config.checksum, crc, precondition=not config.file_overwrite)

    @property
    def sends_crc64nvme(self) -> bool:
        """True if the checksum is sent, also to a store that has not shown yet what it does with it."""
        return self.crc64nvme is not False

    @property
    def sends_md5(self) -> bool:
        """True if Content-MD5 is sent: if configured, or until CRC64NVME is known to be verified."""
        return self.checksum_setting == "md5" or (self.checksum_setting == "auto" and self.crc64nvme is not True)

    @property
    def sends_sha256(self) -> bool:
        """True if SHA-256 is sent."""
        return self.checksum_setting == "sha256"

    def with_verified_checksum(self, *, verifies_crc64nvme: bool) -> Capabilities:
        """Return what is known after the store returned our checksum, or did not."""
        return replace(self, crc64nvme=verifies_crc64nvme) if self.crc64nvme is None else self

    def precondition_for(self, replaces: str | None) -> Mapping[str, Any]:
        """Return the parameter that makes the store replace nothing but the object of this ETag.

        None: nothing at all. Empty: the store returned none, so that no condition is possible.
        """
        if not self.precondition or replaces == "":
            return {}
        return {"IfNoneMatch": "*"} if replaces is None else {"IfMatch": replaces}

    def variants(self) -> Iterator[Capabilities]:
        """Return what to try in turn, the best first, while the store refuses a header."""
        yield self
        if self.crc64nvme is None:
            yield replace(self, crc64nvme=False)
        if self.precondition:
            yield replace(self, precondition=False)
            if self.crc64nvme is None:
                yield replace(self, crc64nvme=False, precondition=False)


class CapabilityDetector:
    """What this process knows of its store; shared by all its transfers."""

    def __init__(self, capabilities: Capabilities) -> None:
        self.capabilities = capabilities

    async def with_fallbacks(self, call: Callable[[Capabilities], Awaitable[T]]) -> T:
        """Make a call; if the store refuses a header, repeat it without, and remember that.

        Raises:
            StorageError: as `call` raises it, once there is nothing left to leave out.
        """
        variants = list(self.capabilities.variants())
        for capabilities in variants:
            try:
                result = await call(capabilities)
            except PermanentStoreError as error:
                if capabilities is variants[-1] or code_of(error) not in UNSUPPORTED:
                    raise
            else:
                if capabilities is not variants[0]:
                    self.capabilities = capabilities
                return result
        raise AssertionError("there is always a variant")

    def record(self, *, verifies_crc64nvme: bool) -> None:
        """Remember that the store returned our checksum, or did not."""
        self.capabilities = self.capabilities.with_verified_checksum(verifies_crc64nvme=verifies_crc64nvme)
