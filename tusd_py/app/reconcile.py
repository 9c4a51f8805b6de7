"""Wires reconcile: the database and staging, compared with each configured store."""

from __future__ import annotations

from tusd_py.app.core import Core
from tusd_py.config import Config
from tusd_py.database.reconcile import ReconcileRecords
from tusd_py.errors import StorageError
from tusd_py.reconcile.compare import Scope, key_pattern
from tusd_py.reconcile.findings import Report
from tusd_py.reconcile.run import Reconciler
from tusd_py.staging import DirectoryScan


def require_directories(config: Config) -> None:
    """Raise `StorageError` if a directory that is to be compared is not there."""
    directories = [config.staging_directory]
    if config.storage.backend == "filesystem":
        directories.append(config.store_directory)
    for directory in directories:
        # Asked before anything is opened, which would make them: a disk that is not mounted is no empty one.
        if not directory.is_dir():
            raise StorageError("A directory is missing that is to be compared.", path=str(directory))


async def make_reconcilers(core: Core) -> tuple[dict[str, Reconciler], Report]:
    """Wire a comparison with each configured store, by what it is called, and a report to add them up in.

    The report says already which uploads are stored where nothing is configured.

    Raises:
        DatabaseUnavailable: it is not known what is where.
    """
    config, stores = core.config, await core.stores.configured()
    records = ReconcileRecords(core.database, core.notifier, directory=core.identity)
    known = [place_id for ids in stores.values() for place_id in ids]
    report, unknown = Report(), await core.stores.unconfigured()
    for place_id, count in (await records.stored_elsewhere(known)).items():
        place = await core.stores.place(place_id)
        report.failed_checks[f"uploads in {place}"] = f"{count} are stored there: configure it as [[storage.former]]"
    reconcilers = {}
    for store, ids in stores.items():
        current = store is core.stores.current
        scope = Scope(
            staging_id=core.identity.id,
            margin_seconds=config.cleanup.reconcile_margin,
            key_pattern=key_pattern(config.storage.key_template),
            places=tuple(ids),
            unknown_places=tuple(unknown) if current else (),
            former=not current,
            keeps_ids=store.keeps_ids,
            delete_local=config.transfer.delete_local,
            delete_local_after_seconds=config.transfer.delete_local_after,
        )
        where = "" if current else f" ({await core.stores.place(ids[0])})"
        reconcilers[where] = Reconciler(records, DirectoryScan(config.staging_directory), store, scope)
    return reconcilers, report
