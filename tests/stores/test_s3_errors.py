"""Which answers of S3 are worth a retry."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import aiohttp
import pytest
from botocore.exceptions import (
    ClientError,
    EndpointConnectionError,
    NoCredentialsError,
    ParamValidationError,
    ProfileNotFound,
    ReadTimeoutError,
)
from botocore.parsers import ResponseParserError

from tusd_py.errors import PermanentStoreError, StorageError, StoreBlocked, TransientStoreError
from tusd_py.stores.s3.errors import code_of, sort_response, translated

pytestmark = pytest.mark.unit

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


def answer(code: str | None, status: int, date: datetime | None = None) -> dict[str, Any]:
    """An error answer as botocore parses it."""
    return {
        "Error": {"Code": code, "Message": "told so"} if code else {},
        "ResponseMetadata": {
            "HTTPStatusCode": status,
            "HTTPHeaders": {"date": format_datetime(date)} if date else {},
        },
    }


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("NoSuchBucket", 404),
        ("AccessDenied", 403),
        ("InvalidAccessKeyId", 403),
        ("SignatureDoesNotMatch", 403),
        ("EntityTooLarge", 400),
        ("EntityTooSmall", 400),
        ("InvalidBucketName", 400),
        ("MetadataTooLarge", 400),
        ("KMS.NotFoundException", 400),
        ("PermanentRedirect", 301),
        ("PreconditionFailed", 412),
        ("NotImplemented", 501),
        ("403", 403),
        ("301", 301),
    ],
)
def test_what_only_an_operator_can_change_is_permanent(code: str, status: int) -> None:
    assert isinstance(sort_response(answer(code, status), "PutObject", now=NOW), PermanentStoreError)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("NoSuchBucket", 404),
        ("InvalidAccessKeyId", 403),
        ("SignatureDoesNotMatch", 403),
        ("ExpiredToken", 400),
        ("KMS.DisabledException", 400),
        ("PermanentRedirect", 301),
    ],
)
def test_what_is_wrong_for_every_upload_blocks_and_fails_none(code: str, status: int) -> None:
    error = sort_response(answer(code, status), "PutObject", now=NOW)

    assert isinstance(error, StoreBlocked)
    assert error.retryable


def test_missing_credentials_block() -> None:
    with pytest.raises(StoreBlocked) as refusal, translated("PutObject"):
        raise NoCredentialsError

    assert code_of(refusal.value) == "NoCredentialsError"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("InternalError", 500),
        ("ServiceUnavailable", 503),
        ("SlowDown", 503),
        ("RequestTimeout", 400),
        ("RequestTimeTooSkewed", 403),
        ("OperationAborted", 409),
        ("ConditionalRequestConflict", 409),
        ("BadDigest", 400),
        ("NoSuchUpload", 404),
        ("InvalidPart", 400),
        ("NeverHeardOfIt", 418),
        ("400", 400),
        ("503", 503),
        (None, 502),
        (None, 200),
    ],
)
def test_everything_else_is_worth_a_retry(code: str | None, status: int) -> None:
    assert isinstance(sort_response(answer(code, status), "PutObject", now=NOW), TransientStoreError)


@pytest.mark.parametrize(
    ("skew", "kind"),
    [
        (timedelta(0), PermanentStoreError),
        (timedelta(minutes=4), PermanentStoreError),
        (timedelta(minutes=-16), TransientStoreError),
        (timedelta(hours=2), TransientStoreError),
    ],
)
def test_a_bare_403_with_clocks_apart_is_a_matter_of_time(skew: timedelta, kind: type[StorageError]) -> None:
    error = sort_response(answer("403", 403, NOW + skew), "HeadObject", now=NOW)

    assert isinstance(error, kind)


def test_a_named_refusal_stays_one_whatever_the_clocks_say() -> None:
    error = sort_response(answer("AccessDenied", 403, NOW + timedelta(hours=2)), "PutObject", now=NOW)

    assert isinstance(error, PermanentStoreError)


def test_the_facts_are_kept_for_the_log_and_out_of_the_sentence() -> None:
    error = sort_response(answer("SlowDown", 503), "UploadPart", now=NOW)

    assert error.context == {
        "operation": "UploadPart",
        "code": "SlowDown",
        "status": 503,
        "reason": "told so",
    }
    assert "told so" not in error.detail
    assert code_of(error) == "SlowDown"


@pytest.mark.parametrize(
    "raised",
    [
        EndpointConnectionError(endpoint_url="http://s3"),
        ReadTimeoutError(endpoint_url="http://s3"),
        ResponseParserError("cut off"),
        aiohttp.ClientPayloadError("cut off"),
        TimeoutError(),
        ConnectionResetError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_store_that_cannot_be_reached_is_transient(raised: Exception) -> None:
    with pytest.raises(TransientStoreError) as refusal, translated("PutObject", key="k"):
        raise raised

    assert refusal.value.__cause__ is raised
    assert refusal.value.context["key"] == "k"
    assert code_of(refusal.value) is None


@pytest.mark.parametrize(
    "raised",
    [ParamValidationError(report="no"), ProfileNotFound(profile="p")],
    ids=lambda error: type(error).__name__,
)
def test_a_wrong_configuration_is_permanent(raised: Exception) -> None:
    with pytest.raises(PermanentStoreError), translated("open"):
        raise raised


def test_error_answers_are_sorted_with_their_cause() -> None:
    raised = ClientError(answer("NoSuchBucket", 404), "PutObject")

    with pytest.raises(PermanentStoreError) as refusal, translated("PutObject", key="k"):
        raise raised

    assert refusal.value.__cause__ is raised
    assert refusal.value.context["code"] == "NoSuchBucket"


def test_our_own_errors_pass_unchanged() -> None:
    ours = TransientStoreError()

    with pytest.raises(TransientStoreError) as refusal, translated("PutObject"):
        raise ours

    assert refusal.value is ours
