"""The name and the type under which a stranger's file is served."""

from __future__ import annotations

import re
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tusd_py.config import DownloadsConfig
from tusd_py.http.content_disposition import content_disposition, safe_content_type

pytestmark = pytest.mark.unit

INLINE = DownloadsConfig().inline_types


def saved(filename: str | None) -> str:
    return content_disposition(filename, inline=False)


def plain(value: str) -> str | None:
    match = re.search(r'filename="((?:[^"\\]|\\.)*)"', value)
    return re.sub(r"\\(.)", r"\1", match[1]) if match else None


def extended(value: str) -> str | None:
    match = re.search(r"filename\*=UTF-8''(.*)$", value)
    return unquote(match[1]) if match else None


# --- the name -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filename", "expected"),
    [
        ("report.pdf", 'attachment; filename="report.pdf"'),
        ("my report (1).pdf", 'attachment; filename="my report (1).pdf"'),
        ("a;b=c,d.txt", 'attachment; filename="a;b=c,d.txt"'),
        ('say "hi".txt', 'attachment; filename="say \\"hi\\".txt"; filename*=UTF-8\'\'say%20%22hi%22.txt'),
        ("100%41.txt", "attachment; filename=\"100%41.txt\"; filename*=UTF-8''100%2541.txt"),
        ("naïve.txt", "attachment; filename=\"na_ve.txt\"; filename*=UTF-8''na%C3%AFve.txt"),
        ("€😀.bin", "attachment; filename=\"__.bin\"; filename*=UTF-8''%E2%82%AC%F0%9F%98%80.bin"),
        ("a'b*c.txt", 'attachment; filename="a\'b*c.txt"'),
        ("é'()*.txt", "attachment; filename=\"_'()*.txt\"; filename*=UTF-8''%C3%A9%27%28%29%2A.txt"),
        (".bashrc", 'attachment; filename=".bashrc"'),
    ],
)
def test_a_name_is_written_as_rfc_6266_says(filename: str, expected: str) -> None:
    assert saved(filename) == expected


@pytest.mark.parametrize("filename", [None, "", "   ", ".", "..", "...", "/", "\\/\\", "\r\n", "\u202e", "\ud800"])
def test_without_a_usable_name_there_is_none(filename: str | None) -> None:
    assert saved(filename) == "attachment"


def test_what_is_shown_is_inline() -> None:
    assert content_disposition("a.png", inline=True) == 'inline; filename="a.png"'
    assert content_disposition(None, inline=True) == "inline"


@pytest.mark.parametrize(
    ("filename", "name"),
    [
        ("../../etc/passwd", "....etcpasswd"),
        ("C:\\temp\\a.txt", "C:tempa.txt"),
        ("a\r\nSet-Cookie: x=y.txt", "aSet-Cookie: x=y.txt"),
        ("a\0b\x1b\x7f\x9f.txt", "ab.txt"),
        ("a\u2028b\u2029.txt", "ab.txt"),
        ("photo\u202egpj.exe", "photogpj.exe"),
        ("a\ud800b.txt", "ab.txt"),
        ("  a.txt. . ", "a.txt"),
    ],
)
def test_what_is_dangerous_in_a_name_is_left_out(filename: str, name: str) -> None:
    assert plain(saved(filename)) == name


def test_a_joined_emoji_stays_whole() -> None:
    assert extended(saved("👩‍💻.txt")) == "👩‍💻.txt"


@pytest.mark.parametrize(
    ("filename", "name"),
    [
        ("a" * 300 + ".jpeg", "a" * 250 + ".jpeg"),
        ("a" * 255, "a" * 255),
        ("a" * 256, "a" * 255),
        ("a." + "b" * 300, "a." + "b" * 253),
        ("." + "b" * 300, "." + "b" * 254),
        ("€" * 100 + ".txt", "€" * 83 + ".txt"),
        ("a" * 249 + " " + "b" * 9 + ".jpg", "a" * 249 + " b.jpg"),
    ],
)
def test_a_long_name_is_cut_before_its_extension(filename: str, name: str) -> None:
    value = saved(filename)

    assert (extended(value) or plain(value)) == name
    assert len(name.encode()) <= 255


@given(st.text(st.characters(), max_size=400))
def test_any_name_makes_one_safe_header(filename: str) -> None:
    value = saved(filename)

    assert value.isascii()
    assert value.isprintable()
    assert re.fullmatch(
        r"""attachment(; filename="(?:[^"\\]|\\["])*"(; filename\*=UTF-8''[A-Za-z0-9!#$&+.^_`|~%-]+)?)?""",
        value,
    )
    name = extended(value) or plain(value) or ""
    assert len(name.encode()) <= 255
    assert not set(name) & set("/\\\r\n\0")


@given(st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="/\\. "), min_size=1, max_size=60))
def test_an_honest_name_arrives_unchanged(filename: str) -> None:
    value = saved(filename)

    assert (extended(value) or plain(value)) == filename


