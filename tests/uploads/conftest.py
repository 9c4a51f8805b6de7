"""The upload service that the tests of the use-cases ask for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.scripted_body import FakeClock
from tests.support.unreliable import UnreliableDisk, UnreliableUploads
from tests.support.world import HERE, World
from tests.uploads.support import BLOCK, MIB, RETRIES, MakeNode, Node
from tusd_py.app.http import derive_features
from tusd_py.config import load_config
from tusd_py.database.lists import UploadLists
from tusd_py.locks import LocalLocks
from tusd_py.metrics import Metrics
from tusd_py.ports import StagingIdentity
from tusd_py.uploads.changes import ChangeNotifier
from tusd_py.uploads.service import Timing, UploadService


@pytest.fixture
async def make_node(world: World, tmp_path: Path) -> AsyncIterator[MakeNode]:
    disks: list[UnreliableDisk] = []

    def make(*, look_seconds: float = 3600, **sections: Any) -> Node:
        staging = {"reserve": 0, "durability": "page-cache", "block_size": BLOCK, "checkpoint_bytes": MIB}
        sections["staging"] = staging | sections.get("staging", {})
        config = load_config(None, {"data_dir": tmp_path, "database": {"dsn": world.dsn}, **sections})
        disk = UnreliableDisk(world.root / "staging", config.staging, Metrics(), StagingIdentity(HERE))
        disks.append(disk)
        uploads, clock = UnreliableUploads(world.database, world.notifier), FakeClock()
        service = UploadService(
            config,
            derive_features(config),
            uploads=uploads,
            lists=UploadLists(world.database),
            transfers=world.transfers,
            staging=disk,
            stores=world.stores(),
            locks=LocalLocks(timeout_seconds=30),
            changes=ChangeNotifier(look_seconds=look_seconds),
            timing=Timing(clock=clock, advance_retry_seconds=(0.0,) * RETRIES),
        )
        return Node(world, service, uploads, disk, clock)

    yield make
    for disk in disks:
        await disk.close()


@pytest.fixture
def node(make_node: MakeNode) -> Node:
    return make_node()
