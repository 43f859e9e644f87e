"""The search on a real network: what it finds, how many sockets it needs, and one machine as one.

How long it takes is measured, not tested: see benchmarks/discovery.py.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from typing import Any

import pytest
from netlab import Host, NetLab

from benchmarks.discovery import NODES, OTHERS, REFUSING, SCENES, build, missed, read

pytestmark = [pytest.mark.anyio, pytest.mark.netlab]

SEARCH = """
import asyncio, json, socket, sys
from aiosollol.discovery import discover

class Counted(socket.socket):
    open = most = 0
    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        Counted.open += 1
        Counted.most = max(Counted.most, Counted.open)
    def close(self):
        Counted.open -= self.fileno() >= 0
        super().close()

async def main(options):
    loop_has = len(asyncio.all_tasks())
    socket.socket = Counted
    async with discover(environ={}, **options) as search:
        nodes = [node._asdict() async for node in search]
    print(json.dumps({
        "nodes": nodes, "skipped": search.skipped, "addresses": search.addresses,
        "seconds": search.seconds, "open_at_most": search.open_at_most, "sockets": Counted.most,
        "left_open": Counted.open, "tasks": len(asyncio.all_tasks()) - loop_has,
    }))

asyncio.run(main(json.loads(sys.argv[1])))
"""


async def search(host: Host, **options: Any) -> dict[str, Any]:
    options = {"use_zeroconf": False, "timeout": 2.0, **options}
    said = await host.python(SEARCH, json.dumps(options))
    result: dict[str, Any] = json.loads(said)
    assert result["left_open"] == result["tasks"] == 0
    return result


def urls(result: dict[str, Any]) -> list[str]:
    return sorted(node["url"] for node in result["nodes"])


async def test_five_nodes_among_254_addresses(netlab: NetLab) -> None:
    assert len(REFUSING) == 40
    assert len(OTHERS) == 254 - 5 - 1
    searcher = await build(netlab, SCENES[0])
    result = await search(searcher)
    assert urls(result) == sorted(f"http://{address}:11434" for address in NODES)
    assert all(node["models"] == ["all-minilm:latest"] for node in result["nodes"])
    assert result["addresses"] == 255  # with localhost
    assert result["open_at_most"] <= 256
    assert result["sockets"] <= 256
    # All at once: two rounds would take twice the timeout.
    assert 2.0 <= result["seconds"] < 4.0
    # One that has few files takes more rounds, and finds them all the same.
    few = await search(searcher, timeout=1.0, max_open=64)
    assert urls(few) == urls(result)
    assert few["sockets"] <= 64


async def test_the_benchmark_reads_what_it_says(netlab: NetLab) -> None:
    searcher = await build(netlab, SCENES[-1])
    reading = await read(searcher, SCENES[-1])
    assert reading.found == []
    assert reading.addresses == 255
    assert 0 < reading.cpu < 60
    problems = missed(SCENES[-1:], {SCENES[-1].name: [reading]})
    assert not [each for each in problems if "found" in each or "sockets" in each]


async def test_localhost_and_the_real_address_are_one_node(netlab: NetLab) -> None:
    host = await netlab.host("10.77.0.20")
    await host.fake_ollama("--host", "0.0.0.0")
    ours = "http://10.77.0.20:11434"
    # With patience, since the machine may be busy: it waits for the better address.
    assert urls(await search(host, subnets=["10.77.0.20"], timeout=10.0)) == [ours]
    assert urls(await search(host, exclude_localhost=True)) == [ours]
    options = {"known": ["http://localhost:11434"], "timeout": 10.0}
    assert urls(await search(host, subnets=["10.77.0.20"], **options)) == [ours]
    # Nothing else but localhost is asked, so that is what is known.
    assert urls(await search(host, use_scan=False)) == ["http://127.0.0.1:11434"]
    # The same server for another machine.
    assert urls(await search(await netlab.host("10.77.0.21"))) == [ours]


async def test_a_container_is_known_by_the_address_of_its_machine(netlab: NetLab) -> None:
    host = await netlab.host("10.77.0.20")
    script = "ip link add docker0 type bridge && ip addr add 172.17.0.1/16 dev docker0"
    done = await host.run("sh", "-c", f"{script} && ip link set docker0 up")
    assert done.returncode == 0, done.stderr
    await host.fake_ollama("--host", "0.0.0.0")
    options = {"known": ["http://172.17.0.1:11434"], "subnets": []}
    assert urls(await search(host, **options)) == ["http://10.77.0.20:11434"]
    result = await search(host)
    (skipped,) = result["skipped"]
    assert skipped[0] == "172.17.0.0/16"
    assert "docker0" in skipped[1]


async def test_who_drops_packets_delays_nobody(netlab: NetLab) -> None:
    silent = await netlab.host("10.77.0.10")
    await silent.fake_ollama()
    await silent.drop(port=11434)
    node = await netlab.host("10.77.0.11")
    await node.fake_ollama()
    searcher = await netlab.host("10.77.0.12")
    first = await search(searcher, discover_all_nodes=False, timeout=30.0)
    assert urls(first) == ["http://10.77.0.11:11434"]
    assert first["seconds"] < 30.0
    await silent.heal()
    assert len(urls(await search(searcher))) == 2


ADVERTISE = """
import asyncio
from aiosollol.discovery.advertiser import Advertiser
from aiosollol.wire.announcement import Announcement

