"""Metrics: every instrument of a process in one class. Units stand in the names (OpenMetrics).

Import this only once `PROMETHEUS_MULTIPROC_DIR` is set, where several processes share their figures:
prometheus_client decides at import whether values live in memory or in files.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from tusd_py.errors import CLIENT_GONE, BodyError, TusdError
from tusd_py.ports import EndpointStats, QueueStats
from tusd_py.protocol.events import HookKind

TRANSFER_OUTCOMES: Final = ("succeeded", "retry", "postponed", "failed", "lost", "cancelled")
DELIVERY_OUTCOMES: Final = ("delivered", "failed", "dead")
HOOK_OUTCOMES: Final = ("replied", "failed", "invalid")
UNSETTLED: Final = ("created", "uploading", "completed", "transferring", "transfer_failed", "removing")
LIVE_JOBS: Final = ("queued", "running", "retry_wait", "blocked")
_SECONDS: Final = (0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60, 600, 3600)


OTHER: Final = "other"
METHODS: Final = ("GET", "HEAD", "POST", "PATCH", "DELETE", "OPTIONS", OTHER)
REQUEST_KINDS: Final[Mapping[str, Sequence[str]]] = {
    "create": ("POST",),
    # POST: with X-HTTP-Method-Override.
    "append": ("PATCH", "POST"),
    "status": ("HEAD", "POST"),
    "terminate": ("DELETE", "POST"),
    "download": ("GET", "HEAD"),
    "api": ("GET", "POST", "DELETE"),
    "events": ("GET",),
    "page": ("GET", "HEAD"),
    OTHER: METHODS,
}
"""What requests do, and by which methods; "other" are preflights and what is nothing of ours."""
SUCCESSES: Final = (200, 201, 202, 204, 206, 302, 304)
DOWNLOAD_KINDS: Final = ("staging", "store", "redirect")
SWEPT_KINDS: Final = (
    "expired", "local_purged", "gone_copies_removed", "requeued", "jobs_requeued", "parts_released", "rows_purged",
    "endpoints_forgotten", "dead_letters_purged", "events_purged", "files_set_aside", "unclaimed_removed",
)  # fmt: skip
"""The steps of cleanup."""
CLEANUP_FILES: Final = ("expired", "local_purged", "gone_copies_removed", "files_set_aside", "unclaimed_removed")
"""Those that deal with staged files."""


class RequestCounters(dict[tuple[str, int], Counter]):
    """The counters of requests, kept: looking one up by its labels costs more than counting."""

    def __init__(self, requests: Counter) -> None:
        super().__init__()
        self._requests = requests

    def add(self, method: str, status: int) -> Counter:
        """Return the counter of a method and a status, which is there from now on."""
        counter = self[method, status] = self._requests.labels(method, str(status))
        return counter

    def __missing__(self, labels: tuple[str, int]) -> Counter:
        return self.add(*labels)


class Metrics:
    """The instruments. Each application has its own registry, so that two of them do not collide.

    Every combination of labels is there from the start, with 0: an alert on a rate sees the first one
    as well, and a panel shows a line and not a hole.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        self._count_http()
        self._count_bodies()
        self._count_transfers()
        self._count_events()
        self.cleaned = Counter(
            "tusd_py_cleanup", "Rows and files that cleanup dealt with.", ["kind"], registry=self.registry
        )
        for kind in SWEPT_KINDS:
            self.cleaned.labels(kind)
        self.cleanup_failures = Counter(
            "tusd_py_cleanup_failures", "Files that cleanup could not deal with, and tries again later.", ["kind"],
            registry=self.registry,
        )  # fmt: skip
        for kind in CLEANUP_FILES:
            self.cleanup_failures.labels(kind)
        self.sync_failures = Counter(
            "tusd_py_sync_failures", "Syncs of staged files and directories that failed.", registry=self.registry
        )
        self._pool = Gauge(
            "tusd_py_database_connections", "Connections in the pools of the HTTP and worker processes.", ["state"],
            registry=self.registry, multiprocess_mode="livesum",
        )  # fmt: skip
        self._pool_limit = Gauge(
            "tusd_py_database_connections_limit", "Most connections that these pools may have.",
            registry=self.registry, multiprocess_mode="livesum",
        )  # fmt: skip
        self.show_pool(0, 0, 0)

    def _count_http(self) -> None:
        requests = Counter(
            "tusd_py_requests",
            "Requests answered; status 499: the client went away.",
            ["method", "status"],
            registry=self.registry,
        )
        seconds = Histogram(
            "tusd_py_request_seconds",
            "Time to answer a request, its body included.",
            ["method", "kind"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        statuses = sorted({*SUCCESSES, CLIENT_GONE, *_statuses(TusdError)})
        self.requests = RequestCounters(requests)
        """By method, one of `METHODS`, and status."""
        for method, status in itertools.product(METHODS, statuses):
            self.requests.add(method, status)
        self.request_seconds = {
            (method, kind): seconds.labels(method, kind)
            for kind, methods in REQUEST_KINDS.items()
            for method in methods
        }
        """By method and kind, as in `REQUEST_KINDS`."""
        self.downloads = Counter("tusd_py_downloads", "Downloads answered.", ["kind"], registry=self.registry)
        for kind in DOWNLOAD_KINDS:
            self.downloads.labels(kind)

    def _count_bodies(self) -> None:
        self.bytes_received = Counter(
            "tusd_py_received_bytes", "Bytes of upload bodies received.", registry=self.registry
        )
        self.uploads_created = Counter("tusd_py_uploads_created", "Uploads created.", registry=self.registry)
        self.uploads_completed = Counter(
            "tusd_py_uploads_completed", "Uploads whose last byte was recorded.", registry=self.registry
        )
        self.uploads_terminated = Counter("tusd_py_uploads_terminated", "Uploads deleted.", registry=self.registry)
        self.bodies_ended = Counter(
            "tusd_py_bodies_interrupted", "Bodies that ended early.", ["code"], registry=self.registry
        )
        for error in BodyError.__subclasses__():
            self.bodies_ended.labels(error.code)
        self.bodies_open = Gauge(
            "tusd_py_bodies_open", "Bodies being received.", registry=self.registry, multiprocess_mode="livesum"
        )
        self.event_listeners = Gauge(
            "tusd_py_event_listeners", "Clients that listen to events.", registry=self.registry,
            multiprocess_mode="livesum",
        )  # fmt: skip
        self.accept_failures = Counter(
            "tusd_py_accept_failures", "Times that no connection could be accepted.", registry=self.registry
        )
        self.header_timeouts = Counter(
            "tusd_py_header_timeouts", "Connections closed over headers that did not arrive.", registry=self.registry
        )

    def _count_transfers(self) -> None:
        self.transfers = Counter(
            "tusd_py_transfers", "Attempts to move an upload to the store that have ended.", ["outcome"],
            registry=self.registry,
        )  # fmt: skip
        for outcome in TRANSFER_OUTCOMES:
            self.transfers.labels(outcome)
        self.transferred_bytes = Counter(
            "tusd_py_transferred_bytes",
            "Bytes that the store has acknowledged, part by part.",
            registry=self.registry,
        )
        self.store_seconds = Histogram(
            "tusd_py_completed_to_stored_seconds",
            "Time from the last byte to the store, where nobody had to ask for the transfer.",
            buckets=_SECONDS,
            registry=self.registry,
        )

    def _count_events(self) -> None:
        self.deliveries = Counter(
            "tusd_py_deliveries",
            "Events handed to endpoints: delivered, tries that failed, and events given up.",
            ["endpoint", "outcome"],
            registry=self.registry,
        )
        self.delivery_seconds = Histogram(
            "tusd_py_delivery_seconds", "Time that an endpoint took to accept an event.", ["endpoint"],
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.hooks = Counter(
            "tusd_py_hooks", "Blocking hooks that were asked.", ["hook", "outcome"], registry=self.registry
        )
        for hook, outcome in itertools.product(HookKind, HOOK_OUTCOMES):
            self.hooks.labels(hook.value, outcome)

    def add_endpoint(self, name: str) -> None:
        """Show an endpoint from now on, with 0."""
        for outcome in DELIVERY_OUTCOMES:
            self.deliveries.labels(name, outcome)
        self.delivery_seconds.labels(name)

    def show_pool(self, busy: int, idle: int, limit: int) -> None:
        """Show how this process uses its connections to the database."""
        self._pool.labels("busy").set(busy)
        self._pool.labels("idle").set(idle)
        self._pool_limit.set(limit)


def _statuses(error: type[TusdError]) -> set[int]:
    """Return every status that an error of the tree may be answered with."""
    return {error.status}.union(*(_statuses(one) for one in error.__subclasses__()))


def readiness_gauges(problems: Mapping[str, str | None], *, ready: bool) -> list[Metric]:
    """Return what the checks of /readyz say as gauges, each check with 0 or 1."""
    degraded = GaugeMetricFamily("tusd_py_degraded", "1 for each check of /readyz that fails.", labels=["check"])
    for name, problem in problems.items():
        degraded.add_metric([name], float(problem is not None))
    return [GaugeMetricFamily("tusd_py_ready", "Whether uploads can go on at this node.", float(ready)), degraded]


def stats_gauges(figures: QueueStats) -> list[Metric]:
    """Return what is read from the database as gauges; every state is there, with 0 if it has none."""
    uploads = GaugeMetricFamily("tusd_py_uploads", "Uploads that are not settled, on all nodes.", labels=["state"])
    for state in UNSETTLED:
        uploads.add_metric([state], figures.uploads.get(state, 0))
    jobs = GaugeMetricFamily("tusd_py_jobs", "Jobs of this node that are not finished.", labels=["state"])
    for state in LIVE_JOBS:
        jobs.add_metric([state], figures.jobs.get(state, 0))
    outage = GaugeMetricFamily(
        "tusd_py_store_outage_seconds",
        "How long the store has been away from this node, or refused it.",
        labels=["kind"],
    )
    outage.add_metric(["unreachable"], figures.store_away_seconds)
    outage.add_metric(["blocked"], figures.store_blocked_seconds)
    return [
        uploads,
        jobs,
        outage,
        GaugeMetricFamily(
            "tusd_py_oldest_unfinished_seconds", "Age of the oldest upload that misses bytes.",
            figures.oldest_unfinished_seconds,
        ),
        GaugeMetricFamily(
            "tusd_py_oldest_due_job_seconds", "How long the job that is due longest has waited for a worker.",
            figures.oldest_due_job_seconds,
        ),
        *_endpoint_gauges(figures.endpoints),
    ]  # fmt: skip


def _endpoint_gauges(endpoints: Sequence[EndpointStats]) -> list[Metric]:
    gauges = {
        "waiting": GaugeMetricFamily(
            "tusd_py_deliveries_waiting", "Uploads with events that an endpoint has not taken yet.", labels=["endpoint"]
        ),
        "oldest_seconds": GaugeMetricFamily(
            "tusd_py_oldest_undelivered_event_seconds", "Age of the oldest event that an endpoint has not taken yet.",
            labels=["endpoint"],
        ),
        "dead_letters": GaugeMetricFamily(
            "tusd_py_dead_letters", "Events that an endpoint did not take in time.", labels=["endpoint"]
        ),
        "paused": GaugeMetricFamily(
            "tusd_py_endpoint_paused", "1 for each endpoint that wants nothing more (410).", labels=["endpoint"]
        ),
    }  # fmt: skip
    for endpoint in endpoints:
        for name, gauge in gauges.items():
            gauge.add_metric([endpoint.name], float(getattr(endpoint, name)))
    return list(gauges.values())
