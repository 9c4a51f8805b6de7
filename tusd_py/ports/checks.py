"""What `tusd-py check-config --connect` asks of adapters: to try what they will have to do."""

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
        """Yield the result of one try after the other. A failure is a result; the caller closes the iterator."""
