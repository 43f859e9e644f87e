"""`Prober`: checks single addresses for an Ollama, by two small requests."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import ipaddress
import logging
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple

import orjson

from aiosollol.core.address import Address
from aiosollol.core.networks import Discovered, IPAddress, Source
from aiosollol.core.node import ModelInfo
from aiosollol.discovery.options import SearchOptions, Trust, addresses_of
from aiosollol.discovery.sockets import (
    Channel,
    PlainChannel,
    Sockets,
    TlsChannel,
    connect,
    pinning_context,
    verifying_context,
)
from aiosollol.errors import NodeError, ProtocolError
from aiosollol.wire.announcement import Announcement
from aiosollol.wire.content_coding import BadContent, ContentDecoder
from aiosollol.wire.http1 import ResponseParser, request_head
from aiosollol.wire.ollama.client import load_tags, load_version, loads

MOST_BODY_BYTES = 1 << 20
"""As much as two thousand models take."""

_MOST_HEAD_BYTES = 16_384
_MOST_VERSION = 100
_MOST_NAME = 512
_HEADERS = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",
    "User-Agent": "aiosollol",
}


class ServerIdentity(NamedTuple):
    """The answers of an Ollama server. seconds: from the first request to its answer."""

    version: str
    models: Mapping[str, ModelInfo]
    seconds: float

    @property
    def contents(self) -> tuple[str, frozenset[tuple[str, str]]]:
        """Equal for two answers of one server, by whatever address it was asked."""
        return self.version, frozenset((each.name, each.digest) for each in self.models.values())


class Found(NamedTuple):
    """An Ollama server: the address at which it was found, and its answer.

    ip: the IP address of the host in `address`.
    """

    address: Address
    ip: IPAddress
    answer: ServerIdentity
    fingerprint: str = ""
    source: Source = "scan"

    def as_discovered(self, announced: Announcement | None = None) -> Discovered:
        """The public form, with details from its announcement."""
        name = machine = agent = ""
        if announced is not None:
            name, machine = announced.name, announced.machine
            if announced.agent:
                agent = Address("http", str(self.ip), announced.agent).url
        return Discovered(
            self.address.url,
            self.answer.version,
            tuple(each.name for each in self.answer.models.values()),
            self.source,
            self.answer.seconds,
            name=name,
            machine=machine,
            fingerprint=self.fingerprint,
            agent=agent,
        )


def as_ip(host: str) -> IPAddress | None:
    """A host as an IP address; None for a name."""
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


async def identify(
    connect: Callable[[], AbstractAsyncContextManager[Channel]], address: Address
) -> ServerIdentity:
    """The version and models of an Ollama server.

    Both requests use one connection, unless the server closes it after the first. The caller sets
    the deadline.

    Raises ProtocolError for a status other than 200 (redirects too), a head or body that is too
    long, and JSON of another shape; BadResponse (a ValueError) for anything but HTTP; OSError from
    the connection.
    """
    clock = asyncio.get_running_loop().time
    async with connect() as channel:
        began = clock()
        body, keeps_alive = await _get(channel, address, "/api/version")
        seconds = clock() - began
        version = _checked_version(address.netloc, body)
        if keeps_alive:
            return ServerIdentity(version, await _models(channel, address), seconds)
    async with connect() as channel:
        return ServerIdentity(version, await _models(channel, address), seconds)


async def _models(channel: Channel, address: Address) -> Mapping[str, ModelInfo]:
    body, _ = await _get(channel, address, "/api/tags")
    _check_tags(address.netloc, body)
    return load_tags(address.netloc, body)


async def _get(channel: Channel, address: Address, path: str) -> tuple[bytes, bool]:
    """The body of an answer with status 200, and whether the connection stays open."""
    head = request_head("GET", address.netloc, address.path + path, _HEADERS, None)
    await channel.send(head)
    parser = ResponseParser(max_head=_MOST_HEAD_BYTES)
    body, size = [], 0
    while not parser.is_complete:
        data = await channel.receive()
        if not data:
            parser.feed_eof()
            break
        piece = parser.feed(data)
        if parser.status not in (0, 200):
            raise ProtocolError(address.netloc, f"answered {path} with status {parser.status}")
        size += len(piece)
        if size > MOST_BODY_BYTES:
            raise _too_long(address, path)
        body.append(piece)
    content = b"".join(body)
    if parser.coding:
        decoder = ContentDecoder(parser.coding)
        content = decoder.decode(content, MOST_BODY_BYTES)
        if decoder.has_more:
            raise _too_long(address, path)
        if not decoder.is_complete:
            raise BadContent("its compressed content is cut off")
    return content, parser.keeps_alive


def _too_long(address: Address, path: str) -> ProtocolError:
    return ProtocolError(address.netloc, f"answered {path} with more than a megabyte")


def _checked_version(node: str, body: bytes) -> str:
    version = load_version(node, body)
    if not (0 < len(version) <= _MOST_VERSION and version.isprintable()):
        raise ProtocolError(node, "answered with an invalid version")
    return version


def _check_tags(node: str, body: bytes) -> None:
    """Raise ProtocolError unless it is a list of models: other servers may answer anything."""
    try:
        tags = loads(body)
    except orjson.JSONDecodeError as error:
        raise ProtocolError(node, "its list of models is not JSON") from error
    if not isinstance(tags, dict) or "models" not in tags:
        raise ProtocolError(node, "it has no list of models")
    models = tags["models"]
    if models is None:  # Go writes a nil slice as null
        return
    if not isinstance(models, list) or not all(map(_is_model, models)):
        raise ProtocolError(node, "its list of models is invalid")


def _is_model(entry: object) -> bool:
    name = entry.get("name") if isinstance(entry, dict) else None
    return isinstance(name, str) and 0 < len(name) <= _MOST_NAME and name.isprintable()


_log = logging.getLogger("aiosollol.discovery")
_SHOWN = 5
_NO_FILES = (errno.EMFILE, errno.ENFILE)


class _NotListed(OSError):
    """The user does not trust a server's certificate."""


