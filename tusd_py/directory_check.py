"""Check that files can be created, written, synced, renamed and removed in a directory. Blocks."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from tusd_py.ports import CheckResult, Outcome

SAMPLE: Final = bytes(64 * 1024)

Write = Callable[[int, str], None]


def check_directory(subject: str, directory: Path, write: Write | None = None) -> Iterator[CheckResult]:
    """Yield the result of each step, and remove every trace, also the directory if it was missing.

    `write` fills a file, given its descriptor and its name, where a plain write would prove too little.
    """
    made: list[Path] = []
    path = directory / f"tusd-py-check-{secrets.token_hex(8)}"
    renamed = path.with_suffix(".renamed")
    steps: tuple[tuple[str, Callable[[], object]], ...] = (
        ("create", lambda: _make(directory, made)),
        ("write and sync", lambda: _write(path, write)),
        ("rename", lambda: path.rename(renamed)),
        ("remove", renamed.unlink),
    )
    try:
        for name, step in steps:
            try:
                step()
            except OSError as error:
                yield CheckResult(
                    f"{subject}: {name}", Outcome.FAILED, f"{error.filename or directory}: {error.strerror}"
                )
                return
            yield CheckResult(f"{subject}: {name}", detail=str(directory) if name == "create" else "")
    finally:
        for trace in (path, renamed):
            with contextlib.suppress(OSError):
                trace.unlink()
        for one in reversed(made):
            with contextlib.suppress(OSError):
                one.rmdir()


def _make(directory: Path, made: list[Path]) -> None:
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700)
        made.append(path)
    if not directory.is_dir():
        raise NotADirectoryError(20, "is not a directory", str(directory))


def _write(path: Path, write: Write | None) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        if write is None:
            os.write(descriptor, SAMPLE)
        else:
            write(descriptor, str(path))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
