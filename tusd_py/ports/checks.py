"""What `tusd-py check-config --connect` asks of adapters: to show that they may do what they will do."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable


class Outcome(StrEnum):
    """How a result ended."""

    OK = "ok"
    FAILED = "FAILED"
    SKIPPED = "skipped"
    """It could not be tried, because of an earlier failure."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One right or fact that was tried; `detail` says what to do, or what was found."""

    subject: str
    outcome: Outcome = Outcome.OK
    detail: str = ""


@runtime_checkable
class Checkable(Protocol):
    """An adapter that can try everything it needs, and leaves nothing behind."""

    def check(self) -> AsyncGenerator[CheckResult]:
        """Try one right after the other. A failure is an answer; the caller closes the iterator."""
