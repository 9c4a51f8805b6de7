"""How objects are cut: every plan stays within S3's limits, for every length and setting."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tusd_py.errors import PermanentStoreError
from tusd_py.stores.s3.part_plan import (
    MAX_OBJECT_BYTES,
    MAX_PART_BYTES,
    MAX_PARTS,
    MIB,
    MIN_PART_BYTES,
    Part,
    PartPlan,
    plan_parts,
)

pytestmark = pytest.mark.unit

SIZES = st.integers(MIN_PART_BYTES, MAX_PART_BYTES)


@given(
    length=st.integers(0, MAX_OBJECT_BYTES),
    threshold=SIZES,
    part_size=SIZES,
    max_parts=st.integers(1000, MAX_PARTS),
)
@example(length=MAX_OBJECT_BYTES, threshold=MIN_PART_BYTES, part_size=MIN_PART_BYTES, max_parts=MAX_PARTS)
@example(length=1000 * MAX_PART_BYTES, threshold=MIN_PART_BYTES, part_size=MIN_PART_BYTES, max_parts=1000)
@example(length=999 * MAX_PART_BYTES + 1, threshold=MIN_PART_BYTES, part_size=MIN_PART_BYTES, max_parts=1000)
def test_parts_cover_the_object_in_order_within_the_limits(
    length: int, threshold: int, part_size: int, max_parts: int
) -> None:
    length = min(length, max_parts * MAX_PART_BYTES)

    plan = plan_parts(length, threshold=threshold, part_size=part_size, max_parts=max_parts)

    parts = list(plan.parts())
    assert [part.number for part in parts] == list(range(1, plan.count + 1))
    assert sum(part.length for part in parts) == length
    assert all(before.start + before.length == after.start for before, after in itertools.pairwise(parts))
    assert {part.length for part in parts[:-1]} <= {plan.part_size}
    assert plan.count <= max_parts
    assert all(MIN_PART_BYTES <= part.length <= MAX_PART_BYTES for part in parts[:-1])
    assert parts[-1].length <= MAX_PART_BYTES
    assert plan.single == (length <= threshold)


@given(length=st.integers(0, 2**40), threshold=SIZES, part_size=SIZES)
def test_the_configured_part_size_is_used_as_it_is_while_the_parts_suffice(
    length: int, threshold: int, part_size: int
) -> None:
    plan = plan_parts(length, threshold=threshold, part_size=part_size)

    assert plan.single or plan.part_size == part_size or length > part_size * MAX_PARTS


def test_an_empty_object_is_one_put() -> None:
    assert plan_parts(0, threshold=16 * MIB, part_size=16 * MIB) == PartPlan(0, None)


@pytest.mark.parametrize(("length", "count"), [(16 * MIB, 1), (16 * MIB + 1, 4), (18 * MIB, 4)])
def test_the_threshold_itself_is_still_one_put(length: int, count: int) -> None:
    plan = plan_parts(length, threshold=16 * MIB, part_size=5 * MIB)

    assert plan.count == count
    assert plan.single is (count == 1)


def test_parts_grow_in_whole_mebibytes() -> None:
    plan = plan_parts(10_000 * 16 * MIB + 1, threshold=16 * MIB, part_size=16 * MIB)

    assert plan.part_size == 17 * MIB


def test_a_part_is_found_by_its_number() -> None:
    plan = plan_parts(11 * MIB, threshold=5 * MIB, part_size=5 * MIB)

    assert plan.part(3) == Part(3, 10 * MIB, MIB)


@pytest.mark.parametrize(("length", "max_parts"), [(MAX_OBJECT_BYTES + 1, MAX_PARTS), (10 * MAX_PART_BYTES + 1, 10)])
def test_what_no_plan_can_hold_is_refused_for_good(length: int, max_parts: int) -> None:
    with pytest.raises(PermanentStoreError):
        plan_parts(length, threshold=16 * MIB, part_size=16 * MIB, max_parts=max_parts)
