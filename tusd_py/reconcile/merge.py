"""Two streams that are sorted by the same key, side by side."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TypeVar

L = TypeVar("L")
R = TypeVar("R")


async def merge_join(
    left: AsyncIterator[L], right: AsyncIterator[R], *, left_key: Callable[[L], str], right_key: Callable[[R], str]
) -> AsyncIterator[tuple[L | None, R | None]]:
    """Yield a pair for each key, with None for the stream that does not have it.

    Holds one element of each. A stream that does not keep to its order makes pairs come as two halves,
    never a wrong pair: the caller has to check again.
    """
    a, b = await anext(left, None), await anext(right, None)
    while a is not None or b is not None:
        if b is None or (a is not None and left_key(a) < right_key(b)):
            yield a, None
            a = await anext(left, None)
        elif a is None or right_key(b) < left_key(a):
            yield None, b
            b = await anext(right, None)
        else:
            yield a, b
            a, b = await anext(left, None), await anext(right, None)
