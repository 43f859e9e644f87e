"""The access to a service: its keys, the address it listens on, and its nodes."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import replace

from aiosollol.config.files import path_of, read_text
from aiosollol.config.settings import wrong
from aiosollol.core.node import NodeSpec
from aiosollol.errors import ConfigError
from aiosollol.gateway.middleware.keys import (
    ADMIN_KEYS_VARIABLE,
    KEYS_VARIABLE,
    KeyRing,
    keys_in_variable,
    parse_keys,
)
from aiosollol.service.config import SOLLOLConfig


def read_keys(config: SOLLOLConfig, environ: Mapping[str, str] = os.environ) -> KeyRing:
    """The keys in the file and in the environment. Blocks while reading. Raises ConfigError."""
    found = []
    if config.api_keys_file is not None:
        path = path_of(config.api_keys_file)
        missing = f"make one with: aiosollol key NAME >> {path}"
        found += parse_keys(read_text(path, missing=missing), path)
    for variable, is_admin in ((KEYS_VARIABLE, False), (ADMIN_KEYS_VARIABLE, True)):
        found += keys_in_variable(environ.get(variable, ""), variable, is_admin=is_admin)
    try:
        return KeyRing(found)
    except ValueError as error:
        raise ConfigError(str(error), source=config.api_keys_file or KEYS_VARIABLE) from error


def check_bind(config: SOLLOLConfig, keys: KeyRing) -> None:
    """Refuse to serve other machines without keys, unless `insecure`. Raises ConfigError."""
    if len(keys):
        if config.allow_admin and not keys.has_admin:
            raise wrong(
                "allow_admin needs an admin key: make one with 'aiosollol key NAME --admin'"
            )
    elif not config.insecure and not is_loopback(config.gateway_host):
        raise wrong(
            f"gateway_host {config.gateway_host} serves every machine that reaches this one, but "
            "there are no API keys: make one with 'aiosollol key NAME' and name its file "
            "(api_keys_file, --api-keys), or set insecure=True (--insecure)"
        )
    elif not config.insecure and config.metrics_enabled and not is_loopback(config.metrics_host):
        raise wrong(
            f"metrics_host {config.metrics_host} serves the names of nodes and models to every "
            "machine that reaches this one, but there are no API keys: make one with 'aiosollol "
            "key NAME' (api_keys_file, --api-keys), or set insecure=True (--insecure)"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`, an address or a name."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"


def nodes_of(config: SOLLOLConfig) -> list[NodeSpec] | None:
    """The configured nodes; None lets the pool choose its initial nodes.

    With the strategy "priority" they are used in their order, as in the original, unless some have
    priorities of their own.
    """
    if config.hosts is None:
        return None
    specs = [NodeSpec.parse(host) for host in config.hosts]
    if config.routing_strategy == "priority" and not any(spec.priority for spec in specs):
        specs = [replace(spec, priority=place) for place, spec in enumerate(specs)]
    return specs
