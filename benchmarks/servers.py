"""Servers with almost no cost per answer, for benchmarks of clients.

`Nginx` answers every request to a path with the same bytes. `NoCost` is a small asyncio server in
a child process, which can do more: as many vectors as the request has texts, and streams, line by
line. Both listen on 127.0.0.1 only and end with this process.
"""

from __future__ import annotations

import ctypes
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.client.bodies import TOKENS, TOKENS_PER_TEXT

_START_SECONDS = 20.0
_WORKERS = 2
_CONFIG = """\
daemon off;
{user}
worker_processes {workers};
pid {prefix}/nginx.pid;
error_log stderr crit;
events {{ worker_connections 2048; }}
http {{
    access_log off;
    client_body_temp_path {prefix}/body;
    proxy_temp_path {prefix}/proxy;
    fastcgi_temp_path {prefix}/fastcgi;
    uwsgi_temp_path {prefix}/uwsgi;
    scgi_temp_path {prefix}/scgi;
    client_body_buffer_size 1m;
    client_max_body_size 64m;
    keepalive_requests 1000000000;
    keepalive_timeout 600;
    open_file_cache max=100;
    tcp_nodelay on;
    types {{ }}
    server {{
{listen}
        root {prefix}/answers;
        default_type application/json;
{locations}
    }}
}}
"""
# A file is not to be POSTed to, so nginx means to say 405; it then says 200 and sends the file.
_LOCATION = (
    '        location = "{path}" {{ error_page 405 =200 {uri}; try_files {uri} =404; {kind} }}'
)


class Nginx:
    """nginx with one fixed body per path, as a context manager. GET and POST get the same.

    bodies: by path. ports: how many to listen on, each as good as a server of its own. `urls`
    are in their order. Raises FileNotFoundError where nginx is not installed.
    """

    def __init__(self, bodies: Mapping[str, bytes], *, ports: int = 1) -> None:
        self._bodies = bodies
        self._count = ports
        self._prefix: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.urls: list[str] = []

    def __enter__(self) -> Nginx:
        program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
        if program is None:
            raise FileNotFoundError("nginx is not installed")
        self._prefix = Path(tempfile.mkdtemp(prefix="aiosollol-nginx-"))
        ports = _free_ports(self._count)
        config = self._write(ports)
        self._process = subprocess.Popen(
            [program, "-p", str(self._prefix), "-c", str(config), "-e", "stderr"],
            preexec_fn=_die_with_parent,
        )
        try:
            for port in ports:
                _await_port(port, self._process)
        except BaseException:
            self._end()
            raise
        self.urls = [f"http://127.0.0.1:{port}" for port in ports]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def _write(self, ports: list[int]) -> Path:
        assert self._prefix is not None
        answers = self._prefix / "answers"
        answers.mkdir()
        locations = []
        for number, (path, body) in enumerate(self._bodies.items()):
            (answers / f"answer{number}").write_bytes(body)
            kind = "default_type text/plain;" if path == "/" else ""
            locations.append(_LOCATION.format(path=path, uri=f"/answer{number}", kind=kind))
        is_root = os.geteuid() == 0
        config = self._prefix / "nginx.conf"
        config.write_text(
            _CONFIG.format(
                # Workers become `nobody` unless told otherwise, who may not read the prefix.
                user=f"user {pwd.getpwuid(0).pw_name};" if is_root else "",
                workers=_WORKERS,
                prefix=self._prefix,
                listen="\n".join(f"        listen 127.0.0.1:{port};" for port in ports),
                locations="\n".join(locations),
            )
        )
        return config

    def _end(self) -> None:
        if self._process is not None:
            _end(self._process)
        if self._prefix is not None:
            shutil.rmtree(self._prefix, ignore_errors=True)


class NoCost:
    """`benchmarks.client.no_cost` in a process of its own, as a context manager.

    dim: of its vectors. tokens: that it counts per text. pace: seconds between two of the
    `lines` of a stream.
    """

    def __init__(
        self,
        *,
        dim: int,
        tokens: int = TOKENS_PER_TEXT,
        pace: float = 0.0,
        lines: int = TOKENS,
    ) -> None:
        self._options = {"dim": dim, "tokens": tokens, "pace": pace, "lines": lines}
        self._process: subprocess.Popen[bytes] | None = None
        self.urls: list[str] = []

    def __enter__(self) -> NoCost:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.client.no_cost", json.dumps(self._options)],
            stdout=subprocess.PIPE,
            preexec_fn=_die_with_parent,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server ended with code {self._process.wait()}")
        self.urls = [json.loads(line)]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process is not None
        _end(self._process)


def _die_with_parent() -> None:
    """In a child before its program starts: let the kernel end it with this process (Linux)."""
    if sys.platform == "linux":
        set_death_signal = 1
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGTERM)


def _end(process: subprocess.Popen[Any]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _await_port(port: int, process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return
    raise RuntimeError(f"the server ended with code {process.returncode}")
