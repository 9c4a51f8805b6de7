"""Runs of reconcile on a test's own node, and everything that a run without repair may not change."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.world import HERE, World
from tusd_py.database.reconcile import ReconcileRecords
from tusd_py.protocol.upload import Upload
from tusd_py.reconcile.compare import Scope, key_pattern
from tusd_py.reconcile.findings import FindingOutcome, Kind, Report, Result
from tusd_py.reconcile.run import Reconciler
from tusd_py.staging import DirectoryScan

HOUR = 3600.0
OLD = 2 * HOUR
TEMPLATE = "uploads/{id}"
"""What the keys of the test's uploads look like."""


@dataclass
class Run:
    """What a run found, and its figures."""

    outcomes: list[FindingOutcome]
    report: Report

    @property
    def kinds(self) -> list[Kind]:
        return sorted(outcome.finding.kind for outcome in self.outcomes)

    @property
    def results(self) -> list[Result]:
        return [outcome.result for outcome in self.outcomes]


def reconciler(world: World, store: Any = None, *, clock: Any = None, batch: int = 500, **changes: Any) -> Reconciler:
    """Return a run to which everything on disk and in the store is two hours old, unless `clock` is the true one."""
    chosen = world.store if store is None else store
    values: dict[str, Any] = {
        "staging_id": HERE,
        "margin_seconds": HOUR,
        "key_pattern": key_pattern(TEMPLATE),
        "keeps_ids": chosen.keeps_ids,
        "delete_local": True,
        "delete_local_after_seconds": 0.0,
    }
    return Reconciler(
        ReconcileRecords(world.database, world.notifier, directory=world.staging.identity),
        DirectoryScan(world.root / "staging"),
        chosen,
        Scope(**(values | changes)),
        batch=batch,
        clock=clock or (lambda: time.time() + OLD),
    )


async def reconcile(world: World, store: Any = None, *, repair: bool = False, **changes: Any) -> Run:
    """Run once, after letting every row be two hours old."""
    if "clock" not in changes:
        await age_rows(world)
    one = reconciler(world, store, **changes)
    outcomes = [outcome async for outcome in one.run(repair=repair)]
    return Run(outcomes, one.report)


async def reports(world: World, store: Any = None, **changes: Any) -> Run:
    """Run without repair, and see that it changed nothing."""
    await age_rows(world)
    before = await snapshot(world)
    run = await reconcile(world, store, **changes)
    assert await snapshot(world) == before
    assert set(run.results) <= {Result.LEFT}
    return run


async def age_rows(world: World) -> None:
    """Let nothing have happened to any upload for two hours."""
    await world.sql(
        "UPDATE uploads SET updated_at = least(updated_at, now() - interval '2 hours'),"
        " stored_at = least(stored_at, now() - interval '2 hours')"
    )


async def snapshot(world: World) -> dict[str, Any]:
    """Return every row and every file."""
    tables = {
        table: [tuple(row) for row in await world.sql(f"SELECT * FROM {table} ORDER BY 1, 2")]
        for table in ("uploads", "jobs", "job_attempts", "upload_parts", "transfer_parts", "events")
    }
    return tables | {"files": tree(world.root / "staging") | tree(world.root / "store")}


def tree(root: Path) -> dict[str, tuple[int, float, int]]:
    """Return every name below a directory that is no shard, with size, time of change and kind."""
    found = {}
    for path in root.rglob("*"):
        facts = path.lstat()
        if not (path.is_dir() and not path.is_symlink() and path.parent == root):
            found[str(path)] = (facts.st_size, facts.st_mtime, facts.st_mode)
    return found


def stage(world: World, upload: Upload, content: bytes) -> Path:
    """Put an upload's file there by hand."""
    path = world.staging.path(upload.id)
    path.write_bytes(content)
    return path


def make_old(path: Path) -> None:
    """Let a file be two hours old by the true clock."""
    os.utime(path, (time.time() - OLD, time.time() - OLD))
