"""Random files and what arrives of them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPMessage
from pathlib import Path
from typing import IO

from tests.support.blocking_client import fetch
from tusd_py.staging.identity import ID_FILE

BLOCK_BYTES = 2**20
SEED_VARIABLE = "TUSD_TEST_SEED"


def seeded(what: str) -> random.Random:
    """Return a random generator whose seed is printed; the variable TUSD_TEST_SEED repeats a run."""
    seed = int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(2**32))
    print(f"{what}: repeat with {SEED_VARIABLE}={seed}")
    return random.Random(seed)


def random_file(path: Path, size: int, rng: random.Random) -> str:
    """Write a file of random bytes and return its SHA-256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for start in range(0, size, BLOCK_BYTES):
            block = rng.randbytes(min(BLOCK_BYTES, size - start))
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_under(directory: Path) -> list[Path]:
    """Return every file below a directory but for its id; files that vanish meanwhile are left out."""
    found: list[Path] = []
    for path in directory.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file() and path.name != ID_FILE:
                found.append(path)
    return sorted(found)


@dataclass(frozen=True)
class Downloaded:
    """What a download brought, after all redirects."""

    urls: tuple[str, ...]
    """Every address that answered, the first one first."""
    headers: dict[str, str]
    length: int
    sha256: str


def location_of(url: str, method: str = "GET") -> str:
    """Return where a redirect leads."""
    response = fetch(url, method, redirects=0)
    assert response.status == 302, response
    return response.headers["location"]


def download(url: str) -> Downloaded:
    """Fetch a file as a browser does, following redirects."""
    urls = [url]

    class Recorder(urllib.request.HTTPRedirectHandler):
        def redirect_request(
            self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
        ) -> urllib.request.Request | None:
            urls.append(newurl)
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    digest = hashlib.sha256()
    length = 0
    with urllib.request.build_opener(Recorder).open(url, timeout=30) as response:
        for block in _blocks(response):
            digest.update(block)
            length += len(block)
        headers = {name.lower(): value for name, value in response.headers.items()}
    return Downloaded(tuple(urls), headers, length, digest.hexdigest())


def _blocks(response: IO[bytes]) -> Iterator[bytes]:
    while block := response.read(BLOCK_BYTES):
        yield block
