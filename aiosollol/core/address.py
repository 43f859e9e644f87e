"""Node addresses: parse the common spellings into one normal form."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from aiosollol.core.redaction import has_at_sign, redacted
from aiosollol.errors import InvalidInput

DEFAULT_PORT = 11434
AGENT_PORT = 11435
"""The default port of an agent, next to Ollama's own."""
_SCHEME_PORTS = {"http": 80, "https": 443}
_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?")


@dataclass(frozen=True, slots=True)
class Address:
    """The normal form of a node's address.

    host: without brackets.
    path: a prefix that begins with a slash and does not end with one, or "".
    """

    scheme: str
    host: str
    port: int
    path: str = ""

    @property
    def url(self) -> str:
        """The base URL, without a trailing slash: ``http://10.0.0.2:11434``."""
        return f"{self.scheme}://{self.netloc}{self.path}"

    @property
    def netloc(self) -> str:
        """``host:port``, with an IPv6 host in brackets. Also the key of a node in statistics."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        return self.url

    @classmethod
    def parse(cls, text: str, bare_port: int = DEFAULT_PORT) -> Address:
        """Read a URL, ``host:port``, a bare host, or IPv6 with or without brackets.

        Without a scheme the port defaults to `bare_port`. With one it defaults to the scheme's own
        (80 or 443), as Ollama reads ``OLLAMA_HOST`` (envconfig/config.go in its source). An at sign
        anywhere, even percent-encoded, is refused as the end of a user name and password. Raises
        InvalidInput, which says what was expected and shows no credentials.
        """
        if not isinstance(text, str):
            raise InvalidInput(f"a node's address must be a string, not {type(text).__name__}")
        stripped = text.strip()
        if not stripped:
            raise InvalidInput("a node's address is empty")
        if has_at_sign(stripped):  # first, because urlsplit can misplace the end of credentials
            raise _malformed(text, "credentials do not belong in it: pass headers instead")
        scheme, separator, rest = stripped.partition("://")
        if separator:
            scheme = scheme.lower()
            if scheme not in _SCHEME_PORTS:
                raise _malformed(text, f"the scheme is {scheme!r}, not http or https")
            default_port = _SCHEME_PORTS[scheme]
        else:
            scheme, rest, default_port = "http", stripped, bare_port
            if _is_ipv6(rest):
                rest = f"[{rest}]"
        if re.search(r"[\s\0]", rest):  # urlsplit would silently drop a line break
            raise _malformed(text, "it contains white space")
        try:
            parts = urlsplit(f"{scheme}://{rest}")
            host, port = parts.hostname or "", parts.port
        except ValueError as error:
            # Not as its cause, and without the value at its end: in "http://user:password" the
            # password takes the place of the port.
            raise _malformed(text, str(error).partition(" as ")[0]) from None
        if parts.query or parts.fragment:
            raise _malformed(text, "it has a query or a fragment")
        if parts.netloc.endswith(":"):
            raise _malformed(text, "there is no port after the colon")
        if port == 0:
            raise _malformed(text, "port 0 cannot be connected to")
        if not (_is_ipv6(host) or _HOST_NAME.fullmatch(host)):
            raise _malformed(text, f"{host!r} is not a host name or an IP address")
        if re.fullmatch(r"[0-9.]+", host) and not _is_ipv4(host):
            raise _malformed(text, f"{host!r} is not an IPv4 address")
        path = parts.path.rstrip("/")
        return cls(scheme, host.rstrip("."), default_port if port is None else port, path)


def parse_ollama_host(text: str) -> Address:
    """The address at which a client reaches the server that ``OLLAMA_HOST`` describes.

    Ollama uses the variable for servers and clients alike: quotes are dropped, ``:8080`` means
    every interface, and a client reaches "every interface" on loopback. Raises InvalidInput.
    """
    stripped = text.strip().strip("\"'").strip()
    scheme, separator, rest = stripped.partition("://")
    if not separator:
        scheme, rest = "", stripped
    if not rest or (rest.startswith((":", "/")) and not _is_ipv6(rest)):
        rest = f"127.0.0.1{rest}"
    address = Address.parse(f"{scheme}://{rest}" if separator else rest)
    loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host)
    if loopback is None:
        return address
    return Address(address.scheme, loopback, address.port, address.path)


def _malformed(text: str, problem: str) -> InvalidInput:
    return InvalidInput(
        f"{redacted(text)!r} is not a node's address: {problem}; "
        f"write it like http://10.0.0.2:{DEFAULT_PORT}, 10.0.0.2:{DEFAULT_PORT} or 10.0.0.2"
    )


def _is_ipv4(host: str) -> bool:
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return True


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True
