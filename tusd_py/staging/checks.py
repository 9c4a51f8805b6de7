"""Shows that the staging disk can be used, how much room there is, and by which path bytes get there."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING

from tusd_py.config.units import format_size
from tusd_py.directory_check import SAMPLE, check_directory
from tusd_py.ports import Checkable, CheckResult, Outcome
from tusd_py.staging.writers import make_writer

if TYPE_CHECKING:
    from tusd_py.config import StagingConfig


class StagingCheck(Checkable):
    """The staging directory, tried without preparing it for uploads."""

    def __init__(self, directory: Path, config: StagingConfig) -> None:
        self._directory = directory
        self._config = config

    async def check(self) -> AsyncGenerator[CheckResult]:
        for result in await asyncio.to_thread(self._check):
            yield result

    def _check(self) -> list[CheckResult]:
        writer = make_writer(self._config.write_path)
        results = list(
            check_directory("staging", self._directory, lambda fd, path: writer.write(fd, path, [SAMPLE], 0))
        )
        if results[-1].outcome is Outcome.OK:
            results += [CheckResult("staging: write path", detail=writer.name), self._space()]
        return results

    def _space(self) -> CheckResult:
        there = next(path for path in (self._directory, *self._directory.parents) if path.exists())
        facts = os.statvfs(there)
        free, reserve = facts.f_bavail * facts.f_frsize, self._config.reserve
        detail = f"{free / 2**30:.1f} GiB free, {format_size(reserve)} in reserve"
        return CheckResult("staging: space", Outcome.OK if free > reserve else Outcome.FAILED, detail)
