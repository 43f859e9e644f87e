"""Hosts on an isolated network, for tests of network behaviour.

::

    async with NetLab() as lab:
        node = await lab.host("10.77.0.11")
        fake = await node.fake_ollama(port=11434)
        other = await lab.host("10.77.0.12")
        done = await other.run(sys.executable, "-c", code)
        await node.cut()

Each host is a network namespace, connected by a veth pair to a bridge in a separate namespace.
Everything, including programs, is in one process tree whose first process reads a pipe from here:
when the pipe closes, however this process ended, the kernel kills the tree and the network with it.
Nothing is visible outside, so there is nothing to clean up. Needs Linux, root (or user namespaces),
iproute2 and util-linux; the fixture `netlab` skips tests without them.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from types import TracebackType

from netlab_host import WAIT_FORWARDING, Host
from netlab_program import Done, LabError, Program, children_of

__all__ = ["Done", "Host", "LabError", "NetLab", "Program", "why_no_lab"]

NETWORKS = (ipaddress.ip_network("10.77.0.0/24"), ipaddress.ip_network("fd77::/64"))

_IS_ROOT = os.name != "posix" or os.geteuid() == 0
_UNSHARE = (
    *("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
    *(() if _IS_ROOT else ("--user", "--map-root-user")),
)
_NSENTER = (
    *("nsenter", "--net", "--mount", "--pid"),
    *(() if _IS_ROOT else ("--user", "--preserve-credentials")),
)

# The first process. `ip` keeps names of namespaces in /run; a private mount hides ours. The bridge
# floods multicast: snooping needs membership queries, which no host here sends.
_FIRST = """
set -e
mount -t tmpfs tmpfs /run
ip link add br0 type bridge mcast_snooping 0
ip link set br0 up
echo ready
exec cat >/dev/null
"""
# One host. Its addresses are usable at once (no duplicate address detection), and rules can precede
# the lookup of its own addresses. Only a forwarding host replies to prohibited packets.
_HOST = """
set -e
ip netns add {name}
ip netns exec {name} sh -e -c '
    echo 1 > /proc/sys/net/ipv4/ip_forward
    echo 0 > /proc/sys/net/ipv4/icmp_ratelimit
    if [ -d /proc/sys/net/ipv6 ]; then
        echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad
        ip -6 rule add pref 10 lookup local
        ip -6 rule del pref 0
    fi'
