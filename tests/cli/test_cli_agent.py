"""`aiosollol agent` as its users run it: in a process of its own, on loopback, unannounced."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("psutil")
pytest.importorskip("rich")

from aiosollol.cli.agent import greeting
from aiosollol.wire.agent import AgentReport, Gpu, load_report

DEADLINE = 60.0  # a hang fails; nothing is measured

# What `aiosollol agent` comes to, with the options as JSON.
PROGRAM = """
import json, sys
from aiosollol import cli
from aiosollol.cli.agent import AgentOptions, run_agent

cli._run = lambda argv: run_agent(AgentOptions(**json.loads(argv[0])))
sys.exit(cli.main(sys.argv[1:]))
"""


@contextmanager
def started(**options: Any) -> Iterator[subprocess.Popen[str]]:
    """The command, never announced: a test sends no packet to the network."""
    given = json.dumps({"port": 0, "is_advertised": False} | options)
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PROGRAM, given],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()  # nothing, where it has ended
        process.communicate()


def end_of(process: subprocess.Popen[str], code: int) -> tuple[str, str]:
    """The rest of what it wrote, once it has ended with `code`."""
    out, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == code, err
    assert "Traceback" not in err
    return out, err


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_a_signal_ends_it_with_zero(number: signal.Signals) -> None:
    with started(url="10.0.0.9:7777", vram_gb=8, gpu_name="Radeon") as process:
        line = first_line(process)
        found = re.search(r"http://127\.0\.0\.1:\d+/agent", line)
        assert found is not None, line
        assert "http://10.0.0.9:7777" in line
        with urllib.request.urlopen(found[0], timeout=DEADLINE) as answer:
            report = load_report("a", answer.read())
        process.send_signal(number)
        told, _ = end_of(process, 0)
    assert report.ollama == "http://10.0.0.9:7777"
    assert report.machine
    assert report.memory_total
    assert report.gpus
    assert told.endswith("The agent has ended.\n")


def test_once_prints_one_report_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "0.0.0.0:8080")  # as Ollama itself reads it
    with started(once=True) as process:
        out, err = end_of(process, 0)
    assert err == ""
    report = load_report("a", out.encode())
    assert report.ollama == "http://127.0.0.1:8080"
    assert report.cpu_load is None or 0 <= report.cpu_load <= 1
    assert report.memory_total is not None
    assert report.memory_free is not None


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"url": "ftp://x"}, "the scheme is 'ftp'"),
        ({"vram_gb": -1}, "vram_gb must be a number of GiB above 0"),
        ({"port": 65536}, "port must be between 0 and 65535"),
    ],
)
def test_what_cannot_be_is_bad_usage(options: dict[str, Any], told: str) -> None:
    with started(**options) as process:
        _, err = end_of(process, 2)
    assert told in err


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with started(port=port) as process:
            out, err = end_of(process, 2)
    assert out == ""
    assert f"cannot listen on 127.0.0.1 port {port}: " in err


def test_what_is_exposed_is_said() -> None:
    gpus = (Gpu("Radeon", 24 * 2**30), Gpu("mute"))
    report = AgentReport("m", "http://127.0.0.1:11434", gpus=gpus)
    first, *rest = greeting("http://0.0.0.0:11435/agent", report, is_open=True)
    assert "http://0.0.0.0:11435/agent" in first
    assert "http://127.0.0.1:11434" in first
    assert rest[:2] == ["GPU: Radeon, 24.0 GiB", "GPU: mute"]
    (exposed,) = rest[2:]
    assert "Anyone who can reach this port can read" in exposed
    assert "an id of this machine" in exposed


def test_what_is_not_exposed_is_said() -> None:
    _, no_gpu, closed = greeting("u", AgentReport(), is_open=False)
    assert "--vram-gb" in no_gpu
    assert "Only this machine can reach it" in closed
