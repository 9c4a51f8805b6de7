"""The interop versions of the draft, and what each wants otherwise than the newest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Version:
    """The differences of one interop version."""

    number: int | None
    """The value of `Upload-Draft-Interop-Version`; None where a request has none, or an unknown one."""
    says_incomplete: bool = False
    """The field is `Upload-Incomplete`, and means the opposite (-01)."""
    typed_appends: bool = True
    """A PATCH must be `application/partial-upload` (-04 and later)."""
    length_completes: bool = False
    """Reaching a length that was told completes the upload, though the client said that more will come.

    The draft says otherwise. But tus-js-client, which speaks 5 and 6, sends the end of a stream or of a
    file that it continues as if more came, takes the upload for done, and never says the last word.
    """
    more_to_come_status: int = 204
    """The answer to an append that was not the last; 201 through -05."""
    tells_progress: bool = True
    """Interim responses may tell an offset (-03 and later)."""
    tells_limits: bool = True
    """`Upload-Limit` is known (-04 and later)."""
    calls_max_age_expires: bool = False
    """Its member for the life of an upload was called `expires` (-04, -05)."""


NEWEST: Final = Version(None)
"""For a request without a version: the newest rules, and no interim response."""
VERSIONS: Final = {
    version.number: version
    for version in (
        Version(
            3,
            says_incomplete=True,
            typed_appends=False,
            more_to_come_status=201,
            tells_progress=False,
            tells_limits=False,
        ),
        Version(
            4,
            typed_appends=False,
            length_completes=True,
            more_to_come_status=201,
            tells_progress=False,
            tells_limits=False,
        ),
        Version(5, typed_appends=False, length_completes=True, more_to_come_status=201, tells_limits=False),
        Version(6, length_completes=True, more_to_come_status=201, calls_max_age_expires=True),
        Version(7),
        Version(8),
    )
}
