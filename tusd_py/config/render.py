"""Write a configuration as TOML that reads back as the same configuration.

Two callers: `check-config`, which shows the effective values and masks the secrets, and
`tusd_py.config.example`, which adds a comment to every key. Pure text; nothing is opened.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from tusd_py.config.model import Config
from tusd_py.config.units import format_duration, format_size, parse_duration, parse_size

MASK: Final = "**********"
LINE_LENGTH: Final = 100

Comment = Callable[[str], list[str]]
"""Returns the comment lines for a text, none if comments are not wanted."""


def render_effective(config: Config) -> str:
    """Return the whole configuration as TOML text, every secret masked."""
    return "\n".join(render_lines(config, comment=lambda _: []))


def render_lines(model: BaseModel, *, comment: Comment, table: str = "") -> Iterator[str]:
    """Return the lines of `model` and of every table in it, keys before tables as TOML demands."""
    fields = type(model).model_fields
    values = {name: getattr(model, name) for name in fields}
    tables = {name: list(tables_of(name, value)) for name, value in values.items()}
    for name, field in fields.items():
        if not tables[name]:
            yield from comment(field.description or "")
            yield f"{name} = {toml_value(readable(values[name], field))}"
    for name, value in itertools.chain.from_iterable(tables.values()):
        path = f"{table}.{name}" if table else name
        yield ""
        yield from comment((type(value).__doc__ or "").split("\n", 1)[0])
        yield f"[[{path}]]" if isinstance(values.get(name), list) else f"[{path}]"
        yield from render_lines(value, comment=comment, table=path)
    if not table:
        yield ""


def tables_of(name: str, value: object) -> Iterator[tuple[str, BaseModel]]:
    """Return the tables that a value is written as: none, its own, or one for each name or item."""
    if isinstance(value, BaseModel):
        yield name, value
    elif isinstance(value, dict):
        for below, section in value.items():
            if isinstance(section, BaseModel):
                yield f"{name}.{below}", section
    elif isinstance(value, list):
        yield from ((name, section) for section in value if isinstance(section, BaseModel))


def readable(value: object, field: FieldInfo) -> object:
    """Return the value as people write it: sizes and durations with a unit, secrets not at all."""
    readers = {getattr(item, "func", None) for item in field.metadata}
    match value:
        case SecretStr():
            return MASK if value else ""
        case None:
            return ""
        case Path():
            return str(value)
        case int() if parse_size in readers:
            return format_size(value)
        case float() if parse_duration in readers:
            return format_duration(value)
        case _:
            return value


def toml_value(value: object) -> str:
    """Return a value as TOML."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case dict():
            items = [f"{_toml_text(key)} = {toml_value(item)}" for key, item in value.items()]
            return f"{{ {', '.join(items)} }}" if items else "{}"
        case list():
            return _toml_list([toml_value(item) for item in value])
        case _:
            return _toml_text(str(value))


def _toml_text(text: str) -> str:
    # What JSON escapes TOML escapes alike; JSON leaves DEL alone, which TOML does not allow.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml_list(items: list[str]) -> str:
    if len(line := f"[{', '.join(items)}]") <= LINE_LENGTH:
        return line
    return "\n".join(["[", *(f"    {item}," for item in items), "]"])
