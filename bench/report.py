"""What was measured, as Markdown: a table per case, and each expectation with a plain "meets" or "misses"."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Final

MIB: Final = 1024 * 1024
GIB: Final = 1024 * MIB
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

MIN_SHARE_OF_FLOOR: Final = 0.6
MAX_CPU_SECONDS_PER_GIB: Final = 1.0
MIN_SMALL_PER_SECOND: Final = 1000.0
MIN_HEAD_PER_SECOND: Final = 4000.0
MAX_HTTP_MIB: Final = 120.0
CLIENT_BOUND_SHARE: Final = 0.85
"""From this share of one CPU on, the client may be what limits a request rate."""


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


def number(value: float, digits: int = 2) -> str:
    """Render a figure; a dash for one that does not apply."""
    return "-" if math.isnan(value) else f"{value:,.{digits}f}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Render a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def case_tables(results: Results, case: str) -> str:
    """Render everything measured in a case, a line per target: how fast, then what it cost."""
    rate = "MiB/s" if case in STREAMS else "requests/s"
    speed = [TITLES[case], "runs", "wall s", rate, "p50 ms", "p99 ms", "of the floors"]
    unit = "CPU s/GiB" if case in STREAMS else "CPU ms/request"
    cost = [
        f"{unit}, memory in MiB",
        "all",
        *KINDS,
        "after",
        "client busy",
        "others busy",
        "HTTP peak",
        "all peak",
    ]
    targets = results.targets(case)
    return "\n".join(
        [
            table(speed, [speed_row(results, case, target) for target in targets]),
            table(cost, [cost_row(results, case, target) for target in targets]),
        ]
    )


def speed_row(results: Results, case: str, target: str) -> list[str]:
    """Render how fast a target was: medians."""
    scale = 1 / MIB if case in STREAMS else 1.0
    rate = headline(case)
    return [
        target,
        str(len(results.of(case, target))),
        number(results.median(case, target, lambda one: one.wall_seconds)),
        number(results.median(case, target, rate) * scale, 0),
        number(results.median(case, target, lambda one: one.p50_ms)),
        number(results.median(case, target, lambda one: one.p99_ms)),
        shares(results, case, target),
    ]


def cost_row(results: Results, case: str, target: str) -> list[str]:
    """Render what a target cost: medians of CPU time by kind of process, peaks of memory."""
    figures: list[tuple[Figure, int]] = [
        (lambda one: per_unit(one, one.cpu_all), 2),
        *((cpu_of(kind), 2) for kind in KINDS),
        (lambda one: per_unit(one, one.cpu_after) if "worker" in one.cpu else math.nan, 2),
        (lambda one: one.cpu.get("http", math.nan) / one.wall_seconds, 2),
        (lambda one: one.client_cpu / one.wall_seconds if one.client_cpu else math.nan, 2),
        (lambda one: one.others_cpu / one.wall_seconds if one.client_cpu else math.nan, 2),
        (lambda one: one.http_peak_mib, 0),
        (lambda one: one.all_peak_mib, 0),
    ]
    return [target, *(number(results.median(case, target, figure), digits) for figure, digits in figures)]


def one_line(one: Measurement) -> str:
    """Render a measurement for whoever watches the run."""
    scale, unit = (1 / MIB, "MiB/s") if one.case in STREAMS else (1.0, "requests/s")
    cost = "CPU s/GiB" if one.case in STREAMS else "CPU ms/request"
    rate = number(headline(one.case)(one) * scale, 0)
    others = number(one.others_cpu / one.wall_seconds) if one.client_cpu else "-"
    spent = number(per_unit(one, one.cpu_all))
    return f"{rate} {unit}, {number(one.wall_seconds)} s, {spent} {cost}, others busy {others}"


def floors_of(case: str) -> tuple[str, ...]:
    """Return the floors that a case stands beside."""
    return {
        "stream": (COUNTS, DD),
        "parallel": (COUNTS, DD),
        "small": (COUNTS, ANSWERS, SYNCED_FILES),
        "head": (ANSWERS,),
    }[case]


def shares(results: Results, case: str, target: str) -> str:
    """Render a target's headline as a share of each floor's."""
    if target in floors_of(case):
        return "floor"
    mine = results.median(case, target, headline(case))
    floors = [(floor, results.median(case, floor, headline(case))) for floor in floors_of(case)]
    return ", ".join(f"{number(mine / value)} x {floor}" for floor, value in floors if not math.isnan(value))


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
        """Say plainly whether it is met."""
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


def warnings(results: Results) -> list[str]:
    """Say what makes a figure doubtful."""
    lines = list(results.problems)
    for one in results.measurements:
        name = f"{TITLES[one.case]}, {one.target}"
        if one.failures:
            lines.append(f"{name}: unexpected answers: {one.failures}")
        if not one.settled:
            lines.append(f"{name}: the server was still at work (transfers) when the wait for it ended")
        if one.case not in STREAMS and one.client_cpu > CLIENT_BOUND_SHARE * one.wall_seconds:
            lines.append(f"{name}: the client used {one.client_cpu / one.wall_seconds:.0%} of a CPU: client-bound")
    return list(dict.fromkeys(lines))


def render(results: Results, facts: Sequence[str], *, judged: bool) -> str:
    """Render the whole report."""
    cases = list(dict.fromkeys(one.case for one in results.measurements))
    parts = ["\n".join(f"- {fact}" for fact in facts) + "\n"]
    parts += [case_tables(results, case) for case in cases]
    if judged:
        rows = [verdict.row() for verdict in verdicts(results)]
        parts.append(table(["expectation (2 cores, loopback)", "measured", "expected", "floor", "verdict"], rows))
    doubts = warnings(results)
    if doubts:
        parts.append("\n".join(f"- {doubt}" for doubt in doubts) + "\n")
    return "\n".join(parts)
