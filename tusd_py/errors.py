"""The whole error tree.

Every error carries a stable `code`, an HTTP `status` as a hint for whoever renders it (this module
imports no HTTP library), and whether a retry may help. The docstring's first line is the sentence
shown to clients; facts for the log go into `context` and never into that sentence.
"""

from __future__ import annotations

import inspect
from typing import Any, ClassVar, Final

CLIENT_GONE: Final = 499
"""The status of a request whose client went away or fell silent. Nobody is told it: logs and metrics say so."""


class TusdError(Exception):
    """The server could not do this."""

    code: ClassVar[str] = "ERR_INTERNAL"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    retry_after_seconds: ClassVar[float | None] = None
    """For the worker: when a job that failed so is tried again. None: as for any other error."""

    upload: Any = None
    """The upload as it stands now, set by a service so that a reply can tell the true offset."""
    allow: tuple[str, ...] = ()
    """For `MethodNotAllowed`: what would have been allowed."""

    def __init__(self, detail: str | None = None, **context: Any) -> None:
        """`detail` replaces the sentence for the client; `context` is for the log only."""
        self.detail = detail or (inspect.getdoc(type(self)) or "").split("\n", 1)[0]
        self.context = context
        super().__init__(self.detail)

    def __str__(self) -> str:
        facts = ", ".join(f"{key}={value!r}" for key, value in self.context.items())
        return f"{self.detail} ({facts})" if facts else self.detail


# --- what a client asked for is malformed or not allowed by the protocol -------------------------


class ProtocolError(TusdError):
    """The request is not valid."""

    code, status = "ERR_BAD_REQUEST", 400


class UnsupportedVersion(ProtocolError):
    """Tus-Resumable is missing or not 1.0.0."""

    code, status = "ERR_UNSUPPORTED_VERSION", 412


class InvalidUploadLength(ProtocolError):
    """Upload-Length is missing or not a non-negative integer."""

    code = "ERR_INVALID_UPLOAD_LENGTH"


class InvalidDeferLength(ProtocolError):
    """Upload-Defer-Length must be exactly 1 and excludes Upload-Length."""

    code = "ERR_INVALID_UPLOAD_LENGTH_DEFER"


class LengthConflict(ProtocolError):
    """Upload-Length differs from the length this upload already has."""

    code = "ERR_UPLOAD_LENGTH_CONFLICT"


class ProtocolMismatch(ProtocolError):
    """This upload was created in another protocol; continue it in that one."""

    code = "ERR_PROTOCOL_MISMATCH"


class UploadCompleted(ProtocolError):
    """The upload is complete and takes no more bytes."""

    code = "ERR_UPLOAD_COMPLETED"


class InvalidOffset(ProtocolError):
    """Upload-Offset is missing or not a non-negative integer."""

    code = "ERR_INVALID_OFFSET"


class OffsetMismatch(ProtocolError):
    """Upload-Offset is not the current offset of the upload."""

    code, status = "ERR_MISMATCHED_OFFSET", 409


class InvalidMetadata(ProtocolError):
    """Upload-Metadata is malformed."""

    code = "ERR_INVALID_METADATA"


class InvalidConcat(ProtocolError):
    """Upload-Concat is malformed or names an unusable part."""

    code = "ERR_INVALID_CONCAT"


class ConcatUnsupported(ProtocolError):
    """Concatenation is switched off on this server."""

    code = "ERR_CONCATENATION_UNSUPPORTED"


class PartNotFinished(ProtocolError):
    """One of the partial uploads is not finished."""

    code = "ERR_UPLOAD_NOT_FINISHED"


class FinalImmutable(ProtocolError):
    """A final upload cannot be modified."""

    code, status = "ERR_MODIFY_FINAL", 403


class InvalidChecksum(ProtocolError):
    """Upload-Checksum is malformed or names an unknown algorithm."""

    code = "ERR_INVALID_CHECKSUM"


class ChecksumMismatch(ProtocolError):
    """The body does not match Upload-Checksum; it was discarded."""

    code, status = "ERR_CHECKSUM_MISMATCH", 460


class WholeChecksumMismatch(ChecksumMismatch):
    """The upload does not match the digest that was promised for all of it; it was discarded."""

    code, status = "ERR_WHOLE_CHECKSUM_MISMATCH", 400


