"""Real Dask for tests: clusters of processes on loopback, and workers that lack something."""

from __future__ import annotations

import asyncio
import os
import pathlib
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import Any

import pytest

from aiosollol.net.subprocess import ServerProcess
from aiosollol.testing import FakeModel, fake_vector

MODEL = FakeModel("nomic-embed-text", dim=4)
NAME = "nomic-embed-text"
PATIENCE = 60.0

HIDDEN = """
import importlib.metadata, sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "aiosollol":
            raise ModuleNotFoundError("No module named 'aiosollol'", name=name)

sys.meta_path.insert(0, Hidden())
known = importlib.metadata.version
def version(name):
    if name == "aiosollol":
        raise importlib.metadata.PackageNotFoundError(name)
    return known(name)
version.__module__ = "importlib.metadata"
importlib.metadata.version = version
"""
"""What a worker's Python runs first, so that it is one without aiosollol."""

OLD = """
import importlib.metadata
known = importlib.metadata.version
def version(name):
    return "0.0.1" if name == "aiosollol" else known(name)
version.__module__ = "importlib.metadata"
importlib.metadata.version = version
"""
"""... so that it has another version."""

OTHER_PYTHON = """
import platform
def python_version():
    return "3.9.1"
python_version.__module__ = "platform"
platform.python_version = python_version
"""
"""... so that it says that it is another one."""

CUT_OFF = """
import os, socket
known = socket.socket.connect
def connect(sock, address):
    if isinstance(address, tuple) and str(address[1]) in os.environ["CUT_OFF"].split(","):
        raise ConnectionRefusedError(111, "Connection refused")
    return known(sock, address)
socket.socket.connect = connect
"""
"""... so that it does not reach the nodes whose ports are in the variable."""


def need(*packages: str) -> None:
    """Skip a module whose packages are missing; fail it where none may be skipped."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        message = f"not installed: {', '.join(missing)}"
        if os.environ.get("AIOSOLLOL_REQUIRE_ALL") == "1":
            pytest.fail(message, pytrace=False)
        pytest.skip(message, allow_module_level=True)


def vector(text: str) -> bytes:
    return bytes(fake_vector(MODEL.digest, text, MODEL.dim))


@asynccontextmanager
async def scheduler(workers: int) -> AsyncIterator[str]:
    """The address of a scheduler with so many workers, each with two threads."""
    process = ServerProcess(
        "dask",
        "aiosollol.engines.dask.cluster",
        ["--workers", str(workers)],
        environment={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},  # tests are modules
    )
    address = await process.start()
    try:
        yield address
    finally:
        await process.aclose()


def customized(tmp_path: pathlib.Path, first: str) -> pathlib.Path:
    """A directory that makes Python run `first` before anything else."""
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "sitecustomize.py").write_text(first, "utf-8")
    return tmp_path


@asynccontextmanager
async def worker(
    address: str, tmp_path: pathlib.Path, first: str = "", **environment: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A worker of that scheduler, whose Python runs `first` before anything else."""
    path = customized(tmp_path, first)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "distributed.cli.dask_worker", address),
        *("--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1"),
        *("--local-directory", str(tmp_path), "--death-timeout", "30"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(path), **environment},
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(PATIENCE):
            said = []
            async for line in process.stderr:
                said.append(line.decode())
                if "Starting established connection" in said[-1]:
                    break
            else:
                pytest.fail("".join(said))
        drain = asyncio.create_task(process.stderr.read())
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await drain
        await process.wait()


async def until(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)


def report_of(embeddings: Any) -> Any:
    assert embeddings.report is not None
    return embeddings.report
