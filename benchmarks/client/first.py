"""6. Start-up: importing, and the first vector of a new pool, in fresh processes."""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.client import bodies
from benchmarks.client.embed import answers, paired
from benchmarks.client.report import Table
from benchmarks.servers import Nginx

LIMIT = 1.5
_PROGRAM = """
import json, sys, time
began = time.perf_counter()
{imports}
imported = time.perf_counter()
import asyncio
urls = json.loads(sys.argv[1])
async def first():
    began = time.perf_counter()
{body}
    return time.perf_counter() - began
seconds = asyncio.run(first())
print(json.dumps([imported - began, seconds, time.perf_counter() - began]))
"""
_OURS = f"""
    async with aiosollol.OllamaPool(nodes=urls) as pool:
        vector = await pool.embed("{bodies.MODEL}", "hello")
"""
_SESSION = """
    async with aiohttp.ClientSession() as session:
"""
_POST = f"""
        body = orjson.dumps({{"model": "{bodies.MODEL}", "input": ["hello"],
                             "encoding_format": "base64"}})
        async with session.post(urls[0] + "/v1/embeddings", data=body) as response:
            answer = orjson.loads(await response.read())
        vector = memoryview(pybase64.b64decode(answer["data"][0]["embedding"])).cast("f")
"""
_ASK = """
        async def ask(url):
            async with session.get(url + "/api/tags") as response:
                return orjson.loads(await response.read())
        await asyncio.gather(*map(ask, urls))
"""
_RAW_IMPORTS = "import aiohttp, orjson, pybase64"
PROGRAMS = {
    "ours": _PROGRAM.format(imports="import aiosollol", body=_OURS),
    "raw": _PROGRAM.format(imports=_RAW_IMPORTS, body=_SESSION + _POST),
    "asking": _PROGRAM.format(imports=_RAW_IMPORTS, body=_SESSION + _ASK + _POST),
}


def run(rounds: int) -> Table:
    table = Table(6, "start-up", "nginx, two ports as two nodes")
    times: dict[str, list[list[float]]] = {name: [] for name in PROGRAMS}
    with Nginx(answers(768), ports=2) as server:
        for number in range(2 * rounds + 1):
            for name in PROGRAMS if number % 2 else reversed(PROGRAMS):
                seconds = _run(PROGRAMS[name], server.urls)
                if number:  # the first writes byte code and fills the file cache
                    times[name].append([each * 1000 for each in seconds])
    against = {
        "raw": "aiohttp, one POST to one node",
        "asking": "aiohttp, both asked for their models first",
    }
    for place, what in enumerate(("import", "new pool to first vector", "both")):
        for name, label in against.items():
            if (place, name) == (0, "asking"):
                continue
            ours, theirs = times["ours"], times[name]
            pairs = [[a[place], b[place]] for a, b in zip(ours, theirs, strict=True)]
            row = paired(what, label, "ms", pairs)
            row.limit = LIMIT
            table.rows.append(row)
    return table


def _run(program: str, urls: list[str]) -> list[float]:
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(urls)],
        stdout=subprocess.PIPE,
        timeout=60,
        check=True,
    )
    seconds: list[float] = json.loads(done.stdout)
    return seconds