ip link add eth0 netns {name} type veth peer name {port}
ip link set {port} master br0 up
ip -n {name} -batch - <<END
link set lo up
{addresses}
link set eth0 up
route add 224.0.0.0/4 dev eth0
rule add pref 10 lookup local
rule del pref 0
END
"""
_INSPECT = "ip -j link; ip -j route show table all; ip -j -6 route show table all"


@functools.cache
def why_no_lab() -> str:
    """The reason a lab cannot run here, or ""."""
    missing = [name for name in ("ip", "bridge", "unshare", "nsenter") if not shutil.which(name)]
    if missing:
        return f"not installed: {', '.join(missing)} (iproute2 and util-linux have them)"
    command = [*_UNSHARE, "sh", "-c", "mount -t tmpfs tmpfs /run && ip link add br0 type bridge"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    return f"no namespaces without root: {done.stderr.strip()}" if done.returncode else ""


class NetLab:
    """The network: a bridge without an address, to which hosts are added."""

    def __init__(self) -> None:
        self._first: asyncio.subprocess.Process | None = None
        self._pid = 0
        self._count = 0
        self._programs: list[Program] = []

    async def __aenter__(self) -> NetLab:
        self._first = await asyncio.create_subprocess_exec(
            *_UNSHARE,
            *("sh", "-c", _FIRST),
            stdin=asyncio.subprocess.PIPE,  # held only by us: the lab ends when it closes
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in a terminal is for the test
        )
        try:
            self._pid = await self._begun(self._first)
            await self._verify((), {"br0"})
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _begun(self, first: asyncio.subprocess.Process) -> int:
        assert first.stdout is not None
        async with asyncio.timeout(10):
            line = await first.stdout.readline()
        if line != b"ready\n":
            raise LabError(f"the lab did not start: {line.decode().strip()}")
        (pid,) = children_of(first.pid)
        return pid

    async def aclose(self) -> None:
        """End every program and remove the network. Idempotent, and safe to cancel."""
        first, self._first = self._first, None
        if first is None:
            return
        # Killing it also kills its child (--kill-child), the first process of the tree, and with it
        # the whole tree.
        first.kill()
        ending = asyncio.ensure_future(self._ended(first))
        try:
            await asyncio.shield(ending)  # milliseconds: a kill needs no cooperation
        except asyncio.CancelledError:
            await ending
            raise

    async def _ended(self, first: asyncio.subprocess.Process) -> None:
        assert first.stdin is not None
        assert first.stdout is not None
        first.stdin.close()
        await first.stdout.read()  # to its end, or the transport is never closed
        await first.wait()
        for program in self._programs:
            await program.wait()

    # ---- hosts

    async def host(self, *addresses: str) -> Host:
        """A host with addresses in 10.77.0.0/24 or fd77::/64, on which nothing listens."""
        for address in addresses:
            if not any(ipaddress.ip_address(address) in network for network in NETWORKS):
                raise LabError(f"{address} is not an address of the lab")
        if not addresses:
            raise LabError("a host needs an address")
        self._count += 1
        host = Host(self, f"host{self._count}", f"port{self._count}", addresses)
        lines = [
            f"address add {a}/64 dev eth0 nodad" if ":" in a else f"address add {a}/24 dev eth0"
            for a in addresses
        ]
        script = _HOST.format(name=host.name, port=host.port, addresses="\n".join(lines))
        await self.script(script + WAIT_FORWARDING.format(port=host.port))
        await self._verify(("ip", "netns", "exec", host.name), {"lo", "eth0"})
        return host

    async def refusing(self, *addresses: str) -> Host:
        """A host that refuses connections on all of the addresses."""
        return await self.host(*addresses)

    async def silent(self, *addresses: str) -> Host:
        """A host that never answers, as behind a firewall that drops packets.

        An unused address is silent too, but only for about three seconds.
        """
        host = await self.host(*addresses)
        await host.drop()
        return host

    async def script(self, text: str) -> str:
        """The output of a shell script in the bridge's namespace. Raises LabError on failure."""
        done = await self.run((), ("sh", "-c", text), timeout=20)
        if done.returncode:
            raise LabError(f"{done.stderr or done.stdout}\n{text}")
        return done.stdout

    async def _verify(self, where: Sequence[str], own: set[str]) -> None:
        """Raise LabError unless the namespace is closed. Nothing runs in it before."""
        done = await self.run(where, ("sh", "-c", _INSPECT), timeout=20)
        links, *routes = [json.loads(line) for line in done.stdout.splitlines() if line.strip()]
        up = {link["ifname"] for link in links if "UP" in link["flags"]}
        # Some kernels add tunnels to every new namespace, which are down. Ports are ours.
        foreign = {name for name in up - own if not (name.startswith("port") and "br0" in own)}
        ways_out = [
            route
            for table in routes
            for route in table
            if "gateway" in route or "via" in route or route["dst"] in ("default", "0.0.0.0/0")
        ]
        if foreign or ways_out or not own <= up:
            raise LabError(f"the lab is not closed: interfaces {up}, ways out {ways_out}")

    # ---- programs

    async def run(
        self,
        where: Sequence[str],
        command: Sequence[str],
        *,
        timeout: float,
        env: dict[str, str] | None = None,
    ) -> Done:
        """Run a command to its end. where: command prefix; by default, runs at the bridge."""
        program = await self.spawn(where, command, env=env)
        try:
            async with asyncio.timeout(timeout):
                return await program.wait()
        except TimeoutError:
            said = program.output()
            raise LabError(f"not done within {timeout:g} s: {command}\n{said}") from None
        finally:
            await program.end()

    async def spawn(
        self, where: Sequence[str], command: Sequence[str], *, env: dict[str, str] | None = None
    ) -> Program:
        """Start a command. It ends with the lab."""
        if self._first is None:
            raise LabError("the lab is not there: use 'async with'")
        # Entering another process's namespaces changes to its root directory, so change back.
        prefix = (*_NSENTER, f"--target={self._pid}", "env", f"--chdir={os.getcwd()}", *where)
        program = await Program.start(*prefix, *command, env={**os.environ, **(env or {})})
        self._programs.append(program)
        return program
