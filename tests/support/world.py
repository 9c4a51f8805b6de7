"""The database layer, the staging area and a store, wired for a test, and a look behind their backs."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg

from tusd_py import crc64
from tusd_py.config.place import Place
from tusd_py.config.sections import DatabaseConfig, StagingConfig
from tusd_py.configured_stores import Stores
from tusd_py.database.cleanup import CleanupRecords
from tusd_py.database.jobs import JobQueue
from tusd_py.database.notifier import Notifier
from tusd_py.database.outages import StoreOutages
from tusd_py.database.places import PlaceRecords
from tusd_py.database.pool import Database
from tusd_py.database.staging_directories import StagingDirectories
from tusd_py.database.transfers import TransferRequests
from tusd_py.database.uploads import PostgresUploads
from tusd_py.metrics import Metrics
from tusd_py.ports import NewUpload, ObjectStore, StagingIdentity, StoredObject
from tusd_py.protocol.concat import Room
from tusd_py.protocol.upload import Concat, StagingId, State, TokenHash, Upload, UploadId
from tusd_py.staging import StagingArea
from tusd_py.staging.identity import write_id
from tusd_py.stores.filesystem import FilesystemStore

HERE = StagingId(uuid.UUID("4e3c0000-0000-4000-8000-000000000001"))
THERE = StagingId(uuid.UUID("4e3c0000-0000-4000-8000-000000000002"))
"""The staging directory of the tests' world, and another node's."""
LEASE_SECONDS = 30.0
DAY = 86400.0
GONE_STATES = ("rejected", "expired", "removing", "removed")


def new_upload(**changes: Any) -> NewUpload:
    """Return a row to insert, of 10 bytes unless told otherwise."""
    upload_id = UploadId(uuid.uuid4())
    values: dict[str, Any] = {
        "id": upload_id,
        "token_hash": TokenHash(uuid.uuid4().bytes * 2),
        "owner": "alice",
        "staging_id": HERE,
        "length": 10,
        "object_key": f"uploads/{upload_id}",
    }
    return NewUpload(**(values | changes))


def stored(upload: Upload, **changes: Any) -> StoredObject:
    """Return what a store answers for an upload."""
    values: dict[str, Any] = {"key": upload.object_key, "length": upload.offset, "etag": "etag"}
    return StoredObject(**(values | changes))


@dataclass
class World:
    """One node: its database, its disk, its store."""

    dsn: str
    database: Database
    notifier: Notifier
    uploads: PostgresUploads
    transfers: TransferRequests
    cleanup: CleanupRecords
    staging: StagingArea
    store: FilesystemStore
    root: Path
    tokens: dict[UploadId, TokenHash] = field(default_factory=dict)

    def jobs(self, worker: str = "worker-1", *, lease: float = LEASE_SECONDS, staging_id: StagingId = HERE) -> JobQueue:
        """Return the queue as one worker sees it."""
        directory = StagingIdentity(staging_id)
        return JobQueue(self.database, directory=directory, worker=worker, lease_seconds=lease)

    def outages(self, *, staging_id: StagingId = HERE) -> StoreOutages:
        """Return what a worker of the node knows of outages."""
        return StoreOutages(self.database, self.notifier, directory=StagingIdentity(staging_id))

    def stores(self, store: ObjectStore | None = None, former: Mapping[Place, ObjectStore] | None = None) -> Stores:
        """The world's store, or a store in its stead, as the current one; and those of before."""
        place = Place("filesystem", directory=str(self.root / "store"))
        return Stores(PlaceRecords(self.database), place, self.store if store is None else store, former)

    async def create(self, **changes: Any) -> Upload:
        """Insert a row; no file comes with it."""
        new = new_upload(**changes)
        self.tokens[new.id] = new.token_hash
        return await self.uploads.create(new)

    async def completed(self, **changes: Any) -> Upload:
        """Insert a complete row, with its transfer job; no file comes with it."""
        length = changes.setdefault("length", 10)
        return await self.create(offset=length, **changes)

    async def received(self, content: bytes = b"0123456789", **changes: Any) -> Upload:
        """Receive an upload: its file is staged and its row complete."""
        new = new_upload(length=len(content), offset=len(content), crc64nvme=crc64.update(content), **changes)
        self.tokens[new.id] = new.token_hash
        await self.staging.store_small(new.id, [content])
        return await self.uploads.create(new)

    async def part(self, content: bytes | None = None, **changes: Any) -> Upload:
        """Create a partial upload, received if there is content."""
        if content is not None:
            return await self.received(content, concat=Concat.PARTIAL, **changes)
        return await self.create(concat=Concat.PARTIAL, **changes)

    async def final(
        self, parts: Sequence[Upload], *, allow_repeated: bool = False, room: Room | None = None, **changes: Any
    ) -> Upload:
        """Create a final upload of partial ones."""
        new = new_upload(concat=Concat.FINAL, **({"length": None} | changes))
        tokens = [self.tokens[part.id] for part in parts]
        return await self.uploads.create_final(
            new, tokens, allow_unfinished=True, allow_repeated=allow_repeated, room=room
        )

    async def advance(self, upload: Upload, new_offset: int, **changes: Any) -> Upload:
        """Record bytes that no file has."""
        return await self.uploads.advance(upload, new_offset, 7, **({"expires_after_seconds": 0} | changes))

    async def state(self, upload: Upload) -> State:
        """Return the state as recorded now."""
        return (await self.find(upload)).state

    async def find(self, upload: Upload) -> Upload:
        """Return the upload as recorded now."""
        found = await self.uploads.find(upload.id)
        assert found is not None
        return found

    async def sql(self, statement: str, *arguments: Any) -> list[asyncpg.Record]:
        """Run a statement of the test's own."""
        return await self.database.fetch(statement, *arguments)

    async def value(self, statement: str, *arguments: Any) -> Any:
        """Run a statement that answers one value."""
        (row,) = await self.sql(statement, *arguments)
        return row[0]

    async def jobs_of(self, upload: Upload, columns: str = "kind, state") -> list[tuple[Any, ...]]:
        """Return the jobs of an upload, oldest first."""
        rows = await self.sql(f"SELECT {columns} FROM jobs WHERE upload_id = $1 ORDER BY id", upload.id)
        return [tuple(row) for row in rows]

    async def attempts_of(self, upload: Upload) -> list[tuple[str, int, str]]:
        """Return the history of an upload's jobs: kind, attempt, outcome."""
        rows = await self.sql(
            "SELECT kind, job_attempts.attempt, outcome FROM job_attempts JOIN jobs ON jobs.id = job_id"
            " WHERE upload_id = $1 ORDER BY job_id, job_attempts.attempt",
            upload.id,
        )
        return [tuple(row) for row in rows]

    async def events_of(self, upload: Upload) -> list[str]:
        """Return the kinds of an upload's events, oldest first."""
        rows = await self.sql("SELECT kind FROM events WHERE upload_id = $1 ORDER BY sequence", upload.id)
        return [row["kind"] for row in rows]

    async def force_state(self, upload: Upload, state: State) -> Upload:
        """Put a row into a state by hand, as no statement of the program may."""
        complete = state in {State.COMPLETED, State.TRANSFERRING, State.STORED, State.TRANSFER_FAILED}
        await self.sql(
            "UPDATE uploads SET state = $2, gone_at = CASE WHEN $3 THEN now() END,"
            " upload_offset = CASE WHEN $4 THEN upload_length ELSE upload_offset END WHERE id = $1",
            upload.id, state.value, state.value in GONE_STATES, complete,
        )  # fmt: skip
        return await self.find(upload)

    async def run_out_of_time(self, *uploads: Upload) -> None:
        """Let uploads be overdue."""
        await self.sql(
            "UPDATE uploads SET expires_at = now() - interval '1 second' WHERE id = ANY ($1::uuid[])",
            [upload.id for upload in uploads],
        )

    async def end_leases(self) -> None:
        """Let every lease, and every wait for a retry, be over at once, as time would."""
        await self.sql("UPDATE jobs SET due_at = now() WHERE finished_at IS NULL AND due_at > now()")

    def staged(self, upload: Upload) -> bool:
        """Return whether the upload has a file in staging."""
        return self.staging.path(upload.id).exists()

    def object(self, upload: Upload) -> bytes | None:
        """Return what the store holds under the upload's key."""
        path = self.store.local_path(upload.object_key)
        return path.read_bytes() if path.exists() else None