class Prober:
    """Probes addresses, as the options of a search allow.

    asked: the number of addresses so far.
    left_out: servers that were left out because they are not trusted.
    not_swept: the number of addresses in networks left out for the same reason.
    """

    def __init__(self, options: SearchOptions, sockets: Sockets, trust: Trust | None) -> None:
        self._options = options
        self._sockets = sockets
        self._trust = trust
        self._pinning: ssl.SSLContext | None = None
        self._verifying: ssl.SSLContext | None = None
        self._has_warned = False
        self.asked = 0
        self.left_out: list[str] = []
        self.not_swept = 0

    async def ask(self, address: Address, timeout: float | None = None) -> Found | None:
        """The server at an address, or None if it is absent, no Ollama, or not trusted.

        timeout: seconds, counted from when a socket is free; that of the search by default.
        """
        self.asked += 1
        clock = asyncio.get_running_loop().time
        async with self._sockets:
            deadline = clock() + (self._options.timeout if timeout is None else timeout)
            hosts = await addresses_of(address.host, deadline - clock())
            for at, host in enumerate(hosts):
                # Share the time: the first address of a name may not answer.
                share = (deadline - clock()) / (len(hosts) - at)
                found = await self._ask(address, host, clock() + share)
                if found is not None:
                    return found
        return None

    async def _ask(self, address: Address, host: str, deadline: float) -> Found | None:
        """Probe one IP address of a host."""
        ip = as_ip(host)
        if ip is None or any(ip in network for network in self._options.sweep.deny):
            return None
        if ip.is_loopback and self._options.exclude_localhost:
            return None
        contexts = await self._contexts(address, is_listed=self.lists(host))
        problem = "" if contexts else address.url
        for context in contexts:
            pins: list[str] = []
            way = functools.partial(self._connect, host, address, context, pins)
            try:
                async with asyncio.timeout_at(deadline):
                    answer = await identify(way, address)
            # OSError: no server, or not in time. NodeError: not an Ollama. ValueError: not HTTP,
            # or an address that does not fit into HTTP.
            except (OSError, ValueError, NodeError) as error:
                problem = self._problem(address, error)
                continue
            return Found(address, ip, answer, pins[0] if pins else "")
        if problem:
            self.left_out.append(problem)
        return None

    def _problem(self, address: Address, error: Exception) -> str:
        """The message about a server that exists but is not trusted; "" for other errors."""
        if isinstance(error, ssl.SSLCertVerificationError):
            return f"{address.url} (its certificate: {error.verify_message})"
        if isinstance(error, _NotListed):
            return f"{address.url} ({error})"
        if not isinstance(error, OSError):
            _log.debug("%s is not a node: %s", address.url, error)
        elif error.errno in _NO_FILES and not self._has_warned:
            self._has_warned = True
            _log.warning("some addresses cannot be asked: too many files are open (ulimit -n)")
        return ""

    def lists(self, host: str) -> bool:
        """Whether an address itself is trusted. Without `trusted`, all are."""
        ip = as_ip(host)
        return self._trust is None or (ip is not None and self._trust.lists(ip))

    @property
    def has_fingerprints(self) -> bool:
        return self._trust is not None and bool(self._trust.fingerprints)

    async def _contexts(self, address: Address, *, is_listed: bool) -> list[ssl.SSLContext | None]:
        """The TLS contexts to try in turn; None stands for no TLS."""
        if address.scheme != "https":
            return [None] if is_listed else []
        contexts: list[ssl.SSLContext | None] = []
        if self.has_fingerprints:
            self._pinning = self._pinning or pinning_context()
            contexts.append(self._pinning)
        if is_listed:
            self._verifying = self._verifying or await verifying_context()
            contexts.append(self._verifying)
        return contexts

    @contextlib.asynccontextmanager
    async def _connect(
        self, host: str, address: Address, context: ssl.SSLContext | None, pins: list[str]
    ) -> AsyncIterator[Channel]:
        """A connection to the server. `pins` receives the fingerprint that matched."""
        with await connect(host, address.port) as sock:
            if context is None:
                yield PlainChannel(sock)
                return
            channel = TlsChannel(sock, context, address.host)
            await channel.shake_hands()
            if context is self._pinning:
                assert self._trust is not None
                if channel.fingerprint not in self._trust.fingerprints:
                    raise _NotListed(f"its certificate has sha256:{channel.fingerprint}")
                pins.append(channel.fingerprint)
            yield channel

    def tell_left_out(self) -> None:
        """Log the servers and networks that were left out because they are not trusted."""
        shown = list(dict.fromkeys(self.left_out))
        if len(shown) > _SHOWN:
            shown[_SHOWN:] = [f"{len(shown) - _SHOWN} others"]
        if self.not_swept:
            shown.append(f"{self.not_swept} addresses of networks")
        if shown:
            _log.info("left out, because they are not trusted: %s", ", ".join(shown))
