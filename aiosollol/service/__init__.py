"""A pool with its gateway, its queue and its metrics, as one object.

`SOLLOL` runs in a program's own event loop; `run` is a program of its own, of one process or
several.
"""

from aiosollol.service.config import ConfigSource, ConfigUpdate, SOLLOLConfig
from aiosollol.service.running import run
from aiosollol.service.sollol import SOLLOL

__all__ = ["SOLLOL", "ConfigSource", "ConfigUpdate", "SOLLOLConfig", "run"]
