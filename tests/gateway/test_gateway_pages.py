"""Which pages of others may use a gateway: hosts, origins and preflights."""

from __future__ import annotations

import pytest
from limited_gateway import ring, serving

from aiosollol.gateway.middleware.guard import LOCAL_ORIGINS, Origins

pytestmark = pytest.mark.anyio


# Pages.


@pytest.mark.parametrize(
    ("host", "sound"),
    [
        ("127.0.0.1:8000", True),
        ("localhost:8000", True),
        ("[::1]:8000", True),
        ("10.0.0.2", True),
        ("LOCALHOST.:8000", True),
        ("chat.localhost:3000", True),
        ("host.docker.internal:8000", True),
        ("gpu1", True),  # this machine
        ("GPU1.local:8000", True),
        ("gpu1.lab.example.com", True),
        ("proxy.example.com", True),  # in allowed_hosts
        ("a.chat.example.com:443", True),
        ("", True),
        ("gpu2", False),
        ("evil.local", False),
        ("evil.internal", False),
        ("evil.home.arpa", False),
        ("evil", False),
        ("gpu1.evil.com", False),
        ("evil.gpu1.local", False),
        ("chat.example.com", False),
        ("localhost.evil.com", False),
        ("0x7f.1", False),
        ("evil.example.com", False),
        ("evil.example.com:8000", False),
        ("127.0.0.1.evil.com", False),
        ("localhost@evil.com", False),
        ("[", False),
    ],
)
def test_hosts_that_a_gateway_on_loopback_answers_to(
    host: str, sound: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "GPU1.lab.example.com")
    origins = Origins(only_local=True, hosts=["proxy.example.com", "*.chat.example.com"])
    assert [origins.is_host_sound(host) for _ in range(2)] == [sound] * 2
    assert Origins().is_host_sound(host)


@pytest.mark.parametrize(
    ("origin", "is_local"),
    [
        ("http://localhost", True),
        ("https://localhost:5173", True),
        ("http://127.0.0.1:8080", True),
        ("http://0.0.0.0:3000", True),
        ("app://obsidian.md", True),
        ("file://", True),
        ("tauri://localhost", True),
        ("vscode-webview://1abc", True),
        ("vscode-file://vscode-app", True),
        ("HTTP://LOCALHOST:3000", True),
        ("null", False),
        ("https://tauri.localhost", False),
        ("chrome-extension://abc", False),
        ("http://localhost.evil.com", False),
        ("http://127.0.0.1.evil.com", False),
        ("http://evil.com", False),
        ("ftp://localhost", False),
    ],
)
def test_origins_of_this_machine(origin: str, is_local: bool) -> None:
    assert Origins(LOCAL_ORIGINS, only_local=True).is_sound(origin, "127.0.0.1:8000") is is_local


async def test_pages_of_others_are_kept_away() -> None:
    allowed = "https://chat.example.com"
    async with serving(origins=Origins([allowed], only_local=True)) as (gateway, session):
        own = gateway.url
        for origin, status in (
            (own, 200),
            (allowed, 200),
            ("https://evil.com", 403),
            ("null", 403),
        ):
            async with session.post("/api/chat", headers={"Origin": origin}) as answer:
                assert answer.status == status
                told = answer.headers.get("Access-Control-Allow-Origin")
                assert told == (allowed if origin == allowed else None)
        async with session.get("/api/tags", headers={"Host": "evil.com"}) as answer:
            assert answer.status == 403


async def test_a_browser_may_ask_beforehand_without_a_key() -> None:
    keys, _ = ring("ann")
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-a, x-b"}
    async with serving(keys=keys, origins=Origins(["https://*.example.com"])) as (_, session):
        for origin, status in (("https://a.example.com", 204), ("https://evil.com", 403)):
            headers = {"Origin": origin, **asked}
            async with session.options("/api/chat", headers=headers) as answer:
                assert answer.status == status
                if status == 204:
                    assert answer.headers["Access-Control-Allow-Origin"] == origin
                    assert answer.headers["Access-Control-Allow-Headers"] == "x-a, x-b"
        async with session.options("/api/chat") as answer:
            assert answer.status == 401  # no browser
