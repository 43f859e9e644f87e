"""The port for metrics: which Host and Origin it answers to, and what its answers reveal."""

from __future__ import annotations

import aiohttp
import pytest

from aiosollol.service import SOLLOLConfig
from aiosollol.service.optional import listen_for_metrics

pytest.importorskip("prometheus_client")
pytestmark = pytest.mark.anyio


async def nothing() -> list[object]:
    return []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:9090"}, 200),
        ({"Host": "proxy.example.com"}, 200),
        ({"Host": "evil.local"}, 403),
        ({"Host": "evil"}, 403),
        ({"Host": "evil.example.com"}, 403),
        ({"Origin": "https://evil.example.com"}, 403),
        ({"Host": "localhost:9090", "Origin": "http://localhost:9090"}, 200),
        ({"Origin": "null"}, 403),
    ],
)
async def test_who_reads_metrics(headers: dict[str, str], status: int) -> None:
    config = SOLLOLConfig(metrics_port=0, allowed_hosts=["proxy.example.com"])
    listener, warnings = await listen_for_metrics(nothing, config)  # type: ignore[arg-type]
    assert (listener is not None, warnings) == (True, [])
    assert listener is not None
    try:
        async with aiohttp.ClientSession() as session:
            for path in ("/metrics", "/else"):
                async with session.get(listener.url + path, headers=headers) as answer:
                    expected = 404 if path == "/else" and status == 200 else status
                    assert answer.status == expected
                    assert "Server" not in answer.headers or answer.status == 404
    finally:
        await listener.stop(0.0)
