"""What goes along with an object: metadata within S3's limits, and checksums."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tusd_py.config.sections import ObjectParameters, S3StoreConfig
from tusd_py.ports import ObjectSpec
from tusd_py.stores.ranges import RangeChecksums
from tusd_py.stores.s3.parameters import (
    FILENAME_KEY,
    checksum_parameters,
    object_metadata,
    object_parameters,
)
from tusd_py.stores.s3.responses import plain_md5

pytestmark = pytest.mark.unit

AWS = S3StoreConfig(bucket="b")


def spec(filename: str | None = None, **metadata: str) -> ObjectSpec:
    return ObjectSpec("id-1", "key", 1, None, "text/plain", filename, metadata)


@given(st.text(max_size=3000), st.dictionaries(st.text(max_size=80), st.text(max_size=1500), max_size=5))
def test_metadata_is_short_ascii_whatever_the_client_said(filename: str, metadata: dict[str, str]) -> None:
    said = ObjectSpec("id-1", "key", 1, None, "text/plain", filename, metadata)

    sent = object_metadata(said)

    assert sent["tusd-upload-id"] == "id-1"
    assert sum(len(name) + len(value) for name, value in sent.items()) <= 2048
    assert all(32 < ord(c) < 127 for text in sent.items() for value in text for c in value)


def test_an_original_name_reads_back() -> None:
    name = 'Überweisung "März" 100% 日本.pdf'

    assert unquote(object_metadata(spec(name))[FILENAME_KEY]) == name


def test_a_lone_surrogate_does_not_stop_a_transfer() -> None:
    assert object_metadata(spec("a\udc80b"))[FILENAME_KEY] == "a?b"


def test_a_very_long_name_is_cut_between_characters() -> None:
    sent = object_metadata(spec("é" * 2000))[FILENAME_KEY]

    assert 900 < len(sent) <= 1024
    assert set(unquote(sent)) == {"é"}


def test_a_client_cannot_replace_our_own_entries() -> None:
    sent = object_metadata(spec("name", **{"tusd-upload-id": "x", "Tusd-Filename": "y", "purpose": "z z"}))

    assert sent == {"tusd-upload-id": "id-1", "tusd-filename": "name", "purpose": "z%20z"}


def test_what_the_client_says_of_the_coding_of_its_bytes_goes_before_every_setting() -> None:
    configured = S3StoreConfig(bucket="b", object_parameters=ObjectParameters(content_language="fr"))

    said = object_parameters(configured, replace(spec(), content_encoding="gzip", content_language="de"))

    assert (said["ContentEncoding"], said["ContentLanguage"]) == ("gzip", "de")
    assert object_parameters(configured, spec())["ContentLanguage"] == "fr"


def test_parameters_are_left_out_unless_they_are_set() -> None:
    assert object_parameters(AWS, spec()) == {
        "ContentType": "text/plain",
        "CacheControl": "private, max-age=86400",
        "Metadata": {"tusd-upload-id": "id-1"},
    }


def test_parameters_are_named_as_s3_does() -> None:
    config = S3StoreConfig(
        bucket="b",
        acl="private",
        storage_class="STANDARD_IA",
        sse="aws:kms",
        sse_kms_key_id="key-1",
        object_parameters=ObjectParameters(cache_control="no-store"),
    )

    sent = object_parameters(config, spec())

    assert sent.items() >= {
        ("ACL", "private"),
        ("StorageClass", "STANDARD_IA"),
        ("ServerSideEncryption", "aws:kms"),
        ("SSEKMSKeyId", "key-1"),
        ("CacheControl", "no-store"),
    }


def test_no_setting_replaces_our_own_metadata() -> None:
    said = replace(spec("name"), parameters={"Metadata": {"tusd-upload-id": "x", "origin": "mine"}})

    assert object_parameters(AWS, said)["Metadata"] == {
        "tusd-upload-id": "id-1",
        "tusd-filename": "name",
        "origin": "mine",
    }


@pytest.mark.parametrize(
    ("filename", "expected"),
    [
        (None, "attachment"),
        ("a b.txt", "attachment; filename*=UTF-8''a%20b.txt"),
        ('x"; evil\r\n', "attachment; filename*=UTF-8''x%22%3B%20evil%0D%0A"),
        ("\udc80", "attachment; filename*=UTF-8''%3F"),
    ],
)
def test_without_signatures_an_object_says_itself_that_it_is_to_be_saved(filename: str | None, expected: str) -> None:
    unsigned = S3StoreConfig(bucket="b", querystring_auth=False)

    assert object_parameters(unsigned, spec(filename))["ContentDisposition"] == expected
    assert "ContentDisposition" not in object_parameters(AWS, spec(filename))


# --- checksums ------------------------------------------------------------------------------------


def test_sums_are_named_as_s3_does() -> None:
    sums = RangeChecksums(3, 1, b"\x01" * 16, b"\x02" * 32)

    assert checksum_parameters(sums, crc64nvme=True) == {
        "ChecksumCRC64NVME": "AAAAAAAAAAE=",
        "ContentMD5": "AQEBAQEBAQEBAQEBAQEBAQ==",
        "ChecksumSHA256": "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=",
    }
    assert checksum_parameters(RangeChecksums(3, 1), crc64nvme=False) == {}


@pytest.mark.parametrize(
    ("etag", "expected"),
    [
        ('"d41d8cd98f00b204e9800998ecf8427e"', bytes.fromhex("d41d8cd98f00b204e9800998ecf8427e")),
        ("d41d8cd98f00b204e9800998ecf8427e", bytes.fromhex("d41d8cd98f00b204e9800998ecf8427e")),
        ('"d41d8cd98f00b204e9800998ecf8427e-2"', None),
        ('W/"x"', None),
        ("", None),
    ],
)
def test_only_an_etag_of_its_form_is_an_md5(etag: str, expected: bytes | None) -> None:
    assert plain_md5(etag) == expected
