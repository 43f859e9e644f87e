"""No error shows a password, wherever in a text that looks like a URL it stands."""

from __future__ import annotations

import json
import os
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiosollol import NodeRegistry, OllamaPool
from aiosollol.cli import main
from aiosollol.config.files import load_nodes
from aiosollol.config.resolve import resolve
from aiosollol.config.settings import Settings
from aiosollol.core.address import Address, parse_ollama_host
from aiosollol.core.networks import parse_networks
from aiosollol.core.node import NodeSpec
from aiosollol.core.redaction import has_at_sign, redacted, safe_repr, without_userinfo
from aiosollol.discovery.options import SearchOptions, Trust
from aiosollol.errors import InvalidInput, SollolError
from aiosollol.service import ConfigSource, SOLLOLConfig

PARTS = ("hunter7", "xyzzy9")  # of a password, with something odd between them

REFUSED = [
    "http://user:hunter7@a",
    "user:hunter7@a",
    "//user:hunter7@a",
    "hunter7@a",
    ":hunter7@a",
    "HTTP://user:hunter7@a:1",
    "ftp://user:hunter7@a",
    "hunter7@b://a",
    "http://hunter7:@a",
    "http://:@a",
    "http://@a",
    "http//user:hunter7@a",
    "http:/user:hunter7@a",
    "http:user:hunter7@a",
    "http:\\\\user:hunter7@a",
    "http://user\\hunter7@a",
    "http://user:hunter7/xyzzy9@a:11434",
    "http://user:12/hunter7@a",
    "http://user:hunter7#xyzzy9@a",
    "http://user:hunter7?xyzzy9@a",
    "http://user:hunter7@xyzzy9@a",
    "http://user:hunter7 xyzzy9@a",
    "http://user:hunter7\txyzzy9@a",
    "http://user:hunter7\nxyzzy9@a",
    "http://user:[hunter7@a",
    "http://user:hunter7]@a",
    "http://user:hunter7@[::1]:11434",
    "http://user:hunter7@[::1",
    "http://user:hunter7@a:port",
    "http://user:hunter7@a b",
    "http://user:hunter7@",
    "http://user:hunter7%40a",
    "http://user%3Ahunter7%40a",
    "http://user:hunter7%2540a",
    "http://user:hunter7%2@a",
    "http://user:hunter7\uff20a",
    "http://user:hunter7\ufe6ba",
    "http://user:hunter7%EF%BC%A0a",
]


def told(error: BaseException) -> str:
    """All that a log could show of an error."""
    lines = traceback.format_exception(error)
    return " ".join([str(error), repr(error), *lines]).lower()


@pytest.mark.parametrize("text", REFUSED)
def test_credentials_are_refused_in_every_form(text: str) -> None:
    with pytest.raises(InvalidInput, match="pass headers instead") as caught:
        Address.parse(text)
    assert not any(part in told(caught.value) for part in PARTS)
    assert "'...@" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://10.0.0.2:x1", "http://10.0.0.2:..."),
        ("http://user:hunter7", "http://user:..."),  # the host was forgotten
        ("user:hunter7/xyzzy9", "user:..."),
        ("http://user:hunter7?xyzzy9", "http://user:..."),
        ("http://a?token=hunter7", "http://a?..."),
        ("http://a/b#hunter7", "http://a/b#..."),
        ("http://me:hunter7@a?token=xyzzy9", "...@a?..."),
        ("10.0.0.2:11434", "10.0.0.2:11434"),
        ("http:/10.0.0.2", "http:/10.0.0.2"),
        ("http:10.0.0.2", "http:10.0.0.2"),
        ("a:-1", "a:-1"),
        ("ftp://a/b", "ftp://a/b"),
        ("fe80::1::2", "fe80::1::2"),
        ("[::1", "[::1"),
        ("[::1]:x", "[::1]:..."),
        ("a%20b", "a%20b"),
    ],
)
def test_what_an_error_shows_of_an_address(text: str, shown: str) -> None:
    assert redacted(text) == shown
    if any(part in text for part in PARTS):
        with pytest.raises(InvalidInput) as caught:
            Address.parse(text)
        assert not any(part in told(caught.value) for part in PARTS)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "None"),
        (12, "12"),
        ("10.0.0.2", "'10.0.0.2'"),
        ("redis://:hunter7@a/0", "'...@a/0'"),
        (b"redis://:hunter7@a/0", "...@a/0'"),
        (["a", "b:hunter7@c"], "['a', '...@c']"),
        (("a",), "['a']"),
        (set(), "[]"),
        (list(range(9)), "[0, 1, 2, 3, 4, 5, 6, 7, ...]"),
        ({}, "{}"),
        ({"url": "a", "port": 1}, "{'url': ..., 'port': 1}"),
        ([{"url": "a", "headers": {"x": "hunter7"}}], "[{'url': ..., 'headers': {'x': ...}}]"),
    ],
)
def test_what_an_error_shows_of_a_value(value: object, shown: str) -> None:
    assert safe_repr(value) == shown


