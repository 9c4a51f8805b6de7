"""How long a newer request waits for an upload that an earlier one holds, and does not let go by itself.

A client begins a PATCH and falls silent; a second connection asks HEAD. Measured is the time from the
request to its answer, which carries the offset of what the first one brought. Once within one HTTP
process, once across two (SO_REUSEPORT decides which process gets a connection; each round is counted
where it fell).

    python bench/take_over.py [--rounds 200]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.blocking_client import BlockingConnection, create
from tests.support.server import Server

LENGTH = 10 * 2**20
SENT = 2**20
EXPECTED_MS = {"one process": 50.0, "across processes": 250.0}


def one_round(server: Server) -> tuple[str, float]:
    """Take an upload over; return where it happened and how many milliseconds it took."""
    target = create(server.port, LENGTH).headers["location"]
    pids = server.ready.http_pids
    with BlockingConnection(server.port) as holder, BlockingConnection(server.port) as newcomer:
        holder.begin_patch(target, offset=0, length=LENGTH)
        holder.send(bytes(SENT))
        where = "one process" if holder.owner(pids) == newcomer.owner(pids) else "across processes"
        started = time.perf_counter()
        answer = newcomer.request("HEAD", target)
        took = (time.perf_counter() - started) * 1000
    assert (answer.status, answer.offset) == (200, SENT), answer
    return where, took


def measure(processes: int, rounds: int) -> dict[str, list[float]]:
    """Run rounds against a server with so many HTTP processes."""
    found: dict[str, list[float]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="tusd-bench-") as folder,
        Server(Path(folder), {"server": {"processes": processes}, "logging": {"requests": False}}) as server,
    ):
        for _ in range(rounds):
            where, took = one_round(server)
            found.setdefault(where, []).append(took)
    return found


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200, help="rounds of each server (default: 200)")
    rounds = parser.parse_args().rounds
    print("| take-over | rounds | p50 ms | p99 ms | max ms | expected | verdict |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    samples = {
        "one process": measure(1, rounds)["one process"],
        "across processes": measure(2, rounds).get("across processes", []),
    }
    for where, times in samples.items():
        p99 = statistics.quantiles(times, n=100)[98]
        verdict = "meets" if p99 <= EXPECTED_MS[where] else "misses"
        print(
            f"| {where} | {len(times)} | {statistics.median(times):.1f} | {p99:.1f} | {max(times):.1f} "
            f"| ≤ {EXPECTED_MS[where]:.0f} | **{verdict}** |"
        )


if __name__ == "__main__":
    main()
