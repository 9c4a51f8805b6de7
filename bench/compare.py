"""Measure another commit beside the working tree, in turns: `python bench/compare.py COMMIT`.

    python bench/compare.py HEAD~20 --rounds 7              # everything: about three minutes a round
    python bench/compare.py v0.2.0 --only head --rounds 9   # one case

Both servers run all the time, each with its own data, and every round measures each case on both, the first of
them alternating: a machine that drifts drifts for both. Only the ratio of the medians says something. The other
commit runs on the packages of this environment, and is driven by this benchmark: it must understand its
configuration and API.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from measure_transfers import measure_transfer, random_file, server_with_s3, settle
from measure_uploads import Sizes, measure
from report import one_line
from results import Measurement, bytes_per_second, cpu_of, per_unit, requests_per_second
from servers import SERVER_COMMAND, tusd_server
from tables import number, table
from transfer import RCLONE_OPTIONS
from units import GIB, MIB
from upload import data_folder, end_cleanly_on_signals, new_folder, progress

from tests.support.s3_servers import rclone_s3

ROOT: Final = Path(__file__).resolve().parents[1]
SIZES: Final = Sizes(seconds=5.0, settle_seconds=12.0)
SETTINGS: Final = {"operations.port": "0", "staging.durability": '"fsync"'}
CASES: Final = ("stream", "small", "head", "transfer")
TRANSFER_CHECKSUM: Final = "crc64nvme"

Figure = Callable[[Measurement], float]
FIGURES: Final[dict[str, dict[str, Figure]]] = {
    "stream": {
        "one durable stream, MiB/s": lambda one: bytes_per_second(one) / MIB,
        "one durable stream, HTTP process, CPU s/GiB": cpu_of("http"),
        "one durable stream, all processes, CPU s/GiB": lambda one: per_unit(one, one.cpu_all),
    },
    "small": {
        "small uploads per second": requests_per_second,
        "small upload, all processes, CPU ms": lambda one: per_unit(one, one.cpu_all),
    },
    "head": {
        "HEAD per second": requests_per_second,
        "HEAD, HTTP process, CPU ms": cpu_of("http"),
    },
}
"""What is taken from a measurement of each case."""


@dataclass
class Version:
    """A commit, the program that runs it, and its figures: a value for each round."""

    name: str
    program: Path
    figures: dict[str, list[float]] = field(default_factory=dict)

    def add(self, figure: str, value: float) -> None:
        self.figures.setdefault(figure, []).append(value)


def main() -> None:
    arguments = parse_arguments()
    cases = arguments.only or CASES
    end_cleanly_on_signals()
    with data_folder(arguments.dir) as folder:
        other = Version(arguments.commit, checked_out(arguments.commit, new_folder(folder, "other-commit")))
        versions = (Version("working tree", SERVER_COMMAND), other)
        upload_cases = [case for case in cases if case != "transfer"]
        if upload_cases:
            compare_uploads(versions, upload_cases, folder, arguments.rounds)
        if "transfer" in cases:
            compare_transfers(versions, folder, arguments.rounds, arguments.size * MIB)
    print(render(*versions))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", help="what the working tree is compared with")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each case (default: 5)")
    parser.add_argument("--only", action="append", choices=CASES, help="measure only this case (repeatable)")
    parser.add_argument("--size", type=int, default=1024, help="MiB of the upload that is transferred (default: 1024)")
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()), help="where the data go")
    return parser.parse_args()


def checked_out(commit: str, folder: Path) -> Path:
    """Write the files of a commit to a folder; return a program that runs its `tusd-py`."""
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", commit], check=True, stdout=subprocess.PIPE)
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    program = folder / "tusd-py"
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{folder}" exec "{sys.executable}" -m tusd_py "$@"\n')
    program.chmod(0o755)
    return program


def in_turns(versions: tuple[Version, Version], rounds: int) -> Iterator[Version]:
    """Yield both versions in every round, the first of them alternating."""
    for turn in range(rounds):
        progress(f"round {turn + 1} of {rounds}")
        yield from versions if turn % 2 == 0 else reversed(versions)


def compare_uploads(versions: tuple[Version, Version], cases: list[str], folder: Path, rounds: int) -> None:
    """Measure what `upload.py` measures, with durable uploads."""
    with ExitStack() as stack:
        servers = {
            version.name: stack.enter_context(
                tusd_server(version.name, new_folder(folder, version.name), SETTINGS, version.program)
            )
            for version in versions
        }
        for case in cases:
            for version in in_turns(versions, rounds):
                os.sync()
                measured = measure(case, servers[version.name], SIZES)
                progress(f"{case}, {version.name}: {one_line(measured)}")
                if measured.failures:
                    raise SystemExit(f"bench: unexpected answers: {measured.failures}")
                for name, figure in FIGURES[case].items():
                    version.add(name, figure(measured))
                version.add("HTTP process, peak MiB of all cases", measured.http_peak_mib)


def compare_transfers(versions: tuple[Version, Version], folder: Path, rounds: int, size: int) -> None:
    """Measure what `transfer.py` measures of the worker."""
    path = random_file(folder / "file", size)
    with rclone_s3(folder, *RCLONE_OPTIONS) as s3, ExitStack() as stack:
        servers = {
            version.name: stack.enter_context(
                server_with_s3(
                    folder / f"{version.name} with S3",
                    s3,
                    eager=False,
                    checksum=TRANSFER_CHECKSUM,
                    program=version.program,
                )
            )
            for version in versions
        }
        for version in in_turns(versions, rounds):
            settle(s3, path)
            took = measure_transfer(servers[version.name], path)
            progress(f"transfer, {version.name}: {took.seconds:.2f} s, {took.cpu_seconds:.2f} s of CPU")
            version.add(f"transfer of {size // MIB} MiB, s", took.seconds)
            version.add("transfer, worker, CPU s/GiB", took.cpu_seconds / (size / GIB))
            version.add("transfer, worker, peak MiB", took.peak_mib)


def render(tree: Version, other: Version) -> str:
    """Return a table of medians, and of their ratios."""
    rows = []
    for figure, values in tree.figures.items():
        before = other.figures[figure]
        middle, reference = statistics.median(values), statistics.median(before)
        spread = f"{number(min(values))} - {number(max(values))}, {number(min(before))} - {number(max(before))}"
        rows.append([figure, number(middle), number(reference), number(middle / reference), spread])
    return table(["median of the rounds", tree.name, other.name, "ratio", "ranges"], rows)


if __name__ == "__main__":
    main()
