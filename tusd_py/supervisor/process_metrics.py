"""`process_*` and build info for all processes of a server: prometheus_client tells of its own process only.

The supervisor's children carry their role as the name of the process; whoever answers `/metrics` is one of
them and finds the others by it.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from functools import partial

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from tusd_py.process_identity import NAME_PREFIX, all_processes


def process_metrics(supervisor_pid: int) -> list[Metric]:
    """Return CPU time, memory, files and start of the supervisor and its children, each with its role."""
    families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
    for role, pid in _roles(supervisor_pid):
        for one in ProcessCollector(pid=partial(int, pid), registry=None).collect():
            make = CounterMetricFamily if one.type == "counter" else GaugeMetricFamily
            family = families.setdefault(one.name, make(one.name, one.documentation, labels=["process"]))
            family.add_metric([role], one.samples[0].value)
    return list(families.values())


def build_info(version: str) -> Metric:
    """Return what runs here."""
    info = GaugeMetricFamily("tusd_py_build_info", "What runs here; always 1.", labels=["version", "python"])
    info.add_metric([version, platform.python_version()], 1)
    return info


def _roles(supervisor_pid: int) -> Iterator[tuple[str, int]]:
    yield "supervisor", supervisor_pid
    for pid, stat in all_processes():
        if stat.parent == supervisor_pid and stat.name.startswith(NAME_PREFIX):
            yield stat.name.removeprefix(NAME_PREFIX), pid
