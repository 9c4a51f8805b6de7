"""The rows of the protocol that this server promises to keep; each is named by a test.

A test names rows in its docstring.
"""

from __future__ import annotations


def _span(prefix: str, last: int, *, without: tuple[int, ...] = ()) -> list[str]:
    return [f"{prefix}-{number:02}" for number in range(1, last + 1) if number not in without]


ROWS = frozenset([
    *_span("GEN", 16),
    *_span("CORE", 30),
    *_span("CRE", 15),
    *_span("DEF", 8),
    *_span("CWU", 9),
    *_span("EXP", 9),
    *_span("CSUM", 10),
    *_span("TRL", 5),
    *_span("TERM", 9),
    *_span("CAT", 18),
    *_span("CATU", 5),
    *_span("LOCK", 9),
    *_span("CORS", 10),
    *_span("AIO", 17, without=(13, 17)),
    # Resumable Uploads for HTTP. Left out: a second look at permissions at the end.
    *_span("RC", 15),
    *_span("RH", 8),
    *_span("RA", 14),
    *_span("RD", 2),
    *_span("RL", 5),
    "RP-01",
    *_span("RG", 4),
    *_span("RX", 3, without=(1,)),
])  # fmt: skip
