"""Measurements, and the figures that are taken from them: medians over the rounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Final

from units import GIB

KINDS: Final = ("http", "worker", "postgres", "supervisor")
TITLES: Final = {
    "stream": "1 GiB in one PATCH",
    "parallel": "32 parallel uploads of 32 MiB",
    "small": "10 KiB uploads in one POST each, 32 connections",
    "head": "HEAD, 32 connections",
}
STREAMS: Final = ("stream", "parallel")
DURABLE: Final = "fsync"
COUNTS: Final = "bare handler, counts"
ANSWERS: Final = "bare handler, answers"
DD: Final = "dd conv=fdatasync"
SYNCED_FILES: Final = "files, fdatasync each"


@dataclass(frozen=True, slots=True)
class Measurement:
    """One run of one case against one target."""

    case: str
    target: str
    wall_seconds: float
    body_bytes: int = 0
    requests: int = 0
    p50_ms: float = math.nan
    p99_ms: float = math.nan
    cpu: dict[str, float] = field(default_factory=dict)
    cpu_after: float = 0.0
    """CPU seconds from the last answer until the server was idle again: transfers, mostly."""
    settled: bool = True
    client_cpu: float = 0.0
    others_cpu: float = 0.0
    """CPU seconds of the machine that were neither the server's nor the client's."""
    http_peak_mib: float = math.nan
    all_peak_mib: float = math.nan
    failures: dict[str, int] = field(default_factory=dict)

    @property
    def cpu_all(self) -> float:
        """CPU seconds of all the server's processes up to the last answer."""
        return sum(self.cpu.values())


Figure = Callable[[Measurement], float]


class Results:
    """Every measurement of a run."""

    def __init__(self) -> None:
        self.measurements: list[Measurement] = []
        self.problems: list[str] = []

    def add(self, measurement: Measurement) -> None:
        """Keep a measurement."""
        self.measurements.append(measurement)

    def of(self, case: str, target: str) -> list[Measurement]:
        """Return the repeats of a case on a target."""
        return [one for one in self.measurements if (one.case, one.target) == (case, target)]

    def targets(self, case: str) -> list[str]:
        """Return what a case was measured on, in order."""
        return list(dict.fromkeys(one.target for one in self.measurements if one.case == case))

    def median(self, case: str, target: str, figure: Figure) -> float:
        """Return the median of a figure over the repeats; NaN when there were none."""
        values = [value for one in self.of(case, target) if not math.isnan(value := figure(one))]
        return median(values) if values else math.nan


def bytes_per_second(one: Measurement) -> float:
    """Return the throughput."""
    return one.body_bytes / one.wall_seconds


def requests_per_second(one: Measurement) -> float:
    """Return the request rate."""
    return one.requests / one.wall_seconds


def cpu_of(kind: str) -> Figure:
    """Return the figure: what a kind of process cost; NaN where there is none of that kind."""
    return lambda one: per_unit(one, one.cpu.get(kind, math.nan))


def per_unit(one: Measurement, seconds: float) -> float:
    """Spread CPU seconds over GiB (streams: seconds) or requests (rates: milliseconds)."""
    if one.case in STREAMS:
        return seconds / (one.body_bytes / GIB) if one.body_bytes else math.nan
    return seconds * 1000 / one.requests if one.requests else math.nan


def headline(case: str) -> Figure:
    """Return the figure by which a case is compared with its floors."""
    return bytes_per_second if case in STREAMS else requests_per_second


def floors_of(case: str) -> tuple[str, ...]:
    """Return the floors that a case stands beside."""
    return {
        "stream": (COUNTS, DD),
        "parallel": (COUNTS, DD),
        "small": (COUNTS, ANSWERS, SYNCED_FILES),
        "head": (ANSWERS,),
    }[case]
