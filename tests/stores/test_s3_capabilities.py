"""Which checksums a store gets, by what it has shown of itself."""

from __future__ import annotations

import pytest

from tusd_py.config.sections import S3StoreConfig
from tusd_py.errors import PermanentStoreError, StorageError, TransientStoreError
from tusd_py.stores.s3.capabilities import Capabilities, CapabilityDetector

pytestmark = pytest.mark.unit

AWS = S3StoreConfig(bucket="b")
OTHER = S3StoreConfig(bucket="b", endpoint_url="http://minio:9000")


def sends(features: Capabilities) -> tuple[bool, bool, bool]:
    return features.sends_crc64nvme, features.sends_md5, features.sends_sha256


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("crc64nvme", (True, False, False)),
        ("sha256", (False, False, True)),
        ("md5", (False, True, False)),
        ("none", (False, False, False)),
    ],
)
def test_a_checksum_by_wish_is_the_only_one(setting: str, expected: tuple[bool, bool, bool]) -> None:
    config = OTHER.model_copy(update={"checksum": setting})

    assert sends(Capabilities.at_start(config)) == expected


def test_aws_gets_the_checksum_it_is_known_to_verify() -> None:
    assert sends(Capabilities.at_start(AWS)) == (True, False, False)


def test_an_unknown_store_gets_both_until_it_has_answered() -> None:
    features = Capabilities.at_start(OTHER)

    assert sends(features) == (True, True, False)
    assert sends(features.with_verified_checksum(verifies_crc64nvme=True)) == (True, False, False)
    assert sends(features.with_verified_checksum(verifies_crc64nvme=False)) == (False, True, False)


def test_the_first_answer_counts() -> None:
    features = Capabilities.at_start(OTHER).with_verified_checksum(verifies_crc64nvme=True)

    assert features.with_verified_checksum(verifies_crc64nvme=False) is features


def test_an_unknown_store_may_refuse_the_checksum_then_the_precondition() -> None:
    variants = list(Capabilities.at_start(OTHER).variants())

    assert [(each.sends_crc64nvme, each.precondition) for each in variants] == [
        (True, True),
        (False, True),
        (True, False),
        (False, False),
    ]


def test_overwriting_sends_no_precondition() -> None:
    config = AWS.model_copy(update={"file_overwrite": True})

    assert list(Capabilities.at_start(config).variants()) == [Capabilities("auto", crc64nvme=True, precondition=False)]


# --- being refused --------------------------------------------------------------------------------


class Server:
    """Refuses some features; counts what it was asked."""

    def __init__(self, *, code: str = "NotImplemented", crc64nvme: bool = True, precondition: bool = True) -> None:
        self._code = code
        self._crc64nvme = crc64nvme
        self._precondition = precondition
        self.asked = 0

    async def call(self, features: Capabilities) -> str:
        self.asked += 1
        if (features.sends_crc64nvme and not self._crc64nvme) or (features.precondition and not self._precondition):
            raise PermanentStoreError(code=self._code)
        return "done"


@pytest.mark.parametrize(
    ("server", "asked", "left"),
    [
        (Server(), 1, (True, True)),
        (Server(crc64nvme=False), 2, (False, True)),
        (Server(precondition=False), 3, (True, False)),
        (Server(crc64nvme=False, precondition=False), 4, (False, False)),
    ],
    ids=["nothing", "checksum", "precondition", "both"],
)
async def test_what_a_server_refuses_is_left_out_and_remembered(
    server: Server, asked: int, left: tuple[bool, bool]
) -> None:
    detector = CapabilityDetector(Capabilities.at_start(OTHER))

    assert await detector.with_fallbacks(server.call) == "done"
    assert server.asked == asked
    assert (detector.capabilities.sends_crc64nvme, detector.capabilities.precondition) == left

    await detector.with_fallbacks(server.call)
    assert server.asked == asked + 1


async def test_other_refusals_are_no_reason_to_leave_anything_out() -> None:
    detector = CapabilityDetector(Capabilities.at_start(OTHER))
    server = Server(code="AccessDenied", crc64nvme=False)

    with pytest.raises(PermanentStoreError):
        await detector.with_fallbacks(server.call)

    assert server.asked == 1
    assert detector.capabilities == Capabilities.at_start(OTHER)


async def test_a_call_that_fails_anyway_teaches_nothing() -> None:
    detector = CapabilityDetector(Capabilities.at_start(OTHER))
    errors: list[StorageError] = [PermanentStoreError(code="InvalidRequest"), TransientStoreError(code="SlowDown")]

    async def fail(_: Capabilities) -> None:
        raise errors.pop(0)

    with pytest.raises(TransientStoreError):
        await detector.with_fallbacks(fail)

    assert detector.capabilities == Capabilities.at_start(OTHER)


async def test_a_checksum_by_wish_is_not_given_up() -> None:
    config = OTHER.model_copy(update={"checksum": "crc64nvme", "file_overwrite": True})
    detector = CapabilityDetector(Capabilities.at_start(config))

    with pytest.raises(PermanentStoreError):
        await detector.with_fallbacks(Server(crc64nvme=False).call)
