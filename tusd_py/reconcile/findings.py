"""The kinds of findings, their repairs, and the report of a run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from tusd_py.ports import UploadRecord
from tusd_py.protocol.upload import UploadId


class Kind(StrEnum):
    """What disagrees."""

    ORPHAN_FILE = "orphan_file"
    """A staged file of no upload."""
    UNCLAIMED_FILE = "unclaimed_file"
    """A staged file that was set aside because no upload knew it."""
    LEFTOVER_COPY = "leftover_copy"
    """A staged file of an upload that has no use for it: stored, or gone."""
    FOREIGN_FILE = "foreign_file"
    """Something in the staging directory that is not ours: a link, a name of another form."""
    STAGED_MISSING = "staged_missing"
    STAGED_SHORT = "staged_short"
    """A staged file holds less than was acknowledged."""
    COPY_NOT_THERE = "copy_not_there"
    """A stored upload says that it has a staged copy, and has none."""
    OBJECT_MISSING = "object_missing"
    OBJECT_DIFFERS = "object_differs"
    """Another length, another upload's id or another checksum than the upload's."""
    ORPHAN_OBJECT = "orphan_object"
    """An object of ours that belongs to no upload."""
    OBJECT_OF_GONE_UPLOAD = "object_of_gone_upload"
    STRAY_MULTIPART = "stray_multipart"
    """Something unfinished under an upload's key that the upload knows nothing of."""
    UNPROVEN_MULTIPART = "unproven_multipart"
    """Something unfinished under a key that could be ours, and belongs to no upload."""
    JOB_MISSING = "job_missing"
    """An upload waits for a job that nobody has queued."""
    FOUND_AGAIN = "found_again"
    """What was missing is there again."""


class Repair(StrEnum):
    """What is done about a finding."""

    NONE = "look into it: nothing is safe to do by itself"
    REMOVE_FILE = "remove the file"
    SET_ASIDE = "move it to unclaimed/, where it is kept for a while"
    TAKE_BACK = "move it back: its upload is there again"
    FORGET_COPY = "record that there is no staged copy"
    QUEUE_JOB = "queue the job"
    REQUEUE = "queue the transfer again, from the staged bytes"
    MARK = "mark the upload as damaged; nothing is removed"
    CLEAR_MARK = "record that nothing is missing"
    REMOVE_OBJECT = "remove the object"
    ABORT = "abort it"


class Result(StrEnum):
    """What became of a finding."""

    LEFT = "left"
    KEPT = "kept"
    """Nothing is to be done about it: it is reported, and does not count as left."""
    REPAIRED = "repaired"
    MARKED = "marked"
    """Recorded; the bytes are still missing."""
    CHANGED = "changed"
    """It had changed, or was in use. The next run checks it again."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One disagreement. `subject` is an upload's id, an object's key or a file's name."""

    kind: Kind
    subject: str
    size: int | None
    age_seconds: float
    repair: Repair
    detail: str = ""
    row: UploadRecord | None = None
    file_id: UploadId | None = None
    unfinished_id: str | None = None


@dataclass(frozen=True, slots=True)
class FindingOutcome:
    """A finding and what became of it."""

    finding: Finding
    result: Result
    reason: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the line for machines."""
        finding = self.finding
        return {
            "kind": finding.kind,
            "id": printable(finding.subject),
            "size": finding.size,
            "age_seconds": round(finding.age_seconds, 1),
            "detail": printable(finding.detail),
            "repair": finding.repair.name.lower(),
            "result": self.result,
            **({"reason": printable(self.reason)} if self.reason else {}),
        }

    def as_text(self, *, repair: bool) -> str:
        """Return the line for people."""
        finding = self.finding
        size = "-" if finding.size is None else _human_size(finding.size)
        status = f"would {finding.repair}" if finding.repair is not Repair.NONE else finding.repair.value
        if repair:
            status = self.result if finding.repair is Repair.NONE else f"{self.result}: {finding.repair}"
        parts = [
            f"{finding.kind:<21} {finding.subject:<36}",
            f"{size:>9} {_human_age(finding.age_seconds):>5} ",
            status,
        ]
        parts += [f"({text})" for text in (finding.detail, self.reason) if text]
        return printable(" ".join(parts))


@dataclass(slots=True)
class Report:
    """The figures of a run."""

    uploads: int = 0
    files: int = 0
    objects: int = 0
    unfinished: int = 0
    foreign_objects: int = 0
    foreign_unfinished: int = 0
    found: Counter[Kind] = field(default_factory=Counter)
    results: Counter[Result] = field(default_factory=Counter)
    failed_checks: dict[str, str] = field(default_factory=dict)
    """A check that could not be made, and why."""

    def count(self, outcome: FindingOutcome) -> None:
        """Add what became of a finding."""
        self.found[outcome.finding.kind] += 1
        self.results[outcome.result] += 1

    def add(self, other: Report, *, where: str = "") -> None:
        """Add the figures of a run beside another store; `where` is appended to its failed checks' names."""
        for name in ("uploads", "files", "objects", "unfinished", "foreign_objects", "foreign_unfinished"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.found += other.found
        self.results += other.results
        self.failed_checks |= {f"{name}{where}": reason for name, reason in other.failed_checks.items()}

    @property
    def left(self) -> int:
        """How many findings there still are."""
        return self.results.total() - self.results[Result.REPAIRED] - self.results[Result.KEPT]

    def as_json(self) -> dict[str, Any]:
        """Return everything for machines, and for the log."""
        return {
            "findings": self.found.total(),
            "repaired": self.results[Result.REPAIRED],
            "left": self.left,
            "found": {kind.value: count for kind, count in sorted(self.found.items())},
            "uploads": self.uploads,
            "files": self.files,
            "objects": self.objects,
            "unfinished": self.unfinished,
            "foreign_objects": self.foreign_objects,
            "foreign_unfinished": self.foreign_unfinished,
            "failed_checks": self.failed_checks,
        }

    def as_text(self) -> str:
        """Return the summary for people."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.found.items()))
        lines = [
            f"{self.uploads} uploads, {self.files} files, {self.objects} objects, {self.unfinished} multiparts",
            f"foreign and not touched: {self.foreign_objects} objects, {self.foreign_unfinished} multiparts",
            f"findings: {self.found.total()}{f' ({kinds})' if kinds else ''}",
            f"repaired: {self.results[Result.REPAIRED]}, left: {self.left}",
        ]
        lines += [f"NOT CHECKED: {name}: {reason}" for name, reason in self.failed_checks.items()]
        return printable("\n".join(lines), keep="\n")


def printable(text: str, *, keep: str = "") -> str:
    """Return text that is one line and valid UTF-8, whatever a file is named."""
    safe = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c in keep or c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in safe)


def _human_size(size: int) -> str:
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def _human_age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"
