"""Runs every example and the README's code as processes with embedded nodes: `nox -s examples`.

The services get real HTTP requests, then a signal, and must exit cleanly without warnings.
"""

from __future__ import annotations

import asyncio
import os
import pathlib
import re
import signal
import socket
import sys
from array import array
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import pytest

from aiosollol.embedded import EmbeddedNode

pytestmark = pytest.mark.anyio

HERE = pathlib.Path(__file__).parent
README = (HERE.parent / "README.md").read_text("utf-8")
SERVICES = {"aiohttp_service.py": signal.SIGTERM, "fastapi_service.py": signal.SIGINT}
SCRIPTS = {"basic_usage.py", "watch_events.py"}
ENGINES = {"dask_batch.py", "ray_sharing.py"}  # ray_sharing.py is run by tests/engines
MODEL = "nomic-embed-text"  # the examples' default; here an alias of the nodes' own model
TEXTS = [f"text number {number}, about {number % 7} things" for number in range(100)]
PATIENCE = 60.0
SIGNS_OF_TROUBLE = ("Traceback", "ResourceWarning", "RuntimeWarning", "never", "Unclosed")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts background jobs
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def nodes() -> AsyncIterator[list[str]]:
    """The URLs of two embedded nodes, each in its own process."""
    async with AsyncExitStack() as stack:
        embedded = [EmbeddedNode(process=True, aliases=[MODEL]) for _ in range(2)]
        yield [(await stack.enter_async_context(node)).url for node in embedded]


def test_every_example_is_run_here() -> None:
    assert {path.name for path in HERE.glob("*.py")} - {"test_examples.py"} == {
        *SERVICES,
        *SCRIPTS,
        *ENGINES,
    }


async def test_the_readme(nodes: list[str], tmp_path: pathlib.Path) -> None:
    code = next(b for b in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "main()" in b)
    for address, node in zip(
        ["http://10.0.0.2:11434", "http://10.0.0.3:11434"], nodes, strict=True
    ):
        assert address in code
        code = code.replace(address, node)
    (tmp_path / "readme.py").write_text(code, "utf-8")
    async with started(str(tmp_path / "readme.py")) as process:
        out, problems = await finish(process)
    assert process.returncode == 0, problems
    assert out.startswith("1000 256 [")
    assert "1000 items in " in out
    assert_no_trouble(problems)


def test_the_readme_and_ci_run_the_same_command() -> None:
    (command,) = re.findall(r"^python3 -m venv .*nox$", README, re.MULTILINE)
    assert command in (HERE.parent / ".ci" / "run").read_text("utf-8").splitlines()


async def test_basic_usage(nodes: list[str]) -> None:
    async with started("basic_usage.py", *nodes) as process:
        out, problems = await finish(process)
    assert process.returncode == 0, problems
    first, best, *others = out.splitlines()
    assert first.startswith("4 items in ")
    assert "yeast" in best
    assert len(others) == 3
    assert_no_trouble(problems)


async def test_watch_events(nodes: list[str]) -> None:
    async with started("watch_events.py", *nodes) as process:
        out, problems = await finish(process)
    assert process.returncode == 0, problems
    assert out.count(": request, attempt 1\n") == 20
    assert "20 vectors of 256 numbers\n" in out
    assert f"{MODEL} goes to " in out
    assert_no_trouble(problems)


async def test_dask_batch(nodes: list[str]) -> None:
    pytest.importorskip("dask.dataframe", reason="needs the extra dask")
    async with started("dask_batch.py", *nodes) as process:
        out, problems = await finish(process)
    assert process.returncode == 0, problems
    batch, written, files = out.splitlines()
    assert batch.startswith("2000 items in ")
    assert batch.endswith("(dask, 2 workers)")
    assert written.startswith("2000 rows in ")
    assert files == str([f"part-{index:05d}.parquet" for index in range(4)])
    assert_no_trouble(problems)


