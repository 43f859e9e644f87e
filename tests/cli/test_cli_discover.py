"""`aiosollol discover` in this process, on loopback networks that are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from discovery_servers import free_port

from aiosollol.cli import discover as command
from aiosollol.cli.discover import DiscoverOptions, hints, line_of, run_discover, specs_of
from aiosollol.core.networks import Discovered, Skipped
from aiosollol.discovery.search import Arrived, Departed
from aiosollol.errors import InvalidInput

A = Discovered("http://10.77.0.1:11434", "0.33.0", ("m:latest", "n:1b"), "scan", 0.0021)
B = Discovered("https://10.77.0.2:1", "0.34.0", (), "zeroconf", 0.25, "box", fingerprint="ab" * 32)


class Found:
    """A search that is over."""

    skipped = (Skipped("172.17.0.0/16", "docker0 leads to containers"),)
    addresses = 255
    seconds = 0.51

    def __init__(self, *nodes: Discovered) -> None:
        self._nodes = nodes

    async def __aenter__(self) -> Found:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def __aiter__(self) -> Any:
        for node in self._nodes:
            yield node


@pytest.fixture
def finding(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``finding(A, B)``: that is what searches find. Returns the arguments of the last one."""
    given: dict[str, Any] = {}

    def finding(*nodes: Discovered) -> dict[str, Any]:
        def discover(**arguments: Any) -> Found:
            given.update(arguments)
            return Found(*nodes)

        monkeypatch.setattr(command, "discover", discover)
        return given

    return finding


def test_lines() -> None:
    assert line_of(A) == (
        "http://10.77.0.1:11434: version 0.33.0, found, answers in 0.0021 s, models m:latest, n:1b"
    )
    assert line_of(B) == (
        "https://10.77.0.2:1 (box): version 0.34.0, announced, answers in 0.25 s, no models"
    )


def test_nodes_are_printed_and_saved(
    finding: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "nodes.json"
    given = finding(A, B)
    assert run_discover(DiscoverOptions(save=str(file), timeout=1.5, ports=[7, 8])) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[:2] == [line_of(A), line_of(B)]
    assert lines[2] == "2 nodes found; 255 addresses were asked in 0.51 s."
    assert "172.17.0.0/16 was not searched: docker0 leads to containers" in lines[3]
    assert lines[4] == f"Saved in {file}."
    assert shown.err == ""
    assert given["timeout"] == 1.5
    assert given["ports"] == [7, 8]
    assert given["subnets"] is None
    saved = json.loads(file.read_text())["nodes"]
    assert [(each["url"], each["name"], each["priority"]) for each in saved] == [
        (A.url, "10.77.0.1:11434", 0),
        (B.url, "box", 0),
    ]
    assert saved[1]["fingerprint"] == B.fingerprint


def test_a_name_that_two_have_is_nobodys() -> None:
    other = B._replace(url="https://10.77.0.3:1")
    assert [spec.name for spec in specs_of([B, other])] == ["10.77.0.2:1", "10.77.0.3:1"]


def test_json(finding: Any, capsys: pytest.CaptureFixture[str]) -> None:
    finding(A)
    assert run_discover(DiscoverOptions(as_json=True)) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {
        "nodes": [{**A._asdict(), "models": list(A.models)}],
        "skipped": [{"network": "172.17.0.0/16", "reason": "docker0 leads to containers"}],
        "addresses": 255,
        "seconds": 0.51,
    }
    assert shown.err == ""


def test_nothing_found(finding: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "nodes.json"
    file.write_text("{}")
    finding()
    assert run_discover(DiscoverOptions(save=str(file))) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "No node found; 255 addresses were asked" in shown
    for words in ("OLLAMA_HOST=0.0.0.0", "port 11434", "--subnet", "--port", "advertise"):
        assert words in shown
    assert f"{file} was not changed." in shown
    assert file.read_text() == "{}"


def test_hints_say_what_was_not_tried() -> None:
    options = DiscoverOptions(subnets=["10.0.0.0/24"], ports=[8080], use_zeroconf=False)
    text = " ".join(hints(options, ()))
    assert "8080" in text
    assert "--subnet" not in text
    assert "--port" not in text
    assert "advertise" not in text
    assert "trusted" not in text


def test_hints_say_who_is_trusted(finding: Any, capsys: pytest.CaptureFixture[str]) -> None:
    given = finding()
    assert run_discover(DiscoverOptions(trusted=("10.0.0.2", "box"))) == 1
    assert given["trusted"] == ("10.0.0.2", "box")
    shown = " ".join(capsys.readouterr().out.split())
    assert "the setting 'trusted' accepts only 10.0.0.2, box" in shown


def test_a_real_search(capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port(["127.0.0.1"])
    options = DiscoverOptions(subnets=["127.0.0.1"], ports=[port], use_zeroconf=False)
    assert run_discover(options) == 1
    assert "No node found; 1 address was asked" in capsys.readouterr().out


def test_bad_networks_are_bad_usage() -> None:
    with pytest.raises(InvalidInput, match="like 192"):
        run_discover(DiscoverOptions(subnets=["10.0.0.0/33"]))


class Watched:
    """A watch that sees B come, A come and A go, and then is interrupted."""

    def __init__(self, **options: Any) -> None:
        self.nodes: dict[str, Discovered] = {}

    async def __aenter__(self) -> Watched:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def __aiter__(self) -> Any:
        self.nodes = {B.url: B}
        yield Arrived(B)
        self.nodes = {B.url: B, A.url: A}
        yield Arrived(A)
        self.nodes = {B.url: B}
        yield Departed(A, "did not answer 2 times")
        self.nodes = {}
        yield Departed(B, "said goodbye")
        raise SystemExit(130)


def test_watching(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "nodes.json"
    monkeypatch.setattr(command, "Watch", Watched)
    assert run_discover(DiscoverOptions(watch=True, save=str(file))) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"+ {line_of(B)}",
        f"+ {line_of(A)}",
        f"- {A.url}: did not answer 2 times",
        f"- {B.url}: said goodbye",
    ]
    assert [each["url"] for each in json.loads(file.read_text())["nodes"]] == [B.url]


def test_watching_as_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "Watch", Watched)
    assert run_discover(DiscoverOptions(watch=True, as_json=True)) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["event"] for each in events] == ["arrived", "arrived", "departed", "departed"]
    assert events[2]["url"] == A.url
    assert events[2]["reason"] == "did not answer 2 times"
