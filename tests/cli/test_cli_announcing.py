"""How `aiosollol agent` announces its Ollama: what it says, under which addresses, until when."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from netlab import NetLab
from test_cli_agent import PROGRAM

from aiosollol.cli import advertise
from aiosollol.cli.advertise import announced, announcement_of
from aiosollol.core.address import Address
from aiosollol.errors import InvalidInput, NodeUnreachable
from aiosollol.testing import FakeOllama, Fault
from aiosollol.wire.agent import AgentReport, Gpu
from aiosollol.wire.announcement import Announcement, read_announcement

pytestmark = pytest.mark.anyio

L4 = Gpu("NVIDIA L4", 24_000, 20_000)
REPORT = AgentReport("m1", "http://127.0.0.1:11434", "1", gpus=(L4,))


# ---- what is said


@pytest.mark.parametrize(
    ("gpus", "version", "port", "said"),
    [
        ((), "0.33.0", None, Announcement("n", version="0.33.0")),
        ((L4,), "", 7, Announcement("n", "http", "", "", "", "NVIDIA L4", 24_000, 20_000, 7)),
        ((Gpu("x", 5), Gpu("x", 6)), "", None, Announcement("n", gpu="2 x x", gpu_memory=11)),
        # What nobody would believe is left out, or made so that it is believed.
        ((), "my own build", None, Announcement("n")),
        ((Gpu("a\x1b[31m\tb "),), "", None, Announcement("n", gpu="a[31mb")),
        ((Gpu("a\ufffd"),), "", None, Announcement("n")),
        ((Gpu("a" * 63 + " b"),), "", None, Announcement("n", gpu="a" * 63)),
        ((Gpu("a" * 100),), "", None, Announcement("n", gpu="a" * 64)),
    ],
)
def test_what_is_announced_is_believed(
    gpus: tuple[Gpu, ...], version: str, port: int | None, said: Announcement
) -> None:
    announcement = announcement_of(REPORT._replace(gpus=gpus), "n", version, port)
    assert announcement == said._replace(machine="m1")
    assert read_announcement("n", dict(announcement.as_txt())) == announcement


# ---- under which addresses, with no packet to the network


class FakeAdvertiser:
    """Notes what it is told."""

    made: FakeAdvertiser

    def __init__(self, url: str, first: Announcement, *, addresses: list[str]) -> None:
        FakeAdvertiser.made = self
        self.url = url
        self.told = [first]
        self.addresses = addresses
        self.is_closed = False

    async def __aenter__(self) -> FakeAdvertiser:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.is_closed = True

    async def update(self, announcement: Announcement) -> None:
        self.told.append(announcement)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    async def own_addresses() -> list[str]:
        return ["127.0.0.1", "127.0.0.2"]  # as if they were in a LAN

    monkeypatch.setattr(advertise, "Advertiser", FakeAdvertiser)
    monkeypatch.setattr(advertise, "_lan_addresses", own_addresses)
    monkeypatch.setattr(advertise, "is_reachable", lambda ip: True)


async def test_it_is_announced_where_it_answers_until_the_end() -> None:
    async with FakeOllama(version="0.33.0") as ollama:
        address = Address.parse(f"http://localhost:{ollama.port}")
        async with announced(address, "gpu-1", REPORT, 11435) as announcer:
            made = FakeAdvertiser.made
            assert made.url == address.url
            assert made.addresses == ["127.0.0.1"]  # on 127.0.0.2 it does not listen
            first = announcement_of(REPORT, "gpu-1", "0.33.0", 11435)
            assert made.told == [first]
            less = REPORT._replace(gpus=(L4._replace(memory_free=1),))
            await announcer.update(less)
            ollama.fault = Fault.REFUSE
            await announcer.update(less)  # the version that it had
        assert made.told[1:] == [first._replace(gpu_free=1)] * 2
        assert made.is_closed


async def test_the_name_is_that_of_the_machine_unless_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(advertise.socket, "gethostname", lambda: "gpu-7.lan")
    async with FakeOllama() as ollama, announced(Address.parse(ollama.url), None, REPORT, None):
        assert FakeAdvertiser.made.told[0].name == "gpu-7"
        assert FakeAdvertiser.made.told[0].agent == 0


async def test_an_ollama_that_others_cannot_reach_is_not_announced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(advertise, "_lan_addresses", _none)
    async with FakeOllama() as ollama:
        with pytest.raises(InvalidInput, match=r"OLLAMA_HOST=0\.0\.0\.0 .*--no-adv"):
            async with announced(Address.parse(ollama.url), None, REPORT, None):
                pass


async def _none() -> list[str]:
    return []


async def test_an_ollama_that_does_not_answer_is_not_announced(unused_port: int) -> None:
    with pytest.raises(NodeUnreachable):
        async with announced(Address("http", "127.0.0.1", unused_port), None, REPORT, None):
            pass


async def test_a_name_that_nobody_knows_is_named() -> None:
    with pytest.raises(NodeUnreachable, match=r"gpu\.invalid"):
        async with announced(Address.parse("gpu.invalid:11434"), None, REPORT, None):
            pass


# ---- over real networks

LISTEN = """
import asyncio, json, urllib.request
from aiosollol.discovery.mdns import Heard, browse

def read(url):
    return json.loads(urllib.request.urlopen(url, timeout=10).read())

async def main():
    async with browse() as news:
        print("listening", flush=True)
        async for each in news:
            if not isinstance(each, Heard):
                print("gone", flush=True)
                return
            host = each.urls[0].rpartition(":")[0]
            url = f"{host}:{each.announcement.agent}/agent"
            report = await asyncio.to_thread(read, url)
            told = [each.urls, each.announcement._asdict(), report]
            print("heard", json.dumps(told), flush=True)

asyncio.run(main())
"""


@pytest.mark.netlab
async def test_other_machines_hear_of_it_read_it_and_hear_its_goodbye(netlab: NetLab) -> None:
    pytest.importorskip("psutil")
    node, other = await netlab.host("10.77.0.11"), await netlab.host("10.77.0.12")
    ollama = await node.fake_ollama("--version", "9.8.7")
    listener = await other.spawn(sys.executable, "-c", LISTEN, ready="listening")
    given: dict[str, Any] = {"url": ollama.url, "host": "0.0.0.0", "name": "gpu-1"}
    given |= {"gpu_name": "Radeon", "vram_gb": 24}
    agent = await node.spawn(
        sys.executable, "-W", "error", "-c", PROGRAM, json.dumps(given), ready="The agent is at"
    )
    heard = await listener.line_with("heard")
    urls, announcement, report = json.loads(heard.removeprefix("heard"))
    assert urls == ["http://10.77.0.11:11434"]
    gpu = report["gpus"][0]["name"]
    assert announcement["name"] == "gpu-1"
    assert announcement["version"] == "9.8.7"
    assert announcement["agent"] == 11435
    assert announcement["machine"] == report["machine"] == f"lab-{node.name}"
    assert announcement["gpu"] == gpu
    assert report["ollama"] == ollama.url
    await agent.line_with("Anyone who can reach this port")
    assert (await agent.end()).returncode == 0
    await listener.line_with("gone")
