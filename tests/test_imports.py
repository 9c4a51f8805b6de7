"""Imports between modules, those for the type checker included. `lint-imports` checks the layers."""

from __future__ import annotations

from graphlib import TopologicalSorter

import grimp


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = grimp.build_graph("tusd_py", exclude_type_checking_imports=False, cache_dir=None)

    # Raises CycleError, which names the modules.
    TopologicalSorter({name: graph.find_modules_directly_imported_by(name) for name in graph.modules}).prepare()
