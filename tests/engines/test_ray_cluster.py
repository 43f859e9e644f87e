"""The Ray cluster to join or start, and what the sidecar answers, without Ray."""

from __future__ import annotations

import json
import pathlib
import socket
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest

from aiosollol.engines.ray import (
    cluster as ray_cluster,
)
from aiosollol.engines.ray import (
    sidecar,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def listening() -> Iterator[str]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> pathlib.Path:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"):
        monkeypatch.setenv(name, "")  # so that what `join` sets is undone afterwards
        monkeypatch.delenv(name)
    joined: list[tuple[str, bool]] = []

    def init(address: str, *, is_own: bool, **options: Any) -> ray_cluster.Cluster:
        joined.append((address, is_own))
        return ray_cluster.Cluster("10.0.0.1:1" if is_own else address, is_own, None, "2")

    monkeypatch.setattr(ray_cluster, "_init", init)
    return tmp_path


def test_none_starts_a_cluster_and_tells_where_it_is(alone: pathlib.Path) -> None:
    cluster = ray_cluster.join(None)
    assert cluster.is_own
    told = json.loads(ray_cluster._told_path().read_text("utf-8"))
    assert told["address"] == cluster.address


def test_what_was_told_and_does_not_answer_is_not_believed(
    alone: pathlib.Path, unused_port: int
) -> None:
    ray_cluster._told_path().write_text(json.dumps({"address": f"127.0.0.1:{unused_port}"}))
    assert ray_cluster.join(None).is_own


@pytest.mark.parametrize("text", ["", "[", '{"pid": 1}', "[1]"])
def test_what_was_told_and_is_nonsense_is_ignored(alone: pathlib.Path, text: str) -> None:
    ray_cluster._told_path().write_text(text)
    assert ray_cluster.join(None).is_own


@pytest.mark.parametrize("address", [None, "auto"])
def test_a_cluster_that_one_of_us_started_is_found(
    alone: pathlib.Path, listening: str, address: str | None
) -> None:
    ray_cluster._told_path().write_text(json.dumps({"address": listening}))
    assert ray_cluster.join(address)[:2] == (listening, False)


@pytest.mark.parametrize("address", [None, "auto"])
def test_a_cluster_of_ray_start_is_found(
    alone: pathlib.Path, listening: str, address: str | None
) -> None:
    (alone / "ray").mkdir()
    (alone / "ray" / "ray_current_cluster").write_text(f"{listening}\n")
    assert ray_cluster.join(address)[:2] == (listening, False)


def test_without_a_place_for_the_address_nothing_is_started(
    alone: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (alone / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(alone / "file"))
    with pytest.raises(ray_cluster.ClusterGone, match="name one with ray_address"):
        ray_cluster.join(None)


def test_the_variable_of_ray_names_one(
    alone: pathlib.Path, listening: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", listening)
    assert ray_cluster.join(None)[:2] == (listening, False)


@pytest.mark.parametrize("address", ["auto", "127.0.0.1:{port}", "ray://127.0.0.1:{port}"])
def test_where_nothing_answers_the_error_says_what_to_do(
    alone: pathlib.Path, unused_port: int, address: str
) -> None:
    with pytest.raises(ray_cluster.ClusterGone, match="ray start --head"):
        ray_cluster.join(address.format(port=unused_port))


@pytest.mark.parametrize(
    ("error", "address", "words"),
    [
        (
            RuntimeError("Version mismatch: \n 2.9 and 2.60"),
            "a:1",
            "same versions of Python and Ray",
        ),
        (ImportError("no grpc"), "ray://a:1", r"pip install 'ray\[client\]'"),
        (SystemExit(15), "a:1", "at a:1 cannot be used: 15"),
        (ConnectionError(), "a:1", "cannot be used: ConnectionError"),
    ],
)
def test_whatever_ray_raises_there_is_no_cluster(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, address: str, words: str
) -> None:
    def init(**options: Any) -> None:
        raise error

    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(init=init))
    with pytest.raises(ray_cluster.ClusterGone, match=words):
        ray_cluster._init(address, is_own=False)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("x\n y"), "failed: RuntimeError: x y"),
        (RuntimeError("...: No module named 'aiosollol' ..."), "with the extra ray"),
        (RuntimeError("x" * 1000), "failed: RuntimeError: " + "x" * 200),
    ],
)
def test_what_ray_raises_is_told_in_a_line(error: Exception, words: str) -> None:
    outcome, told = sidecar.in_words(error)
    assert words in told
    assert (outcome == "failed") == told.startswith("failed")
