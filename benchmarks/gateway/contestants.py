"""Who is compared: how each is started in front of some nodes, on the core of servers."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

from aiosollol.gateway.middleware.keys import new_key
from benchmarks.client.bodies import CHAT_MODEL, MODEL
from benchmarks.client.contest import STEADY_MALLOC
from benchmarks.gateway.asking import Question
from benchmarks.gateway.load import closed_loop
from benchmarks.gateway.processes import Failed, Program, free_port

_START_SECONDS = 120.0
_MODULE = (sys.executable, "-m")

_NGINX = """\
daemon off;
{user}
worker_processes 1;
pid {home}/nginx.pid;
error_log stderr crit;
events {{ worker_connections 2048; }}
http {{
    access_log off;
    client_body_temp_path {home}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    client_body_buffer_size 1m;
    client_max_body_size 64m;
    keepalive_requests 1000000000;
    upstream nodes {{
{servers}
        keepalive 64;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{port};
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_read_timeout 600s;
        proxy_max_temp_file_size 0;
        location / {{ proxy_pass http://nodes; }}
        location = /api/chat {{ proxy_pass http://nodes; proxy_buffering off; }}
    }}
}}
"""
_HAPROXY = """\
global
    nbthread 1
    maxconn 2048
defaults
    mode http
    timeout connect 5s
    timeout client 600s
    timeout server 600s
    http-reuse always
    option http-no-delay
frontend all
    bind 127.0.0.1:{port}
    default_backend nodes
backend nodes
{servers}
"""
# It reads no cluster of others, and is told its nodes, so that it looks for none.
_SOLLOL = """\
import json, sys
import ray
port, temp, nodes = json.loads(sys.argv[1])
ray.init(address="local", num_cpus=1, _node_ip_address="127.0.0.1", include_dashboard=False,
         _temp_dir=temp, log_to_driver=False)
from sollol.gateway import start_api
start_api(port=port, rpc_backends=[], ollama_nodes=nodes, ray_workers=0,
          enable_batch_processing=False)
"""


@dataclass(frozen=True, slots=True)
class Server:
    """One that is up. program: None if it is the node itself."""

    port: int
    key: str
    program: Program | None = None

    def cpu_seconds(self) -> float:
        return 0.0 if self.program is None else self.program.cpu_seconds()


Starter = Callable[[Path, Sequence[str]], tuple[Program, int, str]]
"""Of a home and the URLs of nodes: the program, where it will listen, and the key to it."""


@contextmanager
def serving(
    start: Starter, home: Path, urls: Sequence[str], question: Question
) -> Iterator[Server]:
    """A contestant in front of the nodes, once it answers `question`. Raises Failed."""
    home.mkdir()
    program, port, key = start(home, urls)

    def is_ready() -> bool:
        try:
            return not closed_loop(port, lambda number: question.whole(key, number), count=1).failed
        except OSError:
            return False

    with program:
        program.wait_until(is_ready, _START_SECONDS)
        yield Server(port, key, program)


def nginx(home: Path, urls: Sequence[str]) -> tuple[Program, int, str]:
    port = free_port()
    user = f"user {pwd.getpwuid(0).pw_name};" if os.geteuid() == 0 else ""
    servers = "\n".join(f"        server {_netloc(url)};" for url in urls)
    config = _NGINX.format(user=user, home=home, port=port, servers=servers)
    (home / "nginx.conf").write_text(config)
    command = [system_program("nginx"), "-p", str(home), "-c", str(home / "nginx.conf")]
    return Program([*command, "-e", "stderr"], home), port, "none"


def haproxy(home: Path, urls: Sequence[str]) -> tuple[Program, int, str]:
    port = free_port()
    servers = "\n".join(f"    server n{i} {_netloc(url)}" for i, url in enumerate(urls))
    (home / "haproxy.cfg").write_text(_HAPROXY.format(port=port, servers=servers))
    command = [system_program("haproxy"), "-db", "-q", "-f", str(home / "haproxy.cfg")]
    return Program(command, home), port, "none"


def floor(home: Path, urls: Sequence[str]) -> tuple[Program, int, str]:
    port = free_port()
    command = [*_MODULE, "benchmarks.gateway.floor", str(port), urls[0]]
    return Program(command, home, env=STEADY_MALLOC), port, "none"


def ours(home: Path, urls: Sequence[str]) -> tuple[Program, int, str]:
    """`aiosollol up` with an API key, and all else as it is by default: metrics, routing, queue.

    Each node is told to be a machine of its own, as it would be.
    """
    port, metrics, key = free_port(), free_port(), new_key("benchmark")
    (home / "keys.txt").write_text(key.line + "\n")
    nodes = ", ".join(f'{{url = "{url}", machine = "m{i}"}}' for i, url in enumerate(urls))
    config = f'hosts = [{nodes}]\napi_keys_file = "{home}/keys.txt"\n'
    config += f"gateway_port = {port}\nmetrics_port = {metrics}\n"
    (home / "gateway.toml").write_text(config)
    command = [*_MODULE, "aiosollol", "up", "--config", str(home / "gateway.toml")]
    env = {**STEADY_MALLOC, "SOLLOL_AUTO_DISCOVER": "false", "XDG_STATE_HOME": str(home)}
    return Program(command, home, env={**env, "XDG_CONFIG_HOME": str(home)}), port, key.token


def litellm(python: str) -> Starter:
    """LiteLLM's proxy, with a key and without a database."""

    def start(home: Path, urls: Sequence[str]) -> tuple[Program, int, str]:
        port, key = free_port(), f"sk-{token_hex(32)}"
        names = {MODEL: f"ollama/{MODEL}", CHAT_MODEL: f"ollama_chat/{CHAT_MODEL}"}
        models = [
            {"model_name": name, "litellm_params": {"model": model, "api_base": urls[0]}}
            for name, model in names.items()
        ]
        (home / "config.yaml").write_text(json.dumps({"model_list": models}))
        command = [python, "-c", "from litellm import run_server; run_server()"]
        command += ["--config", str(home / "config.yaml"), "--host", "127.0.0.1"]
        command += ["--port", str(port), "--telemetry", "False"]
        env = {
            "LITELLM_MASTER_KEY": key,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it fetches a list of prices
            "LITELLM_LOG": "ERROR",
            **STEADY_MALLOC,
        }
        return Program(command, home, env=env), port, key

    return start


def sollol(python: str) -> Starter:
    """The gateway of sollol 0.9.66, its limit of 100 requests a second lifted.

    Without Ray actors, with which a request to a single node takes several times as much. It
    listens on every address, so it may run only where there is no network.
    """

    def start(home: Path, urls: Sequence[str]) -> tuple[Program, int, str]:
        port = free_port()
        pairs = [_netloc(url).split(":") for url in urls]
        nodes = [{"host": host, "port": each} for host, each in pairs]
        order = json.dumps([port, str(home / "ray"), nodes])
        env = {
            "SOLLOL_GLOBAL_RATE_LIMIT": "1e9",
            "SOLLOL_PER_NODE_RATE_LIMIT": "1e9",
            "RAY_USAGE_STATS_ENABLED": "0",
            "HOME": str(home),
            **STEADY_MALLOC,
        }
        return Program([python, "-c", _SOLLOL, order], home, env=env), port, "none"

    return start


def system_program(name: str) -> str:
    """Its path. Raises Failed where it is not installed."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise Failed(f"{name} is not installed")
    return found


def _netloc(url: str) -> str:
    return url.partition("://")[2]
