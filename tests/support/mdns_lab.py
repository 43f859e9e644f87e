"""Starts `mdns_program.py` on a host of the lab."""

from __future__ import annotations

import os
import sys

import project_paths
from netlab import Host
from netlab_program import Program

PROGRAM = project_paths.SUPPORT / "mdns_program.py"


async def start(node: Host, *args: str, ready: str = "") -> Program:
    environment = {
        "PYTHONPATH": os.getcwd(),
        "HOME_NAMESPACE": os.readlink("/proc/self/ns/net"),
        "PYTHONWARNINGS": "error",
    }
    command = (sys.executable, str(PROGRAM), *args)
    return await node.spawn(*command, ready=ready, env=environment)
