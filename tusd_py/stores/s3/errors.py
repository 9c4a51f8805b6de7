"""Errors of S3 and its client, sorted by whether a retry may help.

Only codes on the lists are permanent: those of `BLOCKED` for every upload until an operator corrects the
cause, the others for the one upload. Everything unknown is transient: a retry in vain ends after
`transfer.max_retries`, while an upload that failed for nothing needs an operator.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

import aiohttp
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    InvalidConfigError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    TokenRetrievalError,
    UnauthorizedSSOTokenError,
    UnknownSignatureVersionError,
)
from botocore.parsers import ResponseParserError

from tusd_py.errors import PermanentStoreError, StorageError, StoreBlocked, TransientStoreError

NOT_FOUND: Final = frozenset({"404", "NoSuchKey", "NotFound"})
NO_SUCH_UPLOAD: Final = "NoSuchUpload"
PRECONDITION_FAILED: Final = "PreconditionFailed"

DENIED: Final = frozenset({"403", "AccessDenied", "AllAccessDisabled", "Forbidden", "UnauthorizedAccess"})
"""The request is authenticated and not authorized. A HEAD has no body, hence no other code than its status."""

UNSUPPORTED: Final = frozenset(
    {
        "InvalidArgument",
        "InvalidRequest",
        "MalformedXML",
        "NotImplemented",
        "UnexpectedContent",
        "UnsupportedArgument",
        "XNotImplemented",
    }
)
"""How servers refuse a header or element that they do not know. The caller may ask again without."""

UNUSABLE_PARTS: Final = frozenset(
    {"BadDigest", "ConditionalRequestConflict", "InvalidPart", "InvalidPartOrder", NO_SUCH_UPLOAD}
)
"""Responses to CompleteMultipartUpload after which only a new multipart upload can succeed."""

BLOCKED: Final = frozenset(
    {
        "301",
        "AccountProblem",
        "AllAccessDisabled",
        "AuthorizationHeaderMalformed",
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidBucketName",
        "InvalidClientTokenId",
        "InvalidSecurity",
        "InvalidToken",
        "KMS.DisabledException",
        "KMS.InvalidKeyUsageException",
        "KMS.KMSInvalidStateException",
        "KMS.NotFoundException",
        "NoSuchBucket",
        "NotSignedUp",
        "PermanentRedirect",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
"""Nothing that one upload can cause: bucket, account, credentials, encryption key."""

PERMANENT: Final = UNSUPPORTED | frozenset(
    {
        "403",
        "AccessControlListNotSupported",
        "AccessDenied",
        "EntityTooLarge",
        "EntityTooSmall",
        "Forbidden",
        "InvalidEncryptionAlgorithmError",
        "InvalidObjectName",
        "InvalidStorageClass",
        "InvalidTag",
        "KeyTooLongError",
        "MetadataTooLarge",
        "MethodNotAllowed",
        PRECONDITION_FAILED,
        "UnauthorizedAccess",
    }
)

_LOCK_WORDS: Final = ("object lock", "objectlock", "worm")
"""How AWS, MinIO and others say it; not all of them have a code for it."""

_MOST_SKEW_SECONDS: Final = 300
"""S3 refuses signatures that are 15 minutes off; a difference of 5 explains a refusal without a code."""


def code_of(error: StorageError) -> str | None:
    """Return the store's own code of an error that `translated` raised, None if there is none."""
    code = error.context.get("code")
    return code if isinstance(code, str) else None


def says_locked(error: StorageError) -> bool:
    """Return whether a store explains by S3 Object Lock that it does not remove a version."""
    text = f"{code_of(error)} {error.context.get('reason')}".lower()
    return any(word in text for word in _LOCK_WORDS)


def sort_response(response: Mapping[str, Any], operation: str, *, now: datetime) -> StorageError:
    """Return our error for an error response of S3, as botocore parsed it."""
    error = response.get("Error", {})
    metadata = response.get("ResponseMetadata", {})
    status = metadata.get("HTTPStatusCode")
    code = str(error.get("Code") or status)
    kind = _kind_of(code, skewed=_is_skewed(metadata, now))
    return kind(operation=operation, code=code, status=status, reason=error.get("Message"))


def _kind_of(code: str, *, skewed: bool) -> type[StorageError]:
    if code in BLOCKED:
        return StoreBlocked
    permanent = code in PERMANENT and not (code in {"403", "Forbidden"} and skewed)
    return PermanentStoreError if permanent else TransientStoreError


def _is_skewed(metadata: Mapping[str, Any], now: datetime) -> bool:
    # The response to HEAD has no body, hence no RequestTimeTooSkewed: the clocks are compared instead.
    try:
        server = parsedate_to_datetime(metadata["HTTPHeaders"]["date"])
    except (KeyError, ValueError):
        return False
    if server.tzinfo is None:
        server = server.replace(tzinfo=UTC)
    return abs((server - now).total_seconds()) > _MOST_SKEW_SECONDS


@contextlib.contextmanager
def translated(operation: str, **context: Any) -> Iterator[None]:
    """Raise whatever the client raises as `TransientStoreError` or `PermanentStoreError`."""
    try:
        yield
    except ClientError as error:
        ours = sort_response(error.response, operation, now=datetime.now(UTC))
        ours.context.update(context)
        raise ours from error
    except (NoCredentialsError, PartialCredentialsError, TokenRetrievalError, UnauthorizedSSOTokenError) as error:
        raise StoreBlocked(operation=operation, code=type(error).__name__, reason=str(error), **context) from error
    except (
        InvalidConfigError,
        ParamValidationError,
        ProfileNotFound,
        UnknownSignatureVersionError,
    ) as error:
        raise PermanentStoreError(operation=operation, reason=str(error), **context) from error
    except (BotoCoreError, ResponseParserError, aiohttp.ClientError, TimeoutError, OSError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise TransientStoreError(operation=operation, reason=reason, **context) from error
