"""The arguments of `tusd-py events`. Apart from its actions, which import what only they need."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from tusd_py.protocol.events import RECORDED, EventKind

DEFAULT_LIMIT: Final = 100
MAX_LIMIT: Final = 1_000_000


def add_actions(parser: argparse.ArgumentParser, *, add_common: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add the actions; `add_common` adds what each of them takes as well."""
    actions = parser.add_subparsers(required=True, metavar="ACTION", dest="action")
    for name, add_arguments, text in (
        ("list", _add_list, "print the latest events, oldest first"),
        ("dead", _add_dead, "print the events that endpoints did not take within three days, newest first"),
        ("replay", _add_replay, "have events sent again, together with those of the same upload in between"),
        ("resume", _add_resume, "send to an endpoint again that is paused, and try soon what waits for it"),
        ("test", _add_test, "send a test event now, and print the status of the reply and how long it took"),
        ("endpoints", _add_json, "print the endpoints, whether they are paused, and what they have not taken yet"),
    ):
        sub = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        add_common(sub)
        add_arguments(sub)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print each as a line of JSON")


def _add_limit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--limit", type=_limit, default=DEFAULT_LIMIT, metavar="N", help="at most so many (default: %(default)s)"
    )


def _add_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--upload", type=UUID, metavar="ID", help="only events of the upload with this public id")
    kinds = "only events of this kind, such as upload.stored"
    parser.add_argument("--kind", type=_kind, metavar="KIND", help=kinds)
    _add_limit(parser)
    parser.add_argument("--json", action="store_true", help="print each as a line of JSON: the CloudEvent")


def _add_dead(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--endpoint", metavar="NAME", help="only those of this endpoint")
    _add_limit(parser)
    _add_json(parser)


def _add_replay(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--endpoint", required=True, metavar="NAME", help="who is to be told again")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("events", nargs="*", default=[], type=UUID, metavar="EVENT_ID", help="id of an event")
    since = 'all events since then, in ISO 8601, such as "2026-11-20T18:00+01:00"; without a zone it is UTC'
    which.add_argument("--since", type=_moment, metavar="TIME", help=since)
    which.add_argument("--dead", action="store_true", help="all dead letters of the endpoint")


def _add_resume(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the endpoint")


def _add_test(parser: argparse.ArgumentParser) -> None:
    name = "name of a webhook in the configuration, or its URL without the query"
    parser.add_argument("name", metavar="NAME", help=name)


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= MAX_LIMIT):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {MAX_LIMIT}")
    return int(text)


def _kind(text: str) -> EventKind:
    if text not in RECORDED:
        known = ", ".join(kind.value for kind in EventKind if kind in RECORDED)
        raise argparse.ArgumentTypeError(f"{text!r} is not a kind of recorded event; there are {known}")
    return EventKind(text)


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is not a time in ISO 8601, such as "2026-11-20T18:00Z"') from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
