"""The keys, the address and the nodes of a service."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from aiosollol import ConfigError
from aiosollol.gateway.middleware.keys import new_key
from aiosollol.service import SOLLOLConfig
from aiosollol.service.security import check_bind, nodes_of, read_keys

pytestmark = pytest.mark.anyio
pytest.importorskip("prometheus_client")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "gateway.lan"])
def test_no_public_address_without_keys(host: str) -> None:
    config = SOLLOLConfig(gateway_host=host)
    with pytest.raises(ConfigError, match="there are no API keys"):
        check_bind(config, read_keys(config, {}))
    insecure = dataclasses.replace(config, insecure=True)
    check_bind(insecure, read_keys(insecure, {}))
    check_bind(config, read_keys(config, {"SOLLOL_API_KEYS": new_key("x").token}))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.2", "gpu1"])
def test_no_public_address_for_metrics_without_keys(host: str) -> None:
    config = SOLLOLConfig(metrics_host=host)
    with pytest.raises(ConfigError, match=f"metrics_host {host} .*no API keys"):
        check_bind(config, read_keys(config, {}))
    for given in ({"insecure": True}, {"metrics_enabled": False}):
        other = dataclasses.replace(config, **given)
        check_bind(other, read_keys(other, {}))
    check_bind(config, read_keys(config, {"SOLLOL_API_KEYS": new_key("x").token}))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.8.8"])
def test_loopback_needs_no_keys(host: str) -> None:
    check_bind(SOLLOLConfig(gateway_host=host, allow_admin=True), read_keys(SOLLOLConfig(), {}))


def test_admin_takes_a_key_of_its_own(tmp_path: Path) -> None:
    plain, admin = new_key("ann"), new_key("ops", "admin")
    config = SOLLOLConfig(allow_admin=True)
    with pytest.raises(ConfigError, match="needs an admin key"):
        check_bind(config, read_keys(config, {"SOLLOL_API_KEYS": plain.token}))
    check_bind(config, read_keys(config, {"SOLLOL_ADMIN_KEYS": admin.token}))
    file = tmp_path / "keys.txt"
    file.write_text(f"{plain.line}\n{admin.line}\n")
    ring = read_keys(SOLLOLConfig(api_keys_file=str(file)), {})
    assert [key.name for key in ring] == ["ann", "ops"]


def test_a_file_of_keys_that_is_missing(tmp_path: Path) -> None:
    config = SOLLOLConfig(api_keys_file=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="no such file; make one with: aiosollol key"):
        read_keys(config, {})


def test_the_order_of_hosts_is_their_priority() -> None:
    config = SOLLOLConfig(hosts=["10.0.0.2", "10.0.0.3"], routing_strategy="priority")
    assert [spec.priority for spec in nodes_of(config) or ()] == [0, 1]
    own = dataclasses.replace(config, hosts=[{"url": "10.0.0.2", "priority": 5}, "10.0.0.3"])
    assert [spec.priority for spec in nodes_of(own) or ()] == [5, 0]
