"""Render `docs/configuration.md`: a table per section with every key, its default and its meaning.

Run `make format` after a change of the sections.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Final, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tusd_py.config.model import Config
from tusd_py.config.render import readable, tables_of, toml_value
from tusd_py.config.sections import WebhookConfig

HEADER: Final = """\
# Configuration

One TOML file: `tusd-py serve --config config.toml`. Every key has a default, and an empty file is a valid
one. This page is generated from the code; [config.example.toml](../config.example.toml) has the same keys in
the form of a file.

- Sizes are `"64MiB"`, `"10GB"` or a number of bytes; durations `"500ms"`, `"60s"`, `"24h"`, `"7d"` or a number
  of seconds. An empty text means "not set".
- A secret is a text, `{ file = "path" }` or `{ env = "NAME" }`.
- Any key can come from the environment, which takes precedence over the file: `TUSD_SERVER__PORT=9000` is
  `port` of `[server]`. Lists are separated by commas.
- An unknown key is an error. `tusd-py check-config --config config.toml` reports all problems at once;
  with `--connect` it also tries the database, the staging disk and every right in the store.
- `[profiles.NAME]` may be there for any name, with the keys of `[profiles.default]`: see
  [Permissions](permissions.md). `[[storage.former]]` has the keys of `[storage]` and `moved`: see
  [Changing the store](stores.md).
"""


def render_reference() -> str:
    """Return the text of `docs/configuration.md`, whatever the environment says."""
    # model_construct reads no source, so that no TUSD_… variable ends up in the page.
    webhook = WebhookConfig.model_construct(url="")
    lines = [HEADER, *_section(Config.model_construct(), ""), *_section(webhook, "[webhooks]")]
    return "\n".join(lines).rstrip("\n") + "\n"


def _section(model: BaseModel, path: str) -> Iterator[str]:
    fields = type(model).model_fields
    values = {name: getattr(model, name) for name in fields}
    tables = {name: list(tables_of(name, value)) for name, value in values.items()}
    plain = [name for name in fields if not tables[name]]
    if path:
        yield f"## `[{path}]`\n"
        if about := (type(model).__doc__ or "").split("\n", 1)[0]:
            yield f"{about}\n"
    if plain:
        yield "| key | default | meaning |\n|---|---|---|"
        yield from (_row(name, values[name], fields[name]) for name in plain)
        yield ""
    for below in tables.values():
        for name, value in below:
            yield from _section(value, f"{path}.{name}" if path else name)


def _row(name: str, value: object, field: FieldInfo) -> str:
    default = " ".join(toml_value(readable(value, field)).split())
    return f"| `{name}` | `{default}` | {_cell(field)} |"


def _cell(field: FieldInfo) -> str:
    text = (field.description or "").replace("|", "\\|")
    if get_origin(field.annotation) is Literal:
        choices = ", ".join(f"`{toml_value(choice)}`" for choice in get_args(field.annotation))
        text = f"{text}. One of {choices}" if text else f"one of {choices}"
    return text


if __name__ == "__main__":
    sys.stdout.write(render_reference())
