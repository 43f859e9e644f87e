"""Program run in the lab by test_mdns.py: ``python mdns_program.py FUNCTION ARGUMENTS``.

Each function prints lines of JSON for the test to read.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import sys
import time

from aiosollol.discovery.advertiser import Advertiser
from aiosollol.discovery.mdns import Heard, browse
from aiosollol.errors import SollolError
from aiosollol.wire.announcement import SERVICE_TYPE, Announcement


def say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


async def listen(seconds: str = "1000") -> None:
    """Print the announcements received."""
    began = time.monotonic()
    async with browse(seconds=float(seconds)) as news:
        say(listening=True)
        async for each in news:
            shown = {"urls": each.urls, "seconds": time.monotonic() - began}
            if isinstance(each, Heard):
                say(heard=each.announcement.name, **shown, **each.announcement._asdict())
            else:
                say(gone=each.service.removesuffix(f".{SERVICE_TYPE}"), **shown)
    say(ended=True, tasks=len(asyncio.all_tasks()))


async def advertise(url: str, name: str, *addresses: str) -> None:
    """Announce version 0.1.0 of a node, and 0.2.0 after SIGUSR1. SIGTERM cancels it."""
    task, loop, updating = asyncio.current_task(), asyncio.get_running_loop(), asyncio.Event()
    assert task is not None
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    loop.add_signal_handler(signal.SIGUSR1, updating.set)
    announcement = Announcement(name, version="0.1.0", machine="abc", gpu="A GPU", gpu_memory=8)
    with contextlib.suppress(asyncio.CancelledError):
        async with Advertiser(url, announcement, addresses=addresses or None) as advertiser:
            say(announced=advertiser.name)
            await updating.wait()
            await advertiser.update(announcement._replace(version="0.2.0"))
            say(updated=True)
            await asyncio.sleep(1000)
    say(ended=True, tasks=len(asyncio.all_tasks()))


async def junk(address: str) -> None:
    """Send many invalid announcements, and noise."""
    from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

    dice = random.Random(5)
    texts = [
        *(dice.randbytes(size) for size in (1, 5, 255, 1000)),
        b"\xff" * 300,
        b"\x00",
        b"\x09path=/../",
        b"\x11path=//evil.test/",
        b"\x0fpath=/?a=b#c d\n",
        b"\x11scheme=javascript",
        b"\x0bpath=\xff\xfe\x00/\x1b[",
        b"\x06=value\x05path=",
    ]
    bad = [*(("10.77.0.99", 1234, text) for text in texts[4:10])]
    bad += [(ip, 1234, b"") for ip in ("127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255")]
    bad += [("10.77.0.99", 0, b""), ("::1", 1234, b"")]
    zeroconf = AsyncZeroconf(interfaces=[address])
    for number, (ip, port, text) in enumerate(bad):
        info = AsyncServiceInfo(
            SERVICE_TYPE,
            f"junk {number}.{SERVICE_TYPE}",
            parsed_addresses=[ip],
            port=port,
            properties=text,
            server=f"junk{number}.local.",
        )
        await zeroconf.async_register_service(info, cooperating_responders=True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as noise:
        noise.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
        header = b"\0\0\x84\0\0\0\0\5\0\0\0\0"  # an answer with five records
        for _ in range(200):
            payload = header[: dice.choice((0, 7, 12))] + dice.randbytes(dice.randrange(400))
            noise.sendto(payload, ("224.0.0.251", 5353))
    await asyncio.sleep(0.5)
    say(sent=len(bad))
    await asyncio.sleep(1000)


async def occupied() -> None:
    """Listen and announce while another program occupies the mDNS port exclusively."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as owner:
        owner.bind(("", 5353))
        for what in (listen("0.1"), advertise("http://10.77.0.11:1", "name")):
            try:
                await what
            except SollolError as error:
                say(error=type(error).__name__, message=str(error))


async def main(what: str, *args: str) -> None:
    try:
        await {f.__name__: f for f in (listen, advertise, junk, occupied)}[what](*args)
    except SollolError as error:
        say(error=type(error).__name__, message=str(error))


if __name__ == "__main__":
    if os.readlink("/proc/self/ns/net") == os.environ["HOME_NAMESPACE"]:
        raise SystemExit("this program sends multicast: run it in the lab only")
    asyncio.run(main(*sys.argv[1:]))
