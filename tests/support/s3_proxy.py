"""A reverse proxy in front of an S3 server: it records what passes, and refuses what it is told to."""

from __future__ import annotations

import contextlib
import io
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import aiohttp
from aiohttp import web
from yarl import URL

from tests.support.ports import LOOPBACK

_MOST_BODY: Final = 64 * 2**20
_HOP_BY_HOP: Final = {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"}

ACTIONS: Final[dict[str, str]] = {
    "HeadBucket": "s3:ListBucket",
    "ListObjectsV2": "s3:ListBucket",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "PutObject": "s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "ListParts": "s3:ListMultipartUploadParts",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "HeadObject": "s3:GetObject",
    "GetObject": "s3:GetObject",
    "DeleteObject": "s3:DeleteObject",
}
"""Which right each call needs (AWS: Actions, resources, and condition keys for Amazon S3)."""

OF_VERSIONS: Final[dict[str, str]] = {
    "ListObjectVersions": "s3:ListBucketVersions",
    "HeadObjectVersion": "s3:GetObjectVersion",
    "DeleteObjectVersion": "s3:DeleteObjectVersion",
}
"""The same for calls that name a version, or ask for them all."""

_BY_KEY: Final = {
    "HEAD": "HeadObject",
    "GET": "GetObject",
    "DELETE": "DeleteObject",
    "PUT": "PutObject",
}
_BY_UPLOAD: Final = {
    "GET": "ListParts",
    "DELETE": "AbortMultipartUpload",
    "PUT": "UploadPart",
    "POST": "CompleteMultipartUpload",
}


def operation_of(method: str, url: URL) -> str:
    """Name the call that a request to a path-style address makes."""
    of_bucket = url.path.strip("/").count("/") == 0
    if of_bucket:
        if "versions" in url.query:
            return "ListObjectVersions"
        if "uploads" in url.query:
            return "ListMultipartUploads"
        return "HeadBucket" if method == "HEAD" else "ListObjectsV2"
    if "uploadId" in url.query:
        return _BY_UPLOAD[method]
    if "versionId" in url.query:
        return f"{_BY_KEY[method]}Version"
    return "CreateMultipartUpload" if "uploads" in url.query else _BY_KEY[method]


@dataclass(frozen=True)
class UploadStatus:
    """A request that passed."""

    operation: str
    headers: Mapping[str, str]
    path: str
    query: Mapping[str, str]


@dataclass
class S3Proxy:
    """A running proxy; `url` is where it is."""

    upstream: str
    url: str = ""
    seen: list[UploadStatus] = field(default_factory=list)
    denied: set[str] = field(default_factory=set)
    """Rights that nobody has."""
    unknown: set[str] = field(default_factory=set)
    """Operations that the server does not know."""
    failing: int | None = None
    """The status with which every call is answered."""

    def requests(self, operation: str) -> list[UploadStatus]:
        """Return the calls of one kind."""
        return [seen for seen in self.seen if seen.operation == operation]

    async def answer(self, request: web.Request) -> web.Response:
        """Record, then refuse or forward."""
        url = URL(request.raw_path, encoded=True)
        operation = operation_of(request.method, url)
        self.seen.append(UploadStatus(operation, request.headers.copy(), url.path, url.query))
        if self.failing is not None:
            return web.Response(status=self.failing)
        if (ACTIONS | OF_VERSIONS)[operation] in self.denied:
            return _denied()
        if operation in self.unknown:
            return _error(501, "NotImplemented")
        answer = await self._forward(request)
        # Who may not list a bucket is not told either that there is no such key in it.
        if operation == "HeadObject" and answer.status == 404 and "s3:ListBucket" in self.denied:
            return _denied()
        return answer

    async def _forward(self, request: web.Request) -> web.Response:
        body = await request.read()
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.request(
                request.method,
                URL(self.upstream + request.raw_path, encoded=True),
                headers={name: value for name, value in request.headers.items() if name.lower() != "content-length"},
                data=io.BytesIO(body) if body else None,
            ) as answer,
        ):
            content = await answer.read()
            headers = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP_BY_HOP}
            if request.method == "HEAD" and "Content-Length" in answer.headers:
                headers["Content-Length"] = answer.headers["Content-Length"]
            return web.Response(status=answer.status, headers=headers, body=content)


def _denied() -> web.Response:
    return _error(403, "AccessDenied")


def _error(status: int, code: str) -> web.Response:
    text = f"<Error><Code>{code}</Code><Message>So the proxy says.</Message></Error>"
    return web.Response(status=status, text=text, content_type="application/xml")


@contextlib.asynccontextmanager
async def s3_proxy(upstream: str, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[S3Proxy]:
    """Run a proxy in front of the server at `upstream`."""
    proxy = S3Proxy(upstream.rstrip("/"))
    application = web.Application(client_max_size=_MOST_BODY)
    application.router.add_route("*", "/{path:.*}", proxy.answer)
    runner = web.AppRunner(application, access_log=None, auto_decompress=False)
    await runner.setup()
    try:
        site = web.TCPSite(runner, LOOPBACK, 0, ssl_context=tls)
        await site.start()
        (_, port, *_) = runner.addresses[0]
        proxy.url = f"http{'s' if tls else ''}://{LOOPBACK}:{port}"
        yield proxy
    finally:
        await runner.cleanup()
