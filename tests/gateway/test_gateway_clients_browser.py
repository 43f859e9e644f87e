"""/docs in a real browser: it shows every endpoint, and asks nobody but the gateway."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gateway_cluster import cluster
from programs import run

from aiosollol.gateway.options import GatewayOptions

pytest.importorskip("swagger_ui")
pytestmark = pytest.mark.anyio

QUIET = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-sandbox",  # which does not work for root, as in CI; the page is ours
)


async def shown(url: str, folder: Path, nowhere: int) -> tuple[str, list[str]]:
    """The page at `url` when its scripts have run, and all that it has loaded.

    nowhere: a port on which nobody listens.
    """
    log = folder / "log.json"
    ran = await run(
        *("chromium", "--headless", *QUIET, f"--user-data-dir={folder / 'profile'}"),
        # All but loopback goes through it, names too. Browsers ask for things of their own.
        f"--proxy-server=http://127.0.0.1:{nowhere}",
        *(f"--log-net-log={log}", "--virtual-time-budget=20000", "--dump-dom", url),
    )
    return ran.out.decode(), loaded(json.loads(log.read_text("utf-8")))


def loaded(log: Any) -> list[str]:
    """The addresses that a page asked for, of all that are in Chromium's network log."""
    begins = log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    requests = [event.get("params", {}) for event in log["events"] if event["type"] == begins]
    return [
        request["url"]
        for request in requests
        if request.get("initiator", "not an origin") != "not an origin"
    ]


async def test_the_page_shows_every_endpoint(
    require: Callable[..., None], tmp_path: Path, unused_port: int
) -> None:
    require("chromium")
    async with cluster(options=GatewayOptions(allow_admin=True)) as gateway:
        document = (await gateway.get("/openapi.json")).json
        url = f"{gateway.url}/docs#/Ollama/post_api_chat"
        page, asked = await shown(url, tmp_path, unused_port)
    assert f"{gateway.url}/openapi.json" in asked
    assert {url for url in asked if not url.startswith(f"{gateway.url}/")} == set()
    expected = [path for path, methods in document["paths"].items() for _ in methods]
    found = [html.unescape(path) for path in re.findall(r'data-path="([^"]*)"', page)]
    assert sorted(found) == sorted(expected)
    assert "errors-wrapper" not in page
    assert "Why is the sky blue?" in html.unescape(page)  # the body to try it with
