"""The command line of `upload.py`: what to measure, for how long, and with which settings of the server."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from measure_uploads import Sizes
from results import TITLES
from servers import SERVER_COMMAND

CASES: Final = tuple(TITLES)
NAMED_COMPARISONS: Final = {
    "write-path": ("staging.write_path", ("auto", "page-cache", "direct", "dontcache")),
    "event-loop": ("server.event_loop", ("uvloop", "asyncio")),
}
QUICK: Final = Sizes(seconds=2.0, settle_seconds=5.0)
FULL: Final = Sizes(seconds=5.0, settle_seconds=12.0)
QUICK_BUDGET_SECONDS: Final = 105.0
FULL_BUDGET_SECONDS: Final = 560.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How the run goes: its sizes and its bounds."""

    cases: tuple[str, ...]
    repeat: int
    sizes: Sizes
    ends_at: float

    @property
    def is_over(self) -> bool:
        """Return whether the time for the whole run is used up."""
        return time.monotonic() > self.ends_at


def parse_arguments() -> argparse.Namespace:
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
    add("--write-path", choices=NAMED_COMPARISONS["write-path"][1])
    add("--event-loop", choices=NAMED_COMPARISONS["event-loop"][1])
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
    quick = arguments.quick
    return Plan(
        cases=tuple(arguments.only or (("stream",) if arguments.compare else CASES)),
        repeat=arguments.repeat or (1 if quick else 3),
        sizes=QUICK if quick else FULL,
        ends_at=time.monotonic() + (QUICK_BUDGET_SECONDS if quick else FULL_BUDGET_SECONDS),
    )


def variants_of(arguments: argparse.Namespace) -> Mapping[str, Mapping[str, str]]:
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
    if text in NAMED_COMPARISONS:
        return NAMED_COMPARISONS[text]
    key, values = setting(text)
    return key, tuple(values.split(","))
