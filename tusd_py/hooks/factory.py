"""Build the hooks that a configuration names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tusd_py.errors import ConfigError
from tusd_py.hooks.functions import FunctionHooks, load_hook
from tusd_py.hooks.programs import ProgramHooks

if TYPE_CHECKING:
    from tusd_py.config.sections.hooks import HooksConfig
    from tusd_py.ports.hooks import Hooks


def make_hooks(config: HooksConfig) -> Hooks | None:
    """Return who is to be asked, None if nobody is.

    Raises:
        ConfigError: the Python object cannot be loaded.
    """
    if config.http is not None:
        from tusd_py.hooks.http import HttpHooks

        return HttpHooks(
            config.http,
            retries=config.retries,
            backoff_seconds=config.backoff,
            forward_headers=frozenset(config.forward_headers),
        )
    if config.file is not None:
        return ProgramHooks(config.file.absolute())
    if config.python is None:
        return None
    try:
        return FunctionHooks(load_hook(config.python))
    except ValueError as error:
        raise ConfigError([f"hooks.python: {error}"]) from error
