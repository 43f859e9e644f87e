"""Which web pages may use the gateway: none but its own, unless that is set.

A page of any site can make a browser send requests to an address of the machine it runs on. Without
keys, only these checks keep it away: of the Origin that browsers name, and, where the gateway
listens on loopback, of the Host, which after DNS rebinding is still the name of the attacker.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from aiohttp import web

_METHODS = "GET, HEAD, POST, PUT, DELETE, OPTIONS"
_SHOWN_HEADERS = "X-Request-ID, X-Sollol-Node, X-Sollol-Reason, Retry-After"
_LOCAL_SUFFIXES = (".localhost", ".local", ".internal", ".home.arpa")
_KEPT = 256


class Origins:
    """allowed: origins such as ``https://chat.example.com``, with ``*`` for any characters.

    only_local: accept no Host but an address or a name that public DNS does not have.
    """

    def __init__(self, allowed: Iterable[str] = (), *, only_local: bool = False) -> None:
        self.allowed = tuple(origin.rstrip("/").lower() for origin in allowed)
        self.only_local = only_local
        self._sound_hosts: set[str] = set()

    def is_host_sound(self, host: str) -> bool:
        """Whether a request that names this Host may come in."""
        if not self.only_local or host in self._sound_hosts:
            return True
        if not _is_local_name(_name_in(f"//{host}")):
            return False
        if len(self._sound_hosts) < _KEPT:
            self._sound_hosts.add(host)
        return True

    def is_sound(self, origin: str, host: str) -> bool:
        """Whether a page of `origin` may use the gateway that it reached as `host`."""
        return origin.partition("://")[2] == host != "" or self.allows(origin)

    def allows(self, origin: str) -> bool:
        """Whether pages of `origin` were allowed by the settings."""
        return any(fnmatchcase(origin.lower(), pattern) for pattern in self.allowed)

    def preflight(self, request: web.Request) -> web.Response:
        """The answer to a browser that asks beforehand. `tell` adds who may read it."""
        headers = {
            "Access-Control-Allow-Methods": _METHODS,
            "Access-Control-Allow-Headers": request.headers.get(
                "Access-Control-Request-Headers", ""
            ),
            "Access-Control-Max-Age": "600",
        }
        return web.Response(status=204, headers=headers)

    async def tell(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Let the page read this answer, if it may: for `on_response_prepare`."""
        origin = request.headers.get("Origin")
        if origin is not None and self.allows(origin):
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = _SHOWN_HEADERS
            response.headers.add("Vary", "Origin")


def _is_local_name(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name in ("", "localhost") or name.endswith(_LOCAL_SUFFIXES) or "." not in name
    return True


def _name_in(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # half an IPv6 address
        return "?."
