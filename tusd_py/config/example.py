"""Render `config.example.toml`: every key, its default, its unit and one line of why.

Run `make format` after a change of the sections.
"""

from __future__ import annotations

import sys
from typing import Final

from tusd_py.config.model import Config
from tusd_py.config.render import render_lines

HEADER: Final = """\
# Every key with its default: an empty file says the same as this one. An empty text means "not set".
# Sizes are "64MiB", "10GB" or bytes; durations "500ms", "60s", "24h", "7d" or seconds.
# A secret is text, { file = "path" } or { env = "NAME" }.
# TUSD_<SECTION>__<KEY> in the environment takes precedence over this file, e.g. TUSD_SERVER__PORT=9000.
"""


def render_example() -> str:
    """Return the text of `config.example.toml`. Whatever the environment says, it is the same."""
    # model_construct reads no source, so that no TUSD_… variable ends up in the example.
    lines = render_lines(Config.model_construct(), comment=lambda text: [f"# {text}"] if text else [])
    return "\n".join([HEADER, *lines])


if __name__ == "__main__":
    sys.stdout.write(render_example())
