"""Sizes, durations and secrets as people write them in a configuration file, read and written."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, SecretStr

_SIZE_UNITS: Final = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_MOST_DIGITS: Final = 30
_DURATION_UNITS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
MAX_SECONDS: Final = 100 * 365.25 * 86400
"""A hundred years: what is added to a date stays a date."""

_NUMBER_AND_UNIT: Final = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")
_DURATION: Final = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|s|m|h|d))+")
_DURATION_TERM: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")


def parse_size(value: Any) -> Any:
    """Return the bytes in `64MiB`, `10MB` or a bare number. Raise ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError('a size like "64MiB" or a number of bytes is expected')  # noqa: TRY004
    if isinstance(value, int):
        return value
    match = _NUMBER_AND_UNIT.fullmatch(value)
    unit = match and _SIZE_UNITS.get(match[2].lower())
    if not match or not unit or len(match[1]) > _MOST_DIGITS or ("." in match[1] and unit == 1):
        raise ValueError(f'{value!r} is not a size; write for example "64MiB", "10GB" or a number of bytes')
    return int(float(match[1]) * unit) if "." in match[1] else int(match[1]) * unit


def format_size(size_bytes: int) -> str:
    """Return what `parse_size` reads as `size_bytes`, in the largest binary unit without a fraction."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size_bytes and size_bytes % _SIZE_UNITS[unit.lower()] == 0:
            return f"{size_bytes // _SIZE_UNITS[unit.lower()]}{unit}"
    return f"{size_bytes}B"


def parse_duration(value: Any) -> Any:
    """Return the seconds in `24h`, `1m30s`, `250ms` or a bare number. Raise ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError('a duration like "90s" or a number of seconds is expected')  # noqa: TRY004
    seconds = _seconds(value.strip()) if isinstance(value, str) else value
    if not seconds <= MAX_SECONDS:  # NaN, which TOML can write, is not less than anything
        raise ValueError(f"{value!r} is longer than a hundred years")
    return float(seconds)


def _seconds(text: str) -> float:
    if re.fullmatch(r"[0-9]+(?:\.[0-9]+)?", text):
        return float(text)
    if not _DURATION.fullmatch(text):
        raise ValueError(f'{text!r} is not a duration; write for example "500ms", "60s", "24h" or "7d"')
    return sum(float(number) * _DURATION_UNITS[unit] for number, unit in _DURATION_TERM.findall(text))


def format_duration(seconds: float) -> str | float:
    """Return what `parse_duration` reads as `seconds`: a unit, or the number if it has a fraction."""
    for unit in ("d", "h", "m"):
        if seconds and seconds % _DURATION_UNITS[unit] == 0:
            return f"{seconds // _DURATION_UNITS[unit]:.0f}{unit}"
    return f"{seconds:.0f}s" if seconds.is_integer() else seconds


def resolve_secret(value: Any) -> Any:
    """Return the secret itself, given as text, as `{ file = "path" }` or as `{ env = "NAME" }`."""
    if not isinstance(value, dict):
        return value
    match value:
        case {"file": str(path)} if len(value) == 1:
            return _not_empty(_read_secret(path), f"the secret's file {path!r}")
        case {"env": str(name)} if len(value) == 1:
            if name not in os.environ:
                raise ValueError(f"the secret's environment variable {name!r} is not set")
            return _not_empty(os.environ[name], f"the secret's environment variable {name!r}")
    raise ValueError('a secret is text, { file = "path" } or { env = "NAME" }')


def _read_secret(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ValueError(f"the secret's file {path!r} cannot be read: {error.strerror}") from None
    except ValueError:  # not UTF-8, whose message would show bytes of the secret; or a NUL in the path
        raise ValueError(f"the secret's file {path!r} cannot be read as text") from None


def _not_empty(secret: str, source: str) -> str:
    # An empty text in the file means "not set"; a source that turns out empty is a mistake.
    if not secret:
        raise ValueError(f"{source} is empty")
    return secret


Bytes = Annotated[int, BeforeValidator(parse_size)]
Seconds = Annotated[float, BeforeValidator(parse_duration)]
Secret = Annotated[SecretStr, BeforeValidator(resolve_secret)]
