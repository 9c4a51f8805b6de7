"""The embedded PostgreSQL of a running server: whenever somebody kills it, it is started again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import structlog

from tusd_py.embedded_postgres import EmbeddedPostgres
from tusd_py.errors import ConfigError, TusdError

if TYPE_CHECKING:
    from tusd_py.config import Config

log = structlog.get_logger(__name__)

PAUSE_SECONDS: Final = 1.0
"""Between two tries to start it again."""
MOST_RETRIES: Final = 5
"""How often a step of the start is repeated because the database was killed meanwhile."""


class WatchedPostgres(EmbeddedPostgres):
    """An embedded PostgreSQL that is started again, at the same address, when it has ended."""

    _restart_at = 0.0

    def run(self, config: Config, step: Callable[[Config], None]) -> Config:
        """Run a step of the start with this database, and return the configuration with its address.

        The step is repeated if the database was killed meanwhile.
        """
        retries_left = MOST_RETRIES
        while True:
            if not self.running():
                self.start()
                log.info("embedded_postgres_started", owned=self.owned)
            with_address = config.with_dsn(self.dsn)
            try:
                step(with_address)
            except TusdError as error:
                if isinstance(error, ConfigError) or not retries_left:
                    raise
                retries_left -= 1
                # A database that was killed has closed its connections, and still looks alive for a moment.
                time.sleep(PAUSE_SECONDS)
                if self.running() and not error.retryable:
                    raise
                log.error("embedded_postgres_died", reason=str(error))  # noqa: TRY400
            else:
                return with_address

    def restart_if_dead(self) -> None:
        """Start it again if it has ended. If that fails, the next try is after a pause."""
        if self.running() or time.monotonic() < self._restart_at:
            return
        log.error("embedded_postgres_died")
        try:
            # The same address as before: the children's pools reconnect by themselves.
            self.start()
        except TusdError as error:
            self._restart_at = time.monotonic() + PAUSE_SECONDS
            log.error("embedded_postgres_not_started", reason=str(error), pause_seconds=PAUSE_SECONDS)  # noqa: TRY400
