"""Print the upload's states as a Mermaid diagram, from the table that the code itself obeys.

`python scripts/state_diagram.py --write` puts it into docs/architecture.md; a test demands that what
stands there is what this prints.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tusd_py.protocol.upload import TRANSITIONS

BEGIN, END = "<!-- states: begin -->", "<!-- states: end -->"
DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "architecture.md"


def diagram() -> str:
    """Return the diagram as a fenced block."""
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> created"]
    for state, moves in TRANSITIONS.items():
        lines += [f"    {state.value} --> {target.value}: {event.value}" for event, target in moves.items()]
    lines += [f"    {state.value} --> [*]" for state, moves in TRANSITIONS.items() if not moves]
    return "\n".join([*lines, "```"])


def with_diagram(text: str) -> str:
    """Return the document with the diagram of today between its marks."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n\n{diagram()}\n\n{END}{tail}"


if __name__ == "__main__":
    if "--write" in sys.argv:
        DOCUMENT.write_text(with_diagram(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        sys.stdout.write(diagram() + "\n")
