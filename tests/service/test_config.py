"""The settings of a service: their values, their files, and the pool made from them."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from aiosollol import ConfigError, NodeSpec
from aiosollol.service import ConfigSource, SOLLOLConfig
from aiosollol.service.config_changes import ConfigUpdate, compare
from aiosollol.service.parts import queue_path
from aiosollol.service.security import nodes_of

pytestmark = pytest.mark.anyio
pytest.importorskip("prometheus_client")
# The original's, by its documentation and its package.
ORIGINAL = {
    "ray_workers": 2,
    "dask_workers": 2,
    "dask_scheduler": None,
    "hosts": ("127.0.0.1:11434",),
    "gateway_port": 8000,
    "routing_strategy": "performance",
    "autobatch_enabled": True,
    "autobatch_interval": 60,
    "autobatch_min_batch_size": 1,
    "autobatch_max_batch_size": 100,
    "metrics_enabled": True,
    "metrics_port": 9090,
    "adaptive_metrics_enabled": True,
    "adaptive_metrics_interval": 30,
    "health_check_enabled": True,
    "health_check_interval": 120,
    "max_retries": 3,
    "retry_backoff_multiplier": 0.5,
    "chat_timeout": 300.0,
    "embedding_timeout": 60.0,
}


def test_the_fields_and_defaults_of_the_original() -> None:
    config = SOLLOLConfig()
    assert {name: getattr(config, name) for name in ORIGINAL} == ORIGINAL
    assert config.gateway_host == "127.0.0.1"  # the original listens on every interface


def test_a_config_is_frozen_and_can_be_pickled() -> None:
    config = SOLLOLConfig(hosts=["10.0.0.2"], pool={"policy": "rules"})
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.gateway_port = 1  # type: ignore[misc]
    assert config.hosts == ("10.0.0.2",)
    assert pickle.loads(pickle.dumps(config)) == config
    assert dataclasses.replace(config, gateway_port=1).hosts == ("10.0.0.2",)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("ray_workers", -1, "a whole number"),
        ("dask_workers", 1.5, "a whole number"),
        ("dask_scheduler", "10.0.0.1", "an address such as"),
        ("hosts", "10.0.0.2", "a list of at least one node"),
        ("hosts", [], "a list of at least one node"),
        ("hosts", ["http://"], "hosts: "),
        ("gateway_port", 70000, "a port"),
        ("gateway_host", "", "an address or a host name"),
        ("routing_strategy", "fastest", "one of 'performance'"),
        ("autobatch_enabled", "yes", "true or false"),
        ("autobatch_interval", -1, "a number of seconds"),
        ("autobatch_min_batch_size", 0, "a whole number of at least 1"),
        ("autobatch_min_batch_size", 1000, "at most autobatch_max_batch_size"),
        ("chat_timeout", 0, "a number of seconds"),
        ("processes", 0, "from 1 to 256"),
        ("api_keys_file", 3, "a path"),
        ("cors_origins", "*", "a list of origins"),
        ("rate_limit", -1, "requests a second"),
        ("max_in_flight", 0, "a whole number of at least 1"),
        ("wait_timeout", -1, "a number of seconds"),
        ("full_timeout", 0, "a number of seconds"),
        ("pool", {"wait_timeout": 3}, "a setting of the service"),
        ("max_body", None, "a whole number of at least 1"),
        ("pool", {"polcy": "rules"}, "did you mean 'policy'"),
        ("pool", {"policy": "best"}, "policy must be one of"),
        ("pool", {"embed_timeout": 3}, "a setting of the service"),
    ],
)
def test_settings_that_cannot_be(name: str, value: object, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        SOLLOLConfig(**{name: value})
    assert caught.value.source == "argument"


def test_what_the_pool_is_made_with() -> None:
    config = SOLLOLConfig(
        embedding_timeout=7, adaptive_metrics_enabled=False, pool={"policy": "rules"}
    )
    settings = config.pool_settings()
    assert settings["wait_timeout"] == 300  # longer than a program's own calls would
    assert (settings["embed_timeout"], settings["policy"]) == (7, "rules")
    assert settings["metrics_interval"] > 10**8
    assert settings["check_interval"] == 120
    assert settings["enable_dask"] is False


@pytest.mark.parametrize(
    ("given", "settings"),
    [
        ({"enable_dask": True}, (True, None, 2)),
        ({"enable_dask": True, "dask_workers": 4}, (True, None, 4)),
        ({"dask_scheduler": "tcp://10.0.0.2:8786"}, (True, "tcp://10.0.0.2:8786", 2)),
        ({"dask_workers": 4}, (False, None, 4)),
    ],
)
def test_dask_is_for_those_who_ask_for_it(
    given: dict[str, Any], settings: tuple[bool, str | None, int]
) -> None:
    made = SOLLOLConfig(**given).pool_settings()
    assert (made["enable_dask"], made["dask_address"], made["dask_workers"]) == settings


TOML = """
hosts = ["10.0.0.2", "10.0.0.3:8080"]
gateway_port = 8001

