"""Files of nodes: the forms that are read, and the errors of invalid ones."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from node_file_parts import FULL, ONE, TWO, failure, written

from aiosollol.config.files import (
    default_nodes_path,
    find_nodes_file,
    load_nodes,
    save_nodes,
)
from aiosollol.core.node import NodeSpec
from aiosollol.errors import ConfigError

# Reading.


@pytest.mark.parametrize(
    ("entry", "spec"),
    [
        ({"url": "http://10.0.0.2:11434", "name": "gpu1", "priority": 0}, ONE),
        ({"url": "http://10.0.0.3:11434"}, TWO),
        ({"url": "10.0.0.3", "name": None}, TWO),
        ({"host": "10.0.0.3", "port": "11434"}, TWO),
        ({"host": "10.0.0.3", "port": 11434, "priority": 0}, TWO),
        ({"host": "10.0.0.3"}, TWO),
        ("10.0.0.3:11434", TWO),
        (
            {
                "url": "https://ollama.example.com/gpu1",
                "name": "gpu2",
                "priority": 2,
                "machine": "rack1",
                "headers": {"Authorization": "Bearer s3cret"},
                "max_concurrency": 4,
                "vram_gb": 24.5,
                "fingerprint": "AB:" * 31 + "AB",
            },
            FULL,
        ),
    ],
)
def test_every_form_of_a_node(entry: Any, spec: NodeSpec, tmp_path: Path) -> None:
    for content in ({"nodes": [entry]}, {"version": "1.0", "nodes": [entry]}):
        assert load_nodes(written(tmp_path, json.dumps(content))) == [spec]


def test_no_nodes_are_nodes(tmp_path: Path) -> None:
    assert load_nodes(written(tmp_path, '{"nodes": []}')) == []


@pytest.mark.parametrize("name", ["hosts.txt", "HOSTS.TXT", "hosts", "hosts.conf"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_list_of_hosts(name: str, end: str, tmp_path: Path) -> None:
    lines = ["# the rack", "", "  10.0.0.2:11434  ", "10.0.0.3 # port 11434", "\t", "[::1]:1", "#x"]
    path = tmp_path / name
    path.write_bytes(end.join(lines).encode())
    urls = [spec.url for spec in load_nodes(path)]
    assert urls == ["http://10.0.0.2:11434", "http://10.0.0.3:11434", "http://[::1]:1"]


def test_a_file_is_what_it_looks_like(tmp_path: Path) -> None:
    both = '\ufeff\n {"nodes": ["10.0.0.3"]}'
    for name in ("nodes", "nodes.txt", "nodes.json", "nodes.JSON"):
        assert load_nodes(written(tmp_path, both, name)) == [TWO]
    assert load_nodes(written(tmp_path, "\ufeff10.0.0.3", "hosts.txt")) == [TWO]
    assert [spec.key for spec in load_nodes(written(tmp_path, "[::1]", "hosts"))] == ["[::1]:11434"]


def test_a_tilde_is_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save_nodes("~/new/nodes.json", [ONE])
    assert load_nodes("~/new/nodes.json") == [ONE]
    assert (tmp_path / "new" / "nodes.json").exists()


EXAMPLE = '{"nodes": [{"url": "http://10.0.0.2:11434", "name": "gpu1", "priority": 0}]}'


@pytest.mark.parametrize(
    ("text", "where", "said"),
    [
        ("", " ", f"is empty; write {EXAMPLE}"),
        ("\ufeff \n\n", " ", "is empty"),
        ("10.0.0.2:11434", ", line 1, column 5: ", "not JSON: Extra data"),
        ('{"nodes": [\n  {"url": "a"}\n  {"url": "b"}\n]}', ", line 3, column 3: ", "delimiter"),
        ('{"nodes": [{"url": "a"},]}', ", line 1, column ", f"write {EXAMPLE}"),
        ("{'nodes': []}", ", line 1, column 2: ", "double quotes"),
        ('{"nodes": []} x', ", line 1, column 15: ", "Extra data"),
        ('{"nodes": [{"url": "a", "vram_gb": NaN}]}', ": ", "NaN is not a number"),
        ('{"nodes": [{"url": "a", "url": "b"}]}', ": ", "the key 'url' occurs twice"),
        ('{"nodes": [], "nodes": []}', ": ", "the key 'nodes' occurs twice"),
        ('{"nodes": ' + "[" * 100_000, ": ", "nested too deeply"),
        ('{"nodes": [' + "9" * 5000 + "]}", ": ", "not JSON: Exceeds the limit"),
        ("[]", " ", f"is not a nodes file; write {EXAMPLE}"),
        ('[{"host": "a", "port": 1}]', " ", "is not a nodes file"),
        ("3", " ", "is not a nodes file"),
        ("null", " ", "is not a nodes file"),
        ('{"nodes": {"url": "a"}}', " ", "is not a nodes file"),
        ('{"nodes": null}', " ", "is not a nodes file"),
        ("{}", " ", f"has no key 'nodes'; write {EXAMPLE}"),
        ('{"node": []}', ": ", "unknown key 'node'; did you mean 'nodes'?"),
        ('{"nodes": [], "x": 1}', ": ", "unknown key 'x'; known are nodes, version"),
        ('{"nodes": [], "version": "2.0"}', ": ", """write "version": "1.0", or leave it out"""),
        ('{"nodes": [], "version": true}', ": ", "version True is not known"),
        ('{"nodes": ["a", 5]}', ", entry 2: ", 'a node is written like {"url": '),
        ('{"nodes": [null]}', ", entry 1: ", "a node is written like"),
        ('{"nodes": [{"url": "a", "nme": "b"}]}', ", entry 1: ", "'nme'; did you mean 'name'?"),
        ('{"nodes": [{"name": "b", "prio": 1}]}', ", entry 1 ('b'): ", "did you mean 'priority'?"),
        ('{"nodes": [{"url": "a", "Port": 1}]}', ", entry 1: ", "did you mean 'port'?"),
        ('{"nodes": [{"url": "a", "gpu": 1}]}', ", entry 1: ", "'gpu'; known are host, port, url"),
        ('{"nodes": [{"name": "b"}]}', ", entry 1 ('b'): ", "needs 'url', or 'host' and 'port'"),
        ('{"nodes": ["a", "http://x:y"]}', ", entry 2: ", "write it like http://10.0.0.2:11434"),
        ('{"nodes": ["ftp://a"]}', ", entry 1: ", "the scheme is 'ftp', not http or https"),
        ('{"nodes": [""]}', ", entry 1: ", "a node's address is empty"),
        ('{"nodes": [{"url": 5}]}', ", entry 1: ", "must be a string, not int"),
        ('{"nodes": [{"url": "a", "host": "a"}]}', ", entry 1: ", "both 'host' and 'url'"),
        ('{"nodes": [{"url": "a", "priority": "1"}]}', ", entry 1: ", "must be a whole number"),
        ('{"nodes": [{"url": "a", "name": 5}]}', ", entry 1: ", "must be a string, not 5"),
        ('{"nodes": [{"url": "a", "headers": ["x"]}]}', ", entry 1: ", "must map strings to"),
        (
            '{"nodes": ["10.0.0.2", {"host": "10.0.0.3"}, "http://10.0.0.2:11434/"]}',
            ", entry 3: ",
            "the URL 'http://10.0.0.2:11434' is also that of entry 1; remove one",
        ),
        (
            '{"nodes": [{"url": "a", "name": "n"}, {"url": "b", "name": "n"}]}',
            ", entry 2: ",
            "the name 'n' is also that of entry 1; give each its own",
        ),
        (
            '{"nodes": ["a", {"url": "b", "name": "a:11434"}]}',
            ", entry 2: ",
            "the name 'a:11434' is also that of entry 1",
        ),
    ],
)
def test_wrong_json_is_named(text: str, where: str, said: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    error = failure(path)
    assert str(error).startswith(f"{path}{where}")
    assert said in str(error)
    assert len(str(error)) < 400
    assert error.line == (int(where.split()[2][:-1]) if ", line " in where else None)


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("# nothing\n\n", None, "has no nodes; write host:port on each line, such as 10.0.0.2:"),
        ("\n10.0.0.2:\n", 2, "there is no port after the colon"),
        ("10.0.0.2 11434", 1, "it contains white space"),
        ("a\n\nb,c", 3, "'b,c' is not a host name or an IP address"),
        ("a\n# x\nhttp://A:11434/ # the same", 3, "'http://a:11434' is also that of line 1"),
        ("[x", 1, "is not a node's address"),
    ],
)
def test_a_wrong_list_of_hosts_is_named(
    text: str, line: int | None, said: str, tmp_path: Path
) -> None:
    path = written(tmp_path, text, "hosts.txt")
    error = failure(path)
    assert str(error).startswith(f"{path}, line {line}: " if line is not None else f"{path} ")
    assert said in str(error)
    assert error.line == line


def test_what_is_no_readable_file(tmp_path: Path) -> None:
    pipe, latin, link = tmp_path / "pipe", tmp_path / "latin", tmp_path / "link"
    os.mkfifo(pipe)
    latin.write_bytes(b'{"nodes": [\n"caf\xe9"]}')
    link.symlink_to("gone")
    for path, said in (
        (
            tmp_path / "no.json",
            "no.json: there is no such file; save the nodes first, or write one",
        ),
        (link, "link: there is no such file; save the nodes first"),
        (tmp_path, "is a directory; name a file"),
        (pipe, "is not a regular file; name a file"),
        (latin, "latin, line 2: not UTF-8 but another encoding; save it as UTF-8"),
    ):
        assert said in str(failure(path))


def test_secrets_are_not_told(tmp_path: Path) -> None:
    headers = '"headers": {"Authorization": "Bearer s3cret", "X": 5}'
    for text in (
        f'{{"nodes": [{{"url": "a", {headers}}}]}}',
        f'{{"nodes": [{{"url": "a", "x": 1, {headers}}}]}}',
        f'{{"nodes": [{{"url": "a", {headers}}}',
        '{"nodes": ["http://me:s3cret@a"]}',
        '{"nodes": [["Bearer s3cret"]]}',
    ):
        assert "s3cret" not in str(failure(written(tmp_path, text)))
    assert "s3cret" not in str(failure(written(tmp_path, "me:s3cret@a", "hosts.txt")))


@settings(deadline=None)
@given(st.binary() | st.text().map(str.encode), st.sampled_from(["x.json", "x.txt", "x"]))
def test_any_file_is_nodes_or_a_config_error(data: bytes, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(data)
        with contextlib.suppress(ConfigError):
            load_nodes(path)


KEYS = st.sampled_from(["nodes", "version", "url", "name", "host", "port", "headers", "vram_gb"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(KEYS | st.text(), inner),
    max_leaves=5,
)


@settings(max_examples=50, deadline=None)
@given(JSON | st.builds(lambda nodes: {"nodes": nodes}, st.lists(st.dictionaries(KEYS, JSON))))
def test_any_json_is_nodes_or_a_config_error(content: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.json")
        path.write_text(json.dumps(content), "utf-8")
        with contextlib.suppress(ConfigError):
            load_nodes(path)


# Where they are.


def test_ours_comes_before_the_originals(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path)}
    assert default_nodes_path(environ) == tmp_path / ".config/aiosollol/nodes.json"
    assert find_nodes_file(environ) is None
    original = written(tmp_path, '{"nodes": ["10.0.0.3"]}', ".synapticllamas_nodes.json")
    assert find_nodes_file(environ) == original
    save_nodes(default_nodes_path(environ), [ONE])
    assert find_nodes_file(environ) == default_nodes_path(environ)
    elsewhere = {**environ, "XDG_CONFIG_HOME": str(tmp_path / "x")}
    assert default_nodes_path(elsewhere) == tmp_path / "x/aiosollol/nodes.json"
    assert find_nodes_file(elsewhere) == original


# Saving.


def test_the_format_is_the_originals(tmp_path: Path) -> None:
    path = tmp_path / "nodes.json"
    save_nodes(path, [ONE, TWO, FULL])
    assert path.read_text("utf-8").startswith('{\n  "nodes": [\n    {\n      "url": "http://10.0')
    assert json.loads(path.read_text("utf-8")) == {
        "nodes": [
            {"url": "http://10.0.0.2:11434", "name": "gpu1", "priority": 0},
            {"url": "http://10.0.0.3:11434", "name": "10.0.0.3:11434", "priority": 0},
            {
                "url": "https://ollama.example.com:443/gpu1",
                "name": "gpu2",
                "priority": 2,
                "machine": "rack1",
                "headers": {"Authorization": "Bearer s3cret"},
                "max_concurrency": 4,
                "vram_gb": 24.5,
                "fingerprint": "ab" * 32,
            },
        ]
    }
    assert load_nodes(path) == [ONE, TWO, FULL]
