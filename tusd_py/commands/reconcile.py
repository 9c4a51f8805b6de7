"""`tusd-py reconcile`: compare the database, the staging directory and the stores of this node."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import orjson

from tusd_py.app import make_core, make_reconcilers, require_directories, running
from tusd_py.metrics import Metrics

if TYPE_CHECKING:
    from tusd_py.config import Config
    from tusd_py.reconcile.findings import Report


async def reconcile_node(config: Config, *, repair: bool, as_json: bool, say: Callable[[str], None]) -> Report:
    """Compare the database, staging and store of this node; report each finding, then the summary.

    Raises:
        DatabaseUnavailable, StorageError: nothing could be compared.
    """
    core = make_core(config, Metrics())
    require_directories(config)
    async with running(core):
        reconcilers, report = await make_reconcilers(core)
        for where, reconciler in reconcilers.items():
            async for outcome in reconciler.run(repair=repair):
                say(_json(outcome.as_json()) if as_json else outcome.as_text(repair=repair))
            report.add(reconciler.report, where=where)
    say(_json({"summary": report.as_json()}) if as_json else report.as_text())
    return report


def _json(value: object) -> str:
    return orjson.dumps(value).decode()