class IncompleteChunk(ProtocolError):
    """The body ended before its checksum could be verified; it was discarded."""

    code, status = "ERR_UNEXPECTED_EOF", 400


class InvalidContentType(ProtocolError):
    """Content-Type must be application/offset+octet-stream."""

    code, status = "ERR_INVALID_CONTENT_TYPE", 415


class UnsupportedContentEncoding(ProtocolError):
    """Content-Encoding is not supported: send the bytes as they are."""

    code, status = "ERR_UNSUPPORTED_CONTENT_ENCODING", 415


class InvalidMethodOverride(ProtocolError):
    """X-HTTP-Method-Override accepts PATCH, DELETE and HEAD on POST only."""

    code = "ERR_INVALID_METHOD_OVERRIDE"


class MethodNotAllowed(ProtocolError):
    """This method is not allowed here."""

    code, status = "ERR_METHOD_NOT_ALLOWED", 405


class UploadTooLarge(ProtocolError):
    """The upload is larger than this server accepts."""

    code, status = "ERR_MAX_SIZE_EXCEEDED", 413


class AppendTooLarge(UploadTooLarge):
    """The body is larger than this server accepts in one request."""

    code = "ERR_APPEND_SIZE_EXCEEDED"


class LengthExceeded(ProtocolError):
    """The body is longer than what remains of the upload."""

    code, status = "ERR_UPLOAD_SIZE_EXCEEDED", 413


class BadParameter(ProtocolError):
    """A parameter of the request is not valid."""

    code = "ERR_BAD_PARAMETER"


class FormNotAccepted(ProtocolError):
    """This address takes resumable uploads and no forms; see https://tus.io/implementations for clients."""

    code, status = "ERR_FORM_NOT_ACCEPTED", 415


class EmptyPatchLimit(ProtocolError):
    """Too many empty PATCH requests in a row on this upload; send bytes."""

    # Not 429, which browsers' clients retry by themselves.
    code, status = "ERR_TOO_MANY_EMPTY_PATCHES", 403


# --- who is asking --------------------------------------------------------------------------------


class AccessError(TusdError):
    """Access was refused."""

    code, status = "ERR_FORBIDDEN", 403


class Unauthenticated(AccessError):
    """A valid bearer token is required."""

    code, status = "ERR_UNAUTHENTICATED", 401


class Forbidden(AccessError):
    """You are not allowed to do this."""

    code, status = "ERR_FORBIDDEN", 403


class UnknownProfile(AccessError):
    """The token names a profile that this server does not have."""

    code, status = "ERR_UNKNOWN_PROFILE", 403


class OriginNotAllowed(AccessError):
    """Pages of this origin may not use the server; its operator can name the origin in cors.allow_origins."""

    code, status = "ERR_ORIGIN_NOT_ALLOWED", 403


class HostNotAllowed(AccessError):
    """This host name is not one of the server's; its operator can name it in server.allowed_hosts."""

    code, status = "ERR_HOST_NOT_ALLOWED", 421


# --- the upload is not in a state in which this can be done ----------------------------------------


class StateConflict(TusdError):
    """The upload is not in a state in which this can be done."""

    code, status = "ERR_INVALID_STATE", 409


class UploadNotFound(StateConflict):
    """There is no such upload."""

    code, status = "ERR_UPLOAD_NOT_FOUND", 404


class UploadGone(StateConflict):
    """The upload existed and is gone."""

    code, status = "ERR_UPLOAD_GONE", 410


class InvalidTransition(StateConflict):
    """The upload is not in a state in which this can be done."""

    code, status = "ERR_INVALID_TRANSITION", 409


class TransferInProgress(StateConflict):
    """The upload is being moved to the store; try again shortly."""

    code, status, retryable = "ERR_TRANSFER_IN_PROGRESS", 409, True


class PartInUse(StateConflict):
    """A pending final upload still needs this part."""

    code, status = "ERR_PART_IN_USE", 409


class NotReady(StateConflict):
    """The upload is not complete yet."""

    code, status = "ERR_NOT_READY", 409


class UploadHeld(StateConflict):
    """The upload is on hold and cannot be removed."""

    code, status = "ERR_UPLOAD_HELD", 403


class UploadLocked(StateConflict):
    """Another request is using this upload; try again."""

    code, status, retryable = "ERR_UPLOAD_LOCKED", 423, True


