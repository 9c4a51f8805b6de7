"""What moving uploads to S3 costs, beside `aws s3 cp` of the same bytes to the same server in the same run.

    python bench/transfer.py                 # three rounds of 1 GiB: about four minutes
    python bench/transfer.py --size 256 --rounds 1 --pace 50

Two questions. How fast is the worker, and at which cost: an upload that is complete waits for the worker,
and the time from `completed_at` to `stored_at` is set against the AWS CLI with the same part size and the
same number of requests at once. And how long after its last byte is an upload stored that arrives at the
pace of a network, with `transfer.eager` and without.

The server is `rclone serve s3` on loopback. It shares the CPUs with whoever sends, uses most of them, and is
what limits the speed; so like is compared with like. Today's CLI sends a CRC-64/NVME, which rclone does not look
at; so does a worker with `checksum = "crc64nvme"`. By default (`auto`) the worker finds that out and sends
Content-MD5, which rclone verifies, at 1.3 s of CPU per GiB on either side; so did the CLI up to 1.36.

rclone keeps no ETag: it would read and hash the whole file anew for the HEAD with which the worker checks what
it has sent, 1.3 s per GiB that no store takes which remembers what it stored. Hence `--etag-hash=`.

Every sender reads a file that is not in the page cache, and nothing waits to be written back when it begins.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import awscli
from measure_transfers import (
    CONCURRENCY,
    PART_MIB,
    PIECE,
    Transferred,
    measure_transfer,
    random_file,
    seconds_to_store,
    send,
    server_with_s3,
    settle,
    wait_stored,
)
from tables import number, table
from units import GIB, MIB

from tests.support.s3_servers import S3Server, rclone_s3

RCLONE_OPTIONS: Final = ("--etag-hash=",)
MOST_MEMORY_MIB: Final = 150
MOST_EAGER_SECONDS: Final = 2.0


@dataclass
class Sender:
    """The rounds of one sender."""

    name: str
    size: int
    rounds: list[Transferred] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return statistics.median(one.seconds for one in self.rounds)

    @property
    def peak_mib(self) -> float:
        return max(one.peak_mib for one in self.rounds)

    def row(self) -> list[str]:
        """Return a line of the table."""
        cpu = statistics.median(one.cpu_seconds for one in self.rounds)
        speed, cpu_per_gib = self.size / MIB / self.seconds, cpu / (self.size / GIB)
        figures = [spread([one.seconds for one in self.rounds]), number(speed, 0), number(cpu_per_gib)]
        return [self.name, str(len(self.rounds)), number(self.seconds), *figures, number(self.peak_mib, 0)]


def main() -> None:
    options = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="tusd-bench-", dir=options.dir) as name:
        folder = Path(name)
        path = random_file(folder / "file", options.size * MIB)
        with rclone_s3(folder, *RCLONE_OPTIONS) as s3:
            compared = [compare_senders(path, s3, folder, options.rounds, checksum) for checksum in awscli.REQUIREMENTS]
            late = last_byte_to_stored(path, s3, folder, options.rounds, options.pace)
    print(render(options, compared, late))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="MiB of the upload (default: 1024)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each case (default: 3)")
    parser.add_argument("--pace", type=float, default=100, help="MiB/s of the paced client (default: 100)")
    parser.add_argument("--dir", type=Path, help="where the data go (default: the temporary folder)")
    return parser.parse_args()


def compare_senders(path: Path, s3: S3Server, folder: Path, rounds: int, checksum: str) -> list[Sender]:
    """Let a CLI and the worker, which send the same checksum, send the file in turn."""
    aws = awscli.install(checksum)
    environment = awscli.environment(folder, part_mib=PART_MIB, concurrency=CONCURRENCY)
    version = awscli.REQUIREMENTS[checksum].removeprefix("awscli")
    tiny, size = random_file(folder / "tiny", PIECE), path.stat().st_size
    start = Sender(f"`aws s3 cp` ({version}) of 1 MiB: its start", PIECE)
    theirs = Sender(f"`aws s3 cp` ({version})", size)
    ours = Sender(f'worker, checksum = "{checksum}"', size)
    with server_with_s3(folder / f"transfer-{checksum}", s3, eager=False, checksum=checksum) as server:
        for turn in range(rounds):
            progress(f"{checksum}: round {turn + 1} of {rounds}")
            for sender, source in ((start, tiny), (theirs, path)):
                settle(s3, source)
                sender.rounds.append(awscli.copy(aws, source, s3, f"aws-{turn}-{source.name}", environment))
            settle(s3, path)
            ours.rounds.append(measure_transfer(server, path))
    return [start, theirs, ours]


def last_byte_to_stored(path: Path, s3: S3Server, folder: Path, rounds: int, pace: float) -> dict[bool, list[float]]:
    """Upload at a pace; return the seconds from the last byte to the object, eager and not."""
    found: dict[bool, list[float]] = {False: [], True: []}
    for eager, times in found.items():
        with server_with_s3(folder / f"eager-{eager}", s3, eager=eager) as server:
            for turn in range(rounds):
                settle(s3, path)
                progress(f"{eager_setting(eager=eager)}, round {turn + 1} of {rounds}")
                times.append(seconds_to_store(wait_stored(server, send(server, path, pace))))
    return found


def progress(line: str) -> None:
    """Print a line for whoever watches, beside the report."""
    print(f"bench: {line}", file=sys.stderr, flush=True)


def render(options: argparse.Namespace, compared: list[list[Sender]], late: dict[bool, list[float]]) -> str:
    """Return the report."""
    title = f"{options.size} MiB, {CONCURRENCY} parts at once"
    paced = f"{options.size} MiB at {options.pace:.0f} MiB/s"
    return "\n".join(
        [
            table(
                [title, "rounds", "median s", "range s", "MiB/s", "CPU s/GiB", "peak MiB"],
                [sender.row() for senders in compared for sender in senders],
            ),
            table(
                [paced, "rounds", "last byte to stored, median s", "range s"],
                [
                    [eager_setting(eager=eager), str(len(times)), number(statistics.median(times)), spread(times)]
                    for eager, times in late.items()
                ],
            ),
            table(
                ["expectation", "measured", "verdict"],
                [
                    [expectation, measured, f"**{'meets' if good else 'misses'}**"]
                    for expectation, measured, good in expectations(compared, statistics.median(late[True]))
                ],
            ),
        ]
    )


def eager_setting(*, eager: bool) -> str:
    return f"transfer.eager = {str(eager).lower()}"


def spread(values: list[float]) -> str:
    return f"{number(min(values))} - {number(max(values))}"


def expectations(compared: list[list[Sender]], late: float) -> Iterator[tuple[str, str, bool]]:
    """Yield what is expected, what was measured, and whether that is good."""
    for start, theirs, ours in compared:
        what = f"{ours.name}: not slower than {theirs.name}"
        alone = theirs.seconds - start.seconds
        measured = f"{ours.seconds:.2f} s against {theirs.seconds:.2f} s, {alone:.2f} s without its start"
        yield what, measured, ours.seconds <= theirs.seconds
    peak = max(ours.peak_mib for _, _, ours in compared)
    yield f"worker's memory ≤ {MOST_MEMORY_MIB} MiB", f"{peak:.0f}", peak <= MOST_MEMORY_MIB
    yield f"eager: stored ≤ {MOST_EAGER_SECONDS:.0f} s after the last byte", f"{late:.2f} s", late <= MOST_EAGER_SECONDS


if __name__ == "__main__":
    main()
