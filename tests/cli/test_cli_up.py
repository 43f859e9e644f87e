"""``aiosollol up`` as its users run it: a process, or several, under load and under signals.

The gateway and what asks it are processes of their own, so that nothing here waits for itself.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from aiosollol.cli import gateway as module
from aiosollol.cli.gateway import (
    UpOptions,
    greeting,
    print_key,
    source_of,
)
from aiosollol.gateway.middleware.keys import new_key, parse_keys
from aiosollol.service.config import SOLLOLConfig
from aiosollol.service.running import Running
from aiosollol.testing import FakeModel
from aiosollol.testing.server import FakeOllamaProcess

pytestmark = pytest.mark.anyio

pytest.importorskip("prometheus_client")

DEADLINE = 120.0  # a hang fails; nothing is measured

PROGRAM = "from aiosollol.cli import gateway, main; raise SystemExit(main())"
MODELS = [FakeModel("all-minilm"), FakeModel("llama3.2", kind="chat")]


class Gateway:
    """A gateway that runs. lines: what it has said so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self._heard = asyncio.Condition()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            async with self._heard:
                self.lines.append(line.decode().rstrip())
                self._heard.notify_all()
        async with self._heard:
            self._heard.notify_all()

    async def said(self, text: str, *, times: int = 1) -> str:
        """The line that has `text`, for the so-manieth time, once it was said."""
        async with self._heard:
            while len(found := [line for line in self.lines if text in line]) < times:
                assert not self._reading.done(), self.lines
                await self._heard.wait()
        return found[times - 1]

    async def url(self) -> str:
        line = await self.said("Listening on ")
        return line.split()[2].rstrip(";")

    async def metrics_url(self) -> str:
        return (await self.said("Metrics: ")).split()[1]

    async def pids(self) -> list[int]:
        line = await self.said("processes: ")
        return [int(pid) for pid in line.split("processes: ")[1].split(")")[0].split(", ")]

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    async def end(self) -> int:
        """The exit code, once it has ended."""
        await self._reading
        return await self.process.wait()


@asynccontextmanager
async def running(
    tmp_path: Path, *arguments: str, files: int | None = None, **environment: str
) -> AsyncIterator[Gateway]:
    """``aiosollol up`` on free ports. files: how many it may have open."""
    limit = (
        ""
        if files is None
        else f"import resource as r; r.setrlimit(r.RLIMIT_NOFILE, ({files}, {files})); "
    )
    process = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "-W",
            "error",
            "-c",
            limit + PROGRAM,
            "up",
            "--port=0",
            "--metrics-port=0",
        ),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path), **environment},
        start_new_session=True,
    )
    gateway = Gateway(process)
    try:
        async with asyncio.timeout(DEADLINE):
            yield gateway
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await gateway.end()


@pytest.fixture(scope="module")
async def node() -> AsyncIterator[str]:
    async with FakeOllamaProcess(models=MODELS, slots=64, seconds_per_chat_token=0.01) as fake:
        yield fake.url


async def embed(session: aiohttp.ClientSession, url: str, **headers: str) -> int:
    body = {"model": "all-minilm", "input": "a text"}
    async with session.post(f"{url}/api/embed", json=body, headers=headers) as answer:
        answered = await answer.json()
        assert answer.status != 200 or len(answered["embeddings"]) == 1
        return answer.status


async def chat(session: aiohttp.ClientSession, url: str) -> list[dict[str, Any]]:
    """A streamed chat: its parts."""
    messages = [{"role": "user", "content": "one two three four five six seven eight nine ten"}]
    body = {"model": "llama3.2", "messages": messages}
    async with session.post(f"{url}/api/chat", json=body) as answer:
        assert answer.status == 200, await answer.text()
        return [json.loads(line) async for line in answer.content]