# --- the type -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ("image/png", "image/png"),
        (" Image/PNG ", "image/png"),
        ("text/plain; charset=UTF-8", "text/plain; charset=utf-8"),
        ('text/plain;format=flowed;charset="utf-8"', "text/plain; charset=utf-8"),
        ("video/mp4; codecs=avc1", "video/mp4"),
        ("text/plain; charset=a b", "text/plain"),
        ("application/vnd.api+json", "application/vnd.api+json"),
        ("png", "application/octet-stream"),
        ("image/", "application/octet-stream"),
        ("image/png/x", "application/octet-stream"),
        ("*/*", "application/octet-stream"),
        ("image/*", "application/octet-stream"),
        ("text/plain, text/html", "application/octet-stream"),
        ("text/plain\r\nX: y", "application/octet-stream"),
        ("text/plain; charset=utf-8\r\nX: y", "application/octet-stream"),
        ("text/pläin", "application/octet-stream"),
        ("x/" + "y" * 300, "application/octet-stream"),
    ],
)
def test_a_declared_type_is_checked(declared: str, expected: str) -> None:
    assert safe_content_type(declared, "a.txt", INLINE)[0] == expected


@pytest.mark.parametrize(
    ("filename", "expected"),
    [
        ("a.PNG", "image/png"),
        ("a.jpeg", "image/jpeg"),
        ("a.webp", "image/webp"),
        ("a.avif", "image/avif"),
        ("a.wav", "audio/wav"),
        ("a.ogg", "audio/ogg"),
        ("a.m4a", "audio/mp4"),
        ("a.pdf", "application/pdf"),
        ("a.txt", "text/plain"),
        ("a.html", "text/html"),
        ("a.js", "text/javascript"),
        ("a.tar.gz", "application/gzip"),
        ("a.tar.xz", "application/x-xz"),
        ("a.svgz", "application/gzip"),
        ("a.Z", "application/octet-stream"),
        ("a", "application/octet-stream"),
        ("png", "application/octet-stream"),
        (".png", "application/octet-stream"),
        ("a.no-such-thing", "application/octet-stream"),
        ("data:text/html,x", "application/octet-stream"),
        ("http://example.com/a.png", "image/png"),
        ("", "application/octet-stream"),
        (None, "application/octet-stream"),
    ],
)
@pytest.mark.parametrize("declared", [None, "", "  "])
def test_without_a_declared_type_the_extension_tells(declared: str | None, filename: str | None, expected: str) -> None:
    assert safe_content_type(declared, filename, INLINE)[0] == expected


@pytest.mark.parametrize("listed", INLINE)
def test_a_listed_type_is_shown(listed: str) -> None:
    assert safe_content_type(listed.upper(), None, INLINE) == (listed, True)


def test_a_charset_does_not_hide_a_listed_type() -> None:
    assert safe_content_type("text/plain; charset=utf-8", None, INLINE) == ("text/plain; charset=utf-8", True)


@pytest.mark.parametrize("declared", ["application/zip", "text/css", "image/tiff", "nonsense", None])
def test_every_other_type_is_saved(declared: str | None) -> None:
    assert safe_content_type(declared, None, INLINE)[1] is False


@pytest.mark.parametrize(
    "declared",
    [
        "text/html",
        "TEXT/HTML",
        "text/html; charset=utf-8",
        "application/xhtml+xml",
        "image/svg+xml",
        "text/xml",
        "application/xml",
        "application/atom+xml",
        "text/xsl",
        "text/javascript",
        "application/javascript",
        "application/x-javascript",
        "application/ecmascript",
        "text/jscript",
        "text/vbscript",
        "multipart/related",
        "multipart/x-mixed-replace",
        "message/rfc822",
        "application/x-shockwave-flash",
    ],
)
def test_what_runs_script_is_never_shown_even_if_listed(declared: str) -> None:
    everything = [declared.partition(";")[0], declared.partition(";")[0].upper()]

    content_type, inline = safe_content_type(declared, None, everything)

    assert inline is False
    assert content_type == declared.lower()


@pytest.mark.parametrize("filename", ["a.html", "a.svg", "a.xml", "a.js", "a.mht", "a.xhtml"])
def test_a_guessed_type_that_runs_script_is_not_shown_either(filename: str) -> None:
    guessed, _ = safe_content_type(None, filename, [])

    assert safe_content_type(None, filename, [guessed])[1] is (guessed == "application/octet-stream")


@given(st.text(), st.text())
def test_any_type_makes_one_safe_header(declared: str, filename: str) -> None:
    content_type, _ = safe_content_type(declared, filename, INLINE)

    assert re.fullmatch(r"[a-z0-9!#$&^_.+-]+/[a-z0-9!#$&^_.+-]+(; charset=[a-z0-9_.:+-]+)?", content_type)
