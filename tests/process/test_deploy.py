"""docs/deploy: what is offered to Prometheus and Grafana is accepted by them and fits what a server exports."""

from __future__ import annotations

import functools
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.support.blocking_client import fetch
from tests.support.server import StartServer
from tests.support.tools import ROOT, require_tool

DEPLOY = ROOT / "docs" / "deploy"
RULES = yaml.safe_load((DEPLOY / "alerts.yml").read_text())
ALERTS = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"]}
DASHBOARD = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
BY_PROMETHEUS = {"instance", "job"}
"""Labels that every series has once it has been scraped."""
GRAFANA = {"$__rate_interval": "5m", "$instance": ".*"}


def promtool(*arguments: str | Path) -> None:
    program = require_tool("promtool", install="apt-get install prometheus")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


# --- Prometheus takes them -------------------------------------------------------------------------


@pytest.mark.acceptance
def test_prometheus_takes_configuration_and_rules() -> None:
    promtool("check", "config", DEPLOY / "prometheus.yml")
    promtool("check", "rules", DEPLOY / "alerts.yml")


def test_every_alert_says_what_happened_and_what_to_do() -> None:
    for name, rule in ALERTS.items():
        assert rule["labels"]["severity"] in {"page", "ticket"}, name
        assert set(rule["annotations"]) == {"summary", "description"}, name
        assert rule["annotations"]["description"].endswith("."), name


