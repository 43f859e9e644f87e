"""All commands, put together."""

from __future__ import annotations

# Each module adds its commands to the program; rich, of `output`, is missed here, not half-way.
from aiosollol.cli import (  # noqa: F401
    batch_commands,
    gateway,
    network_commands,
    node_commands,
    output,
)
from aiosollol.cli.base import app

__all__ = ["app"]
