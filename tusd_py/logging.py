"""Logs: structlog set up once per process, JSON or a console, secrets taken out."""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections.abc import MutableMapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import orjson
import structlog

from tusd_py.redaction import redact

if TYPE_CHECKING:
    from tusd_py.config import LoggingConfig

_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_HEXADECIMAL: Final = re.compile("[0-9a-f]+")
_OF_STRUCTLOG: Final = frozenset({"_record", "_from_structlog"})
"""Values that its formatter needs as they are, and removes."""


def configure_logging(config: LoggingConfig) -> None:
    """Set up structlog, and let foreign loggers come out in the same form."""
    console = config.format == "console" or (config.format == "auto" and sys.stderr.isatty())
    level = _LEVELS[config.level]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        # Tracebacks become text here, without local variables, so that nothing is added after the redaction.
        structlog.processors.format_exc_info,
        redact_values,
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
    """Take tokens and signatures out of everything in a record. The last processor before the renderer."""
    for key, value in event.items():
        # nginx's $request_id and the ids of traces are 32 hexadecimal digits, by which records are found.
        if key not in _OF_STRUCTLOG and not (key == "request_id" and _HEXADECIMAL.fullmatch(str(value))):
            event[key] = _redacted(value)
    return event


def _redacted(value: Any) -> Any:
    match value:
        case None | bool() | int() | float() | datetime() | UUID():
            return value
        case str():
            # Bytes that are no UTF-8 are read as lone surrogates, which cannot be written as JSON.
            return redact(value if value.isascii() else value.encode(errors="backslashreplace").decode())
        case bytes():
            return redact(value.decode(errors="backslashreplace"))
        case dict():
            return {_redacted(key): _redacted(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_redacted(item) for item in value]
        case _:
            return _redacted(str(value))
