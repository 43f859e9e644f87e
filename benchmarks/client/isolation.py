"""Runs a program where there is no network but loopback: one peer searches the network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

_IN_NAMESPACE = 'ip link set lo up && exec "$@"'


def command(arguments: Sequence[str]) -> list[str] | None:
    """`python -m benchmarks.client` with `arguments` in a network namespace of its own (Linux).

    None where that cannot be had.
    """
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return None
    start = ["unshare", "--net", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    start += ["sh", "-c", _IN_NAMESPACE, "sh"]
    if subprocess.run([*start, "true"], capture_output=True).returncode:
        return None
    return [*start, sys.executable, "-m", "benchmarks.client", *arguments]
