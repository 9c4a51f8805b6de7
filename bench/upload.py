"""Measure the real server beside its floors: `python bench/upload.py [--quick] [--only CASE] …`.

Starts `tusd-py serve` once per durability, and the bare handlers, each a process of its own; then measures
every case on every one of them in turn, round by round, so that a machine that drifts drifts for all.
What is counted, and how, is in README.md beside this file.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import report
from measure_uploads import fail_when_stuck, measure, measure_disk
from options import Plan, parse_arguments, plan_of, variants_of
from results import DD, SYNCED_FILES, Measurement, Results, floors_of
from servers import StartError, Target, bare_handler, tusd_server

Step = Callable[[], Measurement]


def main() -> int:
    """Measure and report; the exit status says whether every case could be measured."""
    arguments = parse_arguments()
    plan, results = plan_of(arguments), Results()
    end_cleanly_on_signals()
    with data_folder(arguments.dir) as folder, ExitStack() as stack:
        facts = facts_of(folder, arguments)
        targets = start(stack, folder, arguments, results)
        run_rounds(plan, targets, folder, results)
    text = report.render(results, facts, judged=not arguments.compare and not arguments.floors_only)
    sys.stdout.write(text)
    if arguments.output:
        arguments.output.write_text(text)
    return 1 if results.problems else 0


def end_cleanly_on_signals() -> None:
    """Turn signals into exceptions, so that servers are stopped and data removed."""

    def end(number: int, _frame: object) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGHUP, end)
    fail_when_stuck()


@contextmanager
def data_folder(parent: Path) -> Iterator[Path]:
    """Provide a fresh folder that any user may enter: run by root, PostgreSQL is somebody else."""
    with tempfile.TemporaryDirectory(prefix="tusd-bench-", dir=parent) as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def start(stack: ExitStack, folder: Path, arguments: argparse.Namespace, results: Results) -> list[Target]:
    """Start the bare handlers and the servers; a server that does not start is noted and left out."""
    loop = arguments.event_loop or "uvloop"
    targets = [
        stack.enter_context(bare_handler(handler, new_folder(folder, handler), loop)) for handler in ("count", "answer")
    ]
    for name, settings in {} if arguments.floors_only else variants_of(arguments).items():
        server = tusd_server(name, new_folder(folder, name), settings, arguments.server)
        try:
            targets.append(stack.enter_context(server))
        except StartError as error:
            results.problems.append(str(error))
            progress(str(error))
    return targets


def new_folder(parent: Path, name: str) -> Path:
    folder = parent / "".join(letter if letter.isalnum() else "-" for letter in name)
    folder.mkdir()
    folder.chmod(0o755)
    return folder


def run_rounds(plan: Plan, targets: list[Target], folder: Path, results: Results) -> None:
    """Measure every case on every target, round by round, until done or out of time."""
    for turn in range(1, plan.repeat + 1):
        for case in plan.cases:
            for name, step in steps_of(case, targets, folder, plan).items():
                if plan.is_over:
                    results.problems.append("out of time: the last rounds are not complete")
                    return
                run_step(step, f"{turn}/{plan.repeat} {case}: {name}", results)


def steps_of(case: str, targets: list[Target], folder: Path, plan: Plan) -> dict[str, Step]:
    """Return what is measured in a case, floors first, by name."""
    steps: dict[str, Step] = {}
    wanted = floors_of(case)
    for disk in {DD, SYNCED_FILES}.intersection(wanted):
        steps[disk] = partial(measure_disk, case, folder, plan.sizes)
    for target in targets:
        if not target.is_floor or target.name in wanted:
            steps[target.name] = partial(measure, case, target, plan.sizes)
    return steps


def run_step(step: Step, name: str, results: Results) -> None:
    """Measure once, on a disk with nothing left to write; what fails is noted, and the run goes on."""
    os.sync()
    try:
        measurement = step()
    except (RuntimeError, OSError, ValueError) as error:
        results.problems.append(f"{name}: {error}")
        progress(f"{name}: {error}")
        return
    results.add(measurement)
    progress(f"{name}: {report.one_line(measurement)}")


def progress(line: str) -> None:
    """Print a line for whoever watches, beside the report."""
    sys.stderr.write(line + "\n")


def facts_of(folder: Path, arguments: argparse.Namespace) -> list[str]:
    """Return where and how this is measured, a sentence each."""
    command = shlex.join(["python", "bench/upload.py", *sys.argv[1:]])
    commit = output_of("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty") or "no commit"
    when = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    file_system = output_of("findmnt", "-n", "-o", "FSTYPE", "-T", str(folder)) or "unknown file system"
    machine = f"Linux {platform.release()}, Python {platform.python_version()}, {os.cpu_count()} CPUs"
    return [
        f"`{command}` at {commit}, {when} UTC",
        f"{machine}, {file_system} at {folder.parent}, load at the start {os.getloadavg()[0]:.2f}",
        f"bare handlers on {arguments.event_loop or 'uvloop'} with the allocator's thresholds raised",
    ]


def output_of(*command: str) -> str:
    """Return what a command prints; nothing when it fails or is not there."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


if __name__ == "__main__":
    sys.exit(main())