class Load:
    """Clients that ask again and again until they are refused a connection, or are told to end.

    done: requests that were answered. failed: those that were begun and came to nothing.
    """

    def __init__(self, url: str, clients: int = 9) -> None:
        self._url = url
        self.done = 0
        self.failed: list[str] = []
        self.is_over = False
        self._tasks = [asyncio.create_task(self._ask(n % 3)) for n in range(clients)]

    async def _ask(self, kind: int) -> None:
        """Streams, or short requests: on a connection that is kept, or each on a new one."""
        connector = aiohttp.TCPConnector(force_close=kind == 2)
        async with aiohttp.ClientSession(connector=connector) as session:
            while not self.is_over:
                try:
                    if kind == 0:
                        assert (await chat(session, self._url))[-1]["done"] is True
                    else:
                        assert await embed(session, self._url) == 200
                except aiohttp.ClientConnectorError:
                    return  # it listens no more
                except Exception as error:
                    self.failed.append(repr(error))
                    return
                self.done += 1

    async def reaches(self, count: int) -> None:
        while self.done < count and not self.failed:
            await asyncio.sleep(0.01)

    async def end(self) -> None:
        await asyncio.gather(*self._tasks)


async def test_what_it_says(tmp_path: Path, node: str) -> None:
    async with running(tmp_path, f"--node={node}", "--no-autobatch") as gateway:
        url = await gateway.url()
        assert await gateway.said("Nodes: ") == f"Nodes: {node}"
        async with aiohttp.ClientSession() as session:
            assert await embed(session, url) == 200
        assert "sollol_requests_total" in await text_of(await gateway.metrics_url())
        gateway.send(signal.SIGINT)
        assert await gateway.end() == 0
        assert gateway.lines[-1] == "The gateway has ended."
        assert len(gateway.lines) == 5, gateway.lines


@pytest.mark.parametrize("workers", [1, 2])
async def test_sigterm_under_load_fails_no_request(tmp_path: Path, node: str, workers: int) -> None:
    arguments = (f"--node={node}", "--no-autobatch", f"--workers={workers}")
    async with running(tmp_path, *arguments) as gateway:
        load = Load(await gateway.url())
        await load.reaches(100)
        gateway.send(signal.SIGTERM)
        await load.end()
        assert await gateway.end() == 0
    assert load.failed == []
    assert load.done >= 100


async def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    async with (
        FakeOllamaProcess(models=MODELS, seconds_per_chat_token=3600.0) as slow,
        running(tmp_path, f"--node={slow.url}", "--no-autobatch") as gateway,
    ):
        url = await gateway.url()
        async with aiohttp.ClientSession() as session:
            asking = asyncio.create_task(chat(session, url))
            await under_way(session, url)
            gateway.send(signal.SIGTERM)
            while await is_open(url):
                await asyncio.sleep(0.01)
            assert not asking.done()
            gateway.send(signal.SIGTERM)
            assert await gateway.end() == 128 + signal.SIGTERM
            with pytest.raises(aiohttp.ClientError):
                await asking
        assert "1 requests were cut off" in gateway.lines


async def under_way(session: aiohttp.ClientSession, url: str) -> None:
    """Wait until a request is under way besides the one that asks."""
    while True:
        async with session.get(f"{url}/metrics") as answer:
            if "sollol_active_requests 2.0" in await answer.text():
                return


