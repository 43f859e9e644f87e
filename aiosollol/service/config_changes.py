"""`compare`: which changes of settings apply at once, and which need a restart."""

from __future__ import annotations

from typing import NamedTuple

from aiosollol.service.config import NAMES_OF_FIELDS, NOT_IN_USE, SOLLOLConfig

AT_ONCE = frozenset(
    (
        *("hosts", "api_keys_file", "allow_admin", "insecure", "stop_timeout"),
        *("autobatch_interval", "autobatch_min_batch_size", "autobatch_max_batch_size"),
        *("max_bodies", "max_in_flight", "rate_limit", "rate_burst", "body_timeout"),
    )
)


class ConfigUpdate(NamedTuple):
    """The result of an update, as names of fields.

    applied: apply now.
    needs_restart: apply after `stop` and `start`.
    unused: have no effect yet.
    """

    applied: tuple[str, ...] = ()
    needs_restart: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = (
            ("applied", self.applied),
            ("after a restart", self.needs_restart),
            ("not in use", self.unused),
        )
        lists = [f"{what}: {', '.join(names)}" for what, names in parts if names]
        return "; ".join(lists) or "nothing has changed"


def compare(old: SOLLOLConfig, new: SOLLOLConfig) -> ConfigUpdate:
    """The result of an update from `old` to `new` while the service runs."""
    changed = [name for name in NAMES_OF_FIELDS if getattr(old, name) != getattr(new, name)]
    applied = [name for name in changed if name in AT_ONCE]
    if "hosts" in changed and (old.hosts is None or new.hosts is None):
        applied.remove("hosts")  # without named nodes, a pool chooses them when it is created
    if "allow_admin" in applied and new.allow_admin:
        applied.remove("allow_admin")  # the endpoints are created with the application
    unused = tuple(name for name in changed if name in NOT_IN_USE)
    rest = tuple(name for name in changed if name not in applied and name not in unused)
    return ConfigUpdate(tuple(applied), rest, unused)
