"""Which keys a store can take: those that the template makes, and those that a hook chooses. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tusd_py.config.model import Config

MAX_S3_KEY_BYTES: Final = 1024
TEMPORARY_SUFFIX: Final = ".tmp"
"""Of the temporary files of the filesystem store."""
MAX_FILE_NAME_BYTES: Final = 255 - len(TEMPORARY_SUFFIX)
MAX_PATH_BYTES: Final = 4095 - len(".tmp/") - 16
"""PATH_MAX of Linux, less the NUL and what the name of a temporary file has in addition."""


def form_problems(key: str) -> Iterator[str]:
    """Yield what makes a key, or a template of keys, another one than it looks like, or lead out of the store."""
    if any(step in {"", ".", ".."} for step in key.split("/")):
        yield "must not start or end with a slash, nor contain //, . or .."
    if not key.isprintable() or "\\" in key:
        yield "must not contain control characters or backslashes"


def length_problems(config: Config, key: str) -> Iterator[str]:
    """Yield why the current store cannot take a key that has the right form."""
    if config.storage.backend == "s3":
        location = config.storage.s3.location.strip("/")
        length = len(f"{location}/{key}".lstrip("/").encode())
        if length > MAX_S3_KEY_BYTES:
            yield f"keys have {length} bytes, with storage.s3.location; S3 takes {MAX_S3_KEY_BYTES}"
        return
    longest = max(len(step.encode()) for step in key.split("/"))
    if longest > MAX_FILE_NAME_BYTES:
        yield f"a step has {longest} bytes; a file name may have {MAX_FILE_NAME_BYTES}"
    if (length := len(f"{config.store_directory}/{key}".encode())) > MAX_PATH_BYTES:
        yield f"paths have {length} bytes; the system takes {MAX_PATH_BYTES}"
    if any(step.endswith(TEMPORARY_SUFFIX) for step in key.split("/")):
        yield f"no step may end in {TEMPORARY_SUFFIX}, as unfinished copies do"
