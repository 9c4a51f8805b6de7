"""`tusd-py check-config --connect`: try once everything that the server will need."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Final

from tusd_py.app import database_dsn, make_former_store, make_store
from tusd_py.config.place import place_of
from tusd_py.database.checks import DatabaseCheck
from tusd_py.errors import TusdError
from tusd_py.ports import CheckResult, Outcome
from tusd_py.staging.checks import StagingCheck

if TYPE_CHECKING:
    from tusd_py.config import Config

Report = Callable[[CheckResult], None]

_MOST_SECONDS_PER_CALL: Final = 5.0
"""The longest time for one call to S3: somebody is waiting for the result."""


async def run_checks(config: Config, report: Report, *, timeout_seconds: float) -> bool:
    """Try database, staging and store, report each result as it comes, and return whether all succeeded.

    Raises:
        ConfigError: there is no database to try; see `database_dsn`.
    """
    well, waiting_for = True, ""
    try:
        async with asyncio.timeout(timeout_seconds):
            for waiting_for, results in _subjects(_with_short_timeouts(config)):  # noqa: B007 -- said after the loop
                async with contextlib.aclosing(results):
                    async for result in results:
                        report(result)
                        well = well and result.outcome is not Outcome.FAILED
    except TimeoutError:
        report(CheckResult(waiting_for, Outcome.FAILED, f"no answer within {timeout_seconds:g} s"))
        return False
    return well


def _subjects(config: Config) -> tuple[tuple[str, AsyncGenerator[CheckResult]], ...]:
    return (
        ("database", DatabaseCheck(database_dsn(config), config.database).check()),
        ("staging", StagingCheck(config.staging_directory, config.staging).check()),
        ("store", _store(config)),
        ("former stores", _former_stores(config)),
    )


async def _store(config: Config) -> AsyncGenerator[CheckResult]:
    try:
        store = make_store(config)
        # open() would create a missing directory; the check removes again what it creates.
        if config.storage.backend == "s3":
            await store.open()
    except TusdError as error:
        yield CheckResult("store: open", Outcome.FAILED, str(error))
        return
    try:
        async with contextlib.aclosing(store.check()) as results:
            async for result in results:
                yield result
    finally:
        await store.close()


async def _former_stores(config: Config) -> AsyncGenerator[CheckResult]:
    """Try to reach each former store. Nothing is written: they receive no uploads."""
    for former in config.storage.former:
        if former.moved:
            continue
        subject = f"former store: {place_of(config, former)}"
        store = make_former_store(config, former)
        try:
            await store.open()
            await store.probe()
        except TusdError as error:
            yield CheckResult(subject, Outcome.FAILED, str(error))
        else:
            yield CheckResult(subject)
        finally:
            await store.close()


def _with_short_timeouts(config: Config) -> Config:
    """Return the configuration with an S3 client that tries once, with short time-outs."""
    client = config.storage.s3.client
    short = client.model_copy(
        update={
            "max_attempts": 1,
            "connect_timeout": min(client.connect_timeout, _MOST_SECONDS_PER_CALL),
            "read_timeout": min(client.read_timeout, _MOST_SECONDS_PER_CALL),
        }
    )
    s3 = config.storage.s3.model_copy(update={"client": short})
    return config.model_copy(update={"storage": config.storage.model_copy(update={"s3": s3})})
