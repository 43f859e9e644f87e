"""`aiosollol config`: what it prints, and what it keeps to itself."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from aiosollol.cli import main
from aiosollol.cli.config import show_config
from aiosollol.config.files import save_nodes
from aiosollol.config.settings import TABLE, Settings, shown
from aiosollol.core.node import NodeSpec
from aiosollol.errors import ConfigError

NODES = [NodeSpec("http://a", headers={"x": "s3cret"}), NodeSpec("http://b")]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user who has configured nothing."""
    for name in [name for name in os.environ if name.startswith(("SOLLOL_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".config" / "aiosollol").mkdir(parents=True)
    return tmp_path


def test_with_nothing_configured(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show_config(as_json=False) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["setting", "value", "from", "what", "it", "is"]
    for (name, setting), line in zip(TABLE.items(), lines[1:], strict=False):
        words = line.split()
        assert words[:3] == [name, shown(setting.default), "default"]
        assert line.endswith(setting.about)
    assert lines[len(TABLE) + 1 :] == [
        "",
        f"settings file: none; {home}/.config/aiosollol/config.toml would be read",
        f"nodes file: none; {home}/.config/aiosollol/nodes.json would be read",
    ]


def test_with_everything(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = home / ".config" / "aiosollol"
    (folder / "config.toml").write_text("\ntrusted = ['a', 'b']")
    save_nodes(folder / "nodes.json", NODES)
    monkeypatch.setenv("SOLLOL_MIN_GAIN", "0.5")
    monkeypatch.setenv("SOLLOL_MAX_RETRY", "0.5")
    monkeypatch.setenv("SOLLOL_REDIS_URL", "x")
    assert show_config(as_json=False) == 0
    out = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert f"trusted a, b {folder}/config.toml, line 2 {TABLE['trusted'].about}" in lines
    assert f"min_gain 0.5 environment variable SOLLOL_MIN_GAIN {TABLE['min_gain'].about}" in lines
    assert lines[-4:] == [
        f"settings file: {folder}/config.toml",
        f"nodes file: {folder}/nodes.json (2 nodes)",
        "SOLLOL_MAX_RETRY is not a setting: did you mean SOLLOL_MAX_RETRIES?",
        "SOLLOL_REDIS_URL is not a setting, and has no effect",
    ]
    assert "s3cret" not in out


def test_one_node_of_the_originals(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_nodes(home / ".synapticllamas_nodes.json", NODES[:1])
    show_config(as_json=False)
    out = capsys.readouterr().out
    assert f"nodes file: {home}/.synapticllamas_nodes.json (1 node)\n" in out


def test_as_json(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert show_config(as_json=True) == 0
    content = json.loads(capsys.readouterr().out)
    assert list(content["settings"]) == list(TABLE)
    assert content["settings"]["max_retries"] == {
        "value": 3,
        "source": "default",
        "default": 3,
        "variable": "SOLLOL_MAX_RETRIES",
        "description": TABLE["max_retries"].about,
    }
    values = {name: setting["value"] for name, setting in content["settings"].items()}
    assert Settings(**values) == Settings()
    del content["settings"]
    assert content == {
        "settings_file": None,
        "nodes_file": None,
        "nodes": None,
        "ollama_host": None,
        "unknown_variables": {},
    }
    path = home / "x.toml"
    path.write_text("max_retries = 1")
    nodes = home / ".config" / "aiosollol" / "nodes.json"
    save_nodes(nodes, NODES)
    monkeypatch.setenv("SOLLOL_CONFIG", str(path))
    monkeypatch.setenv("SOLLOL_CONFG", "x")
    show_config(as_json=True)
    out = capsys.readouterr().out
    assert "s3cret" not in out
    content = json.loads(out)
    retries = content.pop("settings")["max_retries"]
    assert (retries["value"], retries["source"]) == (1, f"{path}, line 1")
    assert content == {
        "settings_file": str(path),
        "nodes_file": str(nodes),
        "nodes": 2,
        "ollama_host": None,
        "unknown_variables": {"SOLLOL_CONFG": "SOLLOL_CONFIG"},
    }


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("file", ["config.toml", "nodes.json"])
def test_a_mistake_is_raised_before_anything_is_printed(
    file: str, as_json: bool, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = home / ".config" / "aiosollol" / file
    path.write_text("\n\n?")
    with pytest.raises(ConfigError, match=f"{file}, line 3") as caught:
        show_config(as_json=as_json)
    assert caught.value.source == str(path)
    assert capsys.readouterr().out == ""


def test_ollama_host_is_named(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "0.0.0.0:8080")
    assert main(["config"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == "OLLAMA_HOST: http://127.0.0.1:8080 is used instead of the nodes file"
    assert main(["config", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ollama_host"] == "http://127.0.0.1:8080"


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("OLLAMA_HOST", "ftp://x", "error: OLLAMA_HOST: "),
        ("SOLLOL_MAX_RETRIES", "many", "error: SOLLOL_MAX_RETRIES must be"),
        ("SOLLOL_CONFIG", "/nowhere/at.all", "error: /nowhere/at.all"),
    ],
)
def test_a_mistake_is_bad_usage(
    home: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    told: str,
) -> None:
    monkeypatch.setenv(variable, value)
    assert main(["config"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(told)
