"""What is sent along with an object: its headers, its metadata, its checksums. Pure."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, urlencode

from tusd_py import crc64
from tusd_py.config.sections import S3StoreConfig
from tusd_py.ports import ObjectSpec
from tusd_py.stores.ranges import RangeChecksums
from tusd_py.stores.s3.responses import UPLOAD_ID_KEY

_TABLES: Final = ("Metadata", "Tagging")
FILENAME_KEY: Final = "tusd-filename"
_MAX_METADATA_BYTES: Final = 2000
"""S3 takes 2 KiB, names and values together."""
_MAX_FILENAME_BYTES: Final = 1024
_METADATA_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


def object_parameters(config: S3StoreConfig, spec: ObjectSpec) -> dict[str, Any]:
    """Return the parameters that PutObject and CreateMultipartUpload share.

    What the configuration says of all objects is merged with what the spec says of this one: tags and
    metadata one by one, everything else as a whole.
    """
    parameters = {"ContentType": spec.content_type, **config.s3_parameters(), **spec.parameters}
    tables = {name: config.s3_parameters().get(name, {}) | spec.parameters.get(name, {}) for name in _TABLES}
    # Facts about these very bytes: no setting for all objects knows better.
    coding = {"ContentEncoding": spec.content_encoding, "ContentLanguage": spec.content_language}
    parameters |= {name: value for name, value in coding.items() if value is not None}
    parameters["Metadata"] = object_metadata(spec, tables["Metadata"])
    parameters["Tagging"] = urlencode(tables["Tagging"], quote_via=quote)
    if not config.querystring_auth:
        # A link without a signature cannot say how the object is to be treated: it says so itself.
        parameters.setdefault("ContentDisposition", _attachment(spec.filename))
    return {name: value for name, value in parameters.items() if value != ""}


def _attachment(filename: str | None) -> str:
    """Return the Content-Disposition under which nothing a client sent is run by a browser (RFC 6266)."""
    if not filename:
        return "attachment"
    return f"attachment; filename*=UTF-8''{quote(filename.encode('utf-8', 'replace'), safe='')}"


def object_metadata(spec: ObjectSpec, configured: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the metadata of an object: our id, the name, what is configured, what the client said.

    Values are percent-encoded UTF-8, since a header holds ASCII only. What does not fit into S3's
    limit, or has no name that a header can have, is left out: it is in the database anyway.
    """
    metadata = {UPLOAD_ID_KEY: spec.upload_id}
    if spec.filename:
        metadata[FILENAME_KEY] = _encoded(spec.filename, _MAX_FILENAME_BYTES)
    room = _MAX_METADATA_BYTES - sum(len(name) + len(value) for name, value in metadata.items())
    for raw_name, raw_value in [*sorted((configured or {}).items()), *sorted(spec.metadata.items())]:
        name, value = raw_name.lower(), _encoded(raw_value)
        if _METADATA_NAME.fullmatch(name) and name not in metadata and len(name) + len(value) <= room:
            metadata[name] = value
            room -= len(name) + len(value)
    return metadata


def _encoded(text: str, limit: int | None = None) -> str:
    # A lone surrogate, which JSON can carry, is no character and must not stop a transfer.
    encoded = quote(text.encode("utf-8", "replace"), safe="!#$&'()*+,-./:;<=>?@[]^_`{|}~")
    if limit is None or len(encoded) <= limit:
        return encoded
    while len(encoded) > limit:
        text = text[: len(text) * limit // len(encoded)]
        encoded = _encoded(text)
    return encoded


def checksum_parameters(checksums: RangeChecksums, *, crc64nvme: bool) -> dict[str, str]:
    """Return the checksums of a body as S3 names them."""
    parameters = {}
    if crc64nvme:
        parameters["ChecksumCRC64NVME"] = crc64.to_base64(checksums.crc64nvme)
    if checksums.md5 is not None:
        parameters["ContentMD5"] = base64.b64encode(checksums.md5).decode("ascii")
    if checksums.sha256 is not None:
        parameters["ChecksumSHA256"] = base64.b64encode(checksums.sha256).decode("ascii")
    return parameters
