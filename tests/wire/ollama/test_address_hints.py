"""What an error says of an address that is not quite right."""

from __future__ import annotations

import pytest

from aiosollol.wire.ollama.address_hints import address_hint

URL = "http://10.0.0.2:11434"
REDIRECTS = [
    (URL, "https://ollama.example/api/tags", "it redirects to https://ollama.example: write that"),
    (URL, "https://o.example:8443/ai/api/tags", "to https://o.example:8443/ai: write that"),
    (URL, "/ollama/api/tags", f"it redirects to {URL}/ollama: write that"),
    (f"{URL}/old", "/new/api/tags", f"it redirects to {URL}/new: write that"),
    (URL, "//other.example/api/tags", "it redirects to http://other.example: write that"),
    (URL, "https://sso.example/login?next=secret#x", "to https://sso.example/login: write an"),
    (URL, "https://user:secret@o.example/api/tags", "it redirects to https://o.example: write"),
    (URL, "/api/tags/", f"it redirects to {URL}/api/tags/: write an address that answers"),
    (URL, f"{URL}/api/tags", f"it redirects to {URL}/api/tags: write an address that answers"),
    (URL, "http://[bad/x?secret", "it redirects to http://[bad/x: write an address"),
    (URL, "/\x9b31m", "?31m: write an address"),
    (URL, "", ""),
]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(("url", "location", "says"), REDIRECTS)
def test_a_redirect(url: str, location: str, says: str, status: int) -> None:
    hint = address_hint(url, "/api/tags", status, location)
    assert says in hint
    assert "secret" not in hint
    assert bool(hint) is bool(location)


def test_a_long_redirect_is_shortened() -> None:
    assert len(address_hint(URL, "/api/tags", 301, "/" + "x" * 60_000)) < 300


SUFFIXES = [
    ("/v1", "/v1", ""),
    ("/api", "/api", ""),
    ("/V1", "/V1", ""),
    ("/ollama/v1", "/v1", "/ollama"),
    ("/ollama/api/", "/api", "/ollama"),
    ("/api/tags", "/api/tags", ""),
    ("/v1/chat/completions", "/v1/chat/completions", ""),
    ("/x/api/embed", "/api/embed", "/x"),
]


@pytest.mark.parametrize(("path", "suffix", "base"), SUFFIXES)
def test_an_address_that_ends_in_an_endpoint(path: str, suffix: str, base: str) -> None:
    for status in (404, 405):
        hint = address_hint(URL + path, "/api/tags", status, "")
        assert hint == f"its address ends in {suffix}: write {URL}{base} instead"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("", 404),
        ("/ollama", 404),
        ("/apiary", 404),
        ("/v10", 404),
        ("/api/ollama", 404),
        ("/v1", 500),
        ("/v1", 401),
        ("/" * 50_000 + "x", 404),
    ],
)
def test_no_hint(path: str, status: int) -> None:
    assert address_hint(URL + path, "/api/tags", status, "") == ""
