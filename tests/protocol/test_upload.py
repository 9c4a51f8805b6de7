"""The states of an upload, and what a PATCH may do."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.uploads import NOW, upload
from tusd_py.errors import (
    FinalImmutable,
    InvalidChecksum,
    InvalidOffset,
    LengthConflict,
    LengthExceeded,
    OffsetMismatch,
    ProtocolMismatch,
    TusdError,
    UnsupportedVersion,
    UploadTooLarge,
)
from tusd_py.protocol.fields import MAX_INTEGER
from tusd_py.protocol.upload import (
    GONE,
    RECEIVING,
    TRANSITIONS,
    Append,
    Concat,
    Event,
    State,
    UploadProtocol,
    check_append,
    check_length,
    check_termination,
    plan_append,
    sources,
)

pytestmark = pytest.mark.unit

LENGTHS = st.none() | st.integers(0, 200)


def append(**changes: Any) -> Append:
    return Append(**{"offset": 70, "content_length": 5} | changes)


@pytest.mark.parametrize("offset", [0, 69, 71, 100, MAX_INTEGER])
def test_an_append_at_another_offset_is_refused(offset: int) -> None:
    """CORE-14"""
    with pytest.raises(OffsetMismatch) as refusal:
        plan_append(upload(), append(offset=offset), max_size=None)

    assert refusal.value.context == {"current": 70, "received": offset}


def test_an_append_within_the_length_is_planned() -> None:
    plan = plan_append(upload(), append(content_length=30), max_size=None)

    assert (plan.start, plan.max_bytes, plan.length, plan.too_large) == (70, 30, 100, LengthExceeded)


def test_an_append_over_the_length_is_refused() -> None:
    """CORE-18"""
    with pytest.raises(LengthExceeded):
        plan_append(upload(), append(content_length=31), max_size=None)


def test_an_unknown_length_is_bounded_by_the_maximum() -> None:
    """DEF-06"""
    deferred = upload(length=None)

    assert plan_append(deferred, append(content_length=None), max_size=80).max_bytes == 10
    assert plan_append(deferred, append(), max_size=None).max_bytes == MAX_INTEGER - 70
    with pytest.raises(UploadTooLarge):
        plan_append(deferred, append(content_length=11), max_size=80)


def test_a_final_takes_nothing() -> None:
    """CAT-12"""
    with pytest.raises(FinalImmutable):
        plan_append(upload(concat=Concat.FINAL), append(offset=0), max_size=None)


def test_a_flaw_counts_after_everything_else() -> None:
    """CORE-17"""
    flawed = append(deferred_error=InvalidChecksum())

    with pytest.raises(InvalidChecksum):
        plan_append(upload(), flawed, max_size=None)
    with pytest.raises(OffsetMismatch):
        plan_append(upload(offset=1), flawed, max_size=None)
    with pytest.raises(LengthExceeded):
        plan_append(upload(length=71), flawed, max_size=None)


def test_a_malformed_header_counts_before_the_offset() -> None:
    malformed = append(offset=0, header_error=InvalidOffset())

    with pytest.raises(InvalidOffset):
        check_append(upload(), malformed)
    with pytest.raises(InvalidOffset):
        plan_append(upload(), malformed, max_size=None)
    with pytest.raises(FinalImmutable):
        check_append(upload(concat=Concat.FINAL), malformed)


def test_bytes_are_appended_in_the_protocol_that_created_the_upload() -> None:
    check_append(upload(protocol=UploadProtocol.RUFH), append(protocol=UploadProtocol.RUFH))
    for ours, theirs in (UploadProtocol.TUS, UploadProtocol.RUFH), (UploadProtocol.RUFH, UploadProtocol.TUS):
        with pytest.raises(ProtocolMismatch):
            check_append(upload(protocol=ours), append(protocol=theirs, header_error=InvalidOffset()))


def test_a_request_that_names_no_protocol_ends_no_upload_of_tus() -> None:
    for protocol in UploadProtocol:
        check_termination(upload(), protocol)
        check_termination(upload(protocol=UploadProtocol.RUFH), protocol)
    check_termination(upload(protocol=UploadProtocol.RUFH), None)
    with pytest.raises(UnsupportedVersion):
        check_termination(upload(), None)


@given(LENGTHS, LENGTHS, st.integers(0, 200), LENGTHS)
def test_a_length_is_set_once_and_never_below_what_is_there(
    length: int | None, declared: int | None, offset: int, max_size: int | None
) -> None:
    """DEF-03 DEF-04 DEF-08"""
    target = upload(length=length, offset=offset)

    try:
        holds = check_length(target, declared, max_size=max_size)
    except LengthConflict:
        assert declared != length
        assert length is not None or (declared is not None and declared < offset)
    except UploadTooLarge:
        assert declared is not None
        assert max_size is not None
        assert declared > max_size
    else:
        assert holds == (length if length is not None else declared)


@given(st.integers(0, 200), LENGTHS, LENGTHS, LENGTHS, LENGTHS)
def test_no_plan_ever_exceeds_length_or_maximum(
    offset: int, length: int | None, declared: int | None, content_length: int | None, max_size: int | None
) -> None:
    """CORE-18 DEF-06"""
    if length is not None and offset > length:
        return
    target = upload(offset=offset, length=length)
    wanted = Append(offset=offset, content_length=content_length, length=declared)

    try:
        plan = plan_append(target, wanted, max_size=max_size)
    except TusdError as error:
        assert error.status in {400, 413}  # noqa: PT017 -- refusing is one of two right answers
    else:
        limit = next((n for n in (length, declared, max_size) if n is not None), MAX_INTEGER)
        assert plan.start + plan.max_bytes == limit
        assert content_length is None or content_length <= plan.max_bytes


def test_every_state_has_its_moves_and_the_gone_ones_never_come_back() -> None:
    assert set(TRANSITIONS) == set(State)
    for state in GONE - {State.REJECTED}:
        assert all(target in GONE for target in TRANSITIONS[state].values())
    assert set(sources(Event.APPEND)) == set(RECEIVING)


@pytest.mark.parametrize(
    ("changes", "gone"),
    [
        ({}, False),
        ({"expires_at": NOW}, True),
        ({"expires_at": NOW + timedelta(seconds=1)}, False),
        ({"state": State.REMOVING}, True),
        ({"state": State.STORED}, False),
    ],
)
def test_an_upload_is_gone_once_its_time_is_up(changes: dict[str, object], gone: bool) -> None:
    """EXP-08"""
    assert upload(**changes).gone(NOW) is gone


def test_only_a_whole_upload_is_complete() -> None:
    """CORE-19"""
    assert not upload().complete
    assert not upload(offset=100).complete
    assert upload(offset=100, state=State.COMPLETED).complete
    assert upload(concat=Concat.FINAL).pending_final