async def is_open(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except ConnectionError:
        return False
    writer.close()
    return True


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_reload_under_load_fails_no_request(
    tmp_path: Path, node: str, workers: int
) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(f"hosts = ['{node}']\nautobatch_enabled = false\nprocesses = {workers}\n")
    async with (
        FakeOllamaProcess(models=MODELS, slots=64) as other,
        running(tmp_path, f"--config={file}") as gateway,
    ):
        load = Load(await gateway.url())
        await load.reaches(20)
        file.write_text(
            f"hosts = ['{node}', '{other.url}']\nautobatch_enabled = false\n"
            f"processes = {workers}\nchat_timeout = 7\nrate_limit = 1000000\n"
        )
        gateway.send(signal.SIGHUP)
        told = await gateway.said("read again: applied: hosts, rate_limit", times=workers)
        assert "after a restart: chat_timeout" in told
        await load.reaches(load.done + 50)
        file.write_text("hosts = 3\n")
        gateway.send(signal.SIGHUP)
        await gateway.said("the settings are unchanged: ", times=workers)
        await load.reaches(load.done + 20)
        load.is_over = True
        await load.end()
        told = await text_of(await gateway.metrics_url())
        assert f'host="{other.url.removeprefix("http://")}"' in told
        gateway.send(signal.SIGTERM)
        assert await gateway.end() == 0
    assert load.failed == []


async def test_a_killed_process_is_replaced_and_the_others_serve(tmp_path: Path, node: str) -> None:
    arguments = (f"--node={node}", "--no-autobatch", "--workers=2")
    async with running(tmp_path, *arguments) as gateway:
        url = await gateway.url()
        first, second = await gateway.pids()
        os.kill(first, signal.SIGKILL)
        # What was on its way to the one that died may fail; whoever asks again is served.
        served = 0
        while served < 20:
            async with aiohttp.ClientSession() as session:
                with suppress(aiohttp.ClientError):
                    served += await embed(session, url) == 200
        await gateway.said("process 0 ended with SIGKILL; restarting it in 0.1 s")
        while len(await processes(await gateway.metrics_url())) < 2:
            await asyncio.sleep(0.05)
        os.kill(second, 0)  # the other one was left alone
        gateway.send(signal.SIGTERM)
        assert await gateway.end() == 0


async def text_of(url: str) -> str:
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return await answer.text()


async def processes(metrics_url: str) -> set[str]:
    """Which processes the metrics tell of."""
    text = await text_of(metrics_url)
    return {index for index in "0123" if f'sollol_connections{{process="{index}"}}' in text}


async def test_processes_end_when_their_parent_is_killed(tmp_path: Path, node: str) -> None:
    arguments = (f"--node={node}", "--no-autobatch", "--workers=2")
    async with running(tmp_path, *arguments) as gateway:
        url = await gateway.url()
        gateway.process.kill()
        while await is_open(url):
            await asyncio.sleep(0.01)


async def test_keys_and_a_public_address(tmp_path: Path, node: str) -> None:
    key = new_key("ann")
    file = tmp_path / "keys.txt"
    file.write_text(key.line)
    arguments = (f"--node={node}", "--no-autobatch", f"--api-keys={file}", "--no-metrics")
    async with running(tmp_path, *arguments) as gateway:
        url = await gateway.url()
        async with aiohttp.ClientSession() as session:
            assert await embed(session, url) == 401
            assert await embed(session, url, Authorization=f"Bearer {key.token}") == 200
        gateway.send(signal.SIGTERM)
        assert await gateway.end() == 0
        assert key.token not in "".join(gateway.lines)
        assert not any("Metrics" in line for line in gateway.lines)


async def burst(url: str, count: int) -> Counter[str]:
    """Single texts, all at once, each on a connection of its own: how many got which answer."""
    host, port = url.removeprefix("http://").split(":")

    async def one(number: int) -> str:
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            body = b'{"model": "all-minilm", "input": ["text %d"]}' % number
            head = b"POST /api/embed HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            writer.write(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            answer = await reader.read()
        finally:
            writer.close()
        return answer.partition(b"\r\n")[0].decode() or "closed"

    return Counter(await asyncio.gather(*map(one, range(count))))


@pytest.mark.parametrize(
    ("options", "files"),
    [
        ([], None),  # more than the 1,000 that are the limit of a key
        (["--max-connections=50"], None),
        (["--max-in-flight=50"], None),
        ([], 300),  # of which connections of clients have 225
        (["--workers=2"], 300),
    ],
)
async def test_a_burst_of_single_texts(
    tmp_path: Path, node: str, options: list[str], files: int | None
) -> None:
    """As Open WebUI sends them: a request for each passage of a document, without a second try."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, before[1]), before[1]))
    try:
        arguments = (f"--node={node}", "--no-autobatch", *options)
        async with running(tmp_path, *arguments, files=files) as gateway:
            count = 1200 if files is None and not options else 600
            assert await burst(await gateway.url(), count) == {"HTTP/1.1 200 OK": count}
            gateway.send(signal.SIGTERM)
            assert await gateway.end() == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("workers", [1, 2])
async def test_what_cannot_be_is_told(tmp_path: Path, workers: int) -> None:
    async with running(tmp_path, "--host=0.0.0.0", f"--workers={workers}") as gateway:
        assert await gateway.end() == 2
        assert len(gateway.lines) == 1
        assert "there are no API keys" in gateway.lines[0]


@contextmanager
def held_port() -> Iterator[int]:
    """A port of 127.0.0.1 on which another program listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_busy_port_for_metrics_is_one_warning(
    tmp_path: Path, node: str, workers: int
) -> None:
    with held_port() as port:
        arguments = (f"--node={node}", "--no-autobatch", f"--workers={workers}")
        async with running(tmp_path, *arguments, f"--metrics-port={port}") as gateway:
            url = await gateway.url()
            async with aiohttp.ClientSession() as session:
                assert await embed(session, url) == 200
            assert "sollol_requests_total" in await text_of(f"{url}/metrics")
            gateway.send(signal.SIGTERM)
            assert await gateway.end() == 0
    (warning,) = (line for line in gateway.lines if str(port) in line)
    assert f"cannot listen on 127.0.0.1 port {port} for metrics: Address already in use" in warning
    assert "--metrics-port" in warning
    assert gateway.lines[0] == warning
    assert len(gateway.lines) == 5, gateway.lines


@pytest.mark.parametrize("workers", [1, 2])
async def test_what_is_not_installed_is_one_warning_each(
    tmp_path: Path, node: str, workers: int
) -> None:
    for package in ("prometheus_client", "opentelemetry"):
        (tmp_path / f"{package}.py").write_text("raise ImportError('it is not installed')")
    arguments = (f"--node={node}", "--no-autobatch", "--otel", f"--workers={workers}")
    async with running(tmp_path, *arguments, PYTHONPATH=str(tmp_path)) as gateway:
        url = await gateway.url()
        async with aiohttp.ClientSession() as session:
            assert await embed(session, url) == 200
            async with session.get(f"{url}/metrics") as answer:
                assert answer.status == 404
        gateway.send(signal.SIGTERM)
        assert await gateway.end() == 0
    metrics, spans = gateway.lines[:2]
    assert "pip install 'aiosollol[gateway]'" in metrics
    assert "--no-metrics" in metrics
    assert "pip install 'aiosollol[otel]'" in spans
    assert "--no-otel" in spans
    assert len(gateway.lines) == 6, gateway.lines


async def test_a_reload_leaves_the_port_for_metrics_as_it_is(tmp_path: Path, node: str) -> None:
    file = tmp_path / "gateway.toml"
    settings = f"hosts = ['{node}']\nautobatch_enabled = false\n"
    file.write_text(settings)
    with held_port() as port:
        async with running(tmp_path, f"--config={file}") as gateway:
            metrics_url = await gateway.metrics_url()
            file.write_text(f"{settings}metrics_host = '127.0.0.2'\ngateway_port = {port}\n")
            gateway.send(signal.SIGHUP)
            assert "after a restart: metrics_host" in await gateway.said("were read again: ")
            assert "sollol_active_requests" in await text_of(metrics_url)
            gateway.send(signal.SIGTERM)
            assert await gateway.end() == 0


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_busy_port_ends_it_with_a_line(tmp_path: Path, node: str, workers: int) -> None:
    with held_port() as port:
        arguments = (f"--node={node}", "--no-autobatch", f"--workers={workers}", f"--port={port}")
        async with running(tmp_path, *arguments) as gateway:
            assert await gateway.end() == 2
    (line,) = gateway.lines
    assert line.startswith(f"error: cannot listen on 127.0.0.1 port {port}: Address already in use")
    assert line.endswith("choose another port: --port (gateway_port)")


# Without a process.


def test_a_key_and_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_key("ann", "models=qwen* admin") == 0
    shown = capsys.readouterr()
    (key,) = parse_keys(shown.out, "keys.txt")
    assert (key.name, key.models, key.is_admin) == ("ann", ("qwen*",), True)
    token = shown.err.split()[-1]
    assert token.startswith("sk-sollol-")
    assert token not in shown.out


def test_options_that_were_not_given_leave_it_to_the_file(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text("gateway_port = 8001\nhosts = ['10.0.0.2']\nmetrics_port = 9091\n")
    given = {"gateway_port": 8002, "metrics_port": None}
    config = source_of(UpOptions(config=str(file), given=given)).read()
    assert (config.gateway_port, config.metrics_port) == (8002, 9091)
    assert config.hosts == ("10.0.0.2",)
    named = source_of(UpOptions(config=str(file), nodes=["10.0.0.3"], hosts="none.txt"))
    assert named.read().hosts == ("10.0.0.3",)
    assert source_of(UpOptions()).read().hosts is None


def test_what_a_user_is_told() -> None:
    running = Running("http://127.0.0.1:8000", None, None, (1, 2))
    lines = greeting(running)
    assert lines[0] == "Listening on http://127.0.0.1:8000 (2 processes: 1, 2); Ctrl-C ends it."
    assert "what a search finds" in lines[1]
    assert not any(line.startswith("Metrics") for line in lines)


def test_every_limit_has_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from aiosollol.cli import gateway as gateway_commands  # noqa: F401 - adds the command
    from aiosollol.cli.base import app

    told: list[UpOptions] = []
    monkeypatch.setattr(module, "run_up", lambda options: told.append(options) or 0)
    limits = {
        "max_in_flight": 1,
        "rate_limit": 2.0,
        "rate_burst": 3,
        "wait_timeout": 4.0,
        "max_connections": 5,
        "max_body": 6,
        "max_bodies": 7,
    }
    line = [f"--{name.replace('_', '-')}={value:g}" for name, value in limits.items()]
    assert CliRunner().invoke(app, ["up", *line]).exit_code == 0
    given = {name: value for name, value in told[0].given.items() if value is not None}
    assert given == limits
    assert SOLLOLConfig(**given).pool_settings()["wait_timeout"] == 4.0
    shown = CliRunner().invoke(app, ["up", "--help"]).output
    for name in limits:
        assert f"--{name.replace('_', '-')} " in shown


def test_every_option_of_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from aiosollol.cli import gateway as gateway_commands  # noqa: F401 - adds the command
    from aiosollol.cli.base import app

    told: list[UpOptions] = []
    monkeypatch.setattr(module, "run_up", lambda options: told.append(options) or 0)
    line = (
        "up --workers 3 --dask-workers 4 --hosts h.txt --port 8001 --dask-scheduler tcp://x:1 "
        "--no-autobatch --autobatch-interval 5 --no-adaptive-metrics "
        "--adaptive-metrics-interval 6 --host ::1 --insecure --allow-admin --no-metrics"
    )
    assert CliRunner().invoke(app, line.split()).exit_code == 0
    (options,) = told
    assert options.hosts == "h.txt"
    given = {name: value for name, value in options.given.items() if value is not None}
    assert given == {
        "processes": 3,
        "enable_dask": True,
        "dask_workers": 4,
        "gateway_host": "::1",
        "gateway_port": 8001,
        "dask_scheduler": "tcp://x:1",
        "autobatch_enabled": False,
        "autobatch_interval": 5.0,
        "adaptive_metrics_enabled": False,
        "adaptive_metrics_interval": 6.0,
        "insecure": True,
        "allow_admin": True,
        "metrics_enabled": False,
    }
