"""The directory through which the processes share their metrics: prometheus_client keeps a file per process."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


class MetricsDir:
    """A directory of this supervisor, used by the processes that it forks once the directory is made."""

    def __init__(self, data_dir: Path) -> None:
        """Prepare the directory. Nothing is touched before `make`."""
        self._path = (data_dir / "run" / f"metrics-{os.getpid()}").absolute()

    def make(self) -> None:
        """Make it, empty, and remove those that killed supervisors left behind."""
        for left in self._path.parent.glob("metrics-*"):
            if not Path("/proc", left.name.rpartition("-")[2]).exists():
                shutil.rmtree(left, ignore_errors=True)
        self.remove()
        self._path.mkdir(parents=True)
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(self._path)

    def forget(self, pid: int) -> None:
        """Remove the gauges of a dead process, which must not be summed. Its counters are kept."""
        for path in self._path.glob(f"gauge_live*_{pid}.db"):
            path.unlink(missing_ok=True)

    def remove(self) -> None:
        shutil.rmtree(self._path, ignore_errors=True)
