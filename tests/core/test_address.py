"""Where a node is: every way to write it has one normal form, and a wrong one says why."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiosollol.core.address import Address, parse_ollama_host
from aiosollol.errors import InvalidInput

FORMS = [
    pytest.param("10.0.0.2", "http://10.0.0.2:11434", id="a bare IPv4 address"),
    pytest.param("gpu-box", "http://gpu-box:11434", id="a bare host name"),
    pytest.param("my_box.local.", "http://my_box.local:11434", id="underscore and root dot"),
    pytest.param("GPU.Example", "http://gpu.example:11434", id="upper case"),
    pytest.param("10.0.0.2:8080", "http://10.0.0.2:8080", id="host:port"),
    pytest.param("http://10.0.0.2:11434", "http://10.0.0.2:11434", id="a URL"),
    pytest.param("http://10.0.0.2:11434/", "http://10.0.0.2:11434", id="a slash at the end"),
    pytest.param("  http://a:1\n", "http://a:1", id="white space around"),
    pytest.param("http://a", "http://a:80", id="http without a port is 80"),
    pytest.param("https://a", "https://a:443", id="https without a port is 443"),
    pytest.param("HTTPS://a", "https://a:443", id="the scheme in upper case"),
    pytest.param("https://a/ollama", "https://a:443/ollama", id="a path prefix"),
    pytest.param("a:1/x/y//", "http://a:1/x/y", id="a path prefix without a scheme"),
    pytest.param("::1", "http://[::1]:11434", id="bare IPv6"),
    pytest.param("[::1]", "http://[::1]:11434", id="IPv6 in brackets"),
    pytest.param("[fe80::2]:8080", "http://[fe80::2]:8080", id="IPv6 in brackets with a port"),
    pytest.param("https://[::1]:1/p", "https://[::1]:1/p", id="IPv6 in a URL"),
]


@pytest.mark.parametrize(("text", "url"), FORMS)
def test_every_form_has_one_normal_form(text: str, url: str) -> None:
    address = Address.parse(text)
    assert address.url == str(address) == url
    assert Address.parse(url) == address


def test_the_parts() -> None:
    assert Address.parse("https://[::1]:8443/ollama/") == Address("https", "::1", 8443, "/ollama")
    assert Address.parse("https://[::1]:8443/ollama/").netloc == "[::1]:8443"


hosts = st.one_of(
    st.from_regex(r"[a-z]([a-z0-9-]{0,20}[a-z0-9])?(\.[a-z]{1,8}){0,3}", fullmatch=True),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(lambda address: f"[{address}]"),
)


@settings(deadline=None)
@given(st.sampled_from(["http", "https"]), hosts, st.integers(1, 65535))
def test_what_is_read_is_what_was_written(scheme: str, host: str, port: int) -> None:
    address = Address.parse(f"{scheme}://{host}:{port}")
    assert (address.scheme, address.port) == (scheme, port)
    assert address.host == host.strip("[]")
    assert Address.parse(address.url) == address


@settings(deadline=None)
@given(st.one_of(st.text(), st.text(alphabet="htps:/[]@.0123456789ab?#% ")))
def test_any_text_is_an_address_or_a_clear_error(text: str) -> None:
    try:
        address = Address.parse(text)
    except InvalidInput:
        return
    assert Address.parse(address.url) == address
    assert 1 <= address.port <= 65535
    assert not any(character.isspace() for character in address.url)


MALFORMED = [
    pytest.param("", "is empty", id="nothing"),
    pytest.param("   ", "is empty", id="white space only"),
    pytest.param("ftp://a", "'ftp', not http or https", id="another scheme"),
    pytest.param("unix:///run/ollama.sock", "'unix', not http or https", id="a socket file"),
    pytest.param("http://", "'' is not a host name", id="no host"),
    pytest.param(":11434", "'' is not a host name", id="a port only"),
    pytest.param("11434", "not an IPv4 address", id="a number only"),
    pytest.param("a:b", "Port could not be cast", id="a port that is no number"),
    pytest.param("a:0", "port 0", id="port 0"),
    pytest.param("a:65536", "Port out of range", id="a port too large"),
    pytest.param("a:-1", "Port", id="a negative port"),
    pytest.param("a:", "no port after the colon", id="a colon without a port"),
    pytest.param("http:/10.0.0.2", "no port after the colon", id="one slash only"),
    pytest.param("http:10.0.0.2", "Port could not be cast", id="no slashes"),
    pytest.param("256.0.0.1", "not an IPv4 address", id="an octet too large"),
    pytest.param("10.0.0", "not an IPv4 address", id="an octet too few"),
    pytest.param("-a", "not a host name", id="a dash first"),
    pytest.param("a..b", "not a host name", id="an empty label"),
    pytest.param("a b", "white space", id="a space in the host"),
    pytest.param("10.0.0\n.2", "white space", id="a line break in the host"),
    pytest.param("http://a/b c", "white space", id="a space in the path"),
    pytest.param("[::1", "Invalid IPv6 URL", id="a bracket left open"),
    pytest.param("[a]", "", id="a name in brackets"),
    pytest.param("http://a?b=c", "query", id="a query"),
    pytest.param("http://a#b", "fragment", id="a fragment"),
    pytest.param("http://me:secret@a", "pass headers instead", id="credentials"),
]


@pytest.mark.parametrize(("text", "problem"), MALFORMED)
def test_a_malformed_address_says_what_is_wrong(text: str, problem: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Address.parse(text)
    assert problem in str(caught.value)
    if text.strip():
        assert "write it like http://10.0.0.2:11434, 10.0.0.2:11434 or 10.0.0.2" in str(
            caught.value
        )


@pytest.mark.parametrize("value", [None, 11434, b"a", ["a"]])
def test_what_is_no_string_is_no_address(value: object) -> None:
    with pytest.raises(InvalidInput, match=f"must be a string, not {type(value).__name__}"):
        Address.parse(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "http://me:s3cret@a",
        "me:s3cret@a",
        "ftp://me:s3cret@a",
        "http://me:s3cret@a:port",
        "http://me:s3cret@a b",
    ],
)
def test_a_password_in_an_address_is_never_shown(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Address.parse(text)
    assert "s3cret" not in str(caught.value)
    assert "...@a" in str(caught.value)


OLLAMA_HOSTS = [
    pytest.param("", "http://127.0.0.1:11434", id="empty"),
    pytest.param("127.0.0.1", "http://127.0.0.1:11434", id="an address"),
    pytest.param("0.0.0.0", "http://127.0.0.1:11434", id="every interface"),
    pytest.param("0.0.0.0:8080", "http://127.0.0.1:8080", id="every interface and a port"),
    pytest.param("[::]:8080", "http://[::1]:8080", id="every interface of IPv6"),
    pytest.param("::", "http://[::1]:11434", id="every interface of IPv6, bare"),
    pytest.param("::1", "http://[::1]:11434", id="loopback of IPv6, bare"),
    pytest.param(":8080", "http://127.0.0.1:8080", id="a port"),
    pytest.param("http://a", "http://a:80", id="http brings port 80"),
    pytest.param("https://a/ollama", "https://a:443/ollama", id="https brings port 443"),
    pytest.param('"a:1"', "http://a:1", id="in quotes"),
    pytest.param(" '0.0.0.0' ", "http://127.0.0.1:11434", id="in quotes and white space"),
    pytest.param("http://:8080", "http://127.0.0.1:8080", id="a scheme and a port"),
    pytest.param("/ollama", "http://127.0.0.1:11434/ollama", id="a path"),
]


@pytest.mark.parametrize(("text", "url"), OLLAMA_HOSTS)
def test_ollama_host_is_read_as_ollama_reads_it(text: str, url: str) -> None:
    assert parse_ollama_host(text).url == url


@settings(deadline=None)
@given(st.ip_addresses())
def test_ollama_host_may_be_any_bare_ip_address(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(str(ip), str(ip))
    address = parse_ollama_host(str(ip))
    assert (address.host, address.port) == (reached, 11434)