# A server that is well, and per alert what is wrong with it. The first 30 minutes are healthy.
HEALTHY = {
    'up{job="tusd_py", instance="a"}': "1+0x90",
    'tusd_py_ready{instance="a"}': "1+0x90",
    'tusd_py_degraded{instance="a", check="store"}': "0+0x90",
    'process_start_time_seconds{instance="a", process="http-1"}': "1000+0x90",
    'process_open_fds{instance="a", process="http-1"}': "100+0x90",
    'process_max_fds{instance="a", process="http-1"}': "1000+0x90",
    'tusd_py_requests_total{instance="a", method="POST", status="201"}': "0+100x90",
    'tusd_py_requests_total{instance="a", method="PATCH", status="499"}': "0+100x90",
    'tusd_py_requests_total{instance="a", method="PATCH", status="500"}': "0+0x90",
    'tusd_py_accept_failures_total{instance="a"}': "0+0x90",
    'tusd_py_database_connections{instance="a", state="busy"}': "1+0x90",
    'tusd_py_database_connections{instance="a", state="idle"}': "9+0x90",
    'tusd_py_database_connections_limit{instance="a"}': "10+0x90",
    'tusd_py_sync_failures_total{instance="a"}': "0+0x90",
    'tusd_py_staging_free_bytes{instance="a"}': "500+0x90",
    'tusd_py_staging_reserve_bytes{instance="a"}': "100+0x90",
    'tusd_py_staging_size_bytes{instance="a"}': "1000+0x90",
    'tusd_py_unclaimed_bytes{instance="a"}': "0+0x90",
    'tusd_py_cleanup_failures_total{instance="a", kind="expired"}': "0+0x90",
    'tusd_py_uploads{instance="a", state="transfer_failed"}': "0+0x90",
    'tusd_py_uploads{instance="a", state="uploading"}': "5+0x90",
    'tusd_py_jobs{instance="a", state="blocked"}': "0+0x90",
    'tusd_py_jobs{instance="a", state="queued"}': "5+0x90",
    'tusd_py_store_outage_seconds{instance="a", kind="unreachable"}': "0+0x90",
    'tusd_py_oldest_due_job_seconds{instance="a"}': "1+0x90",
    'tusd_py_oldest_undelivered_event_seconds{instance="a", endpoint="app"}': "1+0x90",
    'tusd_py_endpoint_paused{instance="a", endpoint="app"}': "0+0x90",
    'tusd_py_deliveries_total{instance="a", endpoint="app", outcome="dead"}': "0+0x90",
    'tusd_py_deliveries_total{instance="a", endpoint="app", outcome="failed"}': "0+1x90",
    'tusd_py_hooks_total{instance="a", hook="pre-create", outcome="failed"}': "0+0x90",
    'tusd_py_hooks_total{instance="a", hook="pre-create", outcome="replied"}': "0+100x90",
}
FAULTS = {
    "TusdDown": {'up{job="tusd_py", instance="a"}': "1+0x30 0+0x60"},
    "TusdNotReady": {
        'tusd_py_ready{instance="a"}': "1+0x30 0+0x60",
        'tusd_py_degraded{instance="a", check="database"}': "0+0x30 1+0x60",
    },
    "TusdDegraded": {'tusd_py_degraded{instance="a", check="store"}': "0+0x30 1+0x60"},
    "TusdProcessRestarts": {'process_start_time_seconds{instance="a", process="http-1"}': "1000+0x30 1001+1x60"},
    "TusdErrors": {'tusd_py_requests_total{instance="a", method="PATCH", status="500"}': "0+0x30 0+20x60"},
    "TusdAcceptFailures": {'tusd_py_accept_failures_total{instance="a"}': "0+0x30 1+1x60"},
    "TusdFileDescriptors": {'process_open_fds{instance="a", process="http-1"}': "100+0x30 900+0x60"},
    "TusdDatabasePoolBusy": {'tusd_py_database_connections{instance="a", state="busy"}': "1+0x30 10+0x60"},
    "TusdSyncFailures": {'tusd_py_sync_failures_total{instance="a"}': "0+0x30 1+0x60"},
    "TusdStagingAlmostFull": {'tusd_py_staging_free_bytes{instance="a"}': "500+0x30 150+0x60"},
    "TusdStagingFull": {'tusd_py_staging_free_bytes{instance="a"}': "500+0x30 99+0x60"},
    "TusdUnclaimedBytes": {'tusd_py_unclaimed_bytes{instance="a"}': "0+0x20 1+0x70"},
    "TusdCleanupFailures": {'tusd_py_cleanup_failures_total{instance="a", kind="expired"}': "0+0x30 0+1x60"},
    "TusdTransfersFailed": {'tusd_py_uploads{instance="a", state="transfer_failed"}': "0+0x30 1+0x60"},
    "TusdJobsBlocked": {'tusd_py_jobs{instance="a", state="blocked"}': "0+0x30 1+0x60"},
    "TusdStoreAway": {'tusd_py_store_outage_seconds{instance="a", kind="unreachable"}': "0+0x30 60+60x60"},
    "TusdJobsWait": {'tusd_py_oldest_due_job_seconds{instance="a"}': "1+0x30 60+60x60"},
    "TusdEventsWait": {'tusd_py_oldest_undelivered_event_seconds{instance="a", endpoint="app"}': "1+0x30 3000+60x60"},
    # What waits for an endpoint that is paused is the same fault.
    "TusdEndpointPaused": {
        'tusd_py_endpoint_paused{instance="a", endpoint="app"}': "0+0x30 1+0x60",
        'tusd_py_oldest_undelivered_event_seconds{instance="a", endpoint="app"}': "1+0x30 3000+60x60",
    },
    "TusdDeadLetters": {'tusd_py_deliveries_total{instance="a", endpoint="app", outcome="dead"}': "0+0x30 1+0x60"},
    "TusdHooksFail": {'tusd_py_hooks_total{instance="a", hook="pre-create", outcome="failed"}': "0+0x30 2+2x60"},
}
BESIDE = {"TusdStagingFull": {"TusdStagingAlmostFull"}}
"""What rings with another alert, because it is the same fault."""


def test_every_alert_is_tried() -> None:
    assert FAULTS.keys() == ALERTS.keys()


@pytest.mark.acceptance
@pytest.mark.parametrize("alert", FAULTS)
def test_an_alert_rings_for_its_fault_and_for_nothing_else(alert: str, tmp_path: Path) -> None:
    series = HEALTHY | FAULTS[alert]
    ringing = {alert} | BESIDE.get(alert, set())
    checks = [
        _firing_at("29m", set()),
        _firing_at("88m", ringing),
    ]
    tried = {
        "rule_files": [str(DEPLOY / "alerts.yml")],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "promql_expr_test": checks,
            }
        ],
    }
    file = tmp_path / "alerts_test.yml"
    file.write_text(yaml.safe_dump(tried))

    promtool("test", "rules", file)


def _firing_at(moment: str, names: set[str]) -> dict[str, Any]:
    samples = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(names)]
    firing = 'count by (alertname) (ALERTS{alertstate="firing"})'
    return {"expr": firing, "eval_time": moment, "exp_samples": samples}


# --- the dashboard ---------------------------------------------------------------------------------


