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
The two versions of `aws` come from PyPI into `.venv`, each with an environment of its own: they pin botocore.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from processes import Tree, peak_kib, reset_peaks

from tests.support.s3_servers import ACCESS_KEY, REGION, SECRET_KEY, S3Server, rclone_s3
from tests.support.server import Server

ROOT: Final = Path(__file__).resolve().parents[1]
MIB: Final = 2**20
GIB: Final = 2**30
PART_MIB: Final = 16
CONCURRENCY: Final = 4
"""Parts at once, of either sender."""
PIECE: Final = MIB
DEADLINE_SECONDS: Final = 300.0
CLIS: Final = {"crc64nvme": "awscli>=1.46", "auto": "awscli==1.36.40"}
"""Which CLI does what a worker does with this `storage.s3.checksum`."""
INSTALL_SECONDS: Final = 300
RCLONE_OPTIONS: Final = ("--etag-hash=",)

MOST_MEMORY_MIB: Final = 150
MOST_EAGER_SECONDS: Final = 2.0


@dataclass
class Case:
    """The rounds of one sender."""

    name: str
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    peak_mib: float = 0.0

    def row(self, size: int) -> str:
        """Render a line of the table."""
        speed = size / MIB / statistics.median(self.seconds)
        cpu = statistics.median(self.cpu_seconds) / (size / GIB)
        spread = f"{min(self.seconds):.2f} - {max(self.seconds):.2f}"
        return (
            f"| {self.name} | {len(self.seconds)} | {statistics.median(self.seconds):.2f} | {spread} "
            f"| {speed:,.0f} | {cpu:.2f} | {self.peak_mib:.0f} |"
        )


def say(what: str) -> None:
    """Tell what is going on, beside the report."""
    print(f"bench: {what}", file=sys.stderr, flush=True)


# --- the bytes -------------------------------------------------------------------------------------


def random_file(path: Path, size: int) -> Path:
    """Write so many random bytes, durably."""
    with path.open("wb") as file:
        for _ in range(0, size, PIECE):
            file.write(os.urandom(PIECE))
        file.flush()
        os.fsync(file.fileno())
    return path


def forget(path: Path) -> None:
    """Drop a file from the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


# --- the AWS CLI -----------------------------------------------------------------------------------


def aws_environment(folder: Path) -> dict[str, str]:
    """Return the environment in which the AWS CLI does as we do: parts and requests alike."""
    config = folder / "aws.config"
    config.write_text(
        f"[default]\nregion = {REGION}\ns3 =\n  max_concurrent_requests = {CONCURRENCY}\n"
        f"  multipart_threshold = {PART_MIB}MB\n  multipart_chunksize = {PART_MIB}MB\n  addressing_style = path\n"
    )
    keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    return {**os.environ, **keys, "AWS_CONFIG_FILE": str(config), "AWS_EC2_METADATA_DISABLED": "true"}


def install_aws(checksum: str) -> Path:
    """Return an AWS CLI's program, installed if it is not there."""
    home = ROOT / ".venv" / f"awscli-{checksum}"
    if not (home / "bin" / "aws").exists():
        say(f"installing {CLIS[checksum]}")
        subprocess.run([sys.executable, "-m", "venv", home], check=True, timeout=INSTALL_SECONDS)
        # Old versions import what setuptools 80 has not any more.
        requirements = [CLIS[checksum], "setuptools<80"]
        subprocess.run([home / "bin" / "pip", "-q", "install", *requirements], check=True, timeout=INSTALL_SECONDS)
    return home / "bin" / "aws"


