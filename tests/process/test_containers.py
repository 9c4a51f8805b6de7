"""Dockerfile and compose.yaml without a container engine: their steps are run, their settings compared."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import time
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jwt
import pytest
import yaml

from tests.support.blocking_client import OCTETS, TUS, request
from tests.support.dockerfile import Build, Stage, one, parse
from tests.support.files import random_file, seeded
from tests.support.ports import LOOPBACK, free_port, is_listening
from tests.support.process import Child
from tests.support.tools import ROOT, require_tool
from tusd_py.config import Config, load_config
from tusd_py.config.units import parse_duration
from tusd_py.supervisor.supervisor import GRACE_SECONDS

pytestmark = [pytest.mark.acceptance, pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = parse((ROOT / "Dockerfile").read_text(encoding="utf-8"))
LAST = STEPS[max(number for number, step in enumerate(STEPS) if step.name == "FROM") :]
"""The stage that becomes the image."""
COMPOSE_TEXT = (ROOT / "compose.yaml").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(COMPOSE_TEXT)
SERVICE: dict[str, Any] = COMPOSE["services"]["tusd-py"]
POSTGRES: dict[str, Any] = COMPOSE["services"]["postgres"]
DOT_ENV = {"POSTGRES_PASSWORD": "0a1b2c3d" * 6, "JWT_SECRET": "4e5f6a7b" * 8}
DATA = "/var/lib/tusd_py"


def interpolated(text: str, variables: Mapping[str, str]) -> str:
    """A value of compose.yaml with `${NAME:?reason}` filled in."""

    def value(found: re.Match[str]) -> str:
        if found["name"] not in variables:
            raise KeyError(found["reason"])
        return variables[found["name"]]

    return re.sub(r"\$\{(?P<name>\w+):\?(?P<reason>[^}]*)\}", value, text)


def compose_environment() -> dict[str, str]:
    """What compose gives the server."""
    return {name: interpolated(value, DOT_ENV) for name, value in SERVICE["environment"].items()}


def image_environment() -> dict[str, str]:
    """What the image itself sets."""
    return dict(word.split("=", 1) for word in shlex.split(one(LAST, "ENV").text))


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> Config:
    """The configuration of the container."""
    for name, value in (image_environment() | compose_environment()).items():
        if name.startswith("TUSD_"):
            monkeypatch.setenv(name, value)
    return load_config()


# --- settings ----------------------------------------------------------------------------------------


def test_ports_paths_and_times_are_those_of_the_configuration(config: Config) -> None:
    health = one(LAST, "HEALTHCHECK").text
    assert one(LAST, "EXPOSE").words == [str(config.server.port)]
    assert SERVICE["ports"] == [f"{LOOPBACK}:{config.server.port}:{config.server.port}"]
    assert SERVICE["expose"] == [str(config.operations_port)]
    assert f"http://{LOOPBACK}:{config.operations_port}/readyz" in health

    assert str(config.data_dir) == one(LAST, "VOLUME").text == one(LAST, "WORKDIR").text == DATA
    assert SERVICE["volumes"] == [f"uploads:{DATA}"]
    assert {"uploads", "postgres"} == COMPOSE["volumes"].keys()
    # Nothing is written elsewhere: the root of the container is read-only.
    assert SERVICE["read_only"]
    assert config.staging_directory.is_relative_to(DATA)
    assert config.store_directory.is_relative_to(DATA)

    # HTTP processes end before the workers do, and either may be given all of its time.
    drain = 2 * (config.server.shutdown_timeout + GRACE_SECONDS)
    assert parse_duration(SERVICE["stop_grace_period"]) > drain
    assert one(LAST, "STOPSIGNAL").text == "SIGTERM"


def test_the_server_finds_the_database_of_its_neighbour(config: Config) -> None:
    assert config.database.dsn is not None
    dsn = urlsplit(config.database.dsn.get_secret_value())
    environment = {name: interpolated(value, DOT_ENV) for name, value in POSTGRES["environment"].items()}

    assert (dsn.hostname, dsn.port) == ("postgres", 5432)
    assert (dsn.username, dsn.path) == (environment["POSTGRES_USER"], f"/{environment['POSTGRES_DB']}")
    assert dsn.password == environment["POSTGRES_PASSWORD"]
    assert SERVICE["depends_on"]["postgres"]["condition"] == "service_healthy"
    assert POSTGRES["healthcheck"]["test"][:2] == ["CMD", "pg_isready"]
    assert int(POSTGRES["image"].partition(":")[2]) >= 15
    assert "ports" not in POSTGRES


def test_there_is_no_secret_in_the_files_and_each_is_asked_for(config: Config) -> None:
    assert config.auth.mode == "jwt"
    for service in (SERVICE, POSTGRES):
        for name, value in service["environment"].items():
            if re.search("DSN|SECRET|PASSWORD", name):
                with pytest.raises(KeyError, match=r"\.env"):
                    interpolated(value, {})
    assert set(re.findall(r"\$\{(\w+)", COMPOSE_TEXT)) == DOT_ENV.keys()
    assert not [step for step in STEPS if re.search("secret|password|key", step.text, re.IGNORECASE)]
    assert "/.env" in (ROOT / ".gitignore").read_text().splitlines()


def test_the_container_is_nobody_in_particular_and_may_do_nothing_more() -> None:
    uid = one(LAST, "USER").text.partition(":")[0]

    assert uid.isdigit()
    assert int(uid) >= 1000
    assert SERVICE["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in SERVICE["security_opt"]
    assert SERVICE["init"]  # whatever a killed child leaves behind is reaped


# --- steps -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """What the Dockerfile builds."""
    require_tool("npm", install="apt-get install nodejs npm")
    return Build(tmp_path_factory.mktemp("image"), ROOT).run(STEPS)


@pytest.fixture
def container(image: Stage, dsn: str, tmp_path: Path) -> Iterator[tuple[Child, dict[str, str], int, int]]:
    """The program as compose starts it, but with this machine's database, ports and loopback address."""
    port, operations_port = free_port(), free_port()
    here = {
        "TUSD_DATABASE__DSN": dsn,
        "TUSD_SERVER__HOST": LOOPBACK,
        "TUSD_SERVER__PORT": str(port),
        "TUSD_OPERATIONS__HOST": LOOPBACK,
        "TUSD_OPERATIONS__PORT": str(operations_port),
    }
    environment = image.environment() | compose_environment() | here
    program, *arguments = one(LAST, "ENTRYPOINT").words + SERVICE["command"]
    command = [str(image.path(f"/opt/tusd_py/bin/{program}")), *arguments]
    child = Child(command, log=tmp_path / "log", env=environment, cwd=image.path(DATA))
    with child:
        child.wait_ready(lambda: is_listening(port), deadline=120, what="the container listens")
        yield child, environment, port, operations_port
    print(child.log_text()[-10_000:])


