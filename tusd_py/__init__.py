"""A resumable upload server: tus 1.0.0 in, durable staging and PostgreSQL between, S3 out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tusd_py.app import create_app
    from tusd_py.config import Config, load_config
    from tusd_py.http.application import runner_options

__version__ = "0.1.0"
__all__ = ["Config", "__version__", "create_app", "load_config", "runner_options"]


def __getattr__(name: str) -> Any:
    """Import the library's entry points on first use: the command line starts faster without them."""
    if name == "create_app":
        from tusd_py.app import create_app

        return create_app
    if name in {"Config", "load_config"}:
        from tusd_py import config

        return getattr(config, name)
    if name == "runner_options":
        from tusd_py.http.application import runner_options

        return runner_options
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
