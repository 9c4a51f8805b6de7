"""Choose the dialect of a request, by its headers; where these do not say, the upload decides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tusd_py.errors import InvalidMethodOverride, ProtocolError, TusdError
from tusd_py.protocol import fields, tus_v1
from tusd_py.protocol.create import Create
from tusd_py.protocol.dialect import Dialect, Reply
from tusd_py.protocol.features import Features
from tusd_py.protocol.fields import Headers, content_length
from tusd_py.protocol.rufh import structured
from tusd_py.protocol.rufh.dialect import Rufh
from tusd_py.protocol.rufh.render import render_options as render_rufh_options
from tusd_py.protocol.rufh.versions import NEWEST, VERSIONS
from tusd_py.protocol.upload import Append, Upload, UploadProtocol


class Undeclared(Dialect):
    """A request that names no dialect: it may ask, and may end what the newest dialect created.

    Clients of the finished RFC send no mark on HEAD, GET and DELETE. Everything else is judged as
    tus, which refuses it for want of a version.
    """

    protocol = None

    @property
    def version_headers(self) -> Mapping[str, str]:
        """The headers of tus, in which OPTIONS and errors are answered."""
        return tus_v1.version_headers

    @property
    def supports_interim(self) -> bool:
        """Return false: nobody said that an interim response is understood."""
        return False

    def check_request(self, method: str, headers: Headers) -> None:
        if method != "DELETE":
            tus_v1.check_request(method, headers)

    def parse_create(self, headers: Headers, features: Features) -> Create:
        return tus_v1.parse_create(headers, features)

    def parse_append(self, headers: Headers, features: Features) -> Append:
        return tus_v1.parse_append(headers, features)

    def render_interim(self, _upload: Upload, _location: str | None, _features: Features) -> None:
        """Return None; see `supports_interim`."""

    def render_created(self, upload: Upload, location: str, features: Features) -> Reply:
        return tus_v1.render_created(upload, location, features)

    def render_status(self, upload: Upload, features: Features) -> Reply:
        return _OF_UPLOADS[upload.protocol].render_status(upload, features)

    def representation_headers(self, upload: Upload, features: Features) -> dict[str, str]:
        return _OF_UPLOADS[upload.protocol].representation_headers(upload, features)

    def render_unfinished(self, upload: Upload, features: Features) -> Reply | None:
        return _OF_UPLOADS[upload.protocol].render_unfinished(upload, features)

    def render_appended(self, upload: Upload, features: Features) -> Reply:
        return tus_v1.render_appended(upload, features)

    def render_terminated(self) -> Reply:
        return tus_v1.render_terminated()

    def render_error(self, error: TusdError, method: str, features: Features, recorded: Upload | None = None) -> Reply:
        return tus_v1.render_error(error, method, features, recorded)


OVERRIDABLE: Final = frozenset({"PATCH", "DELETE", "HEAD"})
UNDECLARED: Final = Undeclared()
NEWEST_RUFH: Final = Rufh(NEWEST)
_RUFH: Final = {number: Rufh(version) for number, version in VERSIONS.items()}
_OF_UPLOADS: Final[Mapping[UploadProtocol, Dialect]] = {
    UploadProtocol.TUS: tus_v1,
    UploadProtocol.RUFH: NEWEST_RUFH,
}


def effective_method(method: str, headers: Headers) -> str:
    """Return the method a request means (tus 1.0.0 §X-HTTP-Method-Override).

    Honoured on POST alone: an overridden GET would let a foreign page change things without a
    CORS preflight.

    Raises:
        InvalidMethodOverride: another value than PATCH, DELETE or HEAD.
    """
    override = headers.getall(fields.METHOD_OVERRIDE, [])
    if not override or method != "POST":
        return method
    if len(override) > 1 or override[0] not in OVERRIDABLE:
        raise InvalidMethodOverride
    return override[0]


def choose(method: str, headers: Headers, features: Features) -> Dialect:
    """Return the dialect that a request speaks.

    `Tus-Resumable` decides whatever else is there: Apple's URLSession adds the headers of the other
    dialect by itself, to the requests of tus clients too. A version that nobody here knows means the
    newest rules.
    """
    if not features.rufh or headers.get(fields.TUS_RESUMABLE) is not None:
        return tus_v1
    if headers.get(fields.UPLOAD_DRAFT_INTEROP_VERSION) is not None:
        number = structured.integer(headers, fields.UPLOAD_DRAFT_INTEROP_VERSION)
        return NEWEST_RUFH if number is None else _RUFH.get(number, NEWEST_RUFH)
    return NEWEST_RUFH if _is_marked(method, headers) else UNDECLARED


def _is_marked(method: str, headers: Headers) -> bool:
    """Return whether a request without a version carries what only the newest dialect knows.

    Well-formed or not: who sends it is to be told what is wrong with it in the dialect they speak.
    """
    return (
        headers.get(fields.UPLOAD_COMPLETE) is not None
        or fields.media_type(headers.get(fields.CONTENT_TYPE)) == fields.PARTIAL_MEDIA_TYPE
        # In tus it has no meaning there, and the newest dialect forbids it.
        or (method == "HEAD" and headers.get(fields.UPLOAD_OFFSET) is not None)
    )


def read_append(dialect: Dialect, headers: Headers, features: Features) -> Append:
    """Return the command of a PATCH. It carries a malformed header, before which an unknown upload counts."""
    try:
        return dialect.parse_append(headers, features)
    except ProtocolError as error:
        protocol = dialect.protocol or UploadProtocol.TUS
        return Append(protocol=protocol, offset=0, content_length=content_length(headers), header_error=error)


def render_options(features: Features) -> Reply:
    """Return what the server offers: one response for every dialect."""
    reply = tus_v1.render_options(features)
    if features.rufh:
        reply.headers.update(render_rufh_options(features).headers)
    return reply