def test_what_has_no_at_sign_is_left_as_it_is() -> None:
    for text in ("", "a", "a%4", "100 %", "%00", "ä", "\ud800"):
        assert not has_at_sign(text)
        assert without_userinfo(text) == text


# Every place that reads an address, or shows what is in one's place.


def in_a_file(name: str, content: str, read: Callable[[str], Any]) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, name)
        Path(path).write_bytes(content.encode("utf-8", "surrogatepass"))
        return read(path)


def hosts_file(text: str) -> Any:
    return in_a_file("hosts.txt", f"# the rack\n{text}\n", load_nodes)


def nodes_file(text: str) -> Any:
    return in_a_file("nodes.json", json.dumps({"nodes": [{"url": text}]}), load_nodes)


def service_file(setting: str) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        content = setting % json.dumps(text).replace("\\u007f", "")
        return in_a_file("gateway.toml", content, lambda path: ConfigSource(path=path).read())

    return read


def setting(name: str) -> Callable[[str], Any]:
    return lambda text: getattr(Settings(**{name: text}), name)


def variable(name: str) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        environ = {f"SOLLOL_{name.upper()}": text, "HOME": os.devnull}
        return getattr(resolve({}, environ=environ).settings, name)

    return read


READERS: dict[str, Callable[[str], Any]] = {
    "an address": Address.parse,
    "OLLAMA_HOST": parse_ollama_host,
    "OLLAMA_HOST of a search": lambda text: SearchOptions.parse(environ={"OLLAMA_HOST": text}),
    "a node": NodeSpec.parse,
    "a node's URL": lambda text: NodeSpec.parse({"url": text}),
    "a node's host": lambda text: NodeSpec.parse({"host": text}),
    "a node's host and port": lambda text: NodeSpec.parse({"host": text, "port": 1}),
    "a node's host and no port": lambda text: NodeSpec.parse({"host": text, "port": "x"}),
    "a node's port": lambda text: NodeSpec.parse({"host": "a", "port": text}),
    "a node's host and URL": lambda text: NodeSpec.parse({"host": text, "url": "a"}),
    "a node's agent": lambda text: NodeSpec("http://a", agent=text),
    "a node's fingerprint": lambda text: NodeSpec("https://a", fingerprint=text),
    "hosts.txt": hosts_file,
    "nodes.json": nodes_file,
    "nodes of a pool": lambda text: OllamaPool([text]),
    "a pool's only node": lambda text: OllamaPool(text),  # type: ignore[arg-type]
    "a node that is looked up": lambda text: NodeRegistry(["http://a"]).find(text),
    "a node that is removed": lambda text: NodeRegistry(["http://a"]).remove_node(text),
    "known": lambda text: SearchOptions.parse(known=[text], environ={}),
    "subnets": lambda text: SearchOptions.parse(subnets=[text], environ={}),
    "networks": lambda text: parse_networks("allow", text),
    "trusted": lambda text: Trust.parse([text]),
    "all that is trusted": Trust.parse,
    "dask_address": setting("dask_address"),
    "ray_address": setting("ray_address"),
    "SOLLOL_DASK_ADDRESS": variable("dask_address"),
    "SOLLOL_RAY_ADDRESS": variable("ray_address"),
    "SOLLOL_POLICY": variable("policy"),
    "a number": setting("embed_timeout"),
    "a list": setting("trusted"),
    "hosts": lambda text: SOLLOLConfig(hosts=[text]),
    "hosts that are no list": lambda text: SOLLOLConfig(hosts=text),
    "a host and a port": lambda text: SOLLOLConfig(hosts=[{"host": text, "port": "x"}]),
    "dask_scheduler": lambda text: SOLLOLConfig(dask_scheduler=text),
    "gateway_host": lambda text: SOLLOLConfig(gateway_host=text),
    "a pool's setting": lambda text: SOLLOLConfig(pool={"ray_address": text}),
    "hosts in TOML": service_file("hosts = [%s]"),
    "a host in TOML": service_file("hosts = %s"),
    "dask_scheduler in TOML": service_file("dask_scheduler = %s"),
}

