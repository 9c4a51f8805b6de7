"""Measure the real server beside its floors: `python bench/upload.py [--quick] [--only CASE] …`.

Starts `tusd-py serve` once per durability, and the bare handlers, each a process of its own; then measures
every case on every one of them in turn, round by round, so that a machine that drifts drifts for all.
What is counted, and how, is in README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Final

import floors
import processes
import report
from load import SMALL_BYTES
from report import DD, GIB, MIB, STREAMS, SYNCED_FILES, Measurement, Results
from servers import SERVER_COMMAND, StartError, Target, bare_handler, tusd_server

CASES: Final = tuple(report.TITLES)
VARIANTS: Final = {
    "write-path": ("staging.write_path", ("auto", "page-cache", "direct", "dontcache")),
    "event-loop": ("server.event_loop", ("uvloop", "asyncio")),
}
CONNECTIONS: Final = 32
FULL_SECONDS: Final = 5.0
QUICK_SECONDS: Final = 2.0
FULL_BUDGET_SECONDS: Final = 560.0
QUICK_BUDGET_SECONDS: Final = 105.0
CASE_SECONDS: Final = 60.0
"""How long one measurement may take before it is given up as stuck."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How the run goes: its sizes and its bounds."""

    cases: tuple[str, ...]
    repeat: int
    seconds: float
    settle_seconds: float
    ends_at: float

    def client_arguments(self, case: str) -> list[str]:
        """Return the load generator's arguments for a case."""
        return {
            "stream": ["send", "--connections", "1", "--size", str(GIB)],
            "parallel": ["send", "--connections", str(CONNECTIONS), "--size", str(GIB // CONNECTIONS)],
            "small": ["small", "--connections", str(CONNECTIONS), "--seconds", str(self.seconds)],
            "head": ["head", "--connections", str(CONNECTIONS), "--seconds", str(self.seconds)],
        }[case]

    @property
    def is_over(self) -> bool:
        """Return whether the time for the whole run is used up."""
        return time.monotonic() > self.ends_at


class Client:
    """The load generator, in its process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.input: IO[str] = process.stdin
        self.output: IO[str] = process.stdout

    def wait_for(self, word: str) -> None:
        """Wait until the client says so."""
        line = self.output.readline().strip()
        if line != word:
            raise RuntimeError(f"the load generator failed before {word!r}; its message is above")

    def tell(self, word: str) -> None:
        """Let the client go on."""
        self.input.write(word + "\n")
        self.input.flush()

    def result(self) -> dict[str, Any]:
        """Read what the client measured."""
        result: dict[str, Any] = json.loads(self.output.readline())
        return result


@contextmanager
def running_client(arguments: list[str], url: str) -> Iterator[Client]:
    """Run the load generator until it has cleaned up; a stuck one is killed."""
    command = [sys.executable, str(Path(__file__).with_name("load.py")), arguments[0], url, *arguments[1:]]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        signal.alarm(int(CASE_SECONDS))
        try:
            yield Client(process)
            process.communicate()
        finally:
            signal.alarm(0)
            process.kill()


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU time used up to a moment, by whom."""

    server: dict[str, float]
    own: float
    machine: float

    @classmethod
    def of(cls, tree: processes.Tree) -> Usage:
        """Read the clocks."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return cls(tree.cpu_seconds(), usage.ru_utime + usage.ru_stime, processes.machine_busy_seconds())

    def others(self, before: Usage, client: float) -> float:
        """Return what the machine did since then for nobody of ours."""
        ours = sum(self.server.values()) - sum(before.server.values()) + self.own - before.own + client
        return max(0.0, self.machine - before.machine - ours)


def measure(case: str, target: Target, plan: Plan) -> Measurement:
    """Run one case against one target."""
    tree = target.tree
    http = tree.of_kind("http")
    with running_client(plan.client_arguments(case), target.url) as client:
        client.wait_for("ready")
        tree.wait_until_idle(2.0)
        processes.reset_peaks(http)
        with processes.sampled_memory(tree) as memory:
            before = Usage.of(tree)
            client.tell("go")
            client.wait_for("done")
            after = Usage.of(tree)
        result = client.result()
        peak_mib = max(processes.peak_kib(pid) for pid in http) / 1024
        settled = target.is_floor or tree.wait_until_idle(plan.settle_seconds)
        cpu_after = sum(tree.cpu_seconds().values()) - sum(after.server.values())
        client.tell("clean")
    if not all(Path(f"/proc/{pid}").exists() for pid in http):
        result["failures"]["an HTTP process died"] = 1
    return Measurement(
        case=case,
        target=target.name,
        wall_seconds=result["wall_seconds"],
        body_bytes=result["body_bytes"],
        requests=result["requests"],
        p50_ms=result["p50_ms"],
        p99_ms=result["p99_ms"],
        cpu=processes.difference(after.server, before.server),
        cpu_after=cpu_after,
        settled=settled,
        client_cpu=result["cpu_seconds"],
        others_cpu=after.others(before, result["cpu_seconds"]),
        http_peak_mib=peak_mib,
        all_peak_mib=memory.kib / 1024,
        failures=result["failures"],
    )


def measure_disk(case: str, folder: Path, plan: Plan) -> Measurement:
    """Measure what the disk alone does: one big file, or many small ones."""
    if case in STREAMS:
        written = floors.write_with_dd(folder, GIB // MIB)
        name, requests, size = DD, 1, GIB
    else:
        requests, written = floors.write_small_files(folder, min(plan.seconds, QUICK_SECONDS), CONNECTIONS)
        name, size = SYNCED_FILES, requests * SMALL_BYTES
    return Measurement(case, name, written.wall_seconds, size, requests, cpu={"own": written.cpu_seconds})


Step = Callable[[], Measurement]


def steps_of(case: str, targets: list[Target], folder: Path, plan: Plan) -> dict[str, Step]:
    """Return what is measured in a case, floors first, by name."""
    steps: dict[str, Step] = {}
    wanted = report.floors_of(case)
    for disk in {DD, SYNCED_FILES}.intersection(wanted):
        steps[disk] = partial(measure_disk, case, folder, plan)
    for target in targets:
        if not target.is_floor or target.name in wanted:
            steps[target.name] = partial(measure, case, target, plan)
    return steps


def run_rounds(plan: Plan, targets: list[Target], folder: Path) -> Results:
    """Measure every case on every target, round by round, until done or out of time."""
    results = Results()
    for turn in range(1, plan.repeat + 1):
        for case in plan.cases:
            for name, step in steps_of(case, targets, folder, plan).items():
                if plan.is_over:
                    results.problems.append("out of time: the last rounds are not complete")
                    return results
                run_step(step, f"{turn}/{plan.repeat} {case}: {name}", results)
    return results


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
    """Tell whoever waits."""
    sys.stderr.write(line + "\n")


def variants(arguments: argparse.Namespace) -> dict[str, dict[str, str]]:
    """Return the servers to start: a name and its settings, as TOML values."""
    chosen = {
        "operations.port": "0",
        "storage.backend": arguments.storage,
        "staging.write_path": arguments.write_path,
        "server.event_loop": arguments.event_loop,
        **dict(arguments.set),
    }
    base = {key: toml_value(text) for key, text in chosen.items() if text}
    modes = ("fsync", "page-cache") if arguments.durability == "both" else (arguments.durability,)
    named = {mode: base | {"staging.durability": toml_value(mode)} for mode in modes}
    if not arguments.compare:
        return named
    key, values = arguments.compare
    return {
        f"{mode}, {value}": settings | {key: toml_value(value)} for mode, settings in named.items() for value in values
    }


def toml_value(text: str) -> str:
    """Render a value given on the command line: a number, a boolean, else a string."""
    is_bare = text in {"true", "false"} or text.replace(".", "", 1).isdigit()
    return text if is_bare else json.dumps(text)


def setting(text: str) -> tuple[str, str]:
    """Take `section.key=value` apart."""
    key, equals, value = text.partition("=")
    if not equals or "." not in key:
        raise argparse.ArgumentTypeError(f"{text!r} is not SECTION.KEY=VALUE")
    return key, value


def comparison(text: str) -> tuple[str, tuple[str, ...]]:
    """Take a setting and the values to compare apart; the usual ones have a name."""
    if text in VARIANTS:
        return VARIANTS[text]
    key, values = setting(text)
    return key, tuple(values.split(","))


def start(stack: ExitStack, folder: Path, arguments: argparse.Namespace, problems: list[str]) -> list[Target]:
    """Start the bare handlers and the servers; a server that does not start is noted and left out."""
    loop = arguments.event_loop or "uvloop"
    targets = [
        stack.enter_context(bare_handler(handler, new_folder(folder, handler), loop)) for handler in ("count", "answer")
    ]
    for name, settings in {} if arguments.floors_only else variants(arguments).items():
        server = tusd_server(name, new_folder(folder, name), settings, arguments.server)
        try:
            targets.append(stack.enter_context(server))
        except StartError as error:
            problems.append(str(error))
            progress(str(error))
    return targets


def new_folder(parent: Path, name: str) -> Path:
    """Create a folder that any user may enter: run by root, PostgreSQL is somebody else."""
    folder = parent / "".join(letter if letter.isalnum() else "-" for letter in name)
    folder.mkdir()
    folder.chmod(0o755)
    return folder


def facts_of(folder: Path, arguments: argparse.Namespace) -> list[str]:
    """Say where and how this was measured."""
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


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Measure the server, each figure beside its floor.")
    add = parser.add_argument
    add("--quick", action="store_true", help="one round of 2 s: under two minutes")
    add("--only", action="append", choices=CASES, help="measure only this case (repeatable)")
    add("--repeat", type=int, help="rounds; medians are reported (default: 3)")
    add("--durability", choices=["fsync", "page-cache", "both"], help="default: both; with --compare: fsync")
    add(
        "--compare",
        type=comparison,
        metavar="SETTING",
        help="a server for each value, and one stream only unless told otherwise: write-path, event-loop, or"
        " SECTION.KEY=VALUE,VALUE",
    )
    add("--write-path", choices=VARIANTS["write-path"][1])
    add("--event-loop", choices=VARIANTS["event-loop"][1])
    add("--storage", choices=["filesystem"])
    add("--set", type=setting, action="append", default=[], metavar="SECTION.KEY=VALUE", help="repeatable")
    add("--floors-only", action="store_true", help="measure without the real server")
    add("--server", type=Path, default=SERVER_COMMAND, help="the program to measure (default: %(default)s)")
    add(
        "--dir",
        type=Path,
        default=Path(tempfile.gettempdir()),
        help="where the data go (default: %(default)s)",
    )
    add("--output", type=Path, metavar="FILE", help="write the report there as well")
    arguments = parser.parse_args()
    arguments.durability = arguments.durability or ("fsync" if arguments.compare else "both")
    return arguments


def plan_of(arguments: argparse.Namespace) -> Plan:
    """Turn the command line into a plan."""
    quick = arguments.quick
    return Plan(
        cases=tuple(arguments.only or (("stream",) if arguments.compare else CASES)),
        repeat=arguments.repeat or (1 if quick else 3),
        seconds=QUICK_SECONDS if quick else FULL_SECONDS,
        settle_seconds=5.0 if quick else 12.0,
        ends_at=time.monotonic() + (QUICK_BUDGET_SECONDS if quick else FULL_BUDGET_SECONDS),
    )


def stop_on_signals() -> None:
    """Turn a signal to end, and the alarm of a stuck measurement, into exceptions: all is cleaned up."""

    def end(number: int, _frame: object) -> None:
        sys.exit(128 + number)

    def stuck(_number: int, _frame: object) -> None:
        raise TimeoutError(f"gave up after {CASE_SECONDS:.0f} s")

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGHUP, end)
    signal.signal(signal.SIGALRM, stuck)


def main() -> int:
    """Measure, report, and say by the exit status whether every case could be measured."""
    arguments, problems = parse_arguments(), list[str]()
    stop_on_signals()
    plan = plan_of(arguments)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tusd-bench-", dir=arguments.dir)))
        folder.chmod(0o755)
        facts = facts_of(folder, arguments)
        targets = start(stack, folder, arguments, problems)
        results = run_rounds(plan, targets, folder)
    results.problems[:0] = problems
    judged = not arguments.compare and not arguments.floors_only
    text = report.render(results, facts, judged=judged)
    sys.stdout.write(text)
    if arguments.output:
        arguments.output.write_text(text)
    return 1 if results.problems else 0


if __name__ == "__main__":
    sys.exit(main())
