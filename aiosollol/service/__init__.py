"""A pool with its gateway, document queue and metrics, as one object.

`SOLLOL` runs in a program's event loop; `run` is a program by itself, in one or several processes.
"""

from aiosollol.service.config import ConfigSource, SOLLOLConfig
from aiosollol.service.config_changes import ConfigUpdate
from aiosollol.service.running import run
from aiosollol.service.sollol import SOLLOL

__all__ = ["SOLLOL", "ConfigSource", "ConfigUpdate", "SOLLOLConfig", "run"]
