"""The options --header, --api-key and --ca."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from gateway_cluster import cluster
from programs import run

from aiosollol import InvalidInput
from aiosollol.cli import access
from aiosollol.gateway.middleware.guard import Guard
from aiosollol.gateway.middleware.keys import KeyRing, new_key, parse_keys

pytestmark = pytest.mark.anyio
KEY = {"Authorization": "Bearer k"}


@pytest.fixture(autouse=True)
def _no_headers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(access.KEY_VARIABLE, raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", "")
    yield
    access.use((), None, None)


@pytest.mark.parametrize(
    ("lines", "key", "headers"),
    [
        ([], "", {}),
        ([], "k", KEY),
        (["X-Token: a:b"], "", {"X-Token": "a:b"}),
        (["X-Token:a", " Y : b "], "k", {**KEY, "X-Token": "a", "Y": "b"}),
        (["Authorization: Basic x"], "k", {"Authorization": "Basic x"}),
    ],
)
def test_headers(lines: list[str], key: str, headers: dict[str, str]) -> None:
    assert access.read_headers(lines, key) == headers


@pytest.mark.parametrize("line", ["", "X-Token", ": a", "  : a"])
def test_what_is_no_header(line: str) -> None:
    with pytest.raises(InvalidInput, match="NAME: VALUE"):
        access.read_headers([line])


@pytest.mark.parametrize(
    ("given", "environ", "key"),
    [
        (None, {}, ""),
        (None, {access.KEY_VARIABLE: "k"}, "k"),
        ("given", {access.KEY_VARIABLE: "k"}, "given"),
        ("@{file}", {}, "in a file"),
        (None, {access.KEY_VARIABLE: "@{file}"}, "in a file"),
    ],
)
def test_keys(tmp_path: Path, given: str | None, environ: Mapping[str, str], key: str) -> None:
    file = tmp_path / "key"
    file.write_text("in-a-file\n")
    found = access.read_key(
        given and given.format(file=file),
        {name: value.format(file=file) for name, value in environ.items()},
    )
    assert found == key.replace(" ", "-")


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("", "--api-key is empty"),
        ("a b", "no spaces"),
        ("a\nb", "no spaces"),
        ("\N{LATIN SMALL LETTER E WITH ACUTE}", "beyond ASCII"),
        ("@/no/such/file", "cannot be read from /no/such/file: No such file"),
    ],
)
def test_what_is_no_key(given: str, problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem) as caught:
        access.read_key(given, {})
    assert given == "" or given.startswith("@") or given not in str(caught.value)


@pytest.mark.parametrize(
    ("headers", "nodes", "environ", "named"),
    [
        ([], [], {}, None),
        ([], ["a"], {}, ["a"]),
        ([], [], {"OLLAMA_HOST": "a"}, None),
        (["H: x"], ["a", "b"], {}, ["a", "b"]),
        (["H: x"], [], {"OLLAMA_HOST": "a:80"}, ["http://a:80"]),
    ],
)
def test_nodes(
    headers: list[str], nodes: list[str], environ: dict[str, str], named: list[str] | None
) -> None:
    access.use(headers, None, None)
    expected = named and [
        {"url": each, "headers": {"H": "x"}} if headers else each for each in named
    ]
    assert access.named_nodes(nodes, environ) == expected


def test_headers_do_not_go_to_nodes_that_a_search_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    access.use(["H: x"], None, None)
    with pytest.raises(InvalidInput, match="need --node"):
        access.named_nodes([], {})
    with pytest.raises(InvalidInput, match="need --node"):
        access.named_nodes([], {access.KEY_VARIABLE: "k"})
    monkeypatch.setenv(access.KEY_VARIABLE, "k")
    access.use((), None, None)
    assert access.named_nodes([], {access.KEY_VARIABLE: "k"}) is None


@pytest.mark.parametrize("text", ["", "no certificate", None])
def test_what_is_no_authority(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "ca.pem"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InvalidInput, match=r"--ca .*ca\.pem: .*PEM file"):
        access.use((), None, str(file))
    assert os.environ["SSL_CERT_FILE"] == ""


async def test_a_gateway_with_keys_as_a_node() -> None:
    new = new_key("ann")
    guard = Guard(KeyRing(parse_keys(new.line, "keys")))
    async with cluster(app={"middlewares": [guard.middleware()]}) as gateway:
        line = (sys.executable, "-m", "aiosollol", "nodes", "--node", gateway.url)
        without = await run(*line)
        assert without.code == 1
        assert "an API key is needed" in without.out.decode()
        for options, environ in (
            (("--api-key", new.token), {}),
            (("--header", f"X-Api-Key: {new.token}"), {}),
            ((), {access.KEY_VARIABLE: new.token}),
        ):
            done = await run(*line, *options, env=environ)
            assert (done.code, "tiny-chat" in done.out.decode()) == (0, True)
