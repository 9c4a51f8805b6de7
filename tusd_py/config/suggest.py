"""Suggest what was meant by a key that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Final, get_args, get_origin

from pydantic import BaseModel

MOST_SUGGESTIONS: Final = 2
LEAST_LIKENESS: Final = 0.7

Path = tuple[str, ...]


def section_of(annotation: object) -> type[BaseModel] | None:
    """Return the section below a key, or that of each entry of a table by name; None for a value."""
    if get_origin(annotation) is dict:
        return section_of(get_args(annotation)[1])
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def keys(model: type[BaseModel], above: Path = ()) -> Iterator[Path]:
    """Yield the path of every key and section; not those below a table that the user names."""
    for name, field in model.model_fields.items():
        yield (*above, name)
        if get_origin(field.annotation) is not dict and (section := section_of(field.annotation)) is not None:
            yield from keys(section, (*above, name))


def did_you_mean(model: type[BaseModel], unknown: Sequence[str]) -> str:
    """Return a question such as "; did you mean server.port?", empty if nothing is similar.

    Keys of the same table come first, then keys of the same name elsewhere.
    """
    *above, name = unknown
    section = _section_at(model, above)
    beside = sorted(section.model_fields) if section is not None else []
    near = difflib.get_close_matches(name, beside, n=1, cutoff=LEAST_LIKENESS)
    found = [".".join((*above, match)) for match in near]
    if not found:
        found = [".".join(path) for path in keys(model) if path[-1] == name][:MOST_SUGGESTIONS]
    return f"; did you mean {' or '.join(found)}?" if found else ""


def _section_at(model: type[BaseModel], path: Sequence[str]) -> type[BaseModel] | None:
    steps = iter(path)
    section: type[BaseModel] | None = model
    for step in steps:
        field = section.model_fields.get(step) if section is not None else None
        if field is None:
            return None
        section = section_of(field.annotation)
        if get_origin(field.annotation) is dict:
            next(steps, None)  # the name of an entry is the user's
    return section


def nearest_text(unknown: str, known: Sequence[str]) -> str:
    """Return the same question for the most similar of some texts."""
    near = difflib.get_close_matches(unknown, known, n=1, cutoff=LEAST_LIKENESS)
    return f"; did you mean {near[0]}?" if near else ""