EMPTY = (
    "DELETE FROM upload_parts",
    "DELETE FROM uploads",
    "DELETE FROM jobs",
    "DELETE FROM events",
    "DELETE FROM dead_letters",
    "DELETE FROM webhook_endpoints",
    "DELETE FROM store_outages",
    # As the migration leaves them: whoever comes first has place 1.
    "DELETE FROM store_places",
    "INSERT INTO store_places (id) VALUES (1)",
)


@contextlib.asynccontextmanager
async def open_world(
    dsn: str, root: Path, *, empty: bool = True, eager_above: int | None = None, **database: Any
) -> AsyncIterator[World]:
    """Open everything on a migrated database, and empty that first."""
    pool = Database(dsn, DatabaseConfig(**database))
    notifier = Notifier(pool)
    # Nothing here is about power cuts, so nothing waits for the disk.
    config = StagingConfig(reserve=0, durability="page-cache")
    staging = StagingArea(root / "staging", config, Metrics(), StagingIdentity(HERE))
    for shard in range(256):
        (root / "staging" / f"{shard:02x}").mkdir(parents=True, exist_ok=True)
    write_id(root / "staging", HERE, replace=True)
    store = FilesystemStore(root / "store")
    await pool.open()
    await store.open()
    try:
        for statement in EMPTY if empty else ():
            await pool.execute(statement)
        directories = StagingDirectories(pool)
        await directories.add(HERE, "test")
        await directories.seen(HERE, "test", str(root / "staging"))
        yield World(
            dsn=dsn,
            database=pool,
            notifier=notifier,
            uploads=PostgresUploads(pool, notifier, max_size=None, eager_above=eager_above),
            transfers=TransferRequests(pool, notifier),
            cleanup=CleanupRecords(pool, notifier, directory=staging.identity),
            staging=staging,
            store=store,
            root=root,
        )
    finally:
        await notifier.close()
        await store.close()
        await staging.close()
        await pool.close()
