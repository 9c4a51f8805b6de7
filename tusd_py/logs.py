"""Logs: structlog set up once per process, JSON or a console, secrets taken out."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any, Final

import orjson
import structlog

if TYPE_CHECKING:
    from tusd_py.config import LoggingConfig

_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_SECRET: Final = re.compile(r"(token|signature|x-amz-credential|x-amz-signature)=[^&\s]+", re.IGNORECASE)
TOKEN_PREFIX_LENGTH: Final = 6
"""How much of a write capability a log may show: enough to tell two apart, nothing to use."""


def configure_logging(config: LoggingConfig) -> None:
    """Set up structlog, and let foreign loggers come out in the same form."""
    console = config.format == "console" or (config.format == "auto" and sys.stderr.isatty())
    level = _LEVELS[config.level]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        _redact,
    ]
    if console:
        renderer: structlog.typing.Processor = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        factory: Any = structlog.WriteLoggerFactory(sys.stderr)
    else:
        shared.append(structlog.processors.format_exc_info)
        renderer = structlog.processors.JSONRenderer(serializer=_dumps)
        factory = structlog.BytesLoggerFactory(sys.stderr.buffer)
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=factory,
        cache_logger_on_first_use=True,
    )
    _configure_foreign(shared, renderer, level, json=not console)


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


def _dumps(value: Any, **_: Any) -> bytes:
    return orjson.dumps(value, default=str)


def _redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key in ("path", "url", "location", "reason", "error", "cause"):
        value = event.get(key)
        if isinstance(value, str) and "=" in value:
            event[key] = _SECRET.sub(r"\1=***", value)
    return event


def shorten_token(token: str) -> str:
    """Answer what a log may show of a write capability."""
    return f"{token[:TOKEN_PREFIX_LENGTH]}…" if len(token) > TOKEN_PREFIX_LENGTH else token
