"""Logs: structlog set up once per process, JSON or a console, without the right to write.

A tus URL ends in a token, and whoever knows the token may write. A record may show its first characters
only, wherever it comes from: a path as a client wrote it (in another case, with doubled slashes, percent-
encoded, below a prefix), a traceback, a record of a library. So `redact` does not ask what a text is about:

- After a slash or in a query, everything that is as long as a token and of its letters is shortened.
- Elsewhere so is what does not look like a name from a program, such as `ClientConnectionResetError`,
  `ERR_DATABASE_UNAVAILABLE` or `host-7d9f8b6c5d-x2x4z`, which people need to read.

A canonical UUID is the public id of an upload and stays; no token has that form.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections.abc import MutableMapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote
from uuid import UUID

import orjson
import structlog

from tusd_py.protocol.fields import MIN_TOKEN_LENGTH, is_public_id

if TYPE_CHECKING:
    from tusd_py.config import LoggingConfig

_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_HEXADECIMAL: Final = re.compile("[0-9a-f]+")
_OF_STRUCTLOG: Final = frozenset({"_record", "_from_structlog"})
"""Values that its formatter needs as they are, and removes."""
_WITHOUT_TEXT: Final = (bool, int, float, datetime, UUID)

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


def configure_logging(config: LoggingConfig) -> None:
    """Set up structlog, and let foreign loggers come out in the same form."""
    console = config.format == "console" or (config.format == "auto" and sys.stderr.isatty())
    level = _LEVELS[config.level]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.StackInfoRenderer(),
        # Tracebacks become text here, without local variables, so that the redaction sees them.
        structlog.processors.format_exc_info,
        redact_values,
        # Whatever comes after it may only set values of its own.
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if console:
        renderer: structlog.typing.Processor = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
        factory: Any = structlog.WriteLoggerFactory(sys.stderr)
    else:
        renderer = structlog.processors.JSONRenderer(serializer=_dumps)
        factory = structlog.BytesLoggerFactory(sys.stderr.buffer)
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=factory,
        cache_logger_on_first_use=True,
    )
    _configure_foreign(shared, renderer, level, json=not console)
    _capture_the_interpreter()


def _configure_foreign(
    shared: list[structlog.typing.Processor], renderer: structlog.typing.Processor, level: int, *, json: bool
) -> None:
    if json:
        renderer = structlog.processors.JSONRenderer(serializer=lambda value, **_: _dumps(value).decode())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    # One line per call to S3 or per retry is noise at info.
    for chatty in ("botocore", "aiobotocore", "urllib3", "asyncio", "aiohttp.access"):
        logging.getLogger(chatty).setLevel(max(level, logging.WARNING))


def _capture_the_interpreter() -> None:
    """Log what the interpreter would write to standard error by itself, past the redaction."""
    logging.captureWarnings(capture=True)
    log = logging.getLogger("python")

    def in_thread(failed: threading.ExceptHookArgs) -> None:
        name = failed.thread.name if failed.thread is not None else "?"
        log.error("exception in thread %s", name, exc_info=failed.exc_value)

    def unraisable(failed: sys.UnraisableHookArgs) -> None:
        log.error("%s: %r", failed.err_msg or "exception ignored in", failed.object, exc_info=failed.exc_value)

    threading.excepthook = in_thread
    sys.unraisablehook = unraisable


def _dumps(value: Any, **_: Any) -> bytes:
    return orjson.dumps(value, default=str)


def redact_values(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Take tokens and signatures out of everything that a caller, a library or the interpreter put into a record."""
    for key, value in event.items():
        if isinstance(value, str) and len(value) < MIN_TOKEN_LENGTH and "=" not in value and value.isascii():
            continue  # as most values of most records: neither a token nor a signature
        # nginx's $request_id and the ids of traces are 32 hexadecimal digits, by which records are found.
        if key not in _OF_STRUCTLOG and not (key == "request_id" and _HEXADECIMAL.fullmatch(str(value))):
            event[key] = _redacted(value)
    return event


def _redacted(value: Any) -> Any:
    if isinstance(value, str):
        # Bytes that are no UTF-8 are read as lone surrogates, which cannot be written as JSON.
        return redact(value if value.isascii() else value.encode(errors="backslashreplace").decode())
    if value is None or isinstance(value, _WITHOUT_TEXT):
        return value
    match value:
        case bytes():
            return redact(value.decode(errors="backslashreplace"))
        case dict():
            return {_redacted(key): _redacted(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_redacted(item) for item in value]
        case _:
            return _redacted(str(value))


def redact(text: str) -> str:
    """Return a text without the tokens and the signatures that stand in it."""
    if "=" in text:
        text = _SECRET.sub(r"\1=***", text)
    # To look for a token costs ten times as much.
    if len(text) < MIN_TOKEN_LENGTH or is_public_id(text):
        return text
    return _CANDIDATE.sub(_shortened, text)


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