class OffsetConflict(StateConflict):
    """Another writer moved the upload; nothing was changed."""

    code, status, retryable = "ERR_OFFSET_CONFLICT", 423, True


class TooManyConnections(StateConflict):
    """Too many uploads from this address at once; try again."""

    code, status, retryable = "ERR_TOO_MANY_CONNECTIONS", 423, True


class WrongNode(StateConflict):
    """The bytes of this upload are on another node; try again there."""

    code, status, retryable = "ERR_WRONG_NODE", 503, True


class RangeNotSatisfiable(StateConflict):
    """The requested range lies outside the file."""

    code, status = "ERR_RANGE_NOT_SATISFIABLE", 416

    total_length: int = 0
    """Bytes of the file, for Content-Range."""


# --- how a body can end without having been received whole -----------------------------------------


class BodyError(TusdError):
    """The body could not be received whole; what arrived was kept."""

    code, status, retryable = "ERR_BODY_INTERRUPTED", 500, True


class BodyTimedOut(BodyError):
    """No byte of the body arrived in time; what arrived was kept."""

    code = "ERR_READ_TIMEOUT"


class BodyTooSlow(BodyError):
    """The body arrived slower than this server's minimum rate; what arrived was kept."""

    code = "ERR_MINIMUM_RATE"


class ClientDisconnected(BodyError):
    """The client closed the connection; what arrived was kept."""

    code = "ERR_CONNECTION_CLOSED"


class TakenOver(BodyError):
    """A newer request took over this upload; what arrived was kept."""

    code, status = "ERR_UPLOAD_INTERRUPTED", 423


class ServerDraining(BodyError):
    """The server is shutting down; what arrived was kept."""

    code, status = "ERR_SERVER_SHUTDOWN", 503


# --- storage, database, configuration --------------------------------------------------------------


class StorageError(TusdError):
    """The storage failed."""

    code, status = "ERR_STORAGE", 500


class StagingFull(StorageError):
    """There is no space left for this upload; what was acknowledged is kept."""

    code, status, retryable = "ERR_INSUFFICIENT_STORAGE", 507, True


class StoreFull(StorageError):
    """There is no space left in the store for this upload."""

    code, status, retryable = "ERR_INSUFFICIENT_STORAGE", 507, True


class StagingDamaged(StorageError):
    """The staged bytes of this upload are damaged."""

    code, status = "ERR_STAGING_DAMAGED", 500


class StagingMissing(StagingDamaged):
    """The staged bytes of this upload are missing."""

    code = "ERR_STAGING_MISSING"


class StagingMismatch(StorageError):
    """The staging directory and the database do not belong together."""

    code = "ERR_STAGING_MISMATCH"


class StoredObjectMissing(StorageError):
    """The stored file is missing."""

    code, status = "ERR_OBJECT_MISSING", 404


class TransientStoreError(StorageError):
    """The store is not reachable or refused for now."""

    code, status, retryable = "ERR_STORE_UNAVAILABLE", 503, True


class PermanentStoreError(StorageError):
    """The store refused, and a retry cannot help."""

    code, status = "ERR_STORE_REFUSED", 502


class StoreBlocked(PermanentStoreError):
    """The store does not accept this server: its bucket, credentials or permissions need a look."""

    code, retryable = "ERR_STORE_BLOCKED", True


class StoreNotConfigured(StorageError):
    """The store that holds this file is not configured on this server any more."""

    code, status, retryable = "ERR_STORE_NOT_CONFIGURED", 503, True


class ObjectLocked(StorageError):
    """The store keeps the file under object lock; its removal is tried every day."""

    code, status, retryable = "ERR_OBJECT_LOCKED", 409, True
    retry_after_seconds = 86400.0


class TransferCancelled(StorageError):
    """The transfer was cancelled, or another worker owns it now."""

    code, status = "ERR_TRANSFER_CANCELLED", 409


class DatabaseUnavailable(TusdError):
    """The database is not reachable; try again shortly."""

    code, status, retryable = "ERR_DATABASE_UNAVAILABLE", 503, True


class ConfigError(TusdError):
    """The configuration is not usable.

    `problems` holds one `key.path: message` per problem, all of them at once.
    """

    code = "ERR_CONFIG"

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class MigrationError(TusdError):
    """The database schema cannot be brought up to date."""

    code = "ERR_MIGRATION"
