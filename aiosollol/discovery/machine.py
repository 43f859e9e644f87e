"""An id of this machine: the same for all its nodes, and told to others in place of its own."""

from __future__ import annotations

import functools
import hashlib
import hmac
import os
import re
import socket
import uuid
from collections.abc import Mapping

from aiosollol.core.redaction import safe_repr
from aiosollol.errors import ConfigError

VARIABLE = "SOLLOL_MACHINE_ID"
"""Overrides the id, where machines share one: containers of one image, namespaces, cloned disks."""

_FILES = ("/etc/machine-id", "/var/lib/dbus/machine-id")
_APPLICATION = b"aiosollol"
_RAW = re.compile(r"[0-9a-f]{32}")  # machine-id(5); it says "uninitialized" in an unbooted image
_GIVEN = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}")


def machine_id(environ: Mapping[str, str] = os.environ) -> str:
    """The id of this machine: 16 hexadecimal digits, or what SOLLOL_MACHINE_ID says.

    Reads a file, so in an event loop it belongs into a thread. Raises ConfigError for a value of
    the variable that could not be told to others.
    """
    given = environ.get(VARIABLE, "").strip()
    if not given:
        return _own_id()
    if not _GIVEN.fullmatch(given):
        raise ConfigError(
            f"{VARIABLE} is {safe_repr(given)}: write up to 64 letters, digits, dots, dashes and "
            "underscores, a letter or a digit first",
            source=VARIABLE,
        )
    return given


def hashed(raw: str) -> str:
    """The id that may be published for a raw one, which may not.

    machine-id(5): it "should be considered confidential"; "hash the machine ID with a
    cryptographic, keyed hash function, using a fixed, application-specific key".
    """
    return hmac.new(raw.encode(), _APPLICATION, hashlib.sha256).hexdigest()[:16]


@functools.cache
def _own_id() -> str:
    for path in _FILES:
        try:
            with open(path, encoding="ascii", errors="replace") as file:
                raw = file.read(64).strip()
        except OSError:
            continue
        if _RAW.fullmatch(raw):
            return hashed(raw)
    number = uuid.getnode()
    if number >> 40 & 1:  # no hardware address was found: this is a random one (RFC 4122, 4.5)
        return hashed(socket.gethostname())
    return hashed(f"{number:012x}")
