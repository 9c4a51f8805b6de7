"""What a failing test shows, and where the fixtures are that several folders use."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from tests.spec import rules_in

pytest_plugins = ["tests.support.database_fixtures", "tests.support.store_fixtures"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the ids in a failing test's docstring mean."""
    report = yield
    docstring = getattr(getattr(item, "obj", None), "__doc__", None)
    if report.failed and (rules := rules_in(docstring or "")):
        report.sections.append(("Rules of the protocol", "\n".join(rules)))
    return report
