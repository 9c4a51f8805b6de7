"""The user that PostgreSQL runs as, and how its programs are started.

PostgreSQL refuses to run as root. Started by root, it runs as the user of `database.embedded_user`, or as
the one who owns the data, or as `postgres`; never as `nobody`, whose account others share. Where that user
cannot reach the binaries or the data (a virtual environment in a private home directory), it runs as root
in a user namespace in which root has that user's name.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tusd_py.errors import ConfigError

DEFAULT_USER: Final = "postgres"
SHARED_USERS: Final = frozenset({"nobody"})
"""Programs without an account of their own run under this one, and could read or change the data."""
PR_SET_PDEATHSIG: Final = 1

# Looked up here because nothing may be imported between fork and exec.
LIBC: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Identity:
    """The user that a program runs as: one to switch to, or a command that goes in front, or neither."""

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
