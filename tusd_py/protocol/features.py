"""The features of this server, in every dialect. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

EXTENSIONS: Final = (
    "creation",
    "creation-with-upload",
    "creation-defer-length",
    "expiration",
    "checksum",
    "checksum-trailer",
    "termination",
    "concatenation",
    "concatenation-unfinished",
)
UPLOAD_METHODS: Final = ("OPTIONS", "HEAD", "GET", "PATCH", "DELETE")
CREATION_METHODS: Final = ("OPTIONS", "POST")


@dataclass(frozen=True, slots=True)
class Features:
    """The features of this server, derived once from the configuration."""

    extensions: frozenset[str]
    max_size: int | None = None
    max_metadata: int = 16384
    max_partials: int = 1000
    base_path: str = "/files"
    rufh: bool = True
    """The dialect of the IETF is spoken as well."""
    max_append_size: int | None = None
    """Most bytes of one request in that dialect."""
    max_age_seconds: int | None = None
    """Seconds for which an unfinished upload is kept after its last byte."""
    upload_methods: tuple[str, ...] = UPLOAD_METHODS
    """The methods of an upload's URL."""

    @classmethod
    def derive(  # noqa: PLR0913 -- each is one setting, and all are keywords
        cls,
        *,
        disabled: Iterable[str] = (),
        checksum_trailer: bool = False,
        expires: bool = True,
        max_size: int = 0,
        max_metadata: int = 16384,
        max_partials: int = 1000,
        base_path: str = "/files",
        downloads: bool = True,
        rufh: bool = True,
        max_append_size: int = 0,
        expires_after_seconds: float = 0,
    ) -> Features:
        """Return all features but those switched off, and those that depend on them."""
        extensions = set(EXTENSIONS) - set(disabled)
        if not expires:
            extensions.discard("expiration")
        if not checksum_trailer or "checksum" not in extensions:
            extensions.discard("checksum-trailer")
        if "concatenation" not in extensions:
            extensions.discard("concatenation-unfinished")
        off = set() if "termination" in extensions else {"DELETE"}
        off |= set() if downloads else {"GET"}
        return cls(
            frozenset(extensions),
            max_size=max_size or None,
            max_metadata=max_metadata,
            max_partials=max_partials,
            base_path=base_path,
            rufh=rufh,
            max_append_size=max_append_size or None,
            upload_methods=tuple(method for method in UPLOAD_METHODS if method not in off),
            max_age_seconds=int(expires_after_seconds) or None if "expiration" in extensions else None,
        )

    def offers(self, extension: str) -> bool:
        """Return whether an extension is on."""
        return extension in self.extensions

    def without(self, extension: str) -> Features:
        """Return the same with one extension less."""
        return replace(self, extensions=self.extensions - {extension})