ODD = st.sampled_from([*"/\\#?@:;&=%[]<>\"'` \t|{}^~.,!$*+()-_ä", "%40", "%2F", "://", ""])


@st.composite
def urls(draw: st.DrawFn) -> str:
    """A text like a URL with a password, both parts of which are before the last at sign."""
    scheme = draw(
        st.sampled_from(
            ["", "http://", "HTTPS://", "ftp://", "//", "http//", "http:/", "http:", "http:\\\\"]
        )
    )
    user = draw(st.sampled_from(["", "user", "us/er", "us er", "us#er", "us%65r", "[::1]", "12"]))
    colon = draw(st.sampled_from([":", ":12/", "%3A", "", "\uff1a", "@"]))
    odd = draw(st.lists(ODD, max_size=3).map("".join))
    password = draw(st.permutations([*PARTS, odd]).map("".join))
    at = draw(st.sampled_from(["@", "%40", "%2540", "\uff20"]))
    host = draw(st.sampled_from(["", "a", "127.0.0.1", "[::1]", "::1", "a b", "-"]))
    rest = draw(st.sampled_from(["", ":11434", ":port", ":0", "/p", "?q=1", "#f", "/", " "]))
    return f"{scheme}{user}{colon}{password}{at}{host}{rest}"


@pytest.mark.parametrize("where", READERS)
@settings(max_examples=30, deadline=None)
@given(text=urls())
def test_no_error_shows_a_password(where: str, text: str) -> None:
    try:
        value = READERS[where](text)
    except SollolError as error:
        shown = told(error)
    else:
        shown = f"{value!r} {value}".lower()  # a comment in hosts.txt may have left its beginning
    assert not any(part in shown or part in unquote(shown) for part in PARTS)


@settings(max_examples=500, deadline=None)
@given(text=urls())
def test_no_address_has_a_password(text: str) -> None:
    with pytest.raises(InvalidInput):
        Address.parse(text)
    with pytest.raises(InvalidInput):
        parse_ollama_host(text)


def test_a_comment_in_a_list_of_hosts_may_have_an_at_sign() -> None:
    (spec,) = hosts_file("10.0.0.2:11434 # ask bob@example.com")
    assert spec.url == "http://10.0.0.2:11434"
    (spec,) = hosts_file("10.0.0.2#mine, ask bob@example.com")
    assert spec.url == "http://10.0.0.2:11434"
    with pytest.raises(InvalidInput, match="pass headers instead"):
        hosts_file("http://user:12#hunter7@a")


def test_the_headers_of_nodes_are_not_in_the_representation_of_a_service() -> None:
    hosts = [{"url": "http://a", "headers": {"x": "hunter7"}}]
    shown = repr(SOLLOLConfig(hosts=hosts, max_retries=5))
    assert "hunter7" not in shown
    assert "max_retries=5" in shown
    assert "hunter7" not in repr(ConfigSource(given={"hosts": hosts}))


@pytest.fixture
def no_nodes(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in [name for name in os.environ if name.startswith("SOLLOL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", os.devnull)
    monkeypatch.setenv("SOLLOL_AUTO_DISCOVER", "false")
    return monkeypatch


@pytest.mark.parametrize("url", ["http://user:hunter7#xyzzy9@a", "http//user:hunter7@a"])
@pytest.mark.parametrize(
    "command",
    [
        ["nodes", "--node"],
        ["up", "--port", "0", "--no-metrics", "--node"],
        ["stats", "--node"],
        ["advertise", "--url"],
        ["agent", "--url"],
        ["discover", "--subnet"],
    ],
)
def test_a_command_shows_no_password(
    command: list[str],
    url: str,
    no_nodes: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*command, url]) == 2
    shown = capsys.readouterr()
    assert not any(part in shown.out + shown.err for part in PARTS)


@pytest.mark.parametrize("command", [["config"], ["nodes"], ["up"], ["discover"], ["agent"]])
def test_a_command_shows_no_password_of_a_variable(
    command: list[str], no_nodes: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    no_nodes.setenv("OLLAMA_HOST", "http://user:12/hunter7@a")
    if command == ["up"]:
        command = ["up", "--port", "0", "--no-metrics"]
    assert main(command) == 2
    shown = capsys.readouterr()
    assert "hunter7" not in shown.out + shown.err
    assert "...@a" in shown.err