def test_panels_have_their_own_place_and_say_what_they_show() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        columns = range(place["x"], place["x"] + place["w"])
        cells = {(x, y) for x in columns for y in range(place["y"], place["y"] + place["h"])}
        assert columns.stop <= 24, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["title"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_panels_ask_the_data_source_that_is_chosen() -> None:
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert variables == {"datasource", "instance"}
    for panel in PANELS:
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["targets"]
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"]
            assert set(re.findall(r"\$\w+", target["expr"])) <= GRAFANA.keys()
            # Every label that a legend shows is one of the result.
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert shown <= _labels_of_result(_substituted(target["expr"])), target


# --- both fit what a server exports ----------------------------------------------------------------


def expressions() -> dict[str, str]:
    """Every expression by where it stands."""
    found = {name: rule["expr"] for name, rule in ALERTS.items()}
    for panel in PANELS:
        for target in panel["targets"]:
            found[f"{panel['title']} {target['refId']}"] = _substituted(target["expr"])
    return found


def _substituted(expression: str) -> str:
    for variable, value in GRAFANA.items():
        expression = expression.replace(variable, value)
    return expression


@pytest.mark.acceptance
def test_every_name_and_label_is_exported_by_a_server_from_the_start(start_server: StartServer) -> None:
    webhook = {"url": "http://127.0.0.1:9/", "name": "app"}
    server = start_server({"server": {"processes": 2}, "webhooks": [webhook]})
    metrics = fetch(f"{server.ready.operations_url}/metrics").body.decode()
    families = list(text_string_to_metric_families(metrics))
    exported: dict[str, list[dict[str, str]]] = {"up": [{}]}
    for sample in (sample for family in families for sample in family.samples):
        exported.setdefault(sample.name, []).append(sample.labels)

    for where, expression in expressions().items():
        for selector in _selectors(promql_parser.parse(expression)):
            assert selector.name in exported, f"{where}: nothing exports {selector.name}"
            matching = exported[selector.name]
            for matcher in selector.matchers.matchers:
                matching = [labels for labels in matching if _matches(matcher, labels)]
                # A status or a state that an alert waits for is there, with 0, before it ever happens.
                assert matching, f"{where}: no {selector.name} has {matcher.name} like {matcher.value!r}"
        known = {label for labels in exported.values() for sample in labels for label in sample} | BY_PROMETHEUS
        assert _grouped_by(promql_parser.parse(expression)) <= known, where


def _matches(matcher: promql_parser.Matcher, labels: dict[str, str]) -> bool:
    if matcher.name in BY_PROMETHEUS:
        return True
    value = labels.get(matcher.name, "")
    match matcher.op:
        case promql_parser.MatchOp.Equal:
            return bool(value == matcher.value)
        case promql_parser.MatchOp.NotEqual:
            return bool(value != matcher.value and matcher.name in labels)
        case promql_parser.MatchOp.Re:
            return re.fullmatch(matcher.value, value) is not None
        case _:
            return re.fullmatch(matcher.value, value) is None and matcher.name in labels


def _children(node: Any) -> Iterator[Any]:
    for name in ("lhs", "rhs", "expr", "param", "vector_selector", "args"):
        child = getattr(node, name, None)
        yield from child if isinstance(child, list) else [child] if child is not None else []


def _nodes(node: Any) -> Iterator[Any]:
    yield node
    for child in _children(node):
        yield from _nodes(child)


def _selectors(node: Any) -> Iterator[promql_parser.VectorSelector]:
    return (one for one in _nodes(node) if isinstance(one, promql_parser.VectorSelector))


def _grouped_by(node: Any) -> set[str]:
    aggregates = [one for one in _nodes(node) if isinstance(one, promql_parser.AggregateExpr)]
    return {label for one in aggregates if one.modifier is not None for label in one.modifier.labels}


@functools.cache
def _labels_of_result(expression: str) -> frozenset[str]:
    """Return the labels that may stand in a legend: those of an aggregation, or of the series as exported."""
    nodes = _nodes(promql_parser.parse(expression))
    outermost = next((one for one in nodes if isinstance(one, promql_parser.AggregateExpr)), None)
    if outermost is not None:
        return frozenset(outermost.modifier.labels if outermost.modifier is not None else ())
    return frozenset({"instance", "check", "process", "state", "version", "python"})