def test_what_the_image_is_made_of(image: Stage) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    least = tuple(map(int, project["requires-python"].removeprefix(">=").split(".")))
    version = re.fullmatch(r"python:(\d+)\.(\d+)-slim", image.base)

    assert version is not None
    assert (int(version[1]), int(version[2])) >= least
    user = one(LAST, "USER").text
    assert [note for note in image.noted if note.startswith("useradd") and f"--uid {user.partition(':')[0]} " in note]
    assert f"chown {user} {DATA}" in image.noted
    (package,) = image.path("/opt/tusd_py").glob("lib/python*/site-packages/tusd_py")
    assert (package / "web" / "assets" / "uppy.js").is_file()
    assert len(list((package / "migrations").glob("*.sql"))) == len(list((ROOT / "migrations").glob("*.sql")))
    assert [step.words for step in (one(LAST, "ENTRYPOINT"), one(LAST, "CMD"))] == [["tusd-py"], SERVICE["command"]]


def test_the_configuration_of_the_container_is_sound(image: Stage) -> None:
    command = [str(image.path("/opt/tusd_py/bin/tusd-py")), "check-config"]
    environment = image.environment() | compose_environment()
    done = subprocess.run(command, env=environment, cwd=image.root, capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr
    assert not any(secret in done.stdout for secret in DOT_ENV.values())
    without_token = environment | {"TUSD_AUTH__MODE": "none"}
    refused = subprocess.run(command, env=without_token, cwd=image.root, capture_output=True, text=True, timeout=60)
    assert refused.returncode != 0  # it listens on every address of the container


def healthy(environment: dict[str, str], operations_port: int) -> bool:
    """What the image's health check finds."""
    health = one(LAST, "HEALTHCHECK").text.partition("CMD ")[2]
    command = parse(f"CMD {health.replace('1081', str(operations_port))}")[0].words
    return subprocess.run(command, env=environment, capture_output=True, timeout=60).returncode == 0


def test_the_container_takes_an_upload_tells_its_health_and_stops_in_time(
    image: Stage, container: tuple[Child, dict[str, str], int, int], tmp_path: Path
) -> None:
    child, environment, port, operations_port = container
    child.wait_ready(lambda: healthy(environment, operations_port), deadline=120, what="the container is healthy")
    size, source = 3_000_000, tmp_path / "source.bin"
    random_file(source, size, seeded("container"))

    # The command for a token that compose.yaml names.
    program = re.search(r'python -c "(.*?)"', re.sub(r"\n#\s*", " ", COMPOSE_TEXT))
    assert program is not None
    made = subprocess.run(
        [image.path("/opt/tusd_py/bin/python"), "-c", program[1]],
        env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    token = made.stdout.strip()
    assert jwt.decode(token, DOT_ENV["JWT_SECRET"], ["HS256"])["exp"] > time.time(), made.stderr
    headers = {**TUS, "Authorization": f"Bearer {token}"}
    assert request(port, "POST", "/files/", {**TUS, "Upload-Length": "1"}).status == 401
    created = request(port, "POST", "/files/", {**headers, "Upload-Length": str(size)})
    body = {**headers, **OCTETS, "Upload-Offset": "0"}
    assert request(port, "PATCH", created.headers["location"], body, source.read_bytes()).status == 204
    got = request(port, "GET", f"/download/{created.headers['upload-id']}", headers)
    assert got.body == source.read_bytes()
    assert request(port, "GET", "/").status == 200

    child.signal(getattr(signal, one(LAST, "STOPSIGNAL").text))
    assert child.wait(parse_duration(SERVICE["stop_grace_period"])) == 0
    assert not healthy(environment, operations_port)
