"""The addresses that a search may ask: `allow`, `deny`, and trusted names and certificates."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from discovery_servers import (
    FINGERPRINT,
    Peer,
    free_port,
    ollama,
    server_tls,
)
from search_parts import HOSTS, LONG, Servers, all_of, announcing, heard, searching, urls

from aiosollol.discovery.sweep import SearchRun

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine may be so busy that it does not answer itself in milliseconds."""
    monkeypatch.setattr("aiosollol.discovery.sweep.home_seconds", lambda timeout: LONG)


@pytest.fixture
async def servers() -> AsyncIterator[Servers]:
    async with AsyncExitStack() as stack:
        yield Servers(stack, free_port(("127.0.0.1", *HOSTS)))


@pytest.fixture
def loopback_may_announce(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SearchRun, "_may_be_announced", lambda self, address: True)


async def test_allow_narrows_the_search_and_deny_forbids(servers: Servers) -> None:
    one, two, three = [await servers.start(ollama(), host) for host in HOSTS[:3]]
    ports = [servers.port]
    assert urls(await all_of(searching(ports=ports, allow=[HOSTS[0]]))) == [one.url]
    named = {"OLLAMA_HOST": three.url}
    found = await all_of(searching(ports=ports, allow=[HOSTS[0]], environ=named))
    assert urls(found) == [one.url, three.url]  # who is named need not be allowed as well
    found = await all_of(searching(ports=ports, deny=[HOSTS[2]], environ=named))
    assert urls(found) == [one.url, two.url]


@pytest.mark.parametrize("trusted", [[HOSTS[0]], [f"{HOSTS[0]}/32", "10.0.0.0/8"]])
async def test_only_who_is_trusted_is_asked(
    servers: Servers, trusted: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aiosollol")
    good, evil = [await servers.start(ollama(), host) for host in HOSTS[:2]]
    search = searching(
        ports=[servers.port], trusted=trusted, environ={"OLLAMA_HOST": evil.url}, known=[evil.url]
    )
    assert urls(await all_of(search)) == [good.url]
    assert evil.connections == 0
    assert "left out, because they are not trusted" in caplog.text
    assert f": {evil.url}" in caplog.text
    assert "13 addresses of networks" in caplog.text


async def test_a_trusted_name_is_an_address(servers: Servers) -> None:
    node = await servers.start(ollama(), "127.0.0.1")
    evil = await servers.start(ollama(), HOSTS[0])
    search = searching(ports=[servers.port], trusted=["localhost", "gpu-box.invalid"])
    assert urls(await all_of(search)) == [node.url]
    assert evil.connections == 0


@pytest.mark.usefixtures("loopback_may_announce")
async def test_an_announced_name_is_no_proof(servers: Servers) -> None:
    evil = await servers.start(ollama(), HOSTS[0])
    search = searching(
        trusted=["box.invalid", "localhost"], browse=announcing(heard(evil.url, name="box.invalid"))
    )
    assert await all_of(search) == []
    assert evil.connections == 0


@pytest.mark.parametrize("written", [FINGERPRINT, f"sha256:{FINGERPRINT.upper()}"])
async def test_a_trusted_certificate(servers: Servers, tmp_path: Path, written: str) -> None:
    async def bad_request(peer: Peer) -> None:  # as Go's servers answer a greeting by TLS
        greetings.append(await peer.reader.read(1000))
        await peer.answer(b"Client sent an HTTPS request to an HTTP server.", 400)

    greetings: list[bytes] = []
    await servers.start(bad_request, HOSTS[0])
    await servers.start(ollama(), HOSTS[1], tls=server_tls(tmp_path))
    (found,) = await all_of(searching(ports=[servers.port], trusted=[written]))
    assert found.url == f"https://{HOSTS[1]}:{servers.port}"
    assert found.fingerprint == FINGERPRINT
    assert len(greetings) == 1
    assert b"GET" not in greetings[0]


async def test_a_certificate_that_is_not_listed(
    servers: Servers, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aiosollol")
    server = await servers.start(ollama(), HOSTS[0], tls=server_tls(tmp_path))
    search = searching(ports=[servers.port], trusted=["sha256:" + "0" * 64])
    assert await all_of(search) == []
    assert f"sha256:{FINGERPRINT}" in caplog.text
    assert server.heads == []


async def test_https_by_name_needs_a_certificate_that_is_signed(
    servers: Servers, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aiosollol")
    server = await servers.start(ollama(), HOSTS[0], tls=server_tls(tmp_path))
    url = f"https://{HOSTS[0]}:{servers.port}"
    given: dict[str, Any] = {"use_scan": False, "environ": {"OLLAMA_HOST": url}}
    assert await all_of(searching(**given)) == []
    assert "self-signed" in caplog.text
    assert server.heads == []
    # Listed by its address, it still has to be signed. Listed by both, the certificate does.
    assert await all_of(searching(**given, trusted=[HOSTS[0]])) == []
    (found,) = await all_of(searching(**given, trusted=[HOSTS[0], FINGERPRINT]))
    assert (found.url, found.fingerprint) == (url, FINGERPRINT)
