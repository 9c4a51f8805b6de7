"""What is expected of two cores over loopback, beside what was measured: "meets" or "misses"."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from results import (
    ANSWERS,
    COUNTS,
    DURABLE,
    TITLES,
    Figure,
    Results,
    bytes_per_second,
    cpu_of,
    floors_of,
    per_unit,
    requests_per_second,
)
from tables import number
from units import MIB

MIN_SHARE_OF_FLOOR: Final = 0.6
MAX_CPU_SECONDS_PER_GIB: Final = 1.0
MIN_SMALL_PER_SECOND: Final = 1000.0
MIN_HEAD_PER_SECOND: Final = 4000.0
MAX_HTTP_MIB: Final = 120.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """One expectation beside what was measured."""

    what: str
    measured: float
    least: float = -math.inf
    most: float = math.inf
    floor: str = ""

    @property
    def word(self) -> str:
        """Return whether it is met, as a word of the report."""
        if math.isnan(self.measured):
            return "not measured"
        return "**meets**" if self.least <= self.measured <= self.most else "**misses**"

    def row(self) -> list[str]:
        """Render the expectation."""
        expected = f"≥ {number(self.least)}" if self.least > -math.inf else f"≤ {number(self.most)}"
        return [self.what, number(self.measured), expected, self.floor, self.word]


def stream_verdict(results: Results) -> Verdict:
    """Compare one durable stream with the slower of its floors."""
    floors = {floor: results.median("stream", floor, bytes_per_second) for floor in floors_of("stream")}
    known = {floor: value for floor, value in floors.items() if not math.isnan(value)}
    slower = min(known, key=lambda floor: known[floor], default="")
    mine = results.median("stream", DURABLE, bytes_per_second)
    share = mine / known[slower] if slower else math.nan
    shown = f"{number(mine / MIB, 0)} against {number(known[slower] / MIB, 0)} MiB/s, {slower}" if slower else ""
    return Verdict("one durable stream, share of the slower floor", share, least=MIN_SHARE_OF_FLOOR, floor=shown)


def rate_verdict(results: Results, case: str, least: float, floor: str) -> Verdict:
    """Judge a durable request rate."""
    rate = results.median(case, DURABLE, requests_per_second)
    limit = results.median(case, floor, requests_per_second)
    shown = "" if math.isnan(limit) else f"{number(limit, 0)}/s, {floor}"
    return Verdict(f"{TITLES[case]}, durable, per second", rate, least=least, floor=shown)


def cpu_verdict(results: Results, whose: str, figure: Figure) -> Verdict:
    """Judge the CPU time of a durable stream."""
    measured = results.median("stream", DURABLE, figure)
    floor = results.median("stream", COUNTS, cpu_of("http"))
    shown = "" if math.isnan(floor) else f"{number(floor)}, {COUNTS}"
    return Verdict(f"one durable stream, CPU s/GiB of {whose}", measured, most=MAX_CPU_SECONDS_PER_GIB, floor=shown)


def memory_verdict(results: Results) -> Verdict:
    """Judge the largest HTTP process of all cases and modes."""
    peaks = [one.http_peak_mib for one in results.measurements if "worker" in one.cpu]
    largest = max((peak for peak in peaks if not math.isnan(peak)), default=math.nan)
    bare = [one.http_peak_mib for one in results.measurements if one.target == COUNTS]
    shown = f"{number(max(bare))}, {COUNTS}" if bare else ""
    return Verdict("HTTP process, MiB at its peak, all cases and modes", largest, most=MAX_HTTP_MIB, floor=shown)


def verdicts(results: Results) -> list[Verdict]:
    """Judge every expectation."""
    return [
        stream_verdict(results),
        cpu_verdict(results, "the HTTP process alone", cpu_of("http")),
        cpu_verdict(results, "all server processes", lambda one: per_unit(one, one.cpu_all)),
        rate_verdict(results, "small", MIN_SMALL_PER_SECOND, COUNTS),
        rate_verdict(results, "head", MIN_HEAD_PER_SECOND, ANSWERS),
        memory_verdict(results),
    ]
