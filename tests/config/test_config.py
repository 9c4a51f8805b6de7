"""The configuration: its sources, their order, and every way in which it can be wrong."""

from __future__ import annotations

import json
import os
import sys
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from tusd_py.config import Config, ProfileConfig, StorageConfig, load_config
from tusd_py.config.dsn import dsn_problem
from tusd_py.config.example import render_example
from tusd_py.config.place import Place, place_of
from tusd_py.config.render import MASK, render_effective
from tusd_py.config.sections import FormerStoreConfig, ProfileObjectParameters, is_loopback
from tusd_py.config.units import format_duration, format_size, parse_duration, parse_size
from tusd_py.config.validation import cross_field_problems, warnings
from tusd_py.errors import ConfigError

pytestmark = pytest.mark.unit

EXAMPLE = Path(__file__).parents[2] / "config.example.toml"
SECRET = "s3cret-of-at-least-thirty-two-bytes!"


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("TUSD_"):
            monkeypatch.delenv(name)


class Files:
    """Writes configuration files."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __call__(self, text: str, name: str = "config.toml") -> Path:
        path = self._directory / name
        path.write_text(text, encoding="utf-8")
        return path


@pytest.fixture
def write(tmp_path: Path) -> Files:
    return Files(tmp_path)


def problems_of(path: Path | None, overrides: dict[str, Any] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as refusal:
        load_config(path, overrides)
    return refusal.value.problems


def keys_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys_of(field.annotation, f"{prefix}{name}.")
        elif name == "profiles":
            yield from keys_of(ProfileConfig, "profiles.default.")
        else:
            yield prefix + name


def keys_in(table: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in table.items():
        if isinstance(value, dict) and value:  # an empty one is a value: no tags
            yield from keys_in(value, f"{prefix}{name}.")
        else:
            yield prefix + name


# --- the example ----------------------------------------------------------------------------------


def test_the_example_is_what_the_renderer_writes() -> None:
    assert EXAMPLE.read_text(encoding="utf-8") == render_example(), (
        "run: python -m tusd_py.config.example > config.example.toml"
    )


def test_the_example_loads_to_the_defaults() -> None:
    assert load_config(EXAMPLE) == load_config() == Config()


def test_the_example_contains_every_key_and_no_other() -> None:
    assert sorted(keys_in(tomllib.loads(render_example()))) == sorted(keys_of(Config))


def test_every_key_of_the_example_has_one_line_of_comment() -> None:
    lines = render_example().splitlines()

    for number, line in enumerate(lines):
        if " = " in line and not line.startswith(("#", " ")):
            assert lines[number - 1].startswith("# "), line


def test_the_example_does_not_depend_on_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    before = render_example()
    monkeypatch.setenv("TUSD_SERVER__PORT", "9999")

    assert render_example() == before


# --- sources and their order ----------------------------------------------------------------------


def test_without_a_file_there_are_the_defaults() -> None:
    config = load_config()

    assert (config.server.host, config.server.port, config.auth.mode) == ("127.0.0.1", 1080, "none")
    assert config.staging_directory == Path("tusd-data/staging").absolute()
    assert config.store_directory == Path("tusd-data/store").absolute()
    assert config.node


def test_the_command_line_goes_before_the_environment_before_the_file(
    write: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write('[server]\nport = 1\nprocesses = 2\nnode = "file"\nbase_path = "/f"')
    monkeypatch.setenv("TUSD_SERVER__PROCESSES", "3")
    monkeypatch.setenv("TUSD_SERVER__NODE", "environment")
    server = load_config(path, {"server": {"node": "command line"}}).server

    assert (server.port, server.base_path, server.processes, server.node) == (1, "/f", 3, "command line")
    assert server.keepalive_timeout == 75


def test_a_file_is_forgotten_after_its_load(write: Files) -> None:
    load_config(write("[server]\nport = 1"))

    assert load_config().server.port == 1080
    assert Config().server.port == 1080


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path / "none.toml")

    assert problem.endswith("none.toml: cannot be read: No such file or directory")


def test_a_directory_is_an_error(tmp_path: Path) -> None:
    assert "cannot be read" in problems_of(tmp_path)[0]


def test_a_syntax_error_names_its_line(write: Files) -> None:
    (problem,) = problems_of(write("[server]\nport 1080\n"))

    assert "config.toml: is not valid TOML" in problem
    assert "line 2" in problem


def test_a_file_that_is_not_text_is_an_error(tmp_path: Path) -> None:
    (path := tmp_path / "binary.toml").write_bytes(b"\xff\xfe")

    assert "is not valid TOML" in problems_of(path)[0]


# --- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[servre]\nport = 1", "servre"),
        ("port = 1", "port"),
        ("[server]\nprot = 1", "server.prot"),
        ("[storage.s3.client]\ntimeout = 1", "storage.s3.client.timeout"),
        ("[storage.s3]\nsse_customer_key = 'x'", "storage.s3.sse_customer_key"),
        ("[storage.s3.object_parameters]\nSSECustomerKey = 'x'", "storage.s3.object_parameters.SSECustomerKey"),
        ("[storage.s3.object_parameters]\nCacheControl = 'x'", "storage.s3.object_parameters.CacheControl"),
    ],
)
def test_an_unknown_key_is_named(write: Files, text: str, key: str) -> None:
    (problem,) = problems_of(write(text))

    assert problem.startswith(f"{key}: unknown key")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("[servre]\nport = 1", "server"),
        ("port = 1", "server.port or operations.port"),
        ("[server]\nprot = 1", "server.port"),
        ("[storage.s3.client]\ntimeout = 1", "storage.s3.client.read_timeout"),
        ("[storage.s3.object_parameters]\nCacheControl = 'x'", "storage.s3.object_parameters.cache_control"),
        ("[profiles.photos]\nperm_downlaod = 'owner'", "profiles.photos.perm_download"),
    ],
)
def test_the_nearest_key_is_suggested(write: Files, text: str, meant: str) -> None:
    (problem,) = problems_of(write(text))

    assert problem.endswith(f": unknown key; did you mean {meant}?")


def test_what_is_like_no_key_gets_no_suggestion(write: Files) -> None:
    assert problems_of(write("[server]\nxyzzy = 1")) == ["server.xyzzy: unknown key"]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("TUSD_SERVER__PROT", "server.prot: unknown key (from the environment: TUSD_SERVER__PROT)"),
        ("tusd_server__prot", "server.prot: unknown key (from the environment: tusd_server__prot)"),
    ],
)
def test_an_unknown_key_says_that_it_is_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, name: str, problem: str
) -> None:
    monkeypatch.setenv(name, "1")

    assert problems_of(None) == [f"{problem}; did you mean server.port?"]


@pytest.mark.parametrize("name", ["TUSD_SERVER_PORT", "TUSD_SERVRE__PORT"])
def test_the_nearest_variable_is_suggested(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")

    (problem,) = problems_of(None)

    assert problem.endswith("; did you mean TUSD_SERVER__PORT?")


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_the_private_database_never_runs_as_these(write: Files, user: str) -> None:
    (problem,) = problems_of(write(f"[database]\nembedded_user = '{user}'"))

    assert problem == f"database.embedded_user: PostgreSQL must not run as {user}; name a user of its own"


# --- the DSN -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://u:p@h/d",
        "postgres://h",
        "postgresql:///d?host=%2Frun%2Fpostgresql&port=5433",
        "postgresql://tusd@/postgres?host=/srv/data&port=5432",
        "postgresql://u:%40%3A%2F%23%3F%25@h:5432/d?sslmode=require",
        "postgresql://u:p:q@[::1]:5432,h2:5433/d?target_session_attrs=read-write&application_name=a@b",
    ],
)
def test_a_sound_dsn_is_accepted(dsn: str) -> None:
    assert dsn_problem(dsn) is None


@pytest.mark.parametrize("character", "@/#?[]%")
def test_a_password_that_is_not_escaped_is_refused_without_showing_it(write: Files, character: str) -> None:
    dsn = f"postgresql://user:hush{character}zzhush@host/database"

    (problem,) = problems_of(write(f"[database]\ndsn = '{dsn}'"))

    assert problem.startswith("database.dsn: has a character in its user or password that must be escaped: ")
    assert "hush" not in problem


@pytest.mark.parametrize(
    ("dsn", "problem"),
    [
        ("mysql://u:p@h/d", 'begins with "mysql://"; only PostgreSQL is supported: write postgresql://'),
        ("postgresql+asyncpg://u:p@h/d", 'begins with "postgresql+asyncpg://"; only PostgreSQL'),
        ("host=h dbname=d password=hush", "is no URL; write postgresql://"),
        ("hush", "is no URL; write postgresql://"),
        ("postgresql://h:port/d", "cannot be read; write postgresql://"),
        ("postgresql://h/d?sslmode", "cannot be read; write postgresql://"),
    ],
)
@pytest.mark.parametrize("key", ["dsn", "listen_dsn"])
def test_another_dsn_is_refused(write: Files, key: str, dsn: str, problem: str) -> None:
    (found,) = problems_of(write(f"[database]\n{key} = '{dsn}'"))

    assert found.startswith(f"database.{key}: {problem}")
    assert "hush" not in found


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("TUSD_SERVRE__PORT", "environment: TUSD_SERVRE__PORT names no key"),
        ("TUSD_SERVER_PORT", "environment: TUSD_SERVER_PORT names no key"),
        ("TUSD_DATA_DIR__X", "environment: TUSD_DATA_DIR__X names no key"),
        ("tusd_servre__port", "environment: tusd_servre__port names no key"),
        ("TUSD_SERVER__PROT", "server.prot: unknown key"),
        ("TUSD_STORAGE__S3__CLIENT__X", "storage.s3.client.x: unknown key"),
    ],
)
def test_a_typo_in_the_environment_is_an_error(monkeypatch: pytest.MonkeyPatch, name: str, problem: str) -> None:
    monkeypatch.setenv(name, "1")

    (found,) = problems_of(None)

    assert found.startswith(problem)


def test_reserved_variables_are_no_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUSD_TEST_DSN", "postgresql://localhost/test")

    assert load_config() == Config()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("10.0.0.0/8", ["10.0.0.0/8"]),
        ("10.0.0.0/8, ::1", ["10.0.0.0/8", "::1"]),
        ('["10.0.0.0/8","unix"]', ["10.0.0.0/8", "unix"]),
        ("[]", []),
    ],
)
def test_a_list_in_the_environment_is_json_or_separated_by_commas(
    monkeypatch: pytest.MonkeyPatch, value: str, expected: list[str]
) -> None:
    monkeypatch.setenv("TUSD_SERVER__TRUSTED_PROXIES", value)

    assert load_config().server.trusted_proxies == expected


@pytest.mark.parametrize(
    ("name", "value", "path", "expected"),
    [
        ("TUSD_TUS__GONE_STATUS", "410", "tus.gone_status", 410),
        ("TUSD_CORS__ENABLED", "false", "cors.enabled", False),
        ("TUSD_LIMITS__MAX_SIZE", "10GiB", "limits.max_size", 10 * 2**30),
        ("TUSD_TRANSFER__RETRY_BACKOFF", "1.5", "transfer.retry_backoff", 1.5),
        ("TUSD_SERVER__PUBLIC_URL", "", "server.public_url", None),
    ],
)
def test_the_environment_sets_every_kind_of_value(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, path: str, expected: object
) -> None:
    monkeypatch.setenv(name, value)

    assert attrgetter(path)(load_config()) == expected


def test_a_section_in_the_environment_that_is_no_table_is_one_problem_of_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TUSD_SERVER", "nonsense")
    monkeypatch.setenv("TUSD_TUS__GONE_STATUS", "500")

    assert [problem.split(":")[0] for problem in problems_of(None)] == ["server", "tus.gone_status"]


# --- values ---------------------------------------------------------------------------------------


ELEVEN_TAGS = "s3.object_parameters.tagging = { " + ", ".join(f"t{number} = 'x'" for number in range(11)) + " }"


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ("limits", 'max_size = "64 apples"'),
        ("limits", 'max_size = "1.5"'),
        ("limits", 'max_size = "-1MiB"'),
        ("limits", "max_size = -1"),
        ("limits", "max_size = 1.5"),
        ("limits", "max_size = true"),
        ("limits", f"max_size = {2**63}"),
        ("limits", f'max_size = "{"9" * 5000}"'),
        ("limits", 'max_metadata = "0B"'),
        ("limits", 'max_metadata = "1MiB"'),
        ("staging", 'block_size = "1KiB"'),
        ("limits", 'idle_timeout = "soon"'),
        ("limits", 'idle_timeout = "-5s"'),
        ("limits", 'idle_timeout = "5 parsecs"'),
        ("limits", "idle_timeout = 0"),
        ("limits", "idle_timeout = -1"),
        ("limits", "idle_timeout = nan"),
        ("limits", "idle_timeout = inf"),
        ("limits", "idle_timeout = -inf"),
        ("limits", f"idle_timeout = {10**400}"),
        ("limits", "idle_timeout = false"),
        ("limits", "max_parts = true"),
        ("transfer", "retry_backoff = inf"),
        ("transfer", 'bandwidth_limit = "1KiB"'),
        ("transfer", "retry_backoff = true"),
        ("server", "port = 65536"),
        ("server", "port = -1"),
        ("server", "port = true"),
        ("server", 'port = "http"'),
        ("server", 'public_url = "example.com"'),
        ("server", 'public_url = "ftp://example.com"'),
        ("server", 'public_url = "https://"'),
        ("server", 'public_url = "https://:443"'),
        ("server", 'public_url = "https://example.com:99999"'),
        ("server", 'public_url = "https://example.com:0"'),
        ("server", 'public_url = "https://example.com?x"'),
        ("server", 'public_url = "https://example.com#"'),
        ("server", 'public_url = "https://user:password@example.com"'),
        ("server", 'public_url = "https://example.com\\r\\nX: y"'),
        ("server", 'public_url = "https://[::1"'),
        ("server", 'trusted_proxies = ["10.0.0.0/33"]'),
        ("server", 'trusted_proxies = ["proxy.example.com"]'),
        ("server", 'trusted_proxies = "10.0.0.0/8"'),
        ("server", 'base_path = "files"'),
        ("server", 'base_path = "/"'),
        ("server", 'base_path = "/api"'),
        ("server", 'base_path = "/api/v1/"'),
        ("server", 'base_path = "/download/x"'),
        ("server", 'base_path = "/a//b"'),
        ("server", 'base_path = "/a/../b"'),
        ("server", 'base_path = "/a b"'),
        ("server", 'base_path = "/{id}"'),
        ("server", 'event_loop = "twisted"'),
        ("tus", "gone_status = 500"),
        ("tus", 'disable = ["deletion"]'),
        ("downloads", 'inline_types = ["png"]'),
        ("downloads", 'inline_types = ["image/*"]'),
        ("downloads", "url_expiry = 0"),
        ("storage", "s3.verify_tls = 5"),
        ("storage", 's3.verify_tls = ""'),
        ("storage", 's3.part_size = "1MiB"'),
        ("storage", 's3.region = ""'),
        ("storage", 's3.proxies.http = "proxy.example.com"'),
        ("storage", 's3.proxies.https = "http://[::1"'),
        ("storage", 's3.sse = "SSE-C"'),
        ("storage", 's3.custom_domain = "https://cdn.example.com"'),
        ("storage", 's3.custom_domain = "cdn.example.com/path"'),
        ("storage", 's3.custom_domain = "cdn..example.com"'),
        ("storage", 's3.url_protocol = "ftp"'),
        ("storage", 's3.object_parameters.expires = "tomorrow"'),
        ("storage", 's3.object_parameters.metadata = { "tusd-upload-id" = "x" }'),
        ("storage", 's3.object_parameters.metadata = { "Upper" = "x" }'),
        ("storage", "s3.object_parameters.tagging = { a = 1 }"),
        ("storage", ELEVEN_TAGS),
        ("downloads", 'url_expiry = "7d1s"'),
        ("auth", 'jwt.algorithms = ["none"]'),
    ],
)
def test_a_bad_value_is_refused_with_its_key(write: Files, section: str, line: str) -> None:
    (problem,) = problems_of(write(f"[{section}]\n{line}"))

    assert problem.startswith(f"{section}.{line.partition(' = ')[0]}")
    assert "function-" not in problem


@pytest.mark.parametrize(
    ("section", "line", "expected"),
    [
        ("limits", 'max_size = "10GB"', 10**10),
        ("limits", 'max_size = "1.5GiB"', 3 * 2**29),
        ("limits", "max_size = 7", 7),
        ("limits", 'idle_timeout = "1m30s"', 90),
        ("limits", 'idle_timeout = "250ms"', 0.25),
        ("limits", 'idle_timeout = "2.5"', 2.5),
        ("server", 'base_path = "/api/files/"', "/api/files"),
        ("server", 'base_path = "/downloads"', "/downloads"),
        ("server", 'public_url = "https://example.com:8443/x/"', "https://example.com:8443/x"),
        ("server", 'public_url = "http://[::1]:8080"', "http://[::1]:8080"),
        (
            "server",
            'public_url = "HTTPS://thequickbrownfox-jumps.overthelazydog"',
            "HTTPS://thequickbrownfox-jumps.overthelazydog",
        ),
        ("server", 'public_url = "http://minio:9000/a~b_c"', "http://minio:9000/a~b_c"),
        ("server", 'trusted_proxies = ["10.0.0.1/8", "unix"]', ["10.0.0.1/8", "unix"]),
        ("downloads", 'inline_types = ["Image/PNG"]', ["image/png"]),
        ("transfer", 'bandwidth_limit = "10MB"', 10**7),
        ("transfer", 'bandwidth_limit = "0"', 0),
    ],
)
def test_a_good_value_is_understood(write: Files, section: str, line: str, expected: object) -> None:
    config = load_config(write(f"[{section}]\n{line}"))

    assert getattr(getattr(config, section), line.partition(" = ")[0]) == expected


@pytest.mark.parametrize(
    ("written", "expected"),
    [("true", True), ("false", False), ('"false"', False), ('"ca.pem"', Path("ca.pem"))],
)
def test_verify_tls_is_a_switch_or_a_file(write: Files, written: str, expected: object) -> None:
    assert load_config(write(f"[storage.s3]\nverify_tls = {written}")).storage.s3.verify_tls == expected


def test_uvloop_is_refused_where_it_is_not_installed(write: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_config(write('[server]\nevent_loop = "uvloop"')).server.event_loop == "uvloop"
    monkeypatch.setitem(sys.modules, "uvloop", None)

    with pytest.raises(ConfigError, match=r"server\.event_loop: uvloop is not installed"):
        load_config(write('[server]\nevent_loop = "uvloop"'))
    assert load_config().server.event_loop == "auto"


@given(st.integers(0, 2**63 - 1))
def test_a_size_survives_writing_and_reading(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(st.one_of(st.integers(0, 10**9).map(float), st.floats(0, 10**9)))
def test_a_duration_survives_writing_and_reading(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == seconds


# --- secrets --------------------------------------------------------------------------------------


def test_a_secret_comes_from_a_file(write: Files) -> None:
    secret = write("postgresql://u:p@h/d\n", "dsn")
    config = load_config(write(f'[database]\ndsn = {{ file = "{secret}" }}'))

    assert config.database.dsn is not None
    assert config.database.dsn.get_secret_value() == "postgresql://u:p@h/d"


def test_a_secret_comes_from_a_variable(write: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGDSN", "postgresql://u:p@h/d")
    config = load_config(write('[database]\ndsn = { env = "PGDSN" }'))

    assert config.database.dsn is not None
    assert config.database.dsn.get_secret_value() == "postgresql://u:p@h/d"


def test_the_environment_names_the_file_of_a_secret(write: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUSD_DATABASE__DSN__FILE", str(write("postgresql://u:p@h/d", "dsn")))
    config = load_config()

    assert config.database.dsn is not None
    assert config.database.dsn.get_secret_value() == "postgresql://u:p@h/d"


def test_an_empty_secret_is_none(write: Files) -> None:
    assert load_config(write('[database]\ndsn = ""')).database.dsn is None


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ('{ file = "not_found" }', "cannot be read: No such file or directory"),
        ('{ file = "empty" }', "is empty"),
        ('{ file = "binary" }', "cannot be read as text"),
        ('{ file = "a\\u0000b" }', "cannot be read as text"),
        ('{ env = "NOT_SET" }', "is not set"),
        ('{ env = "SET_EMPTY" }', "is empty"),
        ('{ fiel = "x" }', "a secret is text"),
        ('{ file = "x", env = "y" }', "a secret is text"),
        ("{ file = 5 }", "a secret is text"),
        ("5", "valid string"),
    ],
)
def test_a_secret_that_is_not_there_is_an_error(
    write: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SET_EMPTY", "")
    write("\n", "empty")
    (tmp_path / "binary").write_bytes(b"\xff\xfesecret")

    (problem,) = problems_of(write(f"[database]\ndsn = {written}"))

    assert problem.startswith("database.dsn: ")
    assert message in problem


def config_with_secrets(write: Files) -> Config:
    text = f"""
    [auth]
    mode = "jwt"
    jwt.secret = "{SECRET}"
    [database]
    dsn = "postgresql://user:{SECRET}@host/database"
    [storage.s3]
    access_key = "{SECRET}"
    secret_key = "{SECRET}"
    """
    return load_config(write(text))


def test_secrets_are_never_shown(write: Files) -> None:
    config = config_with_secrets(write)

    shown = [repr(config), str(config), str(config.model_dump()), config.model_dump_json()]

    assert not any(SECRET in text for text in [*shown, render_effective(config)])


def test_a_problem_never_shows_the_secret(write: Files) -> None:
    text = f'[auth]\nmode = "jwt"\njwt.secret = "{SECRET[:10]}"\njwt.algorithms = ["HS512"]\nx = "{SECRET}"'

    assert not any(SECRET[:10] in problem for problem in problems_of(write(text)))


# --- check-config ---------------------------------------------------------------------------------


def test_the_effective_configuration_is_toml_with_masked_secrets(write: Files) -> None:
    shown = tomllib.loads(render_effective(config_with_secrets(write)))

    assert shown["auth"]["jwt"]["secret"] == shown["storage"]["s3"]["access_key"] == MASK == "**********"
    assert shown["database"]["listen_dsn"] == ""
    assert sorted(keys_in(shown)) == sorted(keys_of(Config))


def test_the_effective_configuration_loads_to_itself(write: Files) -> None:
    text = """
    data_dir = 'a "quoted" \\ päth'
    [server]
    node = "\\u007f\\t\\n😀"
    keepalive_timeout = 90.5
    trusted_proxies = ["10.0.0.0/8", "unix"]
    [limits]
    max_size = 1234567
    [storage.s3]
    verify_tls = "ca.pem"
    """
    config = load_config(write(text))

    assert load_config(write(render_effective(config), "effective.toml")) == config


# --- between keys ---------------------------------------------------------------------------------


def with_jwt(**changes: object) -> dict[str, Any]:
    return {"auth": {"mode": "jwt", "jwt": {"secret": SECRET, **changes}}}


CLOUDFRONT: dict[str, Any] = {"cloudfront_key_file": __file__, "cloudfront_key_id": "K1"}


def with_s3(**changes: object) -> dict[str, Any]:
    return {"storage": {"backend": "s3", "s3": {"bucket": "b", **changes}}}


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ({"server": {"host": "0.0.0.0"}}, "auth.mode:"),
        ({"server": {"host": ""}}, "auth.mode:"),
        ({"server": {"host": "files.example.com"}}, "auth.mode:"),
        ({"auth": {"mode": "jwt"}}, "auth.jwt: exactly one"),
        (with_jwt(jwks_file=__file__), "auth.jwt: exactly one"),
        (with_jwt(algorithms=[]), "auth.jwt.algorithms: at least one"),
        (with_jwt(secret="", jwks_file=__file__), "auth.jwt.algorithms: HS…"),
        (with_jwt(algorithms=["HS256", "RS256"]), "auth.jwt.algorithms: only HS…"),
        (with_jwt(secret="x" * 31), "auth.jwt.secret: at least 32"),
        (with_jwt(secret="x" * 63, algorithms=["HS256", "HS512"]), "auth.jwt.secret: at least 64"),
        (
            with_jwt(secret="", jwks_file="not_found", algorithms=["ES256"]),
            "auth.jwt.jwks_file: not_found is not",
        ),
        ({"cors": {"allow_credentials": True, "allow_origins": ["*"]}}, "cors.allow_credentials:"),
        ({"cors": {"allow_credentials": True, "allow_origins": ["null"]}}, "cors.allow_credentials:"),
        ({"cors": {"allow_credentials": True, "allow_origins": ["https://*:*"]}}, "cors.allow_credentials:"),
        ({"cors": {"allow_credentials": True, "allow_origins": ["https://*.*"]}}, "cors.allow_credentials:"),
        ({"cors": {"allow_origins": ["https://example.com/"]}}, "cors.allow_origins:"),
        ({"cors": {"allow_origins": ["example.com"]}}, "cors.allow_origins:"),
        ({"cors": {"allow_headers": ["X Y"]}}, "cors.allow_headers:"),
        ({"cors": {"expose_headers": ["*"]}}, "cors.expose_headers:"),
        ({"storage": {"key_template": "{id"}}, "storage.key_template:"),
        ({"storage": {"key_template": "{id}/{filename}"}}, "storage.key_template: unknown filename"),
        ({"storage": {"key_template": "{id}{}"}}, "storage.key_template: unknown"),
        ({"storage": {"key_template": "{id}{id.__class__}"}}, "storage.key_template: unknown"),
        ({"storage": {"key_template": "{id:>999999999}"}}, "storage.key_template: fields take"),
        ({"storage": {"key_template": "{id!r}"}}, "storage.key_template: fields take"),
        ({"storage": {"key_template": "{yyyy}"}}, "storage.key_template: must contain {id}"),
        ({"storage": {"key_template": "/{id}"}}, "storage.key_template: must not start"),
        ({"storage": {"key_template": "a/../{id}"}}, "storage.key_template: must not start"),
        ({"storage": {"key_template": "a\\{id}"}}, "storage.key_template: must not contain"),
        ({"storage": {"key_template": "\0{id}"}}, "storage.key_template: must not contain"),
        ({"storage": {"backend": "s3"}}, "storage.s3.bucket:"),
        (with_s3(access_key="a"), "storage.s3: access_key and secret_key"),
        (with_s3(secret_key="a"), "storage.s3: access_key and secret_key"),
        (with_s3(session_token="a"), "storage.s3.session_token:"),
        (with_s3(access_key="a", secret_key="b", profile="c"), "storage.s3.profile:"),
        (with_s3(location="/a"), "storage.s3.location:"),
        (with_s3(location="a/../b"), "storage.s3.location:"),
        (with_s3(location=".."), "storage.s3.location:"),
        (with_s3(location="a//b"), "storage.s3.location:"),
        (with_s3(location="a/./b"), "storage.s3.location:"),
        (with_s3(location="a\\b"), "storage.s3.location: must not contain"),
        (with_s3(location="a\nb"), "storage.s3.location: must not contain"),
        (with_s3(verify_tls="not_found.pem"), "storage.s3.verify_tls: not_found.pem is not"),
        (with_s3(object_parameters={"bucket_key_enabled": True}), "storage.s3.object_parameters.bucket_key_enabled:"),
        (with_s3(sse="AES256", sse_kms_key_id="k"), "storage.s3.sse_kms_key_id:"),
        (with_s3(custom_domain="cdn.example.com"), "storage.s3.custom_domain: needs"),
        (with_s3(custom_domain="cdn.example.com", cloudfront_key_id="K"), "storage.s3: cloudfront_key_file and"),
        (with_s3(custom_domain="cdn.example.com", cloudfront_key_file=__file__), "storage.s3: cloudfront_key_file and"),
        (with_s3(**CLOUDFRONT), "storage.s3.cloudfront_key_file: needs custom_domain"),
        (
            with_s3(custom_domain="cdn.example.com", cloudfront_key_file="not_found", cloudfront_key_id="K"),
            "storage.s3.cloudfront_key_file: not_found is not",
        ),
        (
            with_s3(custom_domain="cdn.example.com", querystring_auth=False, **CLOUDFRONT),
            "storage.s3.querystring_auth: false contradicts",
        ),
        (
            with_s3(custom_domain="cdn.example.com", public_endpoint_url="https://s3.example.com", **CLOUDFRONT),
            "storage.s3.public_endpoint_url:",
        ),
        (with_jwt() | with_s3(querystring_auth=False), "storage.s3.querystring_auth: false goes only where"),
        (with_s3(sse_kms_key_id="k"), "storage.s3.sse_kms_key_id:"),
        (with_s3(part_concurrency=9), "storage.s3.client.max_pool_connections: must be at least 36"),
        ({"operations": {"port": 1080}}, "operations.port:"),
        ({"operations": {"port": 1080, "host": "0.0.0.0"}}, "operations.port:"),
        ({"operations": {"port": 1080, "host": "localhost"}}, "operations.port:"),
        ({"transfer": {"retry_delay": "2h"}}, "transfer.retry_delay:"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(overrides: dict[str, Any], problem: str) -> None:
    (found,) = problems_of(None, overrides)

    assert found.startswith(problem)


@pytest.mark.parametrize(
    "overrides",
    [
        {"server": {"host": "localhost"}},
        {"server": {"host": "::1"}},
        {"server": {"host": "0.0.0.0"}, "auth": {"allow_anonymous": True}},
        {"server": {"host": "0.0.0.0"}, **with_jwt()},
        with_jwt(secret="x" * 32),
        with_jwt(secret="x" * 64, algorithms=["HS256", "HS384", "HS512"]),
        with_jwt(secret="", jwks_file=__file__, algorithms=["ES256", "EdDSA"]),
        {"auth": {"jwt": {"secret": "short"}}},
        {
            "cors": {
                "allow_credentials": True,
                "allow_origins": ["https://*.example.com", "http://localhost:*"],
            }
        },
        {"cors": {"allow_origins": ["null", "capacitor://localhost", "http://[::1]:3000"]}},
        {"cors": {"allow_headers": ["X-App"], "expose_headers": ["X-App"]}},
        {"storage": {"key_template": "a/{owner_hash}/{yyyy}-{mm}-{dd}/{id}.bin"}},
        with_s3(),
        with_s3(access_key="a", secret_key="b", session_token="c"),
        with_s3(profile="c", location="a/b"),
        with_s3(sse="aws:kms", sse_kms_key_id="k", object_parameters={"bucket_key_enabled": True}),
        with_s3(location="a/b/"),
        with_s3(querystring_auth=False, public_endpoint_url="https://s3.example.com"),
        with_s3(querystring_auth=False, custom_domain="cdn.example.com:8443"),
        with_jwt() | with_s3(custom_domain="cdn.example.com", **CLOUDFRONT),
        with_s3(verify_tls=__file__),
        with_s3(proxies={"https": "http://user:password@proxy.example.com:3128"}),
        {"storage": {"s3": {"access_key": "a"}}},
        {"operations": {"port": 1080, "enabled": False}},
        {"operations": {"port": 1080, "host": "127.0.0.2"}},
        {"operations": {"port": 0}, "server": {"port": 0}},
        {"transfer": {"retry_delay": "1h"}},
    ],
)
def test_keys_that_go_together_are_accepted(overrides: dict[str, Any]) -> None:
    assert cross_field_problems(load_config(None, overrides)) == []


def in_s3(template: str, location: str) -> dict[str, Any]:
    return {"storage": {"backend": "s3", "key_template": template, "s3": {"bucket": "b", "location": location}}}


@pytest.mark.parametrize(
    ("storage", "problem"),
    [
        ({"storage": {"key_template": "a" * 216 + "{id}"}}, "storage.key_template: a step has 252 bytes"),
        ({"storage": {"key_template": "{id}/" + "ü" * 126}}, "storage.key_template: a step has 252 bytes"),
        ({"storage": {"key_template": "{id}.tmp"}}, "storage.key_template: no step may end in .tmp"),
        ({"storage": {"key_template": "a/" * 2100 + "{id}"}}, "storage.key_template: paths have"),
        (in_s3("a" * 1064 + "{id}", ""), "storage.key_template: keys have 1100 bytes"),
        (in_s3("a" * 888 + "{id}", "b" * 100 + "/"), "storage.key_template: keys have 1025 bytes"),
    ],
)
def test_keys_that_no_store_takes_are_refused(storage: dict[str, Any], problem: str) -> None:
    (found,) = problems_of(None, storage)

    assert found.startswith(problem)


@pytest.mark.parametrize(
    "storage", [{"storage": {"key_template": "a" * 215 + "{id}"}}, in_s3("a" * 887 + "{id}", "b" * 100)]
)
def test_the_longest_keys_are_accepted(storage: dict[str, Any]) -> None:
    assert cross_field_problems(load_config(None, storage)) == []


def test_every_problem_of_the_store_is_named_at_once() -> None:
    wrong = with_jwt() | with_s3(
        bucket="", access_key="a", location="/a", sse_kms_key_id="k", custom_domain="c", querystring_auth=False
    )

    found = problems_of(None, wrong)

    assert [problem.partition(": ")[0] for problem in found] == [
        "storage.s3.bucket",
        "storage.s3",
        "storage.s3.location",
        "storage.s3.sse_kms_key_id",
        "storage.s3.querystring_auth",
    ]


@pytest.mark.parametrize(
    ("overrides", "warned"),
    [
        (with_s3(), []),
        (with_s3(verify_tls=False), ["storage.s3.verify_tls"]),
        (with_s3(querystring_auth=False, custom_domain="c", url_protocol="http"), ["storage.s3.url_protocol"]),
        ({"storage": {"s3": {"verify_tls": False}}}, []),
        ({"cors": {"allow_origins": ["*"]}}, ["cors.allow_origins"]),
        ({"cors": {"allow_origins": ["*"], "enabled": False}}, []),
        ({"cors": {"allow_origins": ["*"]}, **with_jwt()}, []),
    ],
)
def test_what_is_allowed_may_still_be_warned_of(overrides: dict[str, Any], warned: list[str]) -> None:
    assert [warning.partition(": ")[0] for warning in warnings(load_config(None, overrides))] == warned


@pytest.mark.parametrize(
    ("written", "key", "expected"),
    [
        ('s3.object_parameters.tagging = { team = "a" }', "Tagging", {"team": "a"}),
        ('s3.object_parameters.cache_control = ""', "CacheControl", None),
        (
            's3.object_parameters.expires = "Thu, 31 Dec 2099 23:59:59 GMT"',
            "Expires",
            datetime(2099, 12, 31, 23, 59, 59, tzinfo=UTC),
        ),
        ('s3.storage_class = "GLACIER_IR"', "StorageClass", "GLACIER_IR"),
        ("s3.object_parameters.bucket_key_enabled = false", "BucketKeyEnabled", False),
        ("", "CacheControl", "private, max-age=86400"),
        ("", "ACL", None),
    ],
)
def test_parameters_of_objects_are_named_as_s3_does(write: Files, written: str, key: str, expected: object) -> None:
    path = write(f"[storage]\n{written}")
    config = load_config(path)

    assert config.storage.s3.s3_parameters().get(key) == expected
    assert load_config(write(render_effective(config), "effective.toml")) == config


def test_the_parameters_of_a_profile_say_only_what_is_set() -> None:
    assert ProfileObjectParameters().s3_parameters() == {}
    assert ProfileObjectParameters(storage_class="GLACIER_IR", cache_control="no-store").s3_parameters() == {
        "CacheControl": "no-store",
        "StorageClass": "GLACIER_IR",
    }


@pytest.mark.parametrize(
    ("host", "expected"), [("127.1.2.3", True), ("::1", True), ("::", False), ("LOCALHOST", False)]
)
def test_only_this_machine_reaches_loopback(host: str, *, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_every_problem_is_reported_at_once(write: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUSD_SERVRE__PORT", "1")
    monkeypatch.setenv("TUSD_TUS__GONE_STATUS", "500")
    text = """
    bogus = 1
    [server]
    host = "0.0.0.0"
    port = 70000
    [limits]
    max_size = "big"
    [storage]
    backend = "s3"
    [transfer]
    retry_delay = "2h"
    """

    assert sorted(problem.split(":")[0] for problem in problems_of(write(text))) == [
        "bogus",
        "environment",
        "limits.max_size",
        "server.port",
        "storage.s3.bucket",
        "transfer.retry_delay",
        "tus.gone_status",
    ]


def test_a_broken_section_brings_no_problems_that_are_none(write: Files) -> None:
    text = '[storage]\nbackend = "s3"\ns3.bucket = 5\n[server]\nport = "x"\nhost = "0.0.0.0"'

    assert [problem.split(":")[0] for problem in problems_of(write(text))] == [
        "server.port",
        "storage.s3.bucket",
    ]


def test_the_error_says_one_problem_per_line() -> None:
    error = ConfigError(["a: b", "c: d"])

    assert str(error) == "a: b\nc: d"


def test_the_configuration_cannot_be_changed() -> None:
    config = Config()

    with pytest.raises(ValueError, match="frozen"):
        setattr(config.server, "port", 1)  # noqa: B010 - the type checker knows too


def test_a_dump_is_json() -> None:
    assert json.loads(Config().model_dump_json())["server"]["port"] == 1080


# --- profiles --------------------------------------------------------------------------------------


def test_there_is_always_the_profile_of_those_who_name_none(write: Files) -> None:
    assert set(load_config().profiles) == {"default"}

    profiles = load_config(write('[profiles.photos]\nperm_download = "public"\ntrigger = "commit"')).profiles

    assert set(profiles) == {"default", "photos"}
    assert (profiles["photos"].trigger, profiles["photos"].perm_download) == ("commit", "public")
    assert (profiles["default"].trigger, profiles["default"].perm_download) == (None, "owner")


def test_the_profile_of_those_who_name_none_can_be_configured(write: Files) -> None:
    config = load_config(write('[profiles.default]\nobject_parameters = { cache_control = "no-store" }'))

    assert config.profiles["default"].object_parameters.s3_parameters() == {"CacheControl": "no-store"}


def test_a_profile_can_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUSD_PROFILES__PHOTOS__PERM_DOWNLOAD", "files:photos")
    monkeypatch.setenv("TUSD_PROFILES__PHOTOS__OBJECT_PARAMETERS", '{"storage_class": "GLACIER"}')

    photos = load_config().profiles["photos"]

    assert (photos.perm_download, photos.object_parameters.storage_class) == ("files:photos", "GLACIER")


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("[profiles.photos]\nx = 1", "profiles.photos.x: unknown key"),
        ("[profiles.photos]\ntrigger = 'never'", "profiles.photos.trigger:"),
        ("[profiles.photos]\nperm_download = ''", "profiles.photos.perm_download:"),
        ("[profiles.photos]\nperm_download = 'two scopes'", "profiles.photos.perm_download:"),
        ("[profiles.photos]\nobject_parameters = { a = 1 }", "profiles.photos.object_parameters.a: unknown key"),
        ("[profiles.Photos]", "profiles.Photos"),
        ("[profiles.'a b']", "profiles.a b"),
        ("[profiles.'']", "profiles."),
        ("[profiles]\nphotos = 1", "profiles.photos:"),
        ("[transfer]\ntrigger = 'never'", "transfer.trigger:"),
    ],
)
def test_a_profile_that_makes_no_sense_is_refused(write: Files, text: str, path: str) -> None:
    (problem,) = problems_of(write(text))

    assert problem.startswith(path)


def test_profiles_are_shown_as_they_are_read(write: Files) -> None:
    config = load_config(
        write('[profiles.photos]\ntrigger = "manual"\nobject_parameters.metadata = { ab = "c", d = "e" }')
    )

    assert load_config(write(render_effective(config), "effective.toml")) == config


# --- stores of before -----------------------------------------------------------------------------

BUCKET_X = 's3.bucket = "b"\ns3.endpoint_url = "https://S3.example"\ns3.location = "x'
FORMER = """
[storage]
backend = "s3"
[storage.s3]
bucket = "new"
[[storage.former]]
backend = "filesystem"
filesystem.directory = "/srv/uploads"
[[storage.former]]
backend = "s3"
moved = true
[storage.former.s3]
bucket = "old"
endpoint_url = "http://minio:9000"
location = "a/b"
"""


def test_stores_of_before_are_written_as_they_are_read(write: Files) -> None:
    config = load_config(write(FORMER))

    assert load_config(write(render_effective(config), "effective.toml")) == config
    stores: list[StorageConfig | FormerStoreConfig] = [config.storage, *config.storage.former]
    assert [str(place_of(config, each)) for each in stores] == [
        "bucket new",
        "directory /srv/uploads",
        "bucket old at http://minio:9000, location a/b",
    ]


def test_secrets_of_stores_of_before_are_masked(write: Files) -> None:
    config = load_config(write(f'{FORMER}access_key = "{SECRET}"\nsecret_key = "{SECRET}"\n'))

    assert SECRET not in render_effective(config)
    assert SECRET not in repr(config)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[[storage.former]]\nbackend = "s3"', "storage.former.0.s3.bucket: is required"),
        ("[[storage.former]]", "storage.former.0: is the current store: the directory store"),
        (
            '[[storage.former]]\nfilesystem.directory = "/a"\n[[storage.former]]\nfilesystem.directory = "/a/"',
            "storage.former.1: is storage.former.0: the directory /a",
        ),
        (
            f'[storage]\nbackend = "s3"\n{BUCKET_X}/"\n[[storage.former]]\nbackend = "s3"\n{BUCKET_X.lower()}"',
            "storage.former.0: is the current store",
        ),
        ('[[storage.former]]\nbackend = "s3"\ns3.bucket = "b"\ns3.access_key = "k"', "storage.former.0.s3: access_key"),
        ("[[storage.former]]\nplace = 1", "storage.former.0.place: unknown key"),
    ],
)
def test_a_store_of_before_that_makes_no_sense_is_refused(write: Files, text: str, problem: str) -> None:
    assert any(one.startswith(problem) for one in problems_of(write(text))), problems_of(write(text))


def test_a_store_inside_the_data_directory_is_known_by_its_place_in_it(tmp_path: Path) -> None:
    for name in ("a", "b"):
        config = load_config(overrides={"data_dir": tmp_path / name})
        assert place_of(config, config.storage) == Place("filesystem", directory="store")
    storage = {"filesystem": {"directory": tmp_path / "s"}}
    outside = load_config(overrides={"data_dir": tmp_path / "a", "storage": storage})
    assert place_of(outside, outside.storage).directory == str(tmp_path / "s")
