"""Every error as a client reads it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support.tools import ROOT
from tusd_py import errors
from tusd_py.errors import ConfigError, TusdError

pytestmark = pytest.mark.unit

DUMP = """
import inspect, json
from tusd_py import errors
classes = inspect.getmembers(errors, lambda it: inspect.isclass(it) and issubclass(it, errors.TusdError))
print(json.dumps({name: (it.code, it.status, it.retryable, it.sentence) for name, it in classes}))
"""

EVERY_CLASS = [it for it in vars(errors).values() if isinstance(it, type) and issubclass(it, TusdError)]
EVERY_ERROR = [it for it in EVERY_CLASS if "code" in vars(it)]


def test_only_a_group_of_errors_has_no_code() -> None:
    assert set(EVERY_CLASS) - set(EVERY_ERROR) == {
        errors.AccessError,
        errors.StateConflict,
        errors.BodyError,
        errors.HookRejection,
    }


@pytest.mark.parametrize("error", EVERY_ERROR)
def test_every_error_has_a_sentence_of_its_own(error: type[TusdError]) -> None:
    assert "sentence" in vars(error)
    assert error.sentence.endswith(".")
    assert "\n" not in error.sentence


@pytest.mark.parametrize("error", [it for it in EVERY_ERROR if it.__init__ is TusdError.__init__])
def test_the_sentence_is_what_a_client_reads(error: type[TusdError]) -> None:
    assert error().detail == error.sentence


def test_errors_read_the_same_where_docstrings_are_stripped() -> None:
    def dump(*options: str) -> dict[str, list[object]]:
        result = subprocess.run([sys.executable, *options, "-c", DUMP], capture_output=True, text=True, check=True)
        codes: dict[str, list[object]] = json.loads(result.stdout)
        return codes

    plain = dump()
    assert plain["UploadNotFound"] == ["ERR_UPLOAD_NOT_FOUND", 404, False, "There is no such upload."]
    assert dump("-OO") == plain


def test_the_api_page_has_the_sentence_of_every_error_that_it_names() -> None:
    page = (ROOT / "docs" / "api.md").read_text()

    assert {it.code for it in EVERY_ERROR if f"`{it.code}`" in page and it.sentence not in page} == set()


def test_a_detail_replaces_the_sentence_and_context_is_for_the_log_only() -> None:
    error = errors.BadParameter("limit: must be at most 100", limit=1000)

    assert error.detail == "limit: must be at most 100"
    assert str(error) == "limit: must be at most 100 (limit=1000)"


def test_configuration_error_lists_every_problem() -> None:
    error = ConfigError(["server.port: is taken", "auth.mode: unknown"])

    assert error.problems == ["server.port: is taken", "auth.mode: unknown"]
    assert error.detail == "server.port: is taken\nauth.mode: unknown"
