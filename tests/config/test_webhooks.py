"""`[[webhooks]]` and `[events]`: what is accepted, what is refused, and that secrets are never shown."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from tusd_py.config import Config, load_config
from tusd_py.config.render import render_effective
from tusd_py.errors import ConfigError

pytestmark = pytest.mark.unit

SECRET = "whsec_" + base64.b64encode(b"a key of thirty-two bytes, at least").decode()
OTHER = "whsec_" + base64.b64encode(b"another key of thirty-two bytes, too").decode()
URL = 'url = "https://app.example.com/in"'


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("TUSD_"):
            monkeypatch.delenv(name)


def load(directory: Path, text: str) -> Config:
    path = directory / "config.toml"
    path.write_text(text, encoding="utf-8")
    return load_config(path)


def test_only_the_url_is_needed(tmp_path: Path) -> None:
    (webhook,) = load(tmp_path, f"[[webhooks]]\n{URL}").webhooks
    assert (webhook.endpoint, webhook.signing_secrets, webhook.events) == (
        "https://app.example.com/in",
        [],
        ["upload.*"],
    )
    assert (webhook.timeout, webhook.concurrency, webhook.allow_private, webhook.format) == (15, 8, True, "cloudevents")
    assert Config().webhooks == []


def test_url_is_kept_as_it_is_written_and_names_the_endpoint_without_its_query(tmp_path: Path) -> None:
    (webhook,) = load(tmp_path, '[[webhooks]]\nurl = "http://app:8000/in/?key=secret"').webhooks
    assert (webhook.url, webhook.endpoint) == ("http://app:8000/in/?key=secret", "http://app:8000/in/")


def test_secrets_come_from_files_and_are_never_shown(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    given = f'secrets = [{{ file = "{tmp_path}/secret" }}, "{OTHER}"]'
    config = load(tmp_path, f"[[webhooks]]\n{URL}\n{given}")
    assert config.webhooks[0].signing_secrets == [SECRET, OTHER]
    for text in (render_effective(config), repr(config)):
        assert SECRET not in text
        assert OTHER not in text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[[webhooks]]", "webhooks.0.url: Field required"),
        ('[[webhooks]]\nurl = "ftp://app/in"', "webhooks.0.url: an absolute http:// or https:// URL"),
        ('[[webhooks]]\nurl = "http://user@app/in"', "webhooks.0.url: an absolute http:// or https:// URL"),
        ('[[webhooks]]\nurl = "http://app/in#there"', "webhooks.0.url: an absolute http:// or https:// URL"),
        ('[[webhooks]]\nurl = "http://app/in?a b"', "webhooks.0.url: an absolute http:// or https:// URL"),
        (f'[[webhooks]]\n{URL}\nsecret = "short"', "webhooks.0"),
        (f'[[webhooks]]\n{URL}\nsecret = "{SECRET}"\nsecrets = ["{OTHER}"]', "secret and secrets exclude each other"),
        (f'[[webhooks]]\n{URL}\nevents = ["upload.eaten"]', "'upload.eaten' matches no event"),
        (f'[[webhooks]]\n{URL}\nformat = "xml"', "webhooks.0.format"),
        (f'[[webhooks]]\n{URL}\nname = "two words"', "without spaces"),
        (f"[[webhooks]]\n{URL}\ntimeout = 0", "webhooks.0.timeout"),
        (f"[[webhooks]]\n{URL}\nconcurrency = 0", "webhooks.0.concurrency"),
        (f"[[webhooks]]\n{URL}\nretries = 3", "webhooks.0.retries: unknown key"),
        (f'[[webhooks]]\n{URL}\nname = "hooks"', "is the endpoint of the programs in hooks.file"),
        (f"[[webhooks]]\n{URL}\n[[webhooks]]\n{URL}", "webhooks.1.name: 'https://app.example.com/in' is webhooks.0"),
        (f'[[webhooks]]\n{URL}\nname = "a"\n[[webhooks]]\nurl = "http://b/"\nname = "a"', "webhooks.1.name: 'a'"),
        (
            f'[[webhooks]]\n{URL}\nprofiles = ["default", "videos"]\n[profiles.music]',
            "webhooks.0.profiles: unknown 'videos' (profiles: default, music)",
        ),
        ("[events]\nprogress_interval = 0", "events.progress_interval"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, text)
    (said,) = error.value.problems
    assert problem in said
    assert SECRET not in said


def test_known_profiles_are_accepted(tmp_path: Path) -> None:
    config = load(tmp_path, f'[[webhooks]]\n{URL}\nprofiles = ["default", "videos"]\n[profiles.videos]')
    assert config.webhooks[0].profiles == ["default", "videos"]
