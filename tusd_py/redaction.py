"""Take the right to write out of texts that are logged. Pure.

A tus URL ends in a token, and whoever knows the token may write. A record may show its first characters
only, wherever it comes from: a path as a client wrote it (in another case, with doubled slashes, percent-
encoded, below a prefix), a traceback, a record of a library. So nothing here asks what a text is about:

- After a slash or in a query, everything that is as long as a token and of its letters is shortened.
- Elsewhere so is what does not look like a name from a program, such as `ClientConnectionResetError`,
  `ERR_DATABASE_UNAVAILABLE` or `host-7d9f8b6c5d-x2x4z`, which people need to read.

A canonical UUID is the public id of an upload and stays; no token has that form.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote

from tusd_py.protocol.fields import MIN_TOKEN_LENGTH, is_public_id

PREFIX_LENGTH: Final = 6
"""How much of a token is shown: enough to tell two apart, nothing to use."""

_LETTER: Final = "(?:[A-Za-z0-9_-]|%(?:2[Dd]|3[0-9]|[46][1-9A-Fa-f]|5[0-9AaFf]|7[0-9Aa]))"
# Other escapes are read as one, or the 2F of an encoded slash would count as letters.
_CANDIDATE: Final = re.compile(rf"(?P<run>{_LETTER}{{{MIN_TOKEN_LENGTH},}})|%[0-9A-Fa-f]{{2}}")
_BEFORE_SEGMENT: Final = re.compile(r"(?:[/\\]|%2[Ff]|%5[Cc]|[?&;](?:[^\s?&;=/]*=)?)\Z")
_PROGRAM_NAME: Final = re.compile(
    r"(?:[0-9]{4}_)?_*[a-z][a-z0-9]*(?:[_-]+[a-z0-9]+)+_*"  # snake_case, names of hosts, modules and migrations
    r"|_*[A-Z][A-Z0-9]*(?:_+[A-Z0-9]+)+"  # CONSTANTS
    r"|_*(?:[A-Z]{1,5}[a-z]{2,}[0-9]?){2,}"  # CamelCase
)
_SECRET: Final = re.compile(r"(token|signature|x-amz-credential|x-amz-signature)=[^&\s]+", re.IGNORECASE)
_LOOK_BEHIND: Final = 80


def redact(text: str) -> str:
    """Return a text without the tokens and the signatures that stand in it."""
    if "=" in text:
        text = _SECRET.sub(r"\1=***", text)
    return _CANDIDATE.sub(_shortened, text) if len(text) >= MIN_TOKEN_LENGTH else text


def _shortened(match: re.Match[str]) -> str:
    run = match["run"]
    if run is None:
        return match[0]
    word = unquote(run) if "%" in run else run
    if is_public_id(word):
        return run
    start = match.start()
    in_path = _BEFORE_SEGMENT.search(match.string, max(0, start - _LOOK_BEHIND), start)
    if not in_path and _PROGRAM_NAME.fullmatch(word):
        return run
    return f"{word[:PREFIX_LENGTH]}…"
