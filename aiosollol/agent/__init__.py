"""The agent behind `aiosollol agent`: reports this machine's load to pools on other machines.

`serve` answers ``GET /agent`` with an `AgentReport` from `MachineSensors`, until cancelled. Needs
the extra "agent": psutil, and nvidia-ml-py for NVIDIA GPUs.
"""

from aiosollol.agent.sensors import MachineSensors, Readings, Sensors, stated_gpu
from aiosollol.agent.server import (
    Advertise,
    Announcer,
    is_loopback,
    make_app,
    serve,
)

__all__ = [
    "Advertise",
    "Announcer",
    "MachineSensors",
    "Readings",
    "Sensors",
    "is_loopback",
    "make_app",
    "serve",
    "stated_gpu",
]
