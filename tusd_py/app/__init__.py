"""The composition root: configuration in, wired components out. Only this package chooses adapters."""

from tusd_py.app.core import (
    Core,
    identify_staging,
    make_core,
    make_former_store,
    make_store,
    running,
)
from tusd_py.app.endpoints import make_webhook
from tusd_py.app.http import derive_features, make_http_context, make_upload_service
from tusd_py.app.identity import adopt, identify, plan_adoption
from tusd_py.app.library import create_app
from tusd_py.app.reconcile import make_reconcilers, require_directories
from tusd_py.app.records import Records, database_dsn, make_records, reachable
from tusd_py.app.worker import Work, make_cleanup_records, make_work, run_work

__all__ = [
    "Core",
    "Records",
    "Work",
    "adopt",
    "create_app",
    "database_dsn",
    "derive_features",
    "identify",
    "identify_staging",
    "make_cleanup_records",
    "make_core",
    "make_former_store",
    "make_http_context",
    "make_reconcilers",
    "make_records",
    "make_store",
    "make_upload_service",
    "make_webhook",
    "make_work",
    "plan_adoption",
    "reachable",
    "require_directories",
    "run_work",
    "running",
]
