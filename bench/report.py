"""What was measured, as Markdown: a table per case, and each expectation with a plain "meets" or "misses"."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from expectations import verdicts
from results import KINDS, STREAMS, TITLES, Figure, Measurement, Results, cpu_of, floors_of, headline, per_unit
from tables import number, table
from units import MIB

CLIENT_BOUND_SHARE: Final = 0.85
"""From this share of one CPU on, the client may be what limits a request rate."""


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


def shares(results: Results, case: str, target: str) -> str:
    """Render a target's headline as a share of each floor's."""
    if target in floors_of(case):
        return "floor"
    mine = results.median(case, target, headline(case))
    floors = [(floor, results.median(case, floor, headline(case))) for floor in floors_of(case)]
    return ", ".join(f"{number(mine / value)} x {floor}" for floor, value in floors if not math.isnan(value))


def warnings(results: Results) -> list[str]:
    """Return what makes figures doubtful, a line each."""
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
