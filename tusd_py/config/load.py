"""Read the configuration from its sources and report every problem with its key path.

Order of precedence: command line, environment, TOML file, defaults.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from tusd_py.config.model import Config
from tusd_py.config.sources import ENV_DELIMITER, ENV_PREFIX, Sources, reading
from tusd_py.config.suggest import did_you_mean, keys, nearest_text, section_of
from tusd_py.config.validation import cross_field_problems
from tusd_py.errors import ConfigError

RESERVED_ENV: Final = frozenset({"TUSD_READY_FILE", "TUSD_POSTGRES_BIN", "TUSD_TEST_DSN"})
"""Variables of our prefix that are not configuration."""


def load_config(path: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Config:
    """Return the configuration from a file (None: defaults), the environment and `overrides`.

    Raises:
        ConfigError: with every problem found, each as `key.path: message`.
    """
    problems = _unknown_environment()
    values = _read_file(path) if path is not None else {}
    broken: frozenset[str] = frozenset()
    try:
        config = _build(Sources(values), overrides or {})
    except ValidationError as error:
        problems += _validation_problems(error)
        # The valid sections can still be checked against each other, so that all problems are reported at once.
        broken = frozenset(str(problem["loc"][0]) for problem in error.errors())
        config = _build(Sources(values, broken), overrides or {})
    if problems := problems + cross_field_problems(config, broken):
        raise ConfigError(problems)
    return config


def _build(sources: Sources, overrides: Mapping[str, Any]) -> Config:
    with reading(sources):
        return Config(**sources.kept(overrides))


def _read_file(path: Path) -> dict[str, Any]:
    # pydantic-settings ignores a missing file; a service must not start without it.
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: is not valid TOML: {error}"]) from error


def _unknown_environment() -> list[str]:
    # pydantic-settings reads only the variables it knows, in upper or lower case, and ignores the others.
    variables = [_variable(path) for path in keys(Config)]
    return [
        f"environment: {name} names no key{nearest_text(name.upper(), variables) or _all_sections()}"
        for name in sorted(os.environ)
        if name.upper().startswith(ENV_PREFIX)
        and name not in RESERVED_ENV
        and not _may_name_a_key(name[len(ENV_PREFIX) :].lower().split(ENV_DELIMITER))
    ]


def _may_name_a_key(steps: list[str]) -> bool:
    """Return whether the model itself reads this variable, and refuses it if it is wrong."""
    known = Config.model_fields.get(steps[0])
    return known is not None and (len(steps) == 1 or section_of(known.annotation) is not None)


def _variable(path: Sequence[str]) -> str:
    return ENV_PREFIX + ENV_DELIMITER.join(path).upper()


def _all_sections() -> str:
    return f" (sections: {', '.join(Config.model_fields)})"


def _validation_problems(error: ValidationError) -> list[str]:
    problems = []
    for problem in error.errors(include_url=False, include_context=False):
        path = [str(step) for step in problem["loc"] if not str(step).startswith("function-")]
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = f"unknown key{_from_environment(path)}{did_you_mean(Config, path)}"
        problems.append(f"{'.'.join(path)}: {message}")
    return problems


def _from_environment(path: Sequence[str]) -> str:
    variable = _variable(path)
    return next((f" (from the environment: {name})" for name in os.environ if name.upper() == variable), "")
