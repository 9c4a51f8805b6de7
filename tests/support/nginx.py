"""nginx in front of a server, with exactly the configuration that the documentation recommends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.ports import LOOPBACK, free_port, is_listening
from tests.support.process import Child
from tests.support.tools import ROOT, require_tool

DOCUMENTED = ROOT / "docs" / "deploy" / "nginx.conf"
LISTEN = "listen 80;"
UPSTREAM = f"server {LOOPBACK}:1080;"
START_SECONDS = 10

# What a distribution's own nginx.conf says around the file in conf.d: where to keep things.
MAIN = """\
daemon off;
master_process off;  # one process, so that none is left behind
pid {directory}/nginx.pid;
error_log {directory}/error.log info;
events {{ worker_connections 1024; }}
http {{
    access_log {directory}/access.log;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    include {directory}/tusd-py.conf;
}}
"""


@dataclass(frozen=True)
class Nginx:
    """A running nginx."""

    port: int
    directory: Path
    child: Child

    @property
    def origin(self) -> str:
        """Its origin."""
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def url(self) -> str:
        """Where uploads are created, through nginx."""
        return f"{self.origin}/files/"

    def error_log(self) -> str:
        """Return what nginx complained of."""
        return (self.directory / "error.log").read_text(errors="replace")


def documented_config(*, listen: int, upstream: int) -> str:
    """Return the documented configuration with its two ports replaced, and nothing else."""
    text = DOCUMENTED.read_text()
    for placeholder, replacement in (
        (LISTEN, f"listen {LOOPBACK}:{listen};"),
        (UPSTREAM, f"server {LOOPBACK}:{upstream};"),
    ):
        assert text.count(placeholder) == 1, f"{DOCUMENTED.name} must say {placeholder!r} exactly once"
        text = text.replace(placeholder, replacement)
    return text


@contextlib.contextmanager
def nginx(directory: Path, upstream_port: int) -> Iterator[Nginx]:
    """Run nginx on a free port in front of the server on `upstream_port`."""
    program = require_tool("nginx", install="apt-get install nginx-light")
    directory.mkdir(parents=True, exist_ok=True)
    port = free_port()
    (directory / "tusd-py.conf").write_text(documented_config(listen=port, upstream=upstream_port))
    main = directory / "nginx.conf"
    main.write_text(MAIN.format(directory=directory))
    # -e: otherwise it opens the compiled-in error log first, which only root may.
    child = Child([program, "-p", directory, "-e", directory / "error.log", "-c", main], log=directory / "output.log")
    with child:
        child.wait_ready(lambda: is_listening(port), deadline=START_SECONDS, what="nginx listens")
        yield Nginx(port, directory, child)
