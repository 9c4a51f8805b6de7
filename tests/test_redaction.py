"""What a log may show of texts in which a token stands, and that it stays readable."""

from __future__ import annotations

import base64
import io
import json
import logging
import re
import string
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote, unquote
from uuid import UUID

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from tusd_py.config import LoggingConfig
from tusd_py.logging import configure_logging, redact
from tusd_py.protocol.fields import is_upload_token

pytestmark = pytest.mark.unit

BASE64URL = string.ascii_letters + string.digits + "-_"
TOKENS = st.text(BASE64URL, min_size=22, max_size=64).filter(is_upload_token)
RANDOM_TOKENS = st.binary(min_size=24, max_size=24).map(lambda random: base64.urlsafe_b64encode(random).decode())
TOKEN = "q3_Zk-81LmNopQrStUvWxYz0AbCdEfGh"
ID = "0a3f9c1e-77b2-4d7c-9a55-0123456789ab"


def escaped(token: str) -> str:
    return "".join(f"%{ord(letter):02X}" for letter in token)


LogOf = Callable[[Callable[[], object]], str]
"""Runs something that logs and returns all that was written."""


@given(
    TOKENS,
    st.sampled_from(
        ["/files/", "//files/", "/files//", "/FILES/", "/", "/a/b/files/", "/download/", "/api/v1/uploads/", "..\\",
         "https://up.example/files/", "final;/files/", "/x?upload=", "/x?a=1&b=", "/x?", "%2Ffiles%2f", "/files/%2F"]
    ),
    st.sampled_from(["", "/", "/x", "?a=b", "#x", "%2F", " HTTP/1.1", "' raised", ".jpg", "~", ",/files/x"]),
    st.sampled_from([str, quote, escaped, lambda token: quote(token[:3]) + escaped(token[3:5]) + token[5:]]),
)  # fmt: skip
def test_a_segment_of_a_tokens_form_is_shortened(
    token: str, before: str, after: str, written: Callable[[str], str]
) -> None:
    shown = redact(f"GET {before}{written(token)}{after}")

    assert token not in unquote(shown)
    assert re.search(re.escape(token[:6]) + "…", shown)


@given(RANDOM_TOKENS, st.sampled_from(["'{}'", '"{}"', "KeyError({!r})", "b'{}'", "no such: {}", "({}, 1)", "{}"]))
def test_a_random_token_is_shortened_wherever_it_stands(token: str, text: str) -> None:
    assert token not in redact(text.format(token))


@given(st.uuids())
def test_a_public_id_stays_and_is_no_token(public_id: UUID) -> None:
    text = f"/download/{public_id}/x and '{public_id}'"

    assert redact(text) == text
    assert not is_upload_token(str(public_id))
    assert is_upload_token(str(public_id).upper()) or str(public_id).upper() == str(public_id)


@pytest.mark.parametrize(
    "text",
    [
        "ClientConnectionResetError('Cannot write to closing transport')",
        "No space (cause='ERR_DATABASE_UNAVAILABLE', code=ERR_UNSUPPORTED_CONTENT_ENCODING)",
        "embedded_postgres_not_started", "0002_record_store_outages",
        "http-7d9f8b6c5d-x2x4z-7d9f8b6c5d:4711", "/files/short", "2026/11/21/" + ID,
        '  File "/srv/app/tusd_py/http/middleware.py", line 60, in _the_longest_name_of_a_function_there_is',
        "    return await self._another_long_name_of_a_function(upload_id)",
    ],
)  # fmt: skip
def test_what_people_need_to_read_stays(text: str) -> None:
    assert redact(text) == text


def test_signatures_are_taken_out_of_queries() -> None:
    assert redact("https://s3/x?X-Amz-Signature=abc&b=1") == "https://s3/x?X-Amz-Signature=***&b=1"


@pytest.fixture(params=["json", "console"])
def log_of(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[LogOf]:
    """Return a function that runs something that logs, and returns all that was written."""
    output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    monkeypatch.setattr(sys, "stderr", output)
    # As they are, to have them back after the test.
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    before = structlog.get_config(), logging.getLogger().handlers[:], logging.getLogger().level
    configure_logging(LoggingConfig(format=request.param, level="debug"))

    def run(action: Callable[[], object]) -> str:
        action()
        return output.buffer.getvalue().decode()

    yield run
    logging.captureWarnings(capture=False)
    structlog.configure(**before[0])
    logging.getLogger().handlers[:] = before[1]
    logging.getLogger().setLevel(before[2])


def raise_chained() -> None:
    local = TOKEN
    try:
        raise KeyError(local)
    except KeyError as error:
        raise ValueError(f"cannot read /files/{local}") from error


def fail_and_log(log: Any) -> None:
    try:
        raise_chained()
    except ValueError as error:
        log.exception("failed", path=f"//files/{TOKEN}", cause=error, nested={"urls": [f"/FILES/{TOKEN}"], TOKEN: 1})
        log.warning("again", exc_info=True, stack_info=True, raw=TOKEN.encode(), anything=object, token=TOKEN)


@pytest.mark.parametrize("make", [structlog.get_logger, lambda: Foreign(logging.getLogger("aiohttp.server"))])
def test_no_record_shows_a_token(log_of: LogOf, make: Callable[[], Any]) -> None:
    written = log_of(lambda: fail_and_log(make()))

    assert "Traceback" in written
    assert "The above exception was the direct cause" in written
    assert "local" in written or "cannot read" in written
    assert TOKEN not in written
    assert TOKEN[:6] in written


def test_what_is_added_after_the_redaction_replaces_what_a_caller_set(log_of: LogOf) -> None:
    written = log_of(lambda: structlog.get_logger().info("x", level=TOKEN, timestamp=TOKEN, logger=TOKEN))

    assert "info" in written
    assert TOKEN not in written


class Foreign:
    """The standard library's logger, spoken to as structlog's."""

    def __init__(self, logger: logging.Logger) -> None:
        self.logger = logger

    def exception(self, event: str, **facts: object) -> None:
        self.logger.error("%s %r", event, facts, exc_info=True)  # noqa: LOG014 -- called inside one

    def warning(self, event: str, *, exc_info: bool, stack_info: bool, **facts: object) -> None:
        self.logger.warning("%s %r", event, facts, exc_info=exc_info, stack_info=stack_info)


def test_bytes_that_are_no_text_can_be_logged(log_of: LogOf) -> None:
    path = b"/files/\xff".decode(errors="surrogateescape")
    written = log_of(lambda: structlog.get_logger().info("request", path=path))

    assert "/files/" in written


def test_an_id_and_numbers_are_logged_as_they_are(log_of: LogOf, request: pytest.FixtureRequest) -> None:
    facts = {"upload_id": uuid.UUID(ID), "bytes_in": 5, "ok": True}
    trace = {"request_id": "0af7651916cd43dd8448eb211c80319c"}
    written = log_of(lambda: structlog.get_logger().info("request", **trace, **facts))

    assert ID in written
    assert trace["request_id"] in written
    if written.startswith("{"):
        assert {"upload_id": ID, "bytes_in": 5, "ok": True}.items() <= json.loads(written).items()
