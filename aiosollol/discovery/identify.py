"""`identify`: checks whether an unknown server is an Ollama, with two small requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple

import orjson

from aiosollol.core.address import Address
from aiosollol.core.node import ModelInfo
from aiosollol.discovery.sockets import Channel
from aiosollol.errors import ProtocolError
from aiosollol.wire.http1 import ResponseParser, request_head
from aiosollol.wire.ollama.client import load_tags, load_version, loads

MOST_BODY_BYTES = 1 << 20
"""As much as two thousand models take."""

_MOST_HEAD_BYTES = 16_384
_MOST_VERSION = 100
_MOST_NAME = 512
_HEADERS = {"Accept": "application/json", "User-Agent": "aiosollol"}


class ServerIdentity(NamedTuple):
    """The answers of an Ollama server. seconds: from the first request to its answer."""

    version: str
    models: Mapping[str, ModelInfo]
    seconds: float

    @property
    def contents(self) -> tuple[str, frozenset[tuple[str, str]]]:
        """Equal for two answers of one server, by whatever address it was asked."""
        return self.version, frozenset((each.name, each.digest) for each in self.models.values())


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
            raise ProtocolError(address.netloc, f"answered {path} with more than a megabyte")
        body.append(piece)
    return b"".join(body), parser.keeps_alive


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
