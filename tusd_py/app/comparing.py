"""One comparison of the record, the staging disk and the store, wired."""

from __future__ import annotations

from tusd_py.app.core import Core
from tusd_py.config import Config
from tusd_py.database.reconcile import PostgresReconcile
from tusd_py.errors import StorageError
from tusd_py.reconcile.compare import Scope, key_pattern
from tusd_py.reconcile.run import ReconcilableStore, Reconciler
from tusd_py.staging import DirectoryScan


def demand_directories(config: Config) -> None:
    """Raise `StorageError` if a directory that is to be compared is not there."""
    directories = [config.staging_directory]
    if config.storage.backend == "filesystem":
        directories.append(config.store_directory)
    for directory in directories:
        # Asked before anything is opened, which would make them: a disk that is not mounted is no empty one.
        if not directory.is_dir():
            raise StorageError("A directory is missing that is to be compared.", path=str(directory))


def make_reconciler(core: Core) -> Reconciler:
    """Wire one comparison of the record, the staging disk and the store, once all three are open.

    Raises:
        StorageError: the store tells nothing of what it holds.
    """
    config, store = core.config, core.store
    if not isinstance(store, ReconcilableStore):
        raise StorageError("This store does not tell what it holds.", store=store.name)
    scope = Scope(
        staging_id=core.identity.id,
        margin_seconds=config.cleanup.reconcile_margin,
        key_pattern=key_pattern(config.storage.key_template),
        keeps_ids=store.keeps_ids,
        delete_local=config.transfer.delete_local,
        delete_local_after_seconds=config.transfer.delete_local_after,
    )
    records = PostgresReconcile(core.database, core.wakeups, directory=core.identity)
    return Reconciler(records, DirectoryScan(config.staging_directory), store, scope)
