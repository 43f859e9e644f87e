"""A node's zeroconf announcement: the TXT record of ``_ollama._tcp.local.``, to bytes and back.

Any machine on the network can send one, so every field is validated: a malformed part of the
address invalidates the announcement, a malformed description is left out.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from aiosollol.core.address import Address
from aiosollol.errors import InvalidInput

SERVICE_TYPE = "_ollama._tcp.local."

MAX_NAME_BYTES = 63
"""DNS's limit for one label in bytes (RFC 1035), and so for a node's name."""

_MAX_TEXT = 64
_PATH = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*")  # no empty part, no ".", no ".."
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+-]{0,31}")
_MACHINE = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}")
_BYTES = re.compile(r"[0-9]{1,15}")


class Announcement(NamedTuple):
    """A node's description of itself. Empty or 0 if not given.

    name: its own name for itself.
    scheme, path: of its URL.
    version: of Ollama.
    machine: an id shared by all nodes of one machine.
    gpu, gpu_memory, gpu_free: name of the GPU, its memory and the free part, in bytes.
    agent: port of `aiosollol agent` on the same addresses.
    """

    name: str
    scheme: str = "http"
    path: str = ""
    version: str = ""
    machine: str = ""
    gpu: str = ""
    gpu_memory: int = 0
    gpu_free: int = 0
    agent: int = 0

    def as_txt(self) -> dict[bytes, bytes]:
        """The TXT record: keys of at most nine characters, as RFC 6763 (6.4) recommends.

        Raises InvalidInput for values that `read_announcement` would reject.
        """
        fields = {
            "txtvers": "1",
            "scheme": "" if self.scheme == "http" else self.scheme,
            "path": self.path,
            "version": self.version,
            "machine": self.machine,
            "gpu": self.gpu[:_MAX_TEXT],
            "gpumem": str(self.gpu_memory or ""),
            "gpufree": str(self.gpu_free or ""),
            "agent": str(self.agent or ""),
        }
        record = {key.encode(): value.encode() for key, value in fields.items() if value}
        readable = read_announcement(self.name, record)
        if readable != self._replace(gpu=self.gpu[:_MAX_TEXT]):
            raise InvalidInput(f"{self!r} cannot be announced; readers would see {readable!r}")
        return record


def read_announcement(name: str, properties: Mapping[bytes, bytes | None]) -> Announcement | None:
    """The announcement in a TXT record, None without a valid URL. Never raises."""
    texts: dict[str, str] = {}
    for key, value in properties.items():
        # Keys are case-insensitive, and the first of two equal keys counts (RFC 6763, 6.4).
        texts.setdefault(key.decode("ascii", "replace").lower(), _text(value))
    scheme = texts.get("scheme", "") or "http"
    path = texts.get("path", "").rstrip("/")
    if scheme not in ("http", "https") or len(path) > _MAX_TEXT or not _PATH.fullmatch(path):
        return None
    agent = int(_matching(_BYTES, texts.get("agent", "")) or 0)
    return Announcement(
        name=_printable(name)[:MAX_NAME_BYTES],
        scheme=scheme,
        path=path,
        version=_matching(_VERSION, texts.get("version", "")),
        machine=_matching(_MACHINE, texts.get("machine", "")),
        gpu=_printable(texts.get("gpu", ""))[:_MAX_TEXT],
        gpu_memory=int(_matching(_BYTES, texts.get("gpumem", "")) or 0),
        gpu_free=int(_matching(_BYTES, texts.get("gpufree", "")) or 0),
        agent=agent if agent < 65_536 else 0,
    )


def urls_of(announcement: Announcement, addresses: Iterable[str], port: int) -> tuple[str, ...]:
    """The URLs at which an announced node may answer, in order. Never raises.

    Only addresses of other machines count: 127.0.0.1 or 0.0.0.0 would be this machine, and a
    link-local IPv6 address is useless without an interface.
    """
    found = []
    for text in addresses:
        try:
            ip = ipaddress.ip_address(text)
            if not is_reachable(ip):
                continue
            host = f"[{ip}]" if ip.version == 6 else str(ip)
            parsed = Address.parse(f"{announcement.scheme}://{host}:{port}{announcement.path}")
        except ValueError:  # InvalidInput is one
            continue
        found.append((ip.version, int(ip), parsed.url))
    return tuple(dict.fromkeys(url for *_, url in sorted(found)))


def is_reachable(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether other machines may reach an address: not loopback, not multicast, and so on."""
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None or ip.scope_id is not None or ip.is_link_local:
            return False
    elif ip.is_reserved or int(ip) >> 24 == 0:  # class E and broadcast; "this network"
        return False
    return not (ip.is_loopback or ip.is_multicast or ip.is_unspecified)


def _text(value: bytes | None) -> str:
    try:
        return (value or b"").decode("utf-8")
    except UnicodeDecodeError:
        return "\ufffd"  # invalid in every field


def _printable(text: str) -> str:
    """`text` without terminal control characters; "" if it is not text at all."""
    if "\ufffd" in text:
        return ""
    return "".join(c for c in text if c.isprintable()).strip()


def _matching(pattern: re.Pattern[str], text: str) -> str:
    return text if pattern.fullmatch(text) else ""
