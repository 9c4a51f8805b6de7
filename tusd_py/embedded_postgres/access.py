"""Logins of the embedded server: this program's user and root, and nobody else.

PostgreSQL asks the kernel who is at the other end of the socket ("peer"). So nothing secret is kept, and other
programs that run under the server's account are not let in; they could only damage what the account owns.
Both files are written at every start, for the account and its view of our user may change between two.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

NOTE: Final = "# Written by tusd_py at every start.\n"
HBA: Final = f"{NOTE}local all tusd peer map=tusd\n"


def write_access(data_dir: Path, user_names: set[str], owner: tuple[int, int]) -> None:
    """Allow logins of these system users only, by their names as the server sees them."""
    lines = "".join(f'tusd "{name}" tusd\n' for name in sorted(user_names))
    _write(data_dir / "pg_ident.conf", NOTE + lines, owner)
    _write(data_dir / "pg_hba.conf", HBA, owner)


def _write(path: Path, content: str, owner: tuple[int, int]) -> None:
    if path.is_file() and not path.is_symlink() and path.read_text(errors="replace") == content:
        return
    temporary = path.with_name(f".{path.name}.tusd")
    # The directory is the account's. What it may have put under this name is not written through.
    temporary.unlink(missing_ok=True)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(content)
        os.fchown(file.fileno(), *owner)
    temporary.replace(path)