@pytest.mark.parametrize("name", sorted(SCRIPTS))
async def test_a_script_that_fails_says_which_node(name: str, free_port: int) -> None:
    async with started(name, f"http://127.0.0.1:{free_port}") as process:
        _, problems = await finish(process)
    assert process.returncode == 1
    assert "NoNodeAvailable" in problems
    assert f"127.0.0.1:{free_port}" in problems


@pytest.mark.parametrize("name", SERVICES)
async def test_service(name: str, nodes: list[str], free_port: int) -> None:
    base = f"http://127.0.0.1:{free_port}"
    async with (
        started(name, PORT=str(free_port), OLLAMA_NODES=" ".join(nodes)) as process,
        aiohttp.ClientSession() as session,
    ):
        await answering(session, f"{base}/stats", process)

        answers = await asyncio.gather(*(embed(session, base, TEXTS[i:]) for i in range(10)))
        expected = await straight_from(session, nodes[0], TEXTS)
        for start, answer in enumerate(answers):
            assert answer["dim"] == 256
            assert [array("f", vector) for vector in answer["vectors"]] == expected[start:]

        async with session.post(f"{base}/embed", json={"texts": "one text"}) as response:
            assert 400 <= response.status < 500
        async with session.post(f"{base}/embed", data=b"{") as response:
            assert 400 <= response.status < 500
        async with session.get(f"{base}/stats") as response:
            stats = await response.json()
        assert stats["failed_requests"] == 0
        assert stats["total_requests"] == 10
        assert sum(stats["nodes_used"].values()) == stats["attempts"] >= 10

        process.send_signal(SERVICES[name])
        _, problems = await finish(process)
    assert process.returncode == 0, problems
    assert_no_trouble(problems)


@pytest.mark.parametrize("name", SERVICES)
async def test_service_whose_nodes_are_down(name: str, free_port: int) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound and not listening: refuses every connection
        down = f"127.0.0.1:{nobody.getsockname()[1]}"
        base = f"http://127.0.0.1:{free_port}"
        async with (
            started(name, PORT=str(free_port), OLLAMA_NODES=down) as process,
            aiohttp.ClientSession() as session,
        ):
            await answering(session, f"{base}/stats", process)
            async with session.post(f"{base}/embed", json={"texts": ["a"]}) as response:
                assert response.status == 503
                assert down in await response.text()
            process.send_signal(SERVICES[name])
            _, problems = await finish(process)
    assert process.returncode == 0, problems


@pytest.fixture
def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@asynccontextmanager
async def started(
    name: str, *arguments: str, **environment: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the example as a process in Python's development mode, and kill it on exit."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("OLLAMA_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-X", "dev", str(HERE / name), *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**clean, "SOLLOL_AUTO_DISCOVER": "false", **environment},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def finish(process: asyncio.subprocess.Process) -> tuple[str, str]:
    """Wait for the process to end; return its stdout and stderr."""
    out, problems = await asyncio.wait_for(process.communicate(), PATIENCE)
    return out.decode(), problems.decode()


async def answering(
    session: aiohttp.ClientSession, url: str, process: asyncio.subprocess.Process
) -> None:
    """Wait until `url` answers; if the process ends, fail with its output."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                async with session.get(url) as response:
                    if response.status == 200:
                        return
                    pytest.fail(f"{url} answers {response.status}: {await response.text()}")
            except aiohttp.ClientConnectionError:
                if process.returncode is not None:
                    pytest.fail("\n".join(await finish(process)))
                await asyncio.sleep(0.05)  # a starting process gives no other signal


async def embed(session: aiohttp.ClientSession, base: str, texts: list[str]) -> Any:
    async with session.post(f"{base}/embed", json={"texts": texts}) as response:
        assert response.status == 200, await response.text()
        return await response.json()


async def straight_from(
    session: aiohttp.ClientSession, node: str, texts: list[str]
) -> list[array[float]]:
    """The vectors that a node itself returns."""
    payload = {"model": MODEL, "input": texts}
    async with session.post(f"{node}/api/embed", json=payload) as response:
        return [array("f", vector) for vector in (await response.json())["embeddings"]]


def assert_no_trouble(output: str) -> None:
    assert not any(sign in output for sign in SIGNS_OF_TROUBLE), output
