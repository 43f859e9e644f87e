"""``aiosollol up`` and its options: keys, ports, missing extras, and errors."""

from __future__ import annotations

import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest
from up_process import MODELS, embed, running, text_of

from aiosollol._install import install_command
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
from aiosollol.testing.server import FakeOllamaProcess

pytestmark = pytest.mark.anyio
pytest.importorskip("prometheus_client")


@pytest.fixture(scope="module")
async def node() -> AsyncIterator[str]:
    async with FakeOllamaProcess(models=MODELS, slots=64, seconds_per_chat_token=0.01) as fake:
        yield fake.url


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
    assert install_command("gateway") in metrics
    assert "--no-metrics" in metrics
    assert install_command("otel") in spans
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
        "--adaptive-metrics-interval 6 --host ::1 --insecure --allow-admin --no-metrics "
        "--cors-origins https://a.example.com --cors-origins app://*"
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
        "cors_origins": ["https://a.example.com", "app://*"],
        "metrics_enabled": False,
    }
