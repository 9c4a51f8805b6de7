"""docs/events.md and docs/coming-from-tusd.md say what the code does."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any

import pytest

from tests.support.documents import DOCS, block, blocks
from tests.support.tools import ROOT
from tests.test_documentation import exists, prose
from tusd_py.hooks import HookEvent, HookKind, HookReply, HookRequest, HookUpload
from tusd_py.hooks.functions import FunctionHooks, load_hook
from tusd_py.hooks.messages import MAX_REPLY_BYTES, decode_reply
from tusd_py.protocol.events import RECORDED, EventKind, kinds_matching
from tusd_py.uploads.tusd_events import HOOK_NAMES
from tusd_py.webhooks import parse_event, sign, signing_key
from tusd_py.worker.deliveries import GIVE_UP_AFTER

pytestmark = pytest.mark.unit

EVENTS = DOCS / "events.md"
COMING = DOCS / "coming-from-tusd.md"
GOLDEN = ROOT / "tests" / "uploads" / "golden"
HOOKS_GOLDEN = ROOT / "tests" / "hooks" / "golden"


def golden(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def column(page: Path, heading: str, number: int) -> list[str]:
    """Return a column of the first table below a heading, without its head."""
    section = page.read_text(encoding="utf-8").partition(f"\n{heading}\n")[2]
    rows = list(
        takewhile(lambda line: line.startswith("|"), dropwhile(lambda line: line[:1] != "|", section.splitlines()))
    )
    return [row.strip("| ").split(" | ")[number] for row in rows[2:]]


# --- events and webhooks ---------------------------------------------------------------------------


def test_every_kind_of_event_is_in_the_table() -> None:
    assert [name.strip("`") for name in column(EVENTS, "## Events", 0)] == [kind.value for kind in EventKind]


def test_the_event_of_the_page_has_the_structure_of_a_real_one() -> None:
    head, _, body = block(EVENTS, "http", "webhook-id").partition("\n\n")
    headers = dict(line.split(": ", 1) for line in head.splitlines()[1:])
    event = json.loads(body)
    real = golden(GOLDEN / "cloud-stored-in-folder.json")

    assert list(event) == list(real)
    assert {type(event[key]) for key in event} == {type(real[key]) for key in real}
    assert event["data"].items() <= {**real["data"], "id": event["subject"], "length": 1048576}.items()
    assert set(headers) - {"Content-Type"} == set(sign(["whsec_" + "MTIz" * 8], event["id"], 0, b""))
    assert headers["webhook-id"] == event["id"] == parse_event(body.encode()).id
    assert len(event["sequence"]) == len(real["sequence"])


def test_the_command_that_makes_a_secret_makes_one() -> None:
    command = block(EVENTS, "sh", "whsec_").replace("python3", sys.executable)

    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=30, check=True)

    assert len(signing_key(done.stdout.strip())) == 32


def test_three_days_are_three_days() -> None:
    assert "for three days" in EVENTS.read_text(encoding="utf-8")
    assert GIVE_UP_AFTER.days == 3


# --- blocking hooks --------------------------------------------------------------------------------


def structure(value: object) -> object:
    """Return a document with the types in the place of its values."""
    if isinstance(value, dict):
        return {key: structure(below) for key, below in value.items()}
    return [type(each) for each in value] if isinstance(value, list) else type(value)


def without_texts(document: Any) -> Any:
    """Return a question of a hook without what has other keys in each upload."""
    document["Event"]["Upload"]["MetaData"] = document["Event"]["HTTPRequest"]["Header"] = {}
    return document


def test_the_question_of_the_page_has_the_structure_of_a_real_one() -> None:
    question = json.loads(block(EVENTS, "json", '"Type"'))
    real = golden(HOOKS_GOLDEN / "pre-create.json")

    assert structure(without_texts(question)) == structure(without_texts(real))


def test_the_reply_of_the_page_refuses_the_upload() -> None:
    reply = decode_reply(block(EVENTS, "json", "RejectUpload").encode())

    assert (reply.reject_upload, reply.response.status_code) == (True, 403)
    assert reply.response.body == "Your plan has no room for this file."
    assert reply.response.headers == {"X-Reason": "plan"}


def hook_event(**metadata: str) -> HookEvent:
    upload = HookUpload(id="", size=1, offset=0, metadata=metadata, is_partial=False, is_final=False)
    request = HookRequest(method="POST", uri="/files/", remote_addr="", headers={})
    return HookEvent(kind=HookKind.PRE_CREATE, upload=upload, request=request)


async def test_the_python_hook_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hook_of_the_page.py").write_text(block(EVENTS, "python", "HookKind.PRE_CREATE"))
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    hooks = FunctionHooks(load_hook("hook_of_the_page:hook"))
    try:
        refused = await hooks.ask(hook_event())
        assert (refused.reject_upload, refused.response.status_code) == (True, 422)
        assert await hooks.ask(hook_event(filename="report.pdf")) == HookReply()
    finally:
        await hooks.close()


def test_every_hook_is_in_the_table() -> None:
    assert {name.strip("`") for name in column(EVENTS, "## Blocking hooks", 0)} == set(HookKind)


def test_every_field_of_a_reply_is_named() -> None:
    text = EVENTS.read_text(encoding="utf-8")
    reply = decode_reply(
        b'{"RejectTermination": true, "StopUpload": true, "ChangeFileInfo":'
        b' {"ID": "a", "MetaData": {"b": "c"}, "Storage": {"Path": "d"}}}'
    )

    assert (reply.reject_termination, reply.stop_upload) == (True, True)
    changes = reply.change_file_info
    assert changes is not None
    assert (changes.id, changes.metadata, changes.storage_path) == ("a", {"b": "c"}, "d")
    for name in ("RejectTermination", "StopUpload", "ChangeFileInfo", "ID", "MetaData", "Storage.Path"):
        assert f"`{name}`" in text


# --- coming from tusd ------------------------------------------------------------------------------

# Those of tusd 2.10.0, as `tusd -help` prints them.
FLAGS = re.findall(
    r"\S+",
    """
    -host -port -unix-sock -base-path -behind-proxy -enable-h2c -tls-certificate -tls-key -tls-mode
    -enable-experimental-protocol -disable-download -disable-termination -disable-concatenation -max-size -disable-cors
    -cors-allow-origin -cors-allow-credentials -cors-allow-methods -cors-allow-headers -cors-expose-headers
    -cors-max-age
    -upload-dir -filelock-holder-poll-interval -filelock-acquirer-poll-interval -dir-perms -file-perms
    -s3-bucket -s3-object-prefix -s3-endpoint -s3-part-size -s3-min-part-size -s3-max-buffered-parts
    -s3-disable-content-hashes -s3-disable-ssl -s3-concurrent-part-uploads -s3-transfer-acceleration -s3-log-api-calls
    -gcs-bucket -gcs-object-prefix -gcs-endpoint
    -azure-storage -azure-container-access-type -azure-blob-access-tier -azure-object-prefix -azure-endpoint
    -hooks-enabled-events -progress-hooks-interval -hooks-dir -hooks-http -hooks-http-forward-headers -hooks-http-retry
    -hooks-http-backoff -hooks-http-timeout -hooks-http-size-limit -hooks-http-skip-verify
    -hooks-grpc -hooks-grpc-retry -hooks-grpc-backoff -hooks-grpc-secure -hooks-grpc-server-tls-certificate
    -hooks-grpc-client-tls-certificate -hooks-grpc-client-tls-key -hooks-grpc-forward-headers -hooks-plugin
    -expose-metrics -metrics-path -expose-pprof -pprof-path -pprof-block-profile-rate -pprof-mutex-profile-rate
    -show-greeting -version -verbose -show-startup-logs -log-format
    -network-timeout -acquire-lock-timeout -request-completion-timeout -shutdown-timeout
    """,
)


def flags_of_the_page() -> list[str]:
    return [flag for cell in column(COMING, "## Flags", 0) for flag in re.findall(r"`(-[a-z0-9*-]+)`", cell)]


def test_every_flag_of_tusd_is_in_the_table_once() -> None:
    named = flags_of_the_page()

    assert sorted(set(named)) == sorted(named)
    assert {flag for flag in FLAGS if not any(fits(flag, name) for name in named)} == set()
    # And none is there that tusd does not have.
    assert {name for name in named if not any(fits(flag, name) for flag in FLAGS)} == set()


def fits(flag: str, name: str) -> bool:
    return flag.startswith(name.rstrip("*")) if name.endswith("*") else flag == name


def test_every_key_beside_a_flag_exists() -> None:
    cells = column(COMING, "## Flags", 1)
    keys = {key for cell in cells for key in re.findall(r"`([a-z0-9_]+(?:\.[a-z0-9_]+)+)(?: = [^`]*)?`", cell)}
    sections = {name for cell in cells for name in re.findall(r"`\[\[?([a-z0-9_.]+)\]?\]`", cell)}

    assert {"server.base_path", "hooks.http", "storage.s3.bucket", "webhooks.events"} <= keys
    assert sections == {"webhooks", "cors", "operations"}
    assert {key for key in keys | sections if not exists(key)} == set()


def test_the_keys_of_cors_have_the_names_of_the_flags() -> None:
    (cell,) = [cell for cell in column(COMING, "## Flags", 0) if "-cors-max-age" in cell]

    for flag in re.findall(r"`-([a-z-]+)`", cell):
        assert exists(flag.replace("cors-", "cors.", 1).replace("-", "_")), flag


def test_every_hook_of_tusd_is_in_the_table() -> None:
    hooks = dict(zip(*(column(COMING, "## Hooks", number) for number in (0, 1)), strict=True))
    events = {f"`{name}`": f"webhook `{kind.value}`" for kind, name in HOOK_NAMES.items()}

    assert {f"`{hook}`" for hook in HookKind} | events.keys() == hooks.keys()
    for name, ours in events.items():
        assert ours in hooks[name]


def test_what_is_said_of_limits_and_patterns_is_so() -> None:
    assert "a reply may have 64 KiB" in prose(COMING)
    assert MAX_REPLY_BYTES == 64 * 1024
    assert set(kinds_matching(["upload.*"])) == RECORDED


def test_both_pages_are_found() -> None:
    for start in (ROOT / "README.md", DOCS / "index.md"):
        for page in (EVENTS, COMING):
            assert f"{page.name})" in start.read_text(encoding="utf-8"), (start, page)


def test_no_block_is_in_a_language_that_nobody_checks() -> None:
    text = EVENTS.read_text(encoding="utf-8")

    assert set(re.findall(r"^```(\w+)$", text, re.MULTILINE)) == {"toml", "sh", "http", "python", "json"}
    assert len(blocks(EVENTS, "python")) == 4
    assert len(blocks(EVENTS, "json")) == 2
