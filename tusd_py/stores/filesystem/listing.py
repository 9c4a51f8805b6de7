"""List what lies below the root of the filesystem store, in the order of keys, in bounded memory.

A directory may hold any number of objects. It is read as often as it takes, each time for the next
few thousand names, so that memory does not grow with it. Symbolic links are neither followed nor
listed. Everything here blocks.
"""

from __future__ import annotations

import heapq
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tusd_py.ports import ListedObject, UnfinishedObject
from tusd_py.stores.filesystem.tree import TEMPORARY_SUFFIX

PAGE_SIZE: Final = 10_000
"""Names of one directory that are held at once."""


def objects(root: Path, page_size: int) -> Iterator[ListedObject]:
    """Yield every regular file but the incomplete ones."""
    for key, path in _walk(str(root), "", page_size):
        if (facts := _regular(path)) is not None:
            yield ListedObject(key, facts.st_size, facts.st_mtime)


def incomplete(root: Path, page_size: int) -> Iterator[UnfinishedObject]:
    """Yield every file that `FileCopy` began and did not publish."""
    for key, directory in _walk(str(root), "", page_size, temporary=True):
        for name, _ in _sorted_names(directory, page_size):
            if (facts := _regular(f"{directory}/{name}")) is not None:
                yield UnfinishedObject(key.removesuffix(TEMPORARY_SUFFIX), name, facts.st_mtime)


def _walk(directory: str, prefix: str, page_size: int, *, temporary: bool = False) -> Iterator[tuple[str, str]]:
    """Yield files, or with `temporary` the directories that hold incomplete ones, each with its key."""
    for name, is_directory in _sorted_names(directory, page_size):
        # No Path: it interns every name, in a table that grows with their number.
        key, path = prefix + name, f"{directory}/{name}"
        if is_directory and name.endswith(TEMPORARY_SUFFIX):
            if temporary:
                yield key, path
        elif is_directory:
            yield from _walk(path, f"{key}/", page_size, temporary=temporary)
        elif not temporary:
            yield key, path


def _sorted_names(directory: str, page_size: int) -> Iterator[tuple[str, bool]]:
    # A directory sorts as its objects' keys do, with a slash behind its name: "a.b" before "a/c".
    last = ""
    while True:
        try:
            with os.scandir(directory) as entries:
                names = (f"{entry.name}/" if entry.is_dir(follow_symlinks=False) else entry.name for entry in entries)
                found = heapq.nsmallest(page_size, (name for name in names if name > last))
        except (FileNotFoundError, NotADirectoryError):
            return  # pruned since its name was read
        for name in found:
            yield name.removesuffix("/"), name.endswith("/")
        if len(found) < page_size:
            return
        last = found[-1]


def _regular(path: str) -> os.stat_result | None:
    try:
        facts = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return facts if stat.S_ISREG(facts.st_mode) else None
