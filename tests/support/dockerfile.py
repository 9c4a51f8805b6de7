"""Run a Dockerfile without a container engine: every stage in a directory of its own instead of an image.

A path below `/opt`, `/var` or `/build` means one below that directory; what a base image brings, Python or
npm, is this machine's. What would change users or owners is noted down instead of done.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

STEP_SECONDS = 500
NOTED = ("groupadd", "useradd", "chown")
_ABSOLUTE = re.compile(r"(?<![\w./-])/(?=(?:opt|var|build)(?:/|\b))")


@dataclass(frozen=True)
class Step:
    """One instruction."""

    name: str
    text: str

    @property
    def words(self) -> list[str]:
        """Its arguments: a JSON array, or words as in a shell."""
        words: list[str] = json.loads(self.text) if self.text.startswith("[") else shlex.split(self.text)
        return words


def parse(text: str) -> list[Step]:
    """Read the instructions of a Dockerfile."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    steps = [line.split(None, 1) for line in joined.splitlines() if line.strip()]
    return [Step(name.upper(), rest.strip()) for name, rest in steps]


def one(steps: list[Step], name: str) -> Step:
    """Return the only instruction of a name."""
    (found,) = [step for step in steps if step.name == name]
    return found


def context_files(directory: Path) -> Iterator[Path]:
    """Yield what `.dockerignore` lets through, relative to the directory."""
    lines = (directory / ".dockerignore").read_text().splitlines()
    patterns = [line.strip() for line in lines if line.strip() and not line.startswith("#")]

    def ignored(path: Path) -> bool:
        result = False
        for pattern in patterns:
            plain = pattern.removeprefix("!")
            tail = plain.removeprefix("**/")
            parts = [str(path), *map(str, path.parents)]
            matches = any(
                fnmatch.fnmatchcase(part.rpartition("/")[2], tail)
                if plain != tail
                else part == plain or (plain == "*" and "/" not in part)
                for part in parts
                if part != "."
            )
            if matches:
                result = not pattern.startswith("!")
        return result

    for top, folders, files in os.walk(directory):
        base = Path(top).relative_to(directory)
        folders[:] = [folder for folder in folders if not ignored(base / folder)]
        yield from (base / name for name in files if not ignored(base / name))


@dataclass
class Stage:
    """The file system and the settings that a stage has come to."""

    root: Path
    base: str
    env: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    user: str = "root"
    noted: list[str] = field(default_factory=list)

    def path(self, inside: str) -> Path:
        """Return where a path of the image lies here."""
        return self.root / (inside if inside.startswith("/") else f"{self.workdir}/{inside}").lstrip("/")

    def mapped(self, text: str) -> str:
        """Return a text with its absolute paths turned into ours."""
        return _ABSOLUTE.sub(f"{self.root}/", text)

    def environment(self) -> dict[str, str]:
        """Return the variables of a process in the image."""
        own = {name: self.mapped(value) for name, value in self.env.items()}
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("TUSD_", "PYTHON"))}
        return kept | own


class Build:
    """Builds the stages of a Dockerfile below a directory."""

    def __init__(self, directory: Path, context: Path) -> None:
        self._directory = directory
        self._context = directory / "context"
        for path in context_files(context):
            (self._context / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(context / path, self._context / path)
        self._tools = directory / "tools"
        self._tools.mkdir()
        (self._tools / "python").symlink_to(sys.executable)
        for name in NOTED:
            (self._tools / name).write_text('#!/bin/sh\necho "$(basename "$0") $*" >>"$NOTES"\n')
            (self._tools / name).chmod(0o755)
        self._arguments: dict[str, str] = {}
        self._stages: dict[str, Stage] = {}
        self._stage: Stage | None = None

    def run(self, steps: list[Step]) -> Stage:
        """Carry out every instruction; return the last stage."""
        for step in steps:
            getattr(self, f"_{step.name.lower()}")(step)
        return self.stage

    @property
    def stage(self) -> Stage:
        """The stage that is being built."""
        assert self._stage is not None, "an instruction stands before FROM"
        return self._stage

    def _arg(self, step: Step) -> None:
        name, _, value = step.text.partition("=")
        self._arguments[name] = value

    def _from(self, step: Step) -> None:
        base, *name = step.text.split()
        for argument, value in self._arguments.items():
            base = base.replace(f"${{{argument}}}", value)
        number = str(len(self._stages))
        root = self._directory / f"stage{number}"
        root.mkdir()
        self._stage = Stage(root, base, {"PATH": f"{self._tools}:{os.environ['PATH']}"})
        self._stages[name[1] if name else number] = self._stage

    def _workdir(self, step: Step) -> None:
        self.stage.workdir = step.text
        self.stage.path(step.text).mkdir(parents=True, exist_ok=True)

    def _env(self, step: Step) -> None:
        for word in shlex.split(step.text):
            name, _, value = word.partition("=")
            self.stage.env[name] = re.sub(r"\$(\w+)", lambda found: self.stage.env.get(found[1], ""), value)

    def _user(self, step: Step) -> None:
        self.stage.user = step.text

    def _copy(self, step: Step) -> None:
        words = shlex.split(step.text)
        option = words.pop(0) if words[0].startswith("--from=") else None
        *sources, target = words
        place = self.stage.path(target)
        for source in sources:
            other = self._stages[option.removeprefix("--from=")] if option else None
            found = other.path(source) if other else self._context / source
            if found.is_dir():
                shutil.copytree(found, place, dirs_exist_ok=True, symlinks=True)
            else:
                place.mkdir(parents=True, exist_ok=True)
                shutil.copy(found, place)
            if other:
                _rewrite(place, str(other.root), str(self.stage.root))

    def _run(self, step: Step) -> None:
        notes = self._directory / "notes"
        notes.write_text("")
        done = subprocess.run(
            ["/bin/sh", "-ec", self.stage.mapped(step.text)],
            cwd=self.stage.path(self.stage.workdir),
            env=self.stage.environment() | {"NOTES": str(notes)},
            capture_output=True, text=True, timeout=STEP_SECONDS,
        )  # fmt: skip
        assert done.returncode == 0, f"{step.text}\n{done.stdout}{done.stderr}"
        self.stage.noted += notes.read_text().replace(str(self.stage.root), "").splitlines()

    def _setting(self, step: Step) -> None:
        """Ignore instructions that say how a container is run; the tests read them themselves."""

    _volume = _expose = _stopsignal = _healthcheck = _entrypoint = _cmd = _setting


def _rewrite(place: Path, old: str, new: str) -> None:
    """Let programs that name their interpreter by its path name it where it is now."""
    for path in place.rglob("bin/*"):
        if path.is_file() and not path.is_symlink() and (text := path.read_bytes()).startswith(b"#!"):
            path.write_bytes(text.replace(old.encode(), new.encode()))
