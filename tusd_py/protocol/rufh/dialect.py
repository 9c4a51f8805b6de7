"""The dialect as the HTTP side sees it, one object per interop version."""

from __future__ import annotations

from collections.abc import Mapping

from tusd_py.errors import ProtocolError, TusdError
from tusd_py.protocol import fields
from tusd_py.protocol.create import Create
from tusd_py.protocol.dialect import Dialect, Reply
from tusd_py.protocol.features import Features
from tusd_py.protocol.fields import Headers
from tusd_py.protocol.rufh import parse, render
from tusd_py.protocol.rufh.versions import Version
from tusd_py.protocol.upload import RECEIVING, Append, Upload, UploadProtocol


class Rufh(Dialect):
    """Resumable Uploads for HTTP in one interop version."""

    protocol = UploadProtocol.RUFH

    def __init__(self, version: Version) -> None:
        self._version = version
        number = version.number
        self._marks = {} if number is None else {fields.UPLOAD_DRAFT_INTEROP_VERSION: str(number)}

    @property
    def version_headers(self) -> Mapping[str, str]:
        """The version, as the client named it."""
        return self._marks

    @property
    def supports_interim(self) -> bool:
        """Return whether the client named a version; only then may it be sent an interim response."""
        return self._version.number is not None

    def check_request(self, method: str, headers: Headers) -> None:
        """Refuse to be asked for what was told (draft -01 to -05 demand it, later ones keep silent)."""
        if method in {"HEAD", "DELETE"}:
            for name in (fields.UPLOAD_OFFSET, parse.complete_field(self._version)):
                if headers.get(name) is not None:
                    raise ProtocolError(f"{name} has no place in this request.")

    def parse_create(self, headers: Headers, features: Features) -> Create:
        return parse.parse_create(headers, features, self._version)

    def parse_append(self, headers: Headers, features: Features) -> Append:
        return parse.parse_append(headers, features, self._version)

    def render_interim(self, upload: Upload, location: str | None, features: Features) -> Reply | None:
        return render.render_interim(upload, location, features, self._version)

    def render_created(self, upload: Upload, location: str, features: Features) -> Reply:
        return render.render_created(upload, location, features, self._version)

    def render_status(self, upload: Upload, features: Features) -> Reply:
        return render.render_status(upload, features, self._version)

    def representation_headers(self, upload: Upload, features: Features) -> dict[str, str]:
        return self.render_status(upload, features).headers

    def render_unfinished(self, upload: Upload, features: Features) -> Reply | None:
        return self.render_status(upload, features) if upload.state in RECEIVING else None

    def render_appended(self, upload: Upload, features: Features) -> Reply:
        return render.render_appended(upload, features, self._version)

    def render_terminated(self) -> Reply:
        """Return 204, which was the only right answer through -08."""
        return Reply(204)

    def render_error(self, error: TusdError, method: str, features: Features, recorded: Upload | None = None) -> Reply:
        return render.render_error(error, method, features, self._version, recorded)