[pool]
policy = "rules"
"""


def test_a_file_and_what_counts_more(tmp_path: Path) -> None:
    file, hosts = tmp_path / "gateway.toml", tmp_path / "hosts.txt"
    file.write_text(TOML)
    hosts.write_text("10.0.0.9\n")
    read = ConfigSource(path=str(file), given={"gateway_port": 8002}).read()
    assert (read.hosts, read.gateway_port) == (("10.0.0.2", "10.0.0.3:8080"), 8002)
    assert read.pool == {"policy": "rules"}
    source = ConfigSource(path=str(file), hosts_file=str(hosts))
    assert source.read().hosts == (NodeSpec("10.0.0.9"),)
    assert ConfigSource().read() == SOLLOLConfig()
    assert ConfigSource(begins_as_pool=True).read().hosts is None


def test_a_source_on_its_way_to_a_child(tmp_path: Path) -> None:
    spec = NodeSpec("http://10.0.0.2:1", headers={"X": "y"}, priority=2)
    source = ConfigSource(
        path=None, given={"hosts": (spec, "10.0.0.3"), "pool": {"policy": "rules"}}
    )
    again = ConfigSource(**json.loads(json.dumps(source.as_data()))).read()
    assert nodes_of(again) == nodes_of(source.read())


@pytest.mark.parametrize(
    ("text", "problem", "line"),
    [
        ("gateway_prot = 1", "unknown setting 'gateway_prot'; did you mean 'gateway_port'?", 1),
        ("\ngateway_port = 'x'", "gateway_port must be a port", 2),
        ("a = \n", "not TOML", 1),
        ("\n[pool]\npolicy = 'x'", "policy must be one of", 2),
        ("hosts = ['http://']", "hosts: ", 1),
    ],
)
def test_mistakes_in_a_file(tmp_path: Path, text: str, problem: str, line: int) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=problem.replace("?", r"\?")) as caught:
        ConfigSource(path=str(file)).read()
    assert (caught.value.source, caught.value.line) == (str(file), line)


def test_where_the_queue_is(tmp_path: Path) -> None:
    assert queue_path(SOLLOLConfig(autobatch_path="q.db")) == "q.db"
    path = queue_path(SOLLOLConfig(), {"XDG_STATE_HOME": str(tmp_path)})
    assert path == str(tmp_path / "aiosollol" / "autobatch.db")
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConfigError, match="autobatch_path"):
        queue_path(SOLLOLConfig(), {"XDG_STATE_HOME": str(file)})


def test_what_a_change_takes() -> None:
    old = SOLLOLConfig(hosts=["10.0.0.2"])
    new = dataclasses.replace(
        old, hosts=["10.0.0.3"], autobatch_interval=5, gateway_port=1, ray_workers=6
    )
    update = compare(old, new)
    assert update == ConfigUpdate(
        ("hosts", "autobatch_interval"), ("gateway_port",), ("ray_workers",)
    )
    assert str(update) == (
        "applied: hosts, autobatch_interval; after a restart: gateway_port; not in use: ray_workers"
    )
    assert str(compare(old, old)) == "nothing has changed"
    assert compare(old, dataclasses.replace(old, hosts=None)).needs_restart == ("hosts",)
    admin = dataclasses.replace(old, allow_admin=True)
    assert compare(old, admin).needs_restart == ("allow_admin",)
    assert compare(admin, old).applied == ("allow_admin",)
