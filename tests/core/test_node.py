"""Nodes: as given in every form, as known, and all of them together."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import traceback
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest

from aiosollol.core.model_names import full_name
from aiosollol.core.node import (
    ClusterView,
    LoadedModel,
    ModelInfo,
    NodeSpec,
    NodeState,
)
from aiosollol.errors import InvalidInput

URL = "http://10.0.0.2:11434"
TOKEN = {"Authorization": "Bearer s3cret"}

FORMS = [
    pytest.param(URL, NodeSpec(URL), id="a URL"),
    pytest.param("10.0.0.2:8080", NodeSpec("http://10.0.0.2:8080"), id="host:port"),
    pytest.param("10.0.0.2", NodeSpec(URL), id="a bare host"),
    pytest.param("https://a/p", NodeSpec("https://a:443/p"), id="https and a path prefix"),
    pytest.param("[::1]:80", NodeSpec("http://[::1]:80"), id="IPv6 in brackets"),
    pytest.param({"host": "10.0.0.2", "port": "11434"}, NodeSpec(URL), id="a port as a string"),
    pytest.param({"host": "10.0.0.2", "port": 11434}, NodeSpec(URL), id="a port as a number"),
    pytest.param({"host": "10.0.0.2"}, NodeSpec(URL), id="a host only"),
    pytest.param({"host": "10.0.0.2", "port": ""}, NodeSpec(URL), id="an empty port"),
    pytest.param({"host": "::1", "port": 80}, NodeSpec("http://[::1]:80"), id="IPv6 and a port"),
    pytest.param({"host": "[::1]", "port": 80}, NodeSpec("http://[::1]:80"), id="in brackets"),
    pytest.param({"host": "::1"}, NodeSpec("http://[::1]:11434"), id="IPv6 only"),
    pytest.param({"url": "10.0.0.2"}, NodeSpec(URL), id="a mapping with a URL"),
    pytest.param({"url": URL, "name": None, "headers": None}, NodeSpec(URL), id="None is absent"),
    pytest.param({"host": "10.0.0.2", "name": "gpu"}, NodeSpec(URL, name="gpu"), id="host, name"),
    pytest.param(
        {
            "url": URL,
            "name": "gpu",
            "priority": 2,
            "machine": "rack1",
            "headers": TOKEN,
            "max_concurrency": 4,
            "vram_gb": 24,
        },
        NodeSpec(URL, "gpu", 2, "rack1", TOKEN, 4, 24),
        id="every field",
    ),
    pytest.param(MappingProxyType({"url": URL}), NodeSpec(URL), id="any mapping"),
    pytest.param(NodeSpec(URL, "gpu"), NodeSpec(URL, "gpu"), id="a NodeSpec"),
]


@pytest.mark.parametrize(("node", "spec"), FORMS)
def test_every_form_of_a_node(node: str | Mapping[str, Any] | NodeSpec, spec: NodeSpec) -> None:
    assert NodeSpec.parse(node) == spec


def test_without_a_name_it_is_called_by_host_and_port() -> None:
    assert NodeSpec("https://a/p").name == "a:443"
    assert NodeSpec("https://a/p", name="gpu").key == "a:443"
    assert NodeSpec("::1").name == "[::1]:11434"


MALFORMED = [
    pytest.param(None, "a URL, a mapping or a NodeSpec, not NoneType", id="None"),
    pytest.param(11434, "a URL, a mapping or a NodeSpec, not int", id="a number"),
    pytest.param(["a"], "a URL, a mapping or a NodeSpec, not list", id="a list"),
    pytest.param("ftp://a", "not http or https", id="another scheme"),
    pytest.param({}, "needs 'url', or 'host' and 'port'", id="an empty mapping"),
    pytest.param({"url": None}, "needs 'url', or 'host' and 'port'", id="no URL"),
    pytest.param({"name": "gpu"}, "needs 'url', or 'host' and 'port'", id="a name only"),
    pytest.param({"url": 7}, "must be a string, not int", id="a URL that is no string"),
    pytest.param({"host": 7}, "'host' of a node must be a string", id="a host that is no string"),
    pytest.param({"host": "a", "url": "a"}, "both 'host' and 'url'", id="a host and a URL"),
    pytest.param({"url": "a", "port": 1}, "'port' of a node needs 'host'", id="URL and port"),
    pytest.param({"port": 11434}, "'port' of a node needs 'host'", id="a port only"),
    pytest.param({"host": "a", "port": "x"}, "must be a number, not 'x'", id="a port of letters"),
    pytest.param({"host": "a", "port": 1.5}, "must be a number, not 1.5", id="a port with a half"),
    pytest.param({"host": "a", "port": True}, "must be a number, not True", id="a port of truth"),
    pytest.param({"host": "a", "port": -1}, "must be a number, not -1", id="a negative port"),
    pytest.param({"host": "a", "port": "١"}, "must be a number", id="a port in Arabic digits"),
    pytest.param({"host": "a", "port": 0}, "port 0", id="port 0"),
    pytest.param({"host": "a", "port": 70000}, "out of range", id="a port too large"),
    pytest.param({"url": "a", "nmae": "gpu"}, "unknown key 'nmae'", id="a misspelt key"),
    pytest.param({"url": "a", "nmae": "x"}, "known are host, port, url", id="and those there are"),
    pytest.param({"url": "a", "name": 7}, "name of http://a:11434 must be", id="a name of digits"),
    pytest.param({"url": "a", "priority": "1"}, "priority of a:11434", id="priority, a string"),
    pytest.param({"url": "a", "priority": True}, "priority of a:11434", id="priority, a truth"),
    pytest.param({"url": "a", "machine": ""}, "machine of a:11434", id="machine, empty"),
    pytest.param({"url": "a", "machine": 1}, "machine of a:11434", id="machine, a number"),
    pytest.param({"url": "a", "max_concurrency": 0}, "at least 1, not 0", id="concurrency of 0"),
    pytest.param({"url": "a", "max_concurrency": True}, "at least 1", id="concurrency, a truth"),
    pytest.param({"url": "a", "max_concurrency": 1.5}, "at least 1", id="concurrency of 1.5"),
    pytest.param({"url": "a", "vram_gb": -1}, "number of GiB, not -1", id="VRAM below nothing"),
    pytest.param({"url": "a", "vram_gb": float("nan")}, "number of GiB", id="VRAM, not a number"),
    pytest.param({"url": "a", "vram_gb": float("inf")}, "number of GiB", id="VRAM without end"),
    pytest.param({"url": "a", "vram_gb": True}, "number of GiB", id="VRAM, a truth"),
    pytest.param({"url": "a", "vram_gb": "24"}, "number of GiB, not '24'", id="VRAM, a string"),
]


@pytest.mark.parametrize(("node", "problem"), MALFORMED)
def test_a_malformed_node_says_what_is_wrong(node: Any, problem: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        NodeSpec.parse(node)
    assert problem in str(caught.value)


BAD_HEADERS = [
    pytest.param("Bearer s3cret", "must map strings to strings", id="a string"),
    pytest.param(["Bearer s3cret"], "must map strings to strings", id="a list"),
    pytest.param({"Authorization": b"s3cret"}, "must map strings to strings", id="bytes"),
    pytest.param({"Authorization": None}, "must map strings to strings", id="None"),
    pytest.param({7: "s3cret"}, "must map strings to strings", id="a number"),
    pytest.param({"Authorization": "s3cret\r\nX: y"}, "'Authorization' of", id="a line break"),
    pytest.param({"Authorization": "s3cret\0"}, "'Authorization' of", id="a zero byte"),
]


@pytest.mark.parametrize(("headers", "problem"), BAD_HEADERS)
@pytest.mark.parametrize("make", [NodeSpec.parse, lambda fields: NodeSpec(**fields)])
def test_wrong_headers_are_named_and_not_shown(make: Any, headers: Any, problem: str) -> None:
    with pytest.raises(InvalidInput, match="header") as caught:
        make({"url": URL, "headers": headers})
    assert problem in str(caught.value)
    assert "10.0.0.2:11434" in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("field", [{"priority": "x"}, {"nmae": "x"}, {"url": "ftp://a"}])
def test_an_error_about_another_field_does_not_show_the_headers(field: dict[str, str]) -> None:
    with pytest.raises(InvalidInput) as caught:
        NodeSpec.parse({"url": URL, "headers": TOKEN, **field})
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


def test_headers_are_never_printed() -> None:
    spec = NodeSpec(URL, headers=TOKEN)
    view = ClusterView({spec.name: NodeState(spec)})
    for shown in (spec, NodeState(spec), view):
        assert "s3cret" not in repr(shown) + str(shown) + f"{shown}"
    assert spec.headers["Authorization"] == "Bearer s3cret"


def test_a_spec_does_not_change() -> None:
    headers = dict(TOKEN)
    spec = NodeSpec(URL, headers=headers)
    headers.clear()
    assert spec.headers == TOKEN
    with pytest.raises(TypeError):
        spec.headers["X"] = "y"  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.priority = 3  # type: ignore[misc]
    assert dataclasses.replace(spec, priority=3) == NodeSpec(URL, priority=3, headers=TOKEN)


def test_specs_can_be_compared_and_hashed() -> None:
    assert NodeSpec("10.0.0.2") == NodeSpec(URL)
    assert NodeSpec(URL) != NodeSpec(URL, headers=TOKEN)
    assert len({NodeSpec("10.0.0.2"), NodeSpec(URL)}) == 1


NAMES = [
    pytest.param("llama3.2", "llama3.2:latest", id="without a tag"),
    pytest.param("llama3.2:1b", "llama3.2:1b", id="with a tag"),
    pytest.param("llama3.2:latest", "llama3.2:latest", id="with the tag latest"),
    pytest.param("me/model", "me/model:latest", id="with an owner"),
    pytest.param("me/model:q4", "me/model:q4", id="with an owner and a tag"),
    pytest.param("localhost:5000/me/model", "localhost:5000/me/model:latest", id="a port, no tag"),
    pytest.param("hf.co/me/model:Q4_K_M", "hf.co/me/model:q4_k_m", id="a registry"),
]


@pytest.mark.parametrize(("model", "full"), NAMES)
def test_a_name_without_a_tag_means_latest(model: str, full: str) -> None:
    assert full_name(model) == full
    assert full_name(full) == full


def test_a_node_that_has_not_told_has_no_model() -> None:
    state = NodeState(NodeSpec(URL))
    assert not state.has_model("x")
    assert state.find_model("x") is None
    assert state.without_model("x") is state


def test_models_are_found_with_and_without_the_tag() -> None:
    info = ModelInfo("x:latest", dim=384)
    state = NodeState(NodeSpec(URL), models={"x:latest": info, "y:1b": ModelInfo("y:1b")})
    assert state.find_model("x") is state.find_model("x:latest") is info
    assert state.has_model("y:1b")
    assert not state.has_model("y")


def test_models_are_found_by_each_of_their_names() -> None:
    info = ModelInfo("Me/Model:Q4")
    state = NodeState(NodeSpec(URL), models={"me/model:q4": info})
    for name in ("me/model:q4", "ME/MODEL:Q4", "registry.ollama.ai/me/Model:q4"):
        assert state.find_model(name) is info
        assert not state.without_model(name).models
    assert state.model_names == ("Me/Model:Q4",)
    assert NodeState(NodeSpec(URL)).model_names == ()


def test_a_model_that_is_gone_is_gone_under_both_names() -> None:
    models = {"x:latest": ModelInfo("x:latest"), "y:latest": ModelInfo("y:latest")}
    state = NodeState(NodeSpec(URL), models=models)
    after = state.without_model("x")
    assert (after.has_model("x:latest"), after.has_model("y")) == (False, True)
    assert state.has_model("x")  # the snapshot before is as it was
    assert after.without_model("x") is after


@pytest.mark.parametrize(("in_vram", "expected"), [([], False), ([0], False), ([0, 1], True)])
def test_a_gpu_shows_in_what_is_loaded(in_vram: list[int], expected: bool) -> None:
    loaded = {f"m{size}": LoadedModel(f"m{size}", size_vram=size) for size in in_vram}
    assert NodeState(NodeSpec(URL), loaded=loaded).has_gpu() is expected


def test_a_view_finds_the_nodes_for_a_model_in_the_users_order() -> None:
    models = {"x:latest": ModelInfo("x:latest")}
    states = {
        "b": NodeState(NodeSpec("b", "b"), models=models),
        "down": NodeState(NodeSpec("down", "down"), models=models, is_down=True),
        "unknown": NodeState(NodeSpec("unknown", "unknown")),
        "other": NodeState(NodeSpec("other", "other"), models={}),
        "a": NodeState(NodeSpec("a", "a"), models=models),
    }
    assert [state.name for state in ClusterView(states).having("x")] == ["b", "a"]
    assert ClusterView(states).having("y") == []


def test_a_spec_survives_pickling_and_copying() -> None:
    spec = NodeSpec("http://10.0.0.2", name="gpu", headers={"Authorization": "Bearer x"}, vram_gb=8)
    for again in (pickle.loads(pickle.dumps(spec)), copy.deepcopy(spec)):
        assert again == spec
        assert dict(again.headers) == {"Authorization": "Bearer x"}


@pytest.mark.parametrize(
    ("agent", "url"),
    [
        ("10.0.0.2", "http://10.0.0.2:11435"),
        ("10.0.0.2:1", "http://10.0.0.2:1"),
        ("https://agent.test", "https://agent.test:443"),
    ],
)
def test_where_the_agent_of_a_node_is(agent: str, url: str) -> None:
    assert NodeSpec("10.0.0.2", agent=agent).agent == url
