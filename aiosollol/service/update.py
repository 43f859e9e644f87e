"""What a change of settings changes at once, and what takes a restart."""

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
    """What came of an update, as names of fields.

    applied: what holds now. needs_restart: what will hold after `stop` and `start`.
    unused: what holds for nothing yet.
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
        said = [f"{what}: {', '.join(names)}" for what, names in parts if names]
        return "; ".join(said) or "nothing has changed"


def compare(old: SOLLOLConfig, new: SOLLOLConfig) -> ConfigUpdate:
    """What an update from `old` to `new` is, for a service that runs."""
    changed = [name for name in NAMES_OF_FIELDS if getattr(old, name) != getattr(new, name)]
    applied = [name for name in changed if name in AT_ONCE]
    if "hosts" in changed and (old.hosts is None or new.hosts is None):
        applied.remove("hosts")  # where no node is named, a pool decides when it is made
    if "allow_admin" in applied and new.allow_admin:
        applied.remove("allow_admin")  # the endpoints are made with the application
    unused = tuple(name for name in changed if name in NOT_IN_USE)
    rest = tuple(name for name in changed if name not in applied and name not in unused)
    return ConfigUpdate(tuple(applied), rest, unused)
