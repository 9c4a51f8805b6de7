"""`tusd-py check-config --connect`: everything that the server will need, tried once and at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Final

from tusd_py.app import database_dsn, make_former_store, make_store
from tusd_py.config.places import place_of
from tusd_py.database.proofs import DatabaseProof
from tusd_py.errors import TusdError
from tusd_py.ports import Outcome, Proof, Provable
from tusd_py.staging.proofs import StagingProof

if TYPE_CHECKING:
    from tusd_py.config import Config

Report = Callable[[Proof], None]

_MOST_SECONDS_PER_CALL: Final = 5.0
"""One call to S3 may take so long here: who runs this waits for the answer."""


async def run_checks(config: Config, report: Report, *, timeout_seconds: float) -> bool:
    """Try database, staging and store, report each result at once, and return whether all is well.

    Raises:
        ConfigError: there is no database to try; see `database_dsn`.
    """
    well, waiting_for = True, ""
    try:
        async with asyncio.timeout(timeout_seconds):
            for waiting_for, proofs in _subjects(_impatient(config)):  # noqa: B007 -- said after the loop
                async with contextlib.aclosing(proofs):
                    async for proof in proofs:
                        report(proof)
                        well = well and proof.outcome is not Outcome.FAILED
    except TimeoutError:
        report(Proof(waiting_for, Outcome.FAILED, f"no answer within {timeout_seconds:g} s"))
        return False
    return well


def _subjects(config: Config) -> tuple[tuple[str, AsyncGenerator[Proof]], ...]:
    return (
        ("database", DatabaseProof(database_dsn(config), config.database).prove()),
        ("staging", StagingProof(config.staging_directory, config.staging).prove()),
        ("store", _store(config)),
        ("former stores", _former_stores(config)),
    )


async def _store(config: Config) -> AsyncGenerator[Proof]:
    try:
        store = make_store(config)
        # A directory is tried before it is made, and left alone if it was not there.
        if config.storage.backend == "s3":
            await store.open()
    except TusdError as error:
        yield Proof("store: open", Outcome.FAILED, str(error))
        return
    assert isinstance(store, Provable)  # as all of ours are
    try:
        async with contextlib.aclosing(store.prove()) as proofs:
            async for proof in proofs:
                yield proof
    finally:
        await store.close()


async def _former_stores(config: Config) -> AsyncGenerator[Proof]:
    """Reach each store from before. Nothing is written there: they take nothing new."""
    for former in config.storage.former:
        if former.moved:
            continue
        subject = f"former store: {place_of(config, former)}"
        store = make_former_store(config, former)
        try:
            await store.open()
            await store.probe()
        except TusdError as error:
            yield Proof(subject, Outcome.FAILED, str(error))
        else:
            yield Proof(subject)
        finally:
            await store.close()


def _impatient(config: Config) -> Config:
    """Return the configuration with an S3 client that tries once and does not wait for long."""
    client = config.storage.s3.client
    hasty = client.model_copy(
        update={
            "max_attempts": 1,
            "connect_timeout": min(client.connect_timeout, _MOST_SECONDS_PER_CALL),
            "read_timeout": min(client.read_timeout, _MOST_SECONDS_PER_CALL),
        }
    )
    s3 = config.storage.s3.model_copy(update={"client": hasty})
    return config.model_copy(update={"storage": config.storage.model_copy(update={"s3": s3})})
