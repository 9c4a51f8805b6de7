"""The rows of the protocol that this server promises to keep; each is named by a test.

A test names rows in its docstring. Rows of the other dialect (resumable uploads of the IETF), which
this server does not speak, are not listed.
"""

from __future__ import annotations


def _span(prefix: str, last: int, *, without: tuple[int, ...] = ()) -> list[str]:
    return [f"{prefix}-{number:02}" for number in range(1, last + 1) if number not in without]


ROWS = frozenset([
    *_span("GEN", 16, without=(2, 3, 5, 7)),
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
    *_span("AIO", 17, without=(1, 2, 13, 17)),
])  # fmt: skip
