"""How busy this machine is, told to pools on other machines: the agent behind `aiosollol agent`.

`serve` answers ``GET /agent`` with an `AgentReport` of `MachineSensors`, until it is cancelled. It
needs the extra "agent": psutil, and nvidia-ml-py for the GPUs of NVIDIA.
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
