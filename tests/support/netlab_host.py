"""A host of the lab: run programs on it, and make its network fail."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from netlab_program import Done, LabError, Program

if TYPE_CHECKING:
    from netlab import NetLab

WAIT_FORWARDING = 'until bridge link show dev {port} | grep -q "state forwarding"; do :; done'
"""For a shell in the bridge's namespace: wait until a port forwards. Takes milliseconds."""


class Host:
    """A machine of the lab. `address` is its first address, `addresses` are all.

    Its programs see only its interfaces. Files and processes are shared with the lab, so each host
    gets its own SOLLOL_MACHINE_ID, to count as a separate machine.
    """

    def __init__(self, lab: NetLab, name: str, port: str, addresses: Sequence[str]) -> None:
        self.lab = lab
        self.name = name
        self.address = addresses[0]
        self.addresses = tuple(addresses)
        self.port = port
        self.where = ("ip", "netns", "exec", name)

    async def run(
        self, *command: str, timeout: float = 20.0, env: dict[str, str] | None = None
    ) -> Done:
        """Run a program to its end. Raises LabError on a timeout."""
        return await self.lab.run(self.where, command, timeout=timeout, env=self._env(env))

    async def python(self, code: str, *args: str, timeout: float = 20.0) -> str:
        """The output of Python code. Raises LabError with its stderr if it fails."""
        done = await self.run(sys.executable, "-c", code, *args, timeout=timeout)
        if done.returncode:
            raise LabError(f"ended with code {done.returncode}: {done.stderr}")
        return done.stdout.strip()

    async def spawn(
        self,
        *command: str,
        ready: str = "",
        timeout: float = 20.0,
        env: dict[str, str] | None = None,
    ) -> Program:
        """Start a program and, with `ready`, wait until it prints a line with that text."""
        program = await self.lab.spawn(self.where, command, env=self._env(env))
        if ready:
            await program.line_with(ready, timeout=timeout)
        return program

    async def fake_ollama(self, *arguments: str, port: int = 11434) -> Program:
        """A FakeOllama on the host's first address. More arguments: `aiosollol.testing --help`."""
        command = (sys.executable, "-m", "aiosollol.testing", "--host", self.address)
        return await self.spawn(*command, "--port", str(port), *arguments, ready="listening on")

    def _env(self, given: dict[str, str] | None) -> dict[str, str]:
        return {"SOLLOL_MACHINE_ID": f"lab-{self.name}", **(given or {})}

    # ---- network failures

    async def cut(self) -> None:
        """Disconnect it. It keeps its addresses, and programs are not notified."""
        await self.lab.script(f"ip link set {self.port} down")

    async def heal(self) -> None:
        """Undo `cut`, `drop` and `reject`, and wait until packets are forwarded."""
        await self._set_rule("")
        up = f"ip link set {self.port} up; {WAIT_FORWARDING.format(port=self.port)}"
        await self.lab.script(up)

    async def drop(self, port: int = 0) -> None:
        """Drop incoming TCP and UDP, for one port or all. Clients get no answer."""
        await self._set_rule("blackhole", port)

    async def reject(self, port: int = 0) -> None:
        """Reject the same with ICMP "prohibited", like a firewall: clients fail at once.

        Linux sends five of these to a client, then one a second. TCP resets from ports on which
        nothing listens have no such limit: see `NetLab.refusing`.
        """
        await self._set_rule("prohibit", port)

    async def delay(self, seconds: float) -> None:
        """Delay its outgoing packets. Raises LabError if the kernel has no netem."""
        command = f"tc qdisc replace dev eth0 root netem delay {round(seconds * 1e6)}us"
        done = await self.run("sh", "-c", command)
        if done.returncode:
            raise LabError(f"no delay: this kernel has no netem ({done.stderr.strip()})")

    async def _set_rule(self, action: str, port: int = 0) -> None:
        # Routing rules before the lookup of the host's own addresses (see _HOST) act as a firewall
        # on every kernel. They match protocols only, so ARP still works: the host is just silent.
        lines = []
        for version, protocol in ((v, p) for v in (4, 6) for p in ("tcp", "udp")):
            ip = f"ip -n {self.name} -{version} rule"
            lines.append(f"{ip} del pref 5 ipproto {protocol} 2>/dev/null || true")
            if action:
                which = f"ipproto {protocol}" + (f" dport {port}" if port else "")
                lines.append(f"{ip} add pref 5 iif eth0 {which} type {action} || [ {version} = 6 ]")
        await self.lab.script("\n".join(lines))
