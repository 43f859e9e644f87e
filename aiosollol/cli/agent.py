"""`aiosollol agent`: reports this machine's load to pools and announces its Ollama."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from functools import partial

from aiosollol.agent import MachineSensors, is_loopback, serve, stated_gpu
from aiosollol.cli.advertise import announced
from aiosollol.cli.base import Screen, run
from aiosollol.core.address import AGENT_PORT, Address, parse_ollama_host
from aiosollol.discovery.local_machine import machine_id
from aiosollol.wire.agent import AgentReport, dump_report

_GIB = 2**30
_ENDED = (130, 143)  # Ctrl-C and SIGTERM, the normal ways to end
_ONCE_SECONDS = 0.5  # CPU load is measured over an interval


@dataclass(frozen=True, slots=True)
class AgentOptions:
    """Options of `aiosollol agent`.

    url: of the Ollama on this machine; None is ``OLLAMA_HOST``, else http://127.0.0.1:11434.
    name: the announced name; None is the host name.
    vram_gb, gpu_name: of a GPU that NVML does not know.
    once: print one report and exit.
    """

    url: str | None = None
    host: str = "127.0.0.1"
    port: int = AGENT_PORT
    name: str | None = None
    is_advertised: bool = True
    vram_gb: float | None = None
    gpu_name: str = ""
    once: bool = False


def run_agent(options: AgentOptions) -> int:
    """Serve until Ctrl-C or SIGTERM, or print one report, and return the exit code 0.

    Raises MissingExtra without the extra "agent", InvalidInput for invalid options and if it
    cannot listen.
    """
    if options.url is None:
        ollama = parse_ollama_host(os.environ.get("OLLAMA_HOST", ""))
    else:
        ollama = Address.parse(options.url)
    gpu = stated_gpu(options.gpu_name, options.vram_gb)
    sensors = MachineSensors(machine=machine_id(), ollama=ollama.url, gpu=gpu)
    if options.once:
        return _print_one(sensors)
    screen = Screen(sys.stdout)

    def tell(url: str, report: AgentReport) -> None:
        for line in greeting(url, report, is_open=not is_loopback(options.host)):
            screen.line(line)

    advertise = partial(announced, ollama, options.name) if options.is_advertised else None
    with screen.log():
        try:
            run(serve(sensors, options.host, options.port, advertise=advertise, on_ready=tell))
        except SystemExit as end:
            if end.code not in _ENDED:
                raise
    screen.line("The agent has ended.")
    return 0


def _print_one(sensors: MachineSensors) -> int:
    time.sleep(_ONCE_SECONDS)
    try:
        report = dump_report(sensors.read())
    finally:
        sensors.close()
    print(report.decode(), flush=True)
    return 0


def greeting(url: str, report: AgentReport, *, is_open: bool) -> list[str]:
    """The lines printed once the agent serves. is_open: other machines can reach it."""
    lines = [f"The agent is at {url}, for the Ollama at {report.ollama}; Ctrl-C ends it."]
    for gpu in report.gpus:
        size = "" if gpu.memory_total is None else f", {gpu.memory_total / _GIB:.1f} GiB"
        lines.append(f"GPU: {gpu.name}{size}")
    if not report.gpus:
        lines.append("No NVIDIA GPU found. Describe a GPU of another make: --vram-gb, --gpu-name.")
    if is_open:
        lines.append(
            "Anyone who can reach this port can read the CPU load, the total and free memory of "
            "this machine and its GPUs, the GPU names, an id of this machine and the URL of the "
            "Ollama; no prompts, answers or model names."
        )
    else:
        lines.append(
            "Only this machine can reach it; use --host 0.0.0.0 for pools on other machines."
        )
    return lines
