"""Runs the Node scripts of tests/process/js: JSON on standard input, one JSON line as the answer."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.support.process import Child
from tests.support.tools import ROOT, require_tool

SCRIPTS = ROOT / "tests" / "process" / "js"


class NodeRun:
    """A Node script at work."""

    def __init__(self, script: str, options: dict[str, Any], log: Path) -> None:
        node = require_tool("node", install="apt-get install nodejs npm")
        require_tool(
            "tus-js-client",
            at=SCRIPTS / "node_modules" / "tus-js-client",
            install=f"npm ci --prefix {SCRIPTS.relative_to(ROOT)}",
        )
        self.child = Child([node, SCRIPTS / script], log=log, cwd=SCRIPTS, stdin=subprocess.PIPE)
        self.child.start()
        self.child.write_stdin(json.dumps(options).encode())

    def result(self, deadline: float) -> dict[str, Any]:
        """Wait for the end and return the last line as JSON."""
        try:
            code = self.child.wait(deadline)
        finally:
            if self.child.running:
                self.child.kill()
        lines = self.child.log_text().splitlines()
        assert code == 0, f"{self.child.name} ended with {code}:\n{self.child.log_text()}"
        assert lines, f"{self.child.name} printed nothing"
        answer: dict[str, Any] = json.loads(lines[-1])
        return answer


def run_node(script: str, options: dict[str, Any], *, log: Path, deadline: float = 60) -> dict[str, Any]:
    """Run a script to its end."""
    return NodeRun(script, options, log).result(deadline)
