"""What every reply must be like, whoever gave it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from tusd_py.errors import HookInvalid
from tusd_py.ports.hooks import FileInfoChanges, HookReply, HookResponse

_STATUSES: Final = range(200, 600)
"""Of final responses."""
_FIELD_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
"""What would end a header, or cannot stand in one (RFC 9110 §5.5)."""


def check_response(response: HookResponse) -> None:
    """Raise `HookInvalid` for a status that is none, or a header that would become another one."""
    if response.status_code and response.status_code not in _STATUSES:
        raise HookInvalid(f"HTTPResponse.StatusCode is {response.status_code}, which is no status of a final response.")
    for name, value in response.headers.items():
        if not _FIELD_NAME.fullmatch(name):
            raise HookInvalid("HTTPResponse.Header has a malformed name.")
        if _CONTROL.search(value):
            raise HookInvalid(f"HTTPResponse.Header has a control character in {name}.")


def check_types(reply: HookReply) -> None:
    """Raise `HookInvalid` unless what a Python hook has put into its reply is of the types that stand there."""
    response, changes = reply.response, reply.change_file_info
    sound = (
        isinstance(response, HookResponse)
        and type(response.status_code) is int
        and _is_text(response.body)
        and _are_texts(response.headers)
        and (changes is None or _are_changes(changes))
    )
    if not sound:
        raise HookInvalid("A field of the HookReply has the wrong type, or a text that cannot be written as UTF-8.")
    check_response(response)


def _are_changes(changes: object) -> bool:
    return (
        isinstance(changes, FileInfoChanges)
        and all(text is None or _is_text(text) for text in (changes.id, changes.storage_path))
        and (changes.metadata is None or _are_texts(changes.metadata))
    )


def _are_texts(pairs: object) -> bool:
    return isinstance(pairs, Mapping) and all(_is_text(key) and _is_text(value) for key, value in pairs.items())


def _is_text(value: object) -> bool:
    # Lone surrogates, of bytes that were no UTF-8, cannot be sent or stored.
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)
