"""Logs and metrics: structlog set up once per process, every instrument in one class."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any, Final

import orjson
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

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


_SECONDS: Final = (0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60, 600, 3600)


class Metrics:
    """Every instrument of a process. Units stand in the names (OpenMetrics)."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        self._requests = Counter(
            "tusd_requests", "Requests answered.", ["method", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "tusd_request_seconds", "Time to answer a request.", buckets=_SECONDS, registry=self.registry
        )
        self.bytes_received = Counter(
            "tusd_received_bytes", "Bytes of upload bodies received.", registry=self.registry
        )
        self.uploads_created = Counter("tusd_uploads_created", "Uploads created.", registry=self.registry)
        self.uploads_completed = Counter(
            "tusd_uploads_completed", "Uploads whose last byte was recorded.", registry=self.registry
        )
        self.uploads_terminated = Counter("tusd_uploads_terminated", "Uploads deleted.", registry=self.registry)
        self.bodies_ended = Counter(
            "tusd_bodies_interrupted", "Bodies that ended early.", ["code"], registry=self.registry
        )
        self.bodies_open = Gauge(
            "tusd_bodies_open", "Bodies being received.", registry=self.registry, multiprocess_mode="livesum"
        )
        self.downloads = Counter("tusd_downloads", "Downloads answered.", ["kind"], registry=self.registry)
        self.transfers = Counter(
            "tusd_transfers", "Attempts to move an upload to the store.", ["outcome"], registry=self.registry
        )
        self.transferred_bytes = Counter(
            "tusd_transferred_bytes", "Bytes of uploads that reached the store.", registry=self.registry
        )
        self.store_seconds = Histogram(
            "tusd_completed_to_stored_seconds",
            "Time from the last byte to the store.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.swept = Counter("tusd_swept", "Rows and files that cleanup dealt with.", ["kind"], registry=self.registry)
        self._request_counters: dict[tuple[str, int], Any] = {}

    def count_request(self, method: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        key = (method, status)
        counter = self._request_counters.get(key)
        if counter is None:
            counter = self._request_counters[key] = self._requests.labels(method, str(status))
        counter.inc()
        self.request_seconds.observe(seconds)