async def main():
    async with Advertiser("http://10.77.0.30:12345", Announcement("gpu-box", machine="abc")):
        print("advertised", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_an_announced_node_on_another_port(netlab: NetLab) -> None:
    node = await netlab.host("10.77.0.30")
    await node.fake_ollama(port=12345)
    await node.spawn(sys.executable, "-uc", ADVERTISE, ready="advertised")
    searcher = await netlab.host("10.77.0.31")
    options = {"use_zeroconf": True, "timeout": 5.0, "discover_all_nodes": False}
    (found,) = (await search(searcher, use_scan=False, **options))["nodes"]
    assert found["url"] == "http://10.77.0.30:12345"
    assert (found["source"], found["name"], found["machine"]) == ("zeroconf", "gpu-box", "abc")


COMMAND = """
import json, sys
from aiosollol.cli.discover import DiscoverOptions, run_discover
sys.exit(run_discover(DiscoverOptions(**json.loads(sys.argv[1]))))
"""


def command(**options: Any) -> tuple[str, ...]:
    return (sys.executable, "-uc", COMMAND, json.dumps(options))


async def test_the_command_line(netlab: NetLab) -> None:
    node = await netlab.host("10.77.0.40")
    await node.fake_ollama("--version", "9.8.7", "--model", "all-minilm")
    searcher = await netlab.host("10.77.0.41")
    file = "/run/nodes.json"  # the lab's own
    done = await searcher.run(*command(save=file))
    assert done.returncode == 0, done.stderr
    assert "http://10.77.0.40:11434: version 9.8.7, found, " in done.stdout
    assert "1 node found; 255 addresses were asked" in done.stdout
    saved = json.loads((await searcher.run("cat", file)).stdout)
    assert saved["nodes"][0]["url"] == "http://10.77.0.40:11434"

    done = await searcher.run(*command(as_json=True, subnets=["10.77.0.40"], use_zeroconf=False))
    (found,) = json.loads(done.stdout)["nodes"]
    assert found["version"] == "9.8.7"

    done = await searcher.run(*command(ports=[9], use_zeroconf=False, save=file))
    assert done.returncode == 1
    assert "No node found" in done.stdout
    assert "OLLAMA_HOST=0.0.0.0" in done.stdout
    assert json.loads((await searcher.run("cat", file)).stdout) == saved


async def test_watching(netlab: NetLab) -> None:
    node = await netlab.host("10.77.0.30")
    await node.fake_ollama(port=12345)
    searcher = await netlab.host("10.77.0.31")
    watching = await searcher.spawn(*command(watch=True, timeout=5), ready="Watching")
    advertiser = await node.spawn(sys.executable, "-uc", ADVERTISE, ready="advertised")
    assert "(gpu-box)" in await watching.line_with("+ http://10.77.0.30:12345")
    await advertiser.send(signal.SIGINT)
    await watching.line_with("- http://10.77.0.30:12345: said goodbye")
    await watching.send(signal.SIGINT)
    async with asyncio.timeout(10):
        done = await watching.wait()
    assert done.returncode == 0, done.stderr