def aws_copy(
    program: Path, path: Path, s3: S3Server, key: str, environment: dict[str, str]
) -> tuple[float, float, float]:
    """Copy a file; answer seconds on the wall, seconds of CPU and peak memory in MiB."""
    options = ["--only-show-errors", "--endpoint-url", s3.endpoint_url]
    command = [program, "s3", "cp", *options, path, f"s3://{s3.bucket}/{key}"]
    started = time.monotonic()
    process = subprocess.Popen(command, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    took = time.monotonic() - started
    if os.waitstatus_to_exitcode(status):
        raise SystemExit("bench: aws s3 cp failed")
    return took, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


# --- our server ------------------------------------------------------------------------------------


@contextlib.contextmanager
def our_server(folder: Path, s3: S3Server, *, eager: bool, checksum: str = "auto") -> Iterator[Server]:
    """Run the real server with S3 behind it."""
    storage = s3.storage_config()
    part = PART_MIB * MIB
    sizes = {"part_size": part, "multipart_threshold": part, "part_concurrency": CONCURRENCY}
    storage["s3"] |= {"checksum": checksum, **sizes}
    with Server(folder, {"storage": storage, "transfer": {"eager": eager}}) as server:
        yield server


def send(server: Server, path: Path, pace_mib: float | None) -> str:
    """Upload a file in one PATCH, at a pace if there is one; return the upload's id."""
    size = path.stat().st_size
    parts = urlsplit(server.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=DEADLINE_SECONDS)
    with contextlib.closing(connection):
        connection.request("POST", parts.path, headers={"Tus-Resumable": "1.0.0", "Upload-Length": str(size)})
        created = connection.getresponse()
        created.read()
        connection.putrequest("PATCH", urlsplit(created.headers["Location"]).path)
        for name, value in (
            ("Tus-Resumable", "1.0.0"),
            ("Upload-Offset", "0"),
            ("Content-Type", "application/offset+octet-stream"),
            ("Content-Length", str(size)),
        ):
            connection.putheader(name, value)
        connection.endheaders()
        started = time.monotonic()
        with path.open("rb") as file:
            sent = 0
            while piece := file.read(PIECE):
                connection.send(piece)
                sent += len(piece)
                if pace_mib:
                    time.sleep(max(0.0, started + sent / MIB / pace_mib - time.monotonic()))
        answer = connection.getresponse()
        answer.read()
    if answer.status != 204:
        raise SystemExit(f"bench: the upload was answered {answer.status}")
    return str(created.headers["Upload-Id"])


def wait_stored(server: Server, upload_id: str) -> dict[str, Any]:
    """Wait until an upload is stored; return what the API says of it."""
    ends_at = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < ends_at:
        with urllib.request.urlopen(f"{server.origin}/api/v1/uploads/{upload_id}", timeout=10) as response:
            seen: dict[str, Any] = json.load(response)
        if seen["state"] == "stored":
            return seen
        if seen["state"] == "transfer_failed":
            raise SystemExit(f"bench: the transfer failed: {seen['last_error']}")
        time.sleep(0.05)
    raise SystemExit("bench: the upload is not stored in time")


def seconds_to_store(seen: dict[str, Any]) -> float:
    """Return the time from the last byte to the object, by the database's clock."""
    moments = [datetime.fromisoformat(seen[name]) for name in ("completed_at", "stored_at")]
    return (moments[1] - moments[0]).total_seconds()


def measured_transfer(server: Server, path: Path) -> tuple[float, float, float]:
    """Upload a file as fast as it goes; return what its transfer took: seconds, CPU, peak in MiB."""
    workers = server.ready.worker_pids
    tree = Tree(workers, dict.fromkeys(workers, "worker"))
    reset_peaks(workers)
    before = tree.cpu_seconds()["worker"]
    seen = wait_stored(server, send(server, path, None))
    tree.wait_until_idle(5)
    cpu = tree.cpu_seconds()["worker"] - before
    return seconds_to_store(seen), cpu, max(peak_kib(pid) for pid in workers) / 1024


# --- the report ------------------------------------------------------------------------------------


def compare_senders(path: Path, s3: S3Server, folder: Path, rounds: int, checksum: str) -> list[Case]:
    """Let a CLI and the worker, which send the same checksum, send the file in turn."""
    aws, environment = install_aws(checksum), aws_environment(folder)
    version = CLIS[checksum].removeprefix("awscli")
    tiny = random_file(folder / "tiny", PIECE)
    start = Case(f"`aws s3 cp` ({version}) of 1 MiB: its start")
    theirs = Case(f"`aws s3 cp` ({version})")
    ours = Case(f'worker, checksum = "{checksum}"')
    with our_server(folder / f"transfer-{checksum}", s3, eager=False, checksum=checksum) as server:
        for number in range(rounds):
            say(f"{checksum}: round {number + 1} of {rounds}")
            for case, source in ((start, tiny), (theirs, path)):
                settle(s3, source)
                add(case, aws_copy(aws, source, s3, f"aws-{number}-{source.name}", environment))
            settle(s3, path)
            add(ours, measured_transfer(server, path))
    return [start, theirs, ours]


def settle(s3: S3Server, path: Path) -> None:
    """Remove what was stored before, and let the disk come to rest."""
    for key in s3.object_keys():
        s3.client().delete_object(Bucket=s3.bucket, Key=key)
    os.sync()
    forget(path)


def add(case: Case, figures: tuple[float, float, float]) -> None:
    """Record a round."""
    case.seconds.append(figures[0])
    case.cpu_seconds.append(figures[1])
    case.peak_mib = max(case.peak_mib, figures[2])


def last_byte_to_stored(path: Path, s3: S3Server, folder: Path, rounds: int, pace: float) -> dict[bool, list[float]]:
    """Upload at a pace; return the seconds from the last byte to the object, eager and not."""
    found: dict[bool, list[float]] = {}
    for eager in (False, True):
        with our_server(folder / f"eager-{eager}", s3, eager=eager) as server:
            for number in range(rounds):
                settle(s3, path)
                say(f"transfer.eager = {str(eager).lower()}, round {number + 1} of {rounds}")
                seen = wait_stored(server, send(server, path, pace))
                found.setdefault(eager, []).append(seconds_to_store(seen))
    return found


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="MiB of the upload (default: 1024)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each case (default: 3)")
    parser.add_argument("--pace", type=float, default=100, help="MiB/s of the paced client (default: 100)")
    parser.add_argument("--dir", type=Path, help="where the data go (default: the temporary folder)")
    options = parser.parse_args()
    size = options.size * MIB
    with tempfile.TemporaryDirectory(prefix="tusd-bench-", dir=options.dir) as name:
        folder = Path(name)
        path = random_file(folder / "file", size)
        with rclone_s3(folder, *RCLONE_OPTIONS) as s3:
            compared = [compare_senders(path, s3, folder, options.rounds, checksum) for checksum in CLIS]
            stored = last_byte_to_stored(path, s3, folder, options.rounds, options.pace)
    title = f"{options.size} MiB, {CONCURRENCY} parts at once"
    print(f"| {title} | rounds | median s | range s | MiB/s | CPU s/GiB | peak MiB |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for cases in compared:
        for case, of in zip(cases, (MIB, size, size), strict=True):
            print(case.row(of))
    print(f"\n| {options.size} MiB at {options.pace:.0f} MiB/s | rounds | last byte to stored, median s | range s |")
    print("|---|---:|---:|---:|")
    for eager, times in stored.items():
        label = f"transfer.eager = {str(eager).lower()}"
        print(f"| {label} | {len(times)} | {statistics.median(times):.2f} | {min(times):.2f} - {max(times):.2f} |")
    print("\n| expectation | measured | verdict |\n|---|---:|---|")
    for expectation, measured, good in expectations(compared, statistics.median(stored[True])):
        print(f"| {expectation} | {measured} | **{'meets' if good else 'misses'}** |")


def expectations(compared: list[list[Case]], late: float) -> Iterator[tuple[str, str, bool]]:
    """Return what is expected, what was measured, and whether that is good."""
    for start, theirs, ours in compared:
        whole, mine = statistics.median(theirs.seconds), statistics.median(ours.seconds)
        alone = whole - statistics.median(start.seconds)
        what = f"{ours.name}: not slower than {theirs.name}"
        yield what, f"{mine:.2f} s against {whole:.2f} s, {alone:.2f} s without its start", mine <= whole
    peak = max(ours.peak_mib for _, _, ours in compared)
    yield f"worker's memory ≤ {MOST_MEMORY_MIB} MiB", f"{peak:.0f}", peak <= MOST_MEMORY_MIB
    yield f"eager: stored ≤ {MOST_EAGER_SECONDS:.0f} s after the last byte", f"{late:.2f} s", late <= MOST_EAGER_SECONDS


if __name__ == "__main__":
    main()
