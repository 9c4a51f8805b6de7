"""A client of the IETF's dialect, in any interop version, as raw requests."""

from __future__ import annotations

from dataclasses import dataclass

from tests.http.served import Served
from tests.support.http_client import Connection, Response

PARTIAL_TYPE = "application/partial-upload"
VERSIONS = (3, 4, 5, 6, 7, 8, None)
"""None: a client that names no version."""

Fields = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Client:
    """Speaks one version to one server."""

    served: Served
    version: int | None

    @property
    def version_headers(self) -> Fields:
        return [] if self.version is None else [("Upload-Draft-Interop-Version", str(self.version))]

    def complete(self, complete: bool) -> tuple[str, str]:
        """The field that tells whether more is to come, as the version calls it."""
        if self.version == 3:
            return "Upload-Incomplete", "?0" if complete else "?1"
        return "Upload-Complete", "?1" if complete else "?0"

    def says_complete(self, response: Response) -> bool:
        """Read that field of a response; it must be there, and the other version's must not."""
        name, yes = self.complete(True)
        other = {"upload-complete", "upload-incomplete"} - {name.lower()}
        assert not other & set(response.headers), response
        assert response.headers[name.lower()] in {"?0", "?1"}, response
        return response.headers[name.lower()] == yes

    async def create(self, body: bytes = b"", *extra: tuple[str, str], complete: bool) -> Response:
        fields = [*self.version_headers, self.complete(complete), *extra]
        return await self.served.request("POST", "/files/", fields, body)

    async def created(self, body: bytes = b"", *extra: tuple[str, str]) -> str:
        """Create an upload to which more is to come; return its path."""
        response = await self.create(body, *extra, complete=False)
        assert response.status == 201, response
        return response.headers["location"]

    def append_fields(self, offset: int, *extra: tuple[str, str], complete: bool) -> Fields:
        typed = [("Content-Type", PARTIAL_TYPE)] if self.version in {None, 6, 7, 8} else []
        return [*self.version_headers, *typed, self.complete(complete), ("Upload-Offset", str(offset)), *extra]

    async def append(
        self, path: str, offset: int, body: bytes = b"", *extra: tuple[str, str], complete: bool
    ) -> Response:
        fields = self.append_fields(offset, *extra, complete=complete)
        return await self.served.request("PATCH", path, fields, body)

    async def begin(self, method: str, path: str, fields: Fields, body: bytes, *, announced: int) -> Connection:
        """Begin a request whose body ends later than `body`, on a connection of its own."""
        connection = await self.served.connect()
        await connection.send_head(method, path, [*fields, ("Content-Length", str(announced))])
        await connection.send(body)
        return connection

    async def head(self, path: str, *extra: tuple[str, str]) -> Response:
        return await self.served.request("HEAD", path, [*self.version_headers, *extra])

    async def upload_headers(self, path: str) -> tuple[int, bool]:
        """Ask for offset and complete_header."""
        response = await self.head(path)
        assert response.status == 204, response
        return int(response.headers["upload-offset"]), self.says_complete(response)
