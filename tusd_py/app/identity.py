"""The staging directory and the database belong together: found out at every start, before anything is touched.

The directory has an id, in a file, and the database knows it. A database that does not is another one,
or an older copy: with it every staged file would look like nobody's. Rows name the directory of their
bytes, so a directory that is not there, or another one in its place, is no damage.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import uuid4

import structlog

from tusd_py.database.staging_directories import StagingDirectories, StagingDirectory
from tusd_py.errors import DatabaseUnavailable, StagingMismatch
from tusd_py.protocol.upload import StagingId
from tusd_py.staging.identity import read_id, write_id
from tusd_py.staging.scan import DirectoryScan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tusd_py.app.records import Records
    from tusd_py.ports import StagedFile

log = structlog.get_logger(__name__)

PAGE: Final = 500
HOW_TO_GO_ON: Final = (
    "Check database.dsn (without it a private database under data_dir is used) and staging.directory. "
    'If they are right, "tusd-py staging adopt" shows what is there and brings the two together.'
)


@dataclass(slots=True)
class Holdings:
    """The files in a staging directory, and the directories in which the database has their uploads."""

    files: int = 0
    size: int = 0
    holders: Counter[StagingId] = field(default_factory=Counter)

    @property
    def known(self) -> int:
        """Return how many of the files belong to an upload that the database knows."""
        return self.holders.total()


async def identify(records: Records) -> None:
    """Check that directory and database agree on the directory's id; give one to a directory that has none.

    Raises:
        StagingMismatch: they do not belong together.
        DatabaseUnavailable: a directory without an id can get none now.
    """
    directory, directories = records.config.staging_directory, StagingDirectories(records.database)
    staging_id = await asyncio.to_thread(read_id, directory)
    if staging_id is None:
        staging_id = await _begin(records, directories)
    try:
        if await directories.find(staging_id) is None:
            raise StagingMismatch(
                f"The database ({await directories.place()}) does not know the staging directory {directory} "
                f"(id {staging_id}): it is another one than the directory was used with, or an older copy. "
                f"{HOW_TO_GO_ON}"
            )
        await directories.seen(staging_id, records.config.node, str(directory))
    except DatabaseUnavailable as away:
        # The directory was accepted before, and whatever removes something asks again.
        log.warning("staging_directory_not_confirmed", staging_id=str(staging_id), reason=str(away))
    records.identity.id = staging_id


async def _begin(records: Records, directories: StagingDirectories) -> StagingId:
    """Give an id to a directory that has none: a new one, or one from before directories had ids."""
    directory, node = records.config.staging_directory, records.config.node
    holdings = await take_stock(directory, directories)
    not_taken = await directories.not_taken(node, list(holdings.holders))
    await _refuse_doubtful(directory, directories, holdings, not_taken)
    chosen = not_taken[0].id if not_taken else StagingId(uuid4())
    await directories.add(chosen, node)
    if await asyncio.to_thread(write_id, directory, chosen):
        await directories.merge(chosen, [other.id for other in not_taken[1:]])
        log.info(
            "staging_directory_adopted" if holdings.files else "staging_directory_new",
            staging_id=str(chosen),
            directory=str(directory),
            files=holdings.files,
            bytes=holdings.size,
            known_files=holdings.known,
        )
        return chosen
    # Another server was quicker; the database knows what it wrote.
    winner = await asyncio.to_thread(read_id, directory)
    assert winner is not None  # nobody takes an id away
    return winner


async def _refuse_doubtful(
    directory: Path, directories: StagingDirectories, holdings: Holdings, not_taken: list[StagingDirectory]
) -> None:
    taken = [held for held in holdings.holders if held not in {one.id for one in not_taken}]
    if taken:
        other = await directories.find(taken[0])
        raise StagingMismatch(
            f"The staging directory {directory} has no id, and holds files of staging directory {other}: it was "
            'copied or moved without its file "directory-id". Run "tusd-py staging adopt" if it is the only one '
            "with these files."
        )
    if holdings.files and not await directories.any_upload():
        raise StagingMismatch(
            f"The staging directory {directory} holds {holdings.files} files of uploads, and the database "
            f"({await directories.place()}) knows no upload at all. {HOW_TO_GO_ON}"
        )
    if not holdings.files and (count := await directories.uploads_with_bytes([one.id for one in not_taken])):
        raise StagingMismatch(
            f"The staging directory {directory} is empty, and {count} uploads should have bytes there: a disk may "
            f"not be mounted. {HOW_TO_GO_ON}"
        )


async def take_stock(directory: Path, directories: StagingDirectories) -> Holdings:
    """Look at every file of a staging directory, and ask the database whose it is."""
    holdings = Holdings()
    if not await asyncio.to_thread(directory.is_dir):
        return holdings
    pages = DirectoryScan(directory).pages(PAGE)
    while page := await asyncio.to_thread(_next_page, pages):
        ours = [(file.upload_id, file.size) for file in page if file.upload_id is not None]
        holdings.files += len(ours)
        holdings.size += sum(size for _, size in ours)
        holdings.holders.update(await directories.holders([upload_id for upload_id, _ in ours]))
    return holdings


def _next_page(pages: Iterator[list[StagedFile]]) -> list[StagedFile]:
    return next(pages, [])


@dataclass(frozen=True, slots=True)
class Adoption:
    """A plan that binds a staging directory to the database, with what was found in both."""

    directory: Path
    present: StagingId | None
    present_known: bool
    holdings: Holdings
    held: tuple[StagingDirectory, ...]
    place: str
    chosen: StagingId
    merged: tuple[StagingId, ...]

    def describe(self) -> list[str]:
        """Return the plan as lines of text."""
        known = "known to the database" if self.present_known else "unknown to the database"
        held = [f"  {self.holdings.holders[one.id]} of staging directory {one}" for one in self.held]
        return [
            f"staging directory: {self.directory}",
            f"  id: {'none' if self.present is None else f'{self.present}, {known}'}",
            f"  files of uploads: {self.holdings.files}, {self.holdings.size} bytes",
            f"database: {self.place}",
            f"  knows {self.holdings.known} of these files",
            *held,
            f"the directory would get the id {self.chosen}"
            if self.chosen != self.present
            else f"the database would learn the id {self.chosen}",
        ]


async def plan_adoption(records: Records, wanted: StagingId | None) -> Adoption:
    """Find out which id the directory should have for this database.

    Raises:
        StagingMismatch: several directories have files here, and none was chosen; or an unknown one was.
    """
    directory, directories = records.config.staging_directory, StagingDirectories(records.database)
    present = await asyncio.to_thread(_present, directory)
    holdings = await take_stock(directory, directories)
    held = [one for staging_id in holdings.holders if (one := await directories.find(staging_id)) is not None]
    not_taken = await directories.not_taken(records.config.node, list(holdings.holders))
    present_known = present is not None and await directories.find(present) is not None
    kept = present if present_known else None
    chosen = await _choose(directories, wanted, [*held, *not_taken], kept) or present or StagingId(uuid4())
    return Adoption(
        directory=directory,
        present=present,
        present_known=present_known,
        holdings=holdings,
        held=tuple(held),
        place=await directories.place(),
        chosen=chosen,
        merged=tuple(one.id for one in not_taken if one.id != chosen),
    )


async def _choose(
    directories: StagingDirectories,
    wanted: StagingId | None,
    candidates: list[StagingDirectory],
    kept: StagingId | None,
) -> StagingId | None:
    if wanted is not None:
        if await directories.find(wanted) is None:
            raise StagingMismatch(f"The database knows no staging directory {wanted}.")
        return wanted
    taken = [one for one in candidates if one.path is not None]
    if len(taken) > 1:
        listed = "; ".join(map(str, taken))
        raise StagingMismatch(f"Files of several staging directories lie here: {listed}. Choose one with --id.")
    if taken:
        return taken[0].id
    return kept or next((one.id for one in candidates), None)


def _present(directory: Path) -> StagingId | None:
    try:
        return read_id(directory)
    except StagingMismatch:
        return None  # a damaged file is written anew


async def adopt(records: Records, adoption: Adoption) -> None:
    """Bind the directory to the database as planned."""
    directories, node = StagingDirectories(records.database), records.config.node
    await directories.add(adoption.chosen, node)
    await asyncio.to_thread(write_id, adoption.directory, adoption.chosen, replace=True)
    await directories.merge(adoption.chosen, adoption.merged)
    await directories.seen(adoption.chosen, node, str(adoption.directory))
    log.info("staging_directory_adopted", staging_id=str(adoption.chosen), directory=str(adoption.directory))
