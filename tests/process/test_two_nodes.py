"""Two servers with one database and a staging directory each: the wrong one refuses and touches nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.support.blocking_client import OCTETS, BlockingConnection, create, fetch, request
from tests.support.files import seeded
from tests.support.http_client import Response
from tests.support.process import wait_until
from tests.support.server import Server, StartServer

pytestmark = pytest.mark.acceptance

MIB = 2**20
LENGTH = 2 * MIB
SENT = 300_001
CONTENT = seeded("two nodes").randbytes(LENGTH)

Pair = tuple[Server, Server]
Nodes = Callable[..., Pair]


@pytest.fixture
def nodes(start_server: StartServer, dsn: str, tmp_path: Path) -> Nodes:
    """Start two servers that share a database and a store, with so many workers each."""

    def start(*workers: int) -> Pair:
        shared = {"dsn": dsn}, {"filesystem": {"directory": str(tmp_path / "store")}}
        first, second = (
            start_server({"database": shared[0], "storage": shared[1], "transfer": {"workers": count}})
            for count in (workers or (1, 1))
        )
        return first, second

    return start


def patch(server: Server, target: str, offset: int, body: bytes) -> Response:
    return request(server.port, "PATCH", target, {**OCTETS, "Upload-Offset": str(offset)}, body)


def begun(server: Server) -> tuple[str, str]:
    """An upload with its first bytes; its path and its public id."""
    created = create(server.port, LENGTH)
    target = created.headers["location"]
    assert patch(server, target, 0, CONTENT[:SENT]).status == 204
    return target, created.headers["upload-id"]


def received(server: Server, content: bytes = CONTENT) -> tuple[str, str]:
    """A whole upload."""
    created = create(server.port, len(content))
    target = created.headers["location"]
    assert patch(server, target, 0, content).status == 204
    return target, created.headers["upload-id"]


def rows(dsn: str, sql: str, *arguments: Any) -> list[dict[str, Any]]:
    """What the database holds."""

    async def fetch() -> list[dict[str, Any]]:
        connection = await asyncpg.connect(dsn)
        try:
            return [dict(row) for row in await connection.fetch(sql, *arguments)]
        finally:
            await connection.close()

    return asyncio.run(fetch())


def row(dsn: str, upload_id: str) -> dict[str, Any]:
    (found,) = rows(dsn, "SELECT * FROM uploads WHERE id = $1::text::uuid", upload_id)
    return found


def staged_files(server: Server) -> list[str]:
    return sorted(path.name for path in server.staging.glob("??/*"))


def test_the_wrong_node_refuses_an_unfinished_upload_and_changes_nothing(nodes: Nodes, dsn: str) -> None:
    right, wrong = nodes()
    target, upload_id = begun(right)
    before = row(dsn, upload_id)

    asked = request(wrong.port, "HEAD", target)
    continued = patch(wrong, target, SENT, CONTENT[SENT:])
    begun_again = patch(wrong, target, 0, CONTENT)
    deleted = request(wrong.port, "DELETE", target)

    assert asked.status == 423
    assert [answer.status for answer in (continued, begun_again, deleted)] == [503] * 3
    assert b"ERR_WRONG_NODE" in continued.body
    assert "retry-after" in continued.headers
    assert fetch(f"{wrong.origin}/api/v1/uploads/{upload_id}", "DELETE").status == 503
    assert row(dsn, upload_id) == before
    assert staged_files(wrong) == []
    assert wrong.upload_json(upload_id)["offset"] == SENT  # the JSON API reads the record alone
    assert request(right.port, "HEAD", target).offset == SENT
    assert patch(right, target, SENT, CONTENT[SENT:]).status == 204
    assert right.wait_for_state(upload_id, "stored")
    assert fetch(f"{wrong.origin}/download/{upload_id}").status == 200


def test_the_wrong_node_reads_no_byte_of_a_body(nodes: Nodes) -> None:
    """Not even an upload without a byte: `100 Continue` is never sent."""
    right, wrong = nodes()
    target = create(right.port, LENGTH).headers["location"]

    with BlockingConnection(wrong.port) as connection:
        patch_head = {**OCTETS, "Upload-Offset": "0", "Content-Length": str(LENGTH), "Expect": "100-continue"}
        connection.send_head("PATCH", target, patch_head)
        refused = connection.read_response()

    assert refused.status == 503
    assert request(right.port, "HEAD", target).offset == 0
    assert staged_files(wrong) == []


def test_of_two_nodes_at_once_one_receives(nodes: Nodes) -> None:
    right, wrong = nodes()
    target, upload_id = begun(right)
    answers: dict[int, list[int]] = {right.port: [], wrong.port: []}

    def send(server: Server) -> None:
        answers[server.port].append(patch(server, target, SENT, CONTENT[SENT:]).status)

    threads = [threading.Thread(target=send, args=(server,)) for server in (wrong, right, wrong)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert answers[right.port] == [204]
    # Once the upload is complete every node may say so: the offset is another one by then.
    assert len(answers[wrong.port]) == 2
    assert set(answers[wrong.port]) <= {503, 409}
    right.wait_for_state(upload_id, "stored")
    assert fetch(f"{wrong.origin}/download/{upload_id}").body == CONTENT


def test_a_whole_upload_is_transferred_and_served_where_its_bytes_are(nodes: Nodes, dsn: str) -> None:
    """The worker of another directory never takes its job, however long nobody else does."""
    right, wrong = nodes(0, 1)
    target, upload_id = received(right)
    _, other_id = received(wrong, b"another")
    wrong.wait_for_state(other_id, "stored")

    assert fetch(f"{wrong.origin}/download/{upload_id}").status == 503
    assert fetch(f"{right.origin}/download/{upload_id}").status == 200
    assert request(wrong.port, "HEAD", target).offset == LENGTH  # the record tells
    assert request(wrong.port, "GET", target).status == 503
    (job,) = rows(dsn, "SELECT state, attempt FROM jobs WHERE upload_id = $1::text::uuid", upload_id)
    assert job == {"state": "queued", "attempt": 0}
    assert right.upload_json(upload_id)["state"] == "completed"
    assert request(wrong.port, "DELETE", target).status == 204  # its bytes are removed where they are
    assert staged_files(right) == [upload_id]


def test_any_worker_removes_what_is_stored(nodes: Nodes, dsn: str) -> None:
    right, other = nodes()
    target, upload_id = received(right)
    right.wait_for_state(upload_id, "stored")
    wait_until(lambda: not row(dsn, upload_id)["local_present"], deadline=20, what="the staged copy is gone")
    right.terminate()

    assert request(other.port, "DELETE", target).status == 204

    wait_until(lambda: row(dsn, upload_id)["state"] == "removed", deadline=30, what="the other node removed it")


def test_a_final_over_parts_of_another_directory_is_refused_for_now(nodes: Nodes) -> None:
    right, wrong = nodes()
    parts = []
    for server, content in ((right, b"first"), (right, b"second"), (wrong, b"third")):
        created = request(
            server.port, "POST", "/files/", {"Upload-Length": str(len(content)), "Upload-Concat": "partial"}
        )
        parts.append(created.headers["location"])
        assert patch(server, parts[-1], 0, content).status == 204

    def join(server: Server, *chosen: str) -> int:
        return request(server.port, "POST", "/files/", {"Upload-Concat": f"final;{' '.join(chosen)}"}).status

    assert join(wrong, *parts[:2]) == 503
    assert join(right, *parts) == 503
    assert join(right, *parts[:2]) == 201


def test_a_node_may_change_its_name(start_server: StartServer, dsn: str, tmp_path: Path) -> None:
    """As a container does with every start: the directory is what counts."""
    server = Server(tmp_path / "named", {"database": {"dsn": dsn}, "server": {"node": "container-1"}})
    with server:
        target, upload_id = begun(server)
        server.terminate()
        renamed = Server(tmp_path / "named", {"database": {"dsn": dsn}, "server": {"node": "container-2"}})
        with renamed:
            assert request(renamed.port, "HEAD", target).offset == SENT
            assert patch(renamed, target, SENT, CONTENT[SENT:]).status == 204
            renamed.wait_for_state(upload_id, "stored")
    (known,) = rows(dsn, "SELECT node, path FROM staging_directories")
    assert known == {"node": "container-2", "path": str(server.staging)}


def test_servers_that_share_a_directory_share_its_id(start_server: StartServer, dsn: str, tmp_path: Path) -> None:
    staging = tmp_path / "shared"
    config = {
        "database": {"dsn": dsn},
        "staging": {"directory": str(staging)},
        "storage": {"filesystem": {"directory": str(tmp_path / "store")}},
    }
    first, second = start_server(config), start_server(config)
    target, upload_id = begun(first)

    assert request(second.port, "HEAD", target).offset == SENT
    assert patch(second, target, SENT, CONTENT[SENT:]).status == 204
    second.wait_for_state(upload_id, "stored")
    assert len(rows(dsn, "SELECT FROM staging_directories WHERE path IS NOT NULL")) == 1
