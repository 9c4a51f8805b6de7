"""The names of the database are explained in the glossary, and are those of configuration and metrics."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import get_args

import asyncpg
import pytest
from pydantic import BaseModel

from tusd_py.config import Config
from tusd_py.metrics import TRANSFER_OUTCOMES, Metrics, readiness_gauges, stats_gauges
from tusd_py.ports import JobKind, JobState, QueueStats
from tusd_py.protocol.upload import Concat, State, Trigger, UploadProtocol

GLOSSARY = (Path(__file__).resolve().parents[2] / "docs" / "glossary.md").read_text(encoding="utf-8")
QUOTED = set(re.findall(r"`(\w+)`", GLOSSARY))
PLAIN = {
    "at",
    "byte",
    "connection",
    "failure",
    "header",
    "language",
    "limit",
    "min",
    "path",
    "request",
    "second",
    "timeout",
    "type",
}
"""Words that mean here what they mean everywhere."""


@pytest.mark.parametrize("values", [State, JobKind, JobState, UploadProtocol, Concat, Trigger, TRANSFER_OUTCOMES])
def test_every_state_and_kind_is_in_the_glossary(values: Iterable[str]) -> None:
    assert {str(value) for value in values} - QUOTED == set()


async def test_every_table_and_column_is_in_the_glossary(dsn: str) -> None:
    columns = await columns_of(dsn)

    assert {table for table, _ in columns} - QUOTED == set()
    assert {column for _, column in columns} - QUOTED == set()


async def test_every_word_that_configuration_database_and_metrics_share_is_in_the_glossary(dsn: str) -> None:
    keys = words(keys_of(Config))
    names = words(name for pair in await columns_of(dsn) for name in pair)
    metrics = words(metric_names())
    shared = (keys & names) | (keys & metrics) | (names & metrics)

    assert {"staging", "transfer", "job"} <= shared
    assert shared - words(re.findall(r"\w+", GLOSSARY.lower())) - PLAIN == set()


def words(names: Iterable[str]) -> set[str]:
    """Return the words of which names are made, in the singular."""
    parts = {part for name in names for part in re.split(r"[._]", name)}
    return {part[:-1] if len(part) > 3 and part.endswith("s") and not part.endswith("ss") else part for part in parts}


async def columns_of(dsn: str) -> set[tuple[str, str]]:
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch(
            "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = current_schema"
        )
    finally:
        await connection.close()
    return {(row["table_name"], row["column_name"]) for row in rows}


def keys_of(model: type[BaseModel]) -> Iterator[str]:
    """Yield every key of a table of the configuration and of those below it."""
    for name, field in model.model_fields.items():
        yield name
        for annotation in (field.annotation, *get_args(field.annotation)):
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                yield from keys_of(annotation)


def metric_names() -> list[str]:
    """Return the names of all metrics, without the prefix that they share."""
    empty = QueueStats({}, 0, {}, 0)
    families = [*Metrics().registry.collect(), *stats_gauges(empty), *readiness_gauges({}, ready=True)]
    return [family.name.removeprefix("tusd_py_") for family in families]
