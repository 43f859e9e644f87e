"""wrk, as it is run here and as what it prints is read."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

_PATIENCE = 30

_SCRIPT = """\
local before = {before}
local after = {after}
local number = {first}
request = function()
  number = number + 1
  return before .. string.format("%010d", number) .. after
end
"""
_REQUESTS = re.compile(r"^\s*(\d+) requests in ([\d.]+)(us|ms|s|m|h),", re.MULTILINE)
_RATE = re.compile(r"^Requests/sec:\s*([\d.]+)", re.MULTILINE)
_STATUS = re.compile(r"^\s*Non-2xx or 3xx responses: (\d+)", re.MULTILINE)
_SOCKETS = re.compile(
    r"^\s*Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", re.MULTILINE
)
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Result:
    """requests: that were answered, also those that count as failed. rate: of them per second."""

    requests: int
    seconds: float
    rate: float
    failed: int


def read(text: str) -> Result:
    """A result from what wrk printed. Raises ValueError if that is something else."""
    requests, rate = _REQUESTS.search(text), _RATE.search(text)
    if requests is None or rate is None:
        raise ValueError(f"wrk did not say how many requests it made: {text[-500:]!r}")
    failed = [*_STATUS.findall(text), *(n for each in _SOCKETS.findall(text) for n in each)]
    seconds = float(requests[2]) * _UNITS[requests[3]]
    return Result(int(requests[1]), seconds, float(rate[1]), sum(map(int, failed)))


def script(before: bytes, after: bytes, first: int) -> str:
    """Lua for wrk that sends requests with ten digits between two parts, from `first` + 1 on."""
    return _SCRIPT.format(before=_quoted(before), after=_quoted(after), first=first)


def run(
    port: int, parts: tuple[bytes, bytes], home: Path, *, first: int, connections: int, seconds: int
) -> Result:
    """Send requests as fast as they are answered, on the core that this process is on."""
    path = home / "requests.lua"
    path.write_text(script(*parts, first))
    done = subprocess.run(
        [
            *("wrk", "-t1", f"-c{connections}", f"-d{seconds}s", f"--timeout={_PATIENCE}s"),
            *("-s", str(path), f"http://127.0.0.1:{port}/"),
        ],
        capture_output=True,
        text=True,
        timeout=seconds + 2 * _PATIENCE,
        check=True,
    )
    return read(done.stdout)


def _quoted(data: bytes) -> str:
    return '"' + "".join(f"\\{byte:03d}" for byte in data) + '"'
