"""A disk that loses what it was given and says so once: in every process that is started with it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.tools import ROOT, require_tool

SOURCE = ROOT / "tests/support/preload/failing_sync.c"


class FailingDisk:
    """Syncs below a directory fail when they are told to."""

    def __init__(self, workspace: Path, directory: Path) -> None:
        """Build the library in `workspace`."""
        compiler = require_tool("gcc", install="apt-get install gcc libc6-dev")
        library = workspace / "failing_sync.so"
        options = ["-Wall", "-Werror", "-O1", "-shared", "-fPIC", "-ldl", "-lpthread"]
        subprocess.run([compiler, "-o", library, SOURCE, *options], check=True)
        self._trigger = workspace / "fail"
        self.env = {
            "LD_PRELOAD": str(library),
            "FAILING_SYNC_DIRECTORY": str(directory),
            "FAILING_SYNC_TRIGGER": str(self._trigger),
        }

    def fail_once(self) -> None:
        """Let the next sync fail."""
        self._trigger.touch()

    def has_failed(self) -> bool:
        """Return whether the sync that was to fail has done so."""
        return not self._trigger.exists()

    def break_down(self) -> None:
        """Let every sync fail from now on."""
        self._trigger.mkdir()

    def recover(self) -> None:
        """Let every sync do what it should again."""
        self._trigger.rmdir()
