"""A service without an extra, or without a port for metrics: a warning, and it serves."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import pytest

from aiosollol._install import install_command
from aiosollol.gateway.serving.listener import GATEWAY, METRICS, cannot_listen
from aiosollol.service import SOLLOL, SOLLOLConfig
from aiosollol.service.optional import without_missing
from aiosollol.telemetry.tracing import PassOn
from aiosollol.testing import FakeOllama

pytestmark = pytest.mark.anyio

pytest.importorskip("prometheus_client")
pytest.importorskip("opentelemetry")

EXTRAS = {"prometheus_client": "gateway", "opentelemetry": "otel", "distributed": "dask"}


def config_of(node: FakeOllama, **more: Any) -> SOLLOLConfig:
    settings = {"gateway_port": 0, "metrics_port": 0, "autobatch_enabled": False, "stop_timeout": 5}
    return SOLLOLConfig(hosts=[node.url], **{**settings, **more})


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    for package in packages:
        for name in [name for name in sys.modules if name.split(".")[0] == package]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, package, None)


async def answer_of(url: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return answer.status, await answer.text()


def names_are_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a host that is no name fail as getaddrinfo does before it asks DNS."""
    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        str(host).encode("idna")
        return resolve(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@contextmanager
def held_port() -> Iterator[int]:
    """A port of 127.0.0.1 on which another program listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


# What is not installed.


@pytest.mark.parametrize(
    ("package", "given", "off", "options"),
    [
        ("prometheus_client", {}, {"metrics_enabled": False}, ["--no-metrics", "metrics_enabled"]),
        ("opentelemetry", {"otel": True}, {"otel": False}, ["--no-otel", "otel"]),
        (
            "distributed",
            {"enable_dask": True},
            {"enable_dask": False},
            ["--dask-workers", "enable_dask"],
        ),
        (
            "distributed",
            {"dask_scheduler": "tcp://10.0.0.1:8786"},
            {"dask_scheduler": None},
            ["--dask-scheduler", "dask_scheduler"],
        ),
    ],
)
def test_a_missing_extra_turns_its_part_off(
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    given: dict[str, Any],
    off: dict[str, Any],
    options: list[str],
) -> None:
    without(monkeypatch, package)
    config, (warning,) = without_missing(SOLLOLConfig(**given))
    assert config == SOLLOLConfig(**{**given, **off})
    assert install_command(EXTRAS[package]) in warning
    assert [option for option in options if option not in warning] == []


@pytest.mark.parametrize("settings", [{"metrics_enabled": False}, {"metrics_enabled": True}])
def test_what_is_off_or_installed_is_no_warning(settings: dict[str, Any]) -> None:
    config = SOLLOLConfig(**settings)
    assert without_missing(config) == (config, [])


def test_what_is_off_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, *EXTRAS)
    config = SOLLOLConfig(metrics_enabled=False)
    assert without_missing(config) == (config, [])


async def test_it_serves_without_any_extra(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    without(monkeypatch, *EXTRAS, "swagger_ui", "uvloop")
    async with FakeOllama(models=["all-minilm"]) as node:
        config = config_of(node, otel=True, enable_dask=True)
        async with SOLLOL(config) as sollol:
            assert len(caplog.messages) == 3, caplog.messages
            assert (await answer_of(f"{sollol.url}/api/tags"))[0] == 200
            assert (await answer_of(f"{sollol.url}/metrics"))[0] == 404
            status, page = await answer_of(f"{sollol.url}/docs")
            assert (status, "extra <code>gateway</code>" in page) == (200, True)
            assert sollol.metrics_url is None
            assert "metrics" not in sollol.get_status()["endpoints"]
            assert isinstance(sollol.pool.gateway_access.tracing, PassOn)
            # The settings are those that were given, so that a reload finds nothing changed.
            assert sollol.config == config
            assert str(await sollol.reload()) == "nothing has changed"


# The port for metrics.


@pytest.mark.parametrize(
    ("settings", "problem", "remedy"),
    [
        ({"metrics_port": "held"}, "Address already in use", "--metrics-port (metrics_port)"),
        (
            {"metrics_port": "held", "gateway_host": "localhost"},
            "Address already in use",
            "--metrics-port (metrics_port)",
        ),
        (
            {"metrics_host": "203.0.113.7", "insecure": True},
            "Cannot assign requested address",
            "metrics_host",
        ),
        ({"metrics_host": "nowhere.invalid", "insecure": True}, "not known", "metrics_host"),
        ({"metrics_host": "no..name", "insecure": True}, "label empty", "metrics_host"),
    ],
)
async def test_a_port_for_metrics_that_cannot_be_had(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    settings: dict[str, Any],
    problem: str,
    remedy: str,
) -> None:
    names_are_encoded(monkeypatch)
    async with FakeOllama(models=["all-minilm"]) as node:
        with held_port() as held:
            settings = {key: held if value == "held" else value for key, value in settings.items()}
            sollol = SOLLOL(config_of(node, **settings))
            await sollol.start()
            try:
                (warning,) = caplog.messages
                assert problem in warning
                assert warning.endswith(remedy), warning
                assert sollol.metrics_url is None
                url = sollol.get_status()["endpoints"]["metrics"]
                status, text = await answer_of(url)
                assert status == 200
                assert "sollol_active_requests 1.0" in text
            finally:
                await sollol.stop()
        if "metrics_port" in settings:  # it is free now
            async with sollol:
                assert sollol.metrics_url is not None
                assert (await answer_of(sollol.metrics_url))[0] == 200
            assert len(caplog.messages) == 1


async def test_the_gateway_has_precedence_on_one_port(
    caplog: pytest.LogCaptureFixture, unused_port: int
) -> None:
    async with FakeOllama(models=["all-minilm"]) as node:
        config = config_of(node, gateway_port=unused_port, metrics_port=unused_port)
        async with SOLLOL(config) as sollol:
            assert sollol.url == f"http://127.0.0.1:{unused_port}"
            assert (await answer_of(f"{sollol.url}/api/tags"))[0] == 200
            assert (await answer_of(f"{sollol.url}/metrics"))[0] == 200
            assert sollol.metrics_url is None
    (warning,) = caplog.messages
    assert "--metrics-port" in warning


async def test_another_port_for_metrics_takes_a_restart(caplog: pytest.LogCaptureFixture) -> None:
    async with FakeOllama(models=["all-minilm"]) as node:
        with held_port() as held:
            async with SOLLOL(config_of(node)) as sollol:
                assert sollol.metrics_url is not None
                update = await sollol.update_config(metrics_port=held)
                assert (update.applied, update.needs_restart) == ((), ("metrics_port",))
                assert (await answer_of(sollol.metrics_url))[0] == 200
            assert caplog.messages == ["settings that apply after a restart: metrics_port"]
            async with sollol:
                assert sollol.metrics_url is None
            assert f"port {held} for metrics" in caplog.messages[1]
            assert len(caplog.messages) == 2


async def test_a_failing_start_leaves_no_listener(
    monkeypatch: pytest.MonkeyPatch, unused_port: int
) -> None:
    async def fail(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("aiosollol.service.parts.listen_for_metrics", fail)
    async with FakeOllama(models=["all-minilm"]) as node:
        sollol = SOLLOL(config_of(node, gateway_port=unused_port))
        with pytest.raises(ZeroDivisionError):
            await sollol.start()
        assert not sollol.is_running
        with pytest.raises(aiohttp.ClientConnectorError):
            await answer_of(f"http://127.0.0.1:{unused_port}")


@pytest.mark.parametrize(
    ("error", "why", "remedy"),
    [
        (
            OSError(errno.EADDRINUSE, "bind: in use"),
            os.strerror(errno.EADDRINUSE),
            "--metrics-port",
        ),
        (PermissionError(errno.EACCES, "no"), os.strerror(errno.EACCES), "--metrics-port"),
        (
            OSError(errno.EADDRNOTAVAIL, "no such address"),
            os.strerror(errno.EADDRNOTAVAIL),
            "metrics_host",
        ),
        (
            OSError("could not bind on any address"),
            os.strerror(errno.EADDRNOTAVAIL),
            "metrics_host",
        ),
        (socket.gaierror(socket.EAI_NONAME, "Name not known"), "Name not known", "metrics_host"),
        (UnicodeError("label empty or too long"), "label empty", "metrics_host"),
        (OSError(errno.EMFILE, "bind: too many"), os.strerror(errno.EMFILE), ""),
    ],
)
def test_why_an_address_cannot_be_had(error: OSError | ValueError, why: str, remedy: str) -> None:
    message = str(cannot_listen("127.0.0.1", 9090, error, METRICS))
    assert message.startswith(f"cannot listen on 127.0.0.1 port 9090 for metrics: {why}")
    assert remedy in message
    assert ";" in message or not remedy
    assert " for metrics" not in str(cannot_listen("127.0.0.1", 8000, error, GATEWAY))
