"""`aiosollol discover`, `advertise`, `agent` and `config`: from arguments to what is called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from discovery_servers import free_port

from aiosollol._install import install_command
from aiosollol.cli import advertise, agent, discover, main
from aiosollol.cli.advertise import AdvertiseOptions
from aiosollol.cli.agent import AgentOptions
from aiosollol.cli.discover import DiscoverOptions
from aiosollol.config.settings import TABLE
from aiosollol.core.address import AGENT_PORT
from aiosollol.wire.agent import load_report


def options_of(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, argv: list[str]) -> Any:
    """What a command line comes to. The exit code is that of the function."""
    given: list[Any] = []

    def run(options: Any) -> int:
        given.append(options)
        return 7

    monkeypatch.setattr(module, name, run)
    assert main(argv) == 7
    return given[0]


@pytest.mark.parametrize(
    ("argv", "options"),
    [
        ([], DiscoverOptions()),
        (["--watch"], DiscoverOptions(watch=True)),
        (["--save", "n.json"], DiscoverOptions(save="n.json")),
        (["--subnet=10.0.0.0/24", "--subnet=10.0.1.7"], None),
        (["--port=11434", "--port=8080"], DiscoverOptions(ports=[11434, 8080])),
        (["--timeout=1.5"], DiscoverOptions(timeout=1.5)),
        (["--no-zeroconf"], DiscoverOptions(use_zeroconf=False)),
        (["--no-scan"], DiscoverOptions(use_scan=False)),
        (["--json"], DiscoverOptions(as_json=True)),
    ],
)
def test_discover(
    monkeypatch: pytest.MonkeyPatch, argv: list[str], options: DiscoverOptions | None
) -> None:
    options = options or DiscoverOptions(subnets=["10.0.0.0/24", "10.0.1.7"])
    assert options_of(monkeypatch, discover, "run_discover", ["discover", *argv]) == options


def test_discover_obeys_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOLLOL_TRUSTED", "10.0.0.2, box")
    options = options_of(monkeypatch, discover, "run_discover", ["discover"])
    assert options.trusted == ("10.0.0.2", "box")


def test_discover_on_loopback(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file, port = tmp_path / "n.json", free_port(["127.0.0.1"])
    argv = ["discover", "--subnet=127.0.0.1", f"--port={port}", "--no-zeroconf", "--timeout=5"]
    assert main([*argv, "--save", str(file), "--json"]) == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out)["nodes"] == []
    assert shown.err == f"{file} was not changed.\n"
    assert not file.exists()


@pytest.mark.parametrize(
    ("argv", "options"),
    [
        ([], AdvertiseOptions()),
        (["--url=10.0.0.2", "--name=box"], AdvertiseOptions("10.0.0.2", "box")),
        (["--address=10.0.0.2", "--address=fd::2"], None),
        (["--gpu-name=A GPU", "--vram-gb=24"], AdvertiseOptions(gpu_name="A GPU", vram_gb=24.0)),
    ],
)
def test_advertise(
    monkeypatch: pytest.MonkeyPatch, argv: list[str], options: AdvertiseOptions | None
) -> None:
    options = options or AdvertiseOptions(addresses=["10.0.0.2", "fd::2"])
    assert options_of(monkeypatch, advertise, "run_advertise", ["advertise", *argv]) == options


@pytest.mark.parametrize(
    ("argv", "options"),
    [
        ([], AgentOptions(port=AGENT_PORT)),
        (["--url=10.0.0.2", "--name=box"], AgentOptions("10.0.0.2", name="box")),
        (["--host=0.0.0.0", "--port=0"], AgentOptions(host="0.0.0.0", port=0)),
        (["--no-advertise"], AgentOptions(is_advertised=False)),
        (["--gpu-name=A GPU", "--vram-gb=24"], AgentOptions(gpu_name="A GPU", vram_gb=24.0)),
        (["--once"], AgentOptions(once=True)),
    ],
)
def test_agent(monkeypatch: pytest.MonkeyPatch, argv: list[str], options: AgentOptions) -> None:
    assert options_of(monkeypatch, agent, "run_agent", ["agent", *argv]) == options


def test_agent_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psutil")
    monkeypatch.setattr(agent, "_ONCE_SECONDS", 0.0)
    assert main(["agent", "--once", "--url=10.0.0.9"]) == 0
    report = load_report("a", capsys.readouterr().out.encode())
    assert report.ollama == "http://10.0.0.9:11434"


def test_without_its_extra_the_agent_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "psutil", None)
    assert main(["agent", "--once"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert install_command("agent") in shown.err


def test_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n{name} " in shown for name in TABLE)
    assert main(["config", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["settings"]) == list(TABLE)
