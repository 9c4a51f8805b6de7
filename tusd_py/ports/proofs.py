"""What `tusd-py check-config --connect` asks of adapters: to show that they may do what they will do."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable


class Outcome(StrEnum):
    """How a proof ended."""

    OK = "ok"
    FAILED = "FAILED"
    SKIPPED = "skipped"
    """It could not be tried, because of an earlier failure."""


@dataclass(frozen=True, slots=True)
class Proof:
    """One right or fact that was tried; `detail` says what to do, or what was found."""

    subject: str
    outcome: Outcome = Outcome.OK
    detail: str = ""


@runtime_checkable
class Provable(Protocol):
    """An adapter that can try everything it needs, and leaves nothing behind."""

    def prove(self) -> AsyncGenerator[Proof]:
        """Try one right after the other. A failure is an answer; the caller closes the iterator."""
