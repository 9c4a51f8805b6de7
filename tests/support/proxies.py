"""HAProxy and Caddy in front of a server, with exactly the configurations that the documentation recommends."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from tests.support.nginx import nginx
from tests.support.ports import LOOPBACK, free_port, is_listening
from tests.support.process import Child
from tests.support.tools import ROOT, require_tool

START_SECONDS = 10


@dataclass(frozen=True)
class Front:
    """A running proxy."""

    port: int

    @property
    def origin(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def url(self) -> str:
        """Where uploads are created, through the proxy."""
        return f"{self.origin}/files/"


def documented(name: str, replacements: dict[str, str]) -> str:
    """Return the documented configuration with its two ports replaced, and nothing else."""
    text = (ROOT / "docs" / "deploy" / name).read_text()
    for placeholder, replacement in replacements.items():
        assert text.count(placeholder) == 1, f"{name} must say {placeholder!r} exactly once"
        text = text.replace(placeholder, replacement)
    return text


@contextlib.contextmanager
def haproxy(directory: Path, upstream_port: int) -> Iterator[Front]:
    """Run HAProxy on a free port."""
    program = require_tool("haproxy", install="apt-get install haproxy")
    directory.mkdir(parents=True, exist_ok=True)
    port = free_port()
    ports = {"bind :80 ": f"bind {LOOPBACK}:{port} ", "127.0.0.1:1080": f"127.0.0.1:{upstream_port}"}
    config = directory / "haproxy.cfg"
    config.write_text("global\n    tune.bufsize 65536\n\n" + documented("haproxy.cfg", ports))
    with Child([program, "-db", "-f", config], log=directory / "haproxy.log") as child:
        child.wait_ready(lambda: is_listening(port), deadline=START_SECONDS, what="HAProxy listens")
        yield Front(port)


@contextlib.contextmanager
def caddy(directory: Path, upstream_port: int) -> Iterator[Front]:
    """Run Caddy on a free port."""
    program = require_tool("caddy", install="apt-get install caddy")
    directory.mkdir(parents=True, exist_ok=True)
    port = free_port()
    ports = {":80 {": f"http://{LOOPBACK}:{port} {{\n\tbind {LOOPBACK}", "127.0.0.1:1080": f"127.0.0.1:{upstream_port}"}
    config = directory / "Caddyfile"
    config.write_text("{\n\tadmin off\n\tauto_https off\n}\n\n" + documented("Caddyfile", ports))
    child = Child(
        [program, "run", "--config", config, "--adapter", "caddyfile"],
        log=directory / "caddy.log",
        env={"HOME": str(directory), "XDG_DATA_HOME": str(directory), "XDG_CONFIG_HOME": str(directory)},
    )
    with child:
        child.wait_ready(lambda: is_listening(port), deadline=START_SECONDS, what="Caddy listens")
        yield Front(port)


@contextlib.contextmanager
def nginx_front(directory: Path, upstream_port: int) -> Iterator[Front]:
    """Run nginx on a free port."""
    with nginx(directory, upstream_port) as running:
        yield Front(running.port)


PROXIES: dict[str, Callable[[Path, int], AbstractContextManager[Front]]] = {
    "nginx": nginx_front,
    "haproxy": haproxy,
    "caddy": caddy,
}
