"""A non-default value for each setting, invalid values, and a settings file with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from aiosollol.config.files import settings_path
from aiosollol.config.resolve import resolve
from aiosollol.errors import ConfigError

NOTHING: Mapping[str, str] = {"XDG_CONFIG_HOME": "/nowhere"}
# A non-default value for each: as argument, as text in a variable, as TOML.
OTHER: dict[str, tuple[Any, str, str]] = {
    "auto_discover": (False, "no", "false"),
    "watch_network": (True, "yes", "true"),
    "discovery_timeout": (2.0, "2", "2"),
    "trusted": (("a", "10.0.0.2"), " a ,10.0.0.2", '["a", "10.0.0.2"]'),
    "embed_timeout": (5.5, "5.5", "5.5"),
    "chat_timeout": (1000.0, "1e3", "1e3"),
    "policy": ("rules", "rules", '"rules"'),
    "min_gain": (0.0, "0", "0"),
    "same_machine": ("one", " one ", '"one"'),
    "canary": (False, "off", "false"),
    "routing_strategy": ("round_robin", "round_robin", '"round_robin"'),
    "max_retries": (0, "0", "0"),
    "retry_budget": (1.0, "1", "1"),
    "hedge_rate": (0.0, "0", "0.0"),
    "outage_patience": (0.0, "0", "0"),
    "max_waiting": (1, "1", "1"),
    "wait_timeout": (0.0, "0", "0"),
    "close_timeout": (0.0, "0", "0"),
    "metrics_interval": (0.5, ".5", "0.5"),
    "first_byte_timeout": (3600.0, "3600", "3_600"),
    "stall_timeout": (120.0, "120", "120.0"),
    "live_latency_target": (0.1, "0.1", "0.1"),
    "check_interval": (3600.0, "3600", "3_600"),
    "enable_dask": (True, "on", "true"),
    "dask_address": ("tcp://10.0.0.2:8786", " tcp://10.0.0.2:8786 ", '"tcp://10.0.0.2:8786"'),
    "dask_workers": (3, "3", "3"),
    "dask_threshold": (0, "0", "0"),
    "enable_ray": (True, "yes", "true"),
    "ray_address": ("ray://10.0.0.2:10001", "ray://10.0.0.2:10001", "'ray://10.0.0.2:10001'"),
    "app_name": ("night index", "night index", '"night index"'),
    "app_weight": (0.5, ".5", "0.5"),
}


def with_file(tmp_path: Path, text: str) -> dict[str, str]:
    """The environment of a user whose settings file contains `text`."""
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    path = settings_path(environ)
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, "utf-8")
    return environ


def failure(environ: Mapping[str, str], **arguments: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        resolve(arguments, environ=environ)
    return caught.value
