"""Every error of the package, as a table: a class is a row.

Each has a stable `code`, an HTTP `status` as a hint for whoever renders it (this module imports no HTTP
library), whether a retry may help, and the `sentence` that a client reads. What a row leaves out is as in
its base class. Facts for the log go into `context`, never into the sentence.

There is a class even for an error that nothing catches. Those are few, tests counted, and plain data for
them would save three lines each and cost a second way to raise an error. `raise InvalidMetadata("...")`
also reads better where it stands than a constant handed to a class that all of them share.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Final

if TYPE_CHECKING:
    from tusd_py.ports.hooks import HookResponse

CLIENT_GONE: Final = 499
"""The status of a request whose client went away or fell silent. Nobody is told it: logs and metrics say so."""


class TusdError(Exception):
    code: ClassVar[str] = "ERR_INTERNAL"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    sentence: ClassVar[str] = "The server could not do this."

    retry_after_seconds: ClassVar[float | None] = None
    """For the worker: when a job that failed so is tried again. None: as for any other error."""

    def __init__(self, detail: str | None = None, **context: Any) -> None:
        """`detail` replaces the sentence for the client; `context` is for the log only."""
        self.detail = detail or self.sentence
        self.context = context
        super().__init__(self.detail)

    def __str__(self) -> str:
        facts = ", ".join(f"{key}={value!r}" for key, value in self.context.items())
        return f"{self.detail} ({facts})" if facts else self.detail


# --- what a client asked for is malformed or not allowed by the protocol -------------------------


class ProtocolError(TusdError):
    code, status = "ERR_BAD_REQUEST", 400
    sentence = "The request is not valid."


class UnsupportedVersion(ProtocolError):
    code, status = "ERR_UNSUPPORTED_VERSION", 412
    sentence = "Tus-Resumable is missing or not 1.0.0."


class InvalidUploadLength(ProtocolError):
    code = "ERR_INVALID_UPLOAD_LENGTH"
    sentence = "Upload-Length is missing or not a non-negative integer."


class InvalidDeferLength(ProtocolError):
    code = "ERR_INVALID_UPLOAD_LENGTH_DEFER"
    sentence = "Upload-Defer-Length must be exactly 1 and excludes Upload-Length."


class LengthConflict(ProtocolError):
    code = "ERR_UPLOAD_LENGTH_CONFLICT"
    sentence = "Upload-Length differs from the length this upload already has."


class ProtocolMismatch(ProtocolError):
    code = "ERR_PROTOCOL_MISMATCH"
    sentence = "This upload was created with another protocol; continue it with that one."


class UploadCompleted(ProtocolError):
    code = "ERR_UPLOAD_COMPLETED"
    sentence = "The upload is complete and takes no more bytes."


class InvalidOffset(ProtocolError):
    code = "ERR_INVALID_OFFSET"
    sentence = "Upload-Offset is missing or not a non-negative integer."


class OffsetMismatch(ProtocolError):
    code, status = "ERR_MISMATCHED_OFFSET", 409
    sentence = "Upload-Offset is not the current offset of the upload."


class InvalidMetadata(ProtocolError):
    code = "ERR_INVALID_METADATA"
    sentence = "Upload-Metadata is malformed."


class InvalidConcat(ProtocolError):
    code = "ERR_INVALID_CONCAT"
    sentence = "Upload-Concat is malformed or names a partial upload that cannot be used."


class ConcatUnsupported(ProtocolError):
    code = "ERR_CONCATENATION_UNSUPPORTED"
    sentence = "Concatenation is switched off on this server."


class PartialNotFinished(ProtocolError):
    code = "ERR_UPLOAD_NOT_FINISHED"
    sentence = "One of the partial uploads is not finished."


class FinalImmutable(ProtocolError):
    code, status = "ERR_MODIFY_FINAL", 403
    sentence = "A final upload cannot be modified."


class InvalidChecksum(ProtocolError):
    code = "ERR_INVALID_CHECKSUM"
    sentence = "Upload-Checksum is malformed or names an unknown algorithm."


class ChecksumMismatch(ProtocolError):
    code, status = "ERR_CHECKSUM_MISMATCH", 460
    sentence = "The body does not match Upload-Checksum; it was discarded."


class WholeChecksumMismatch(ChecksumMismatch):
    code, status = "ERR_WHOLE_CHECKSUM_MISMATCH", 400
    sentence = "The upload does not match the digest that was sent for the whole of it; it was discarded."


class IncompleteChunk(ProtocolError):
    code = "ERR_UNEXPECTED_EOF"
    sentence = "The body ended before its checksum could be verified; it was discarded."


class InvalidContentType(ProtocolError):
    code, status = "ERR_INVALID_CONTENT_TYPE", 415
    sentence = "Content-Type must be application/offset+octet-stream."


class UnsupportedContentEncoding(ProtocolError):
    code, status = "ERR_UNSUPPORTED_CONTENT_ENCODING", 415
    sentence = "Content-Encoding is not supported: send the bytes as they are."


class InvalidMethodOverride(ProtocolError):
    code = "ERR_INVALID_METHOD_OVERRIDE"
    sentence = "X-HTTP-Method-Override accepts PATCH, DELETE and HEAD on POST only."


class MethodNotAllowed(ProtocolError):
    code, status = "ERR_METHOD_NOT_ALLOWED", 405
    sentence = "This method is not allowed here."

    def __init__(self, allow: Iterable[str]) -> None:
        """`allow` are the methods for the header Allow."""
        super().__init__()
        self.allow = tuple(allow)


class UploadTooLarge(ProtocolError):
    code, status = "ERR_MAX_SIZE_EXCEEDED", 413
    sentence = "The upload is larger than this server accepts."


class AppendTooLarge(UploadTooLarge):
    code = "ERR_APPEND_SIZE_EXCEEDED"
    sentence = "The body is larger than this server accepts in one request."


class LengthExceeded(ProtocolError):
    code, status = "ERR_UPLOAD_SIZE_EXCEEDED", 413
    sentence = "The body is longer than what remains of the upload."


class BadParameter(ProtocolError):
    code = "ERR_BAD_PARAMETER"
    sentence = "A parameter of the request is not valid."


class FormNotAccepted(ProtocolError):
    code, status = "ERR_FORM_NOT_ACCEPTED", 415
    sentence = "This address takes resumable uploads and no forms; see https://tus.io/implementations for clients."


class EmptyPatchLimit(ProtocolError):
    # Not 429, which browsers' clients retry by themselves.
    code, status = "ERR_TOO_MANY_EMPTY_PATCHES", 403
    sentence = "Too many empty PATCH requests in a row on this upload; send bytes."


# --- who is asking --------------------------------------------------------------------------------


class AccessError(TusdError):
    """A group; only what is derived from it is raised."""

    status = 403


class Unauthenticated(AccessError):
    code, status = "ERR_UNAUTHENTICATED", 401
    sentence = "A valid bearer token is required."


class Forbidden(AccessError):
    code = "ERR_FORBIDDEN"
    sentence = "You are not allowed to do this."


class UnknownProfile(AccessError):
    code = "ERR_UNKNOWN_PROFILE"
    sentence = "The token names a profile that this server does not have."


class OriginNotAllowed(AccessError):
    code = "ERR_ORIGIN_NOT_ALLOWED"
    sentence = "Pages of this origin may not use the server; its operator can name the origin in cors.allow_origins."


class HostNotAllowed(AccessError):
    code, status = "ERR_HOST_NOT_ALLOWED", 421
    sentence = "This host name is not one of the server's; its operator can name it in server.allowed_hosts."


# --- the upload is not in a state in which this can be done ----------------------------------------


class StateConflict(TusdError):
    """A group; only what is derived from it is raised."""

    status = 409


class UploadNotFound(StateConflict):
    code, status = "ERR_UPLOAD_NOT_FOUND", 404
    sentence = "There is no such upload."


class UploadGone(StateConflict):
    code, status = "ERR_UPLOAD_GONE", 410
    sentence = "The upload existed and is gone."


class InvalidTransition(StateConflict):
    code = "ERR_INVALID_TRANSITION"
    sentence = "The state of the upload does not allow this."


class TransferInProgress(StateConflict):
    code, retryable = "ERR_TRANSFER_IN_PROGRESS", True
    sentence = "The upload is being moved to the store; try again shortly."


class PartialInUse(StateConflict):
    code = "ERR_PART_IN_USE"
    sentence = "A pending final upload still needs this partial upload."


class NotReady(StateConflict):
    code = "ERR_NOT_READY"
    sentence = "The upload is not complete yet."


class UploadHeld(StateConflict):
    code, status = "ERR_UPLOAD_HELD", 403
    sentence = "The upload is on hold and cannot be removed."


class UploadLocked(StateConflict):
    code, status, retryable = "ERR_UPLOAD_LOCKED", 423, True
    sentence = "Another request is using this upload; try again."


class UploadFinishing(UploadLocked):
    code = "ERR_UPLOAD_FINISHING"
    sentence = "Every byte is here, and the application is still being asked; try again."


class OffsetConflict(StateConflict):
    code, status, retryable = "ERR_OFFSET_CONFLICT", 423, True
    sentence = "Another writer moved the upload; nothing was changed."


class TooManyConnections(StateConflict):
    code, status, retryable = "ERR_TOO_MANY_CONNECTIONS", 423, True
    sentence = "Too many uploads from this address at once; try again."


class TooManyListeners(StateConflict):
    code, status, retryable = "ERR_TOO_MANY_LISTENERS", 503, True
    sentence = "Too many clients listen to events already; try again."


class WrongNode(StateConflict):
    code, status, retryable = "ERR_WRONG_NODE", 503, True
    sentence = "The bytes of this upload are on another node; try again there."


class RangeNotSatisfiable(StateConflict):
    code, status = "ERR_RANGE_NOT_SATISFIABLE", 416
    sentence = "The requested range lies outside the file."

    def __init__(self, total_length: int) -> None:
        """`total_length` are the bytes of the file, for Content-Range."""
        super().__init__(length=total_length)
        self.total_length = total_length


# --- how a body can end without having been received whole -----------------------------------------


class BodyError(TusdError):
    """A group; only what is derived from it is raised."""

    retryable = True


class BodyTimedOut(BodyError):
    code = "ERR_READ_TIMEOUT"
    sentence = "No byte of the body arrived in time; what arrived was kept."


class BodyTooSlow(BodyError):
    code = "ERR_MINIMUM_RATE"
    sentence = "The body arrived slower than this server's minimum rate; what arrived was kept."


class ClientDisconnected(BodyError):
    code = "ERR_CONNECTION_CLOSED"
    sentence = "The client closed the connection; what arrived was kept."


class TakenOver(BodyError):
    code, status = "ERR_UPLOAD_INTERRUPTED", 423
    sentence = "A newer request took over this upload; what arrived was kept."


class ServerDraining(BodyError):
    code, status = "ERR_SERVER_SHUTDOWN", 503
    sentence = "The server is shutting down; what arrived was kept."


# --- storage, database, configuration --------------------------------------------------------------


class StorageError(TusdError):
    code = "ERR_STORAGE"
    sentence = "The storage failed."


class StagingFull(StorageError):
    code, status, retryable = "ERR_INSUFFICIENT_STORAGE", 507, True
    sentence = "There is no space left for this upload; what was acknowledged is kept."


class StoreFull(StorageError):
    code, status, retryable = "ERR_INSUFFICIENT_STORAGE", 507, True
    sentence = "There is no space left in the store for this upload."


class StagingDamaged(StorageError):
    code = "ERR_STAGING_DAMAGED"
    sentence = "The staged bytes of this upload are damaged."


class StagingMissing(StagingDamaged):
    code = "ERR_STAGING_MISSING"
    sentence = "The staged bytes of this upload are missing."


class StagingMismatch(StorageError):
    code = "ERR_STAGING_MISMATCH"
    sentence = "The staging directory and the database do not belong together."


class StoredObjectMissing(StorageError):
    code, status = "ERR_OBJECT_MISSING", 404
    sentence = "The stored file is missing."


class TransientStoreError(StorageError):
    code, status, retryable = "ERR_STORE_UNAVAILABLE", 503, True
    sentence = "The store cannot be reached, or refuses requests for now."


class PermanentStoreError(StorageError):
    code, status = "ERR_STORE_REFUSED", 502
    sentence = "The store refused, and a retry cannot help."


class StoreBlocked(PermanentStoreError):
    code, retryable = "ERR_STORE_BLOCKED", True
    sentence = "The store refuses this server: check its bucket, credentials and permissions."


class StoreNotConfigured(StorageError):
    code, status, retryable = "ERR_STORE_NOT_CONFIGURED", 503, True
    sentence = "The store that holds this file is no longer configured on this server."


class ObjectLocked(StorageError):
    code, status, retryable = "ERR_OBJECT_LOCKED", 409, True
    sentence = "The store keeps the file under object lock; its removal is retried every day."
    retry_after_seconds = 86400.0


class TransferCancelled(StorageError):
    code, status = "ERR_TRANSFER_CANCELLED", 409
    sentence = "The transfer was cancelled, or another worker owns it now."


class DatabaseUnavailable(TusdError):
    code, status, retryable = "ERR_DATABASE_UNAVAILABLE", 503, True
    sentence = "The database is not reachable; try again shortly."


class ConfigError(TusdError):
    """Holds every problem at once, each as `key.path: message`."""

    code = "ERR_CONFIG"
    sentence = "The configuration is not usable."

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class MigrationError(TusdError):
    code = "ERR_MIGRATION"
    sentence = "The database schema cannot be brought up to date."


# --- hooks ---------------------------------------------------------------------------------------


class HookFailed(TusdError):
    code, status, retryable = "ERR_HOOK_FAILED", 503, True
    sentence = "The application behind this server could not be asked; try again."


class HookInvalid(TusdError):
    code, status = "ERR_HOOK_INVALID", 500
    sentence = "The application behind this server gave a reply that cannot be used."

    def __init__(self, reason: str, **context: Any) -> None:
        """`reason` is for the log: what the application has said is nothing for its clients."""
        super().__init__(reason=reason, **context)


class HookRejection(TusdError):
    """A group; only what is derived from it is raised."""

    status = 400

    def __init__(self, response: HookResponse | None = None) -> None:
        """`response` is what the application wants the client to be told instead."""
        super().__init__()
        self.response = response


class UploadRejected(HookRejection):
    code = "ERR_UPLOAD_REJECTED"
    sentence = "The application refuses this upload."


class TerminationRejected(HookRejection):
    code = "ERR_UPLOAD_TERMINATION_REJECTED"
    sentence = "The application does not allow this upload to be terminated."


class UploadStopped(HookRejection):
    code = "ERR_UPLOAD_STOPPED"
    sentence = "The application has stopped this upload."
