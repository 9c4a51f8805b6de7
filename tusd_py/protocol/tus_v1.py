"""The tus 1.0.0 dialect: request headers to a command, an outcome to a reply. Pure.

A second dialect is a sibling of this module that yields the same commands; no rule of another
protocol is ever an `if` in here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final
from urllib.parse import urlsplit

from tusd_py.errors import (
    ConcatUnsupported,
    FinalImmutable,
    FormNotAccepted,
    InvalidChecksum,
    InvalidConcat,
    InvalidContentType,
    InvalidDeferLength,
    InvalidMetadata,
    InvalidOffset,
    InvalidUploadLength,
    LengthExceeded,
    ProtocolError,
    TusdError,
    UnsupportedContentEncoding,
    UnsupportedVersion,
    UploadTooLarge,
)
from tusd_py.protocol import fields
from tusd_py.protocol.checksum import ALGORITHMS, Checksum, parse_checksum
from tusd_py.protocol.create import Create
from tusd_py.protocol.dialect import Reply, error_headers
from tusd_py.protocol.features import EXTENSIONS, Features
from tusd_py.protocol.fields import Headers, content_length, parse_integer, single
from tusd_py.protocol.metadata import parse_metadata
from tusd_py.protocol.upload import RECEIVING, Append, Concat, Upload, UploadProtocol

version_headers: Final[Mapping[str, str]] = {fields.TUS_RESUMABLE: fields.TUS_VERSION}
supports_interim: Final = False
protocol: Final = UploadProtocol.TUS
FORM_TYPES: Final = frozenset({"multipart/form-data", "application/x-www-form-urlencoded"})


# --- requests ------------------------------------------------------------------------------------


def check_request(method: str, headers: Headers) -> None:
    """Demand the protocol version on everything but OPTIONS, HEAD and GET.

    Raises:
        UnsupportedVersion: missing, repeated or another one (tus 1.0.0 §Tus-Resumable).
        FormNotAccepted: a browser has sent an ordinary form, or somebody has tried `curl -F`.
    """
    lines = headers.getall(fields.TUS_RESUMABLE, [])
    if method == "OPTIONS" or (method in {"HEAD", "GET"} and not lines):
        return
    if method == "POST" and not lines and fields.media_type(headers.get(fields.CONTENT_TYPE)) in FORM_TYPES:
        raise FormNotAccepted
    if lines != [fields.TUS_VERSION]:
        raise UnsupportedVersion


def parse_create(headers: Headers, features: Features) -> Create:
    """Read a POST to the creation URL.

    Raises:
        ProtocolError: a subclass naming what is wrong; nothing was changed.
    """
    concat, concat_header, partials = _parse_concat(headers, features)
    length = _parse_creation_length(headers, features, concat)
    if length is not None and features.max_size is not None and length > features.max_size:
        raise UploadTooLarge
    metadata = _only(headers, fields.UPLOAD_METADATA, InvalidMetadata)
    pairs = parse_metadata(metadata, max_bytes=features.max_metadata)
    body_length = content_length(headers)
    unwanted = _unwanted_body(headers, concat) if body_length != 0 else None
    if unwanted is not None and body_length is not None:
        raise unwanted
    # With the extension off the client reads the offset 0 in the answer and sends the bytes by PATCH.
    has_body = body_length != 0 and unwanted is None and features.offers("creation-with-upload")
    limit = length if length is not None else features.max_size
    if has_body and limit is not None and body_length is not None and body_length > limit:
        raise LengthExceeded if length is not None else UploadTooLarge
    checksum, in_trailer = _parse_checksum(headers, features) if has_body else (None, False)
    return Create(
        length=length,
        metadata=metadata or None,
        pairs=pairs,
        concat=concat,
        concat_header=concat_header,
        partials=partials,
        has_body=has_body,
        content_length=body_length,
        unwanted_body=unwanted,
        checksum=checksum,
        checksum_in_trailer=in_trailer,
    )


def check_append_type(headers: Headers) -> None:
    """Demand the media type of a PATCH and no content coding.

    Raises:
        InvalidContentType, UnsupportedContentEncoding: both 415.
    """
    if fields.media_type(headers.get(fields.CONTENT_TYPE)) != fields.OFFSET_MEDIA_TYPE:
        raise InvalidContentType
    _refuse_content_encoding(headers)


def parse_append(headers: Headers, features: Features) -> Append:
    """Read a PATCH.

    What is wrong with the headers of extensions becomes the command's `deferred_error`: a client at another
    offset must hear of that first, since it can recover from it.

    Raises:
        InvalidContentType, UnsupportedContentEncoding, InvalidOffset: nothing was changed.
    """
    check_append_type(headers)
    offset = parse_integer(_only(headers, fields.UPLOAD_OFFSET, InvalidOffset))
    if offset is None:
        raise InvalidOffset
    append = Append(offset=offset, content_length=content_length(headers))
    try:
        length = _parse_length(headers)
        checksum, in_trailer = _parse_checksum(headers, features)
    except ProtocolError as deferred_error:
        return replace(append, deferred_error=deferred_error)
    return replace(append, length=length, checksum=checksum, checksum_in_trailer=in_trailer)


def partial_token(url: str, base_path: str) -> str:
    """Return the token in the URL of a partial upload, whatever host and prefix it was given under.

    The URL is never fetched. Behind a proxy that strips or adds a prefix the path differs from ours,
    so the segment after the last base path counts, or else the last segment.

    Raises:
        InvalidConcat: it is no URL.
    """
    try:
        path = urlsplit(url).path
    except ValueError:
        raise InvalidConcat from None
    if "," in path:
        # A list with the wrong separator: of all uploads in it only the last would be found.
        raise InvalidConcat("Upload-Concat separates its URLs by spaces.")
    marker = f"{base_path}/"
    _, found, rest = path.rpartition(marker)
    return rest.split("/", 1)[0] if found else path.rstrip("/").rpartition("/")[2]


def _only(headers: Headers, name: str, error: type[ProtocolError]) -> str | None:
    try:
        return single(headers, name)
    except ValueError as problem:
        raise error(f"{problem}.") from None


def _refuse_content_encoding(headers: Headers) -> None:
    # Offsets count the bytes that are stored; a coded body would make them lie.
    codings = headers.getall(fields.CONTENT_ENCODING, [])
    if any(coding.strip().lower() not in {"", "identity"} for coding in codings):
        raise UnsupportedContentEncoding


def _unwanted_body(headers: Headers, concat: Concat | None) -> ProtocolError | None:
    """Return why a creation may have no body. Bytes that somebody sent are never dropped in silence."""
    if concat is Concat.FINAL:
        return FinalImmutable("A final upload takes no bytes of its own.")
    try:
        check_append_type(headers)
    except ProtocolError as error:
        return error
    return None


def _parse_length(headers: Headers) -> int | None:
    value = _only(headers, fields.UPLOAD_LENGTH, InvalidUploadLength)
    length = parse_integer(value)
    if value is not None and length is None:
        raise InvalidUploadLength
    return length


def _parse_creation_length(headers: Headers, features: Features, concat: Concat | None) -> int | None:
    length = _parse_length(headers)
    if length is not None and concat is Concat.FINAL:
        raise InvalidUploadLength("A final upload has the length of its partial uploads; send no Upload-Length.")
    deferred = _only(headers, fields.UPLOAD_DEFER_LENGTH, InvalidDeferLength)
    if deferred is not None:
        if deferred != "1" or length is not None or concat is Concat.FINAL:
            raise InvalidDeferLength
        if not features.offers("creation-defer-length"):
            raise InvalidDeferLength("Upload-Defer-Length is switched off on this server.")
        return None
    if length is None and concat is not Concat.FINAL:
        raise InvalidUploadLength
    return length


def _parse_concat(headers: Headers, features: Features) -> tuple[Concat | None, str | None, tuple[str, ...]]:
    value = _only(headers, fields.UPLOAD_CONCAT, InvalidConcat)
    if value is None:
        return None, None, ()
    if not features.offers("concatenation"):
        raise ConcatUnsupported
    if value == "partial":
        return Concat.PARTIAL, value, ()
    keyword, semicolon, rest = value.partition(";")
    urls = rest.split()
    # HEAD repeats the value as it came, so nothing may stand in it that a header cannot hold.
    if keyword != "final" or not semicolon or not urls or not fields.is_printable(value):
        raise InvalidConcat
    if len(urls) > features.max_partials:
        raise InvalidConcat(f"Upload-Concat names more than {features.max_partials} partial uploads.")
    return Concat.FINAL, value, tuple(partial_token(url, features.base_path) for url in urls)


def _parse_checksum(headers: Headers, features: Features) -> tuple[Checksum | None, bool]:
    value = _only(headers, fields.UPLOAD_CHECKSUM, InvalidChecksum)
    declared = [name.strip().lower() for line in headers.getall(fields.TRAILER, []) for name in line.split(",")]
    in_trailer = fields.UPLOAD_CHECKSUM.lower() in declared
    if in_trailer and not features.offers("checksum-trailer"):
        raise InvalidChecksum("Upload-Checksum as a trailer is not offered by this server.")
    if in_trailer and value is not None:
        raise InvalidChecksum("Upload-Checksum is either a header or a trailer, not both.")
    if in_trailer and content_length(headers) is not None:
        raise InvalidChecksum("Only a chunked body has a trailer.")
    if value is None or not features.offers("checksum"):
        return None, in_trailer
    return parse_checksum(value), False


# --- replies -------------------------------------------------------------------------------------


def render_options(features: Features) -> Reply:
    """Return what the server offers (tus 1.0.0 §OPTIONS); 200, since old browsers refuse 204 here."""
    headers = {fields.TUS_VERSION_HEADER: fields.TUS_VERSION}
    if offered := [name for name in EXTENSIONS if features.offers(name)]:
        headers[fields.TUS_EXTENSION] = ",".join(offered)
    if features.max_size is not None:
        headers[fields.TUS_MAX_SIZE] = str(features.max_size)
    if features.offers("checksum"):
        headers[fields.TUS_CHECKSUM_ALGORITHM] = ",".join(ALGORITHMS)
    return Reply(200, headers)


def render_interim(_upload: Upload, _location: str | None, _features: Features) -> None:
    """Return None: tus has no interim responses."""


def render_created(upload: Upload, location: str, _features: Features) -> Reply:
    """Return 201. `Upload-Offset` always: tus-js-client demands it after data during creation."""
    headers = {fields.LOCATION: location, fields.UPLOAD_ID: str(upload.id)}
    if not upload.pending_final:
        headers[fields.UPLOAD_OFFSET] = str(upload.offset)
    return Reply(201, headers | _expires(upload))


def render_status(upload: Upload, _features: Features) -> Reply:
    """Return a HEAD. 200, not 204: users of tus-js-client check for it."""
    headers = {fields.UPLOAD_ID: str(upload.id)}
    if not upload.pending_final:
        headers[fields.UPLOAD_OFFSET] = str(upload.offset)
    if upload.length is not None:
        headers[fields.UPLOAD_LENGTH] = str(upload.length)
    elif not upload.pending_final:
        headers[fields.UPLOAD_DEFER_LENGTH] = "1"
    if upload.metadata is not None:
        headers[fields.UPLOAD_METADATA] = upload.metadata
    if upload.concat_header is not None:
        headers[fields.UPLOAD_CONCAT] = upload.concat_header
    return Reply(200, headers | _expires(upload))


def representation_headers(_upload: Upload, _features: Features) -> dict[str, str]:
    """Return nothing: a download is plain HTTP."""
    return {}


def render_unfinished(_upload: Upload, _features: Features) -> None:
    """Return nothing: an unfinished upload cannot be read."""


def render_appended(upload: Upload, _features: Features) -> Reply:
    """Return 204 with the offset that is now durable."""
    headers = {fields.UPLOAD_OFFSET: str(upload.offset), **_expires(upload)}
    if upload.complete:
        headers[fields.UPLOAD_ID] = str(upload.id)
    return Reply(204, headers)


def render_terminated() -> Reply:
    """Return 204 exactly: tus-js-client takes any other success for a failure."""
    return Reply(204)


def render_error(error: TusdError, method: str, features: Features, recorded: Upload | None = None) -> Reply:
    """Return an error as `CODE: sentence`, with the headers that let a client recover."""
    headers = error_headers(error)
    if isinstance(error, UnsupportedVersion):
        headers[fields.TUS_VERSION_HEADER] = fields.TUS_VERSION
    if isinstance(error, UploadTooLarge) and features.max_size is not None:
        headers[fields.TUS_MAX_SIZE] = str(features.max_size)
    if recorded is not None and method == "PATCH" and not recorded.pending_final:
        # TUSKit trusts this header whatever the status, so it is the true offset or it is absent.
        headers[fields.UPLOAD_OFFSET] = str(recorded.offset)
        headers |= _expires(recorded)
    return Reply(error.status, headers, None if method == "HEAD" else f"{error.code}: {error.detail}\n")


def _expires(upload: Upload) -> dict[str, str]:
    if upload.expires_at is None or (upload.state not in RECEIVING and upload.concat is not Concat.PARTIAL):
        return {}
    return {fields.UPLOAD_EXPIRES: fields.http_date(upload.expires_at)}
