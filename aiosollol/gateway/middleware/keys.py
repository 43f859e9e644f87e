"""`KeyRing`: the API keys of the gateway. A file of keys holds their hashes, never the keys.

One key a line, in a file::

    # name   hash          options
    ann      sha256:9f86…  models=llama3.2,qwen* rate=10 burst=20 in_flight=4
    ops      sha256:60a1…  admin

The hash is a single SHA-256. A slow hash (scrypt) protects passwords that people choose, but would
cost each request milliseconds; a key made here has 256 random bits, too many to guess however fast
the hash is. So the file accepts only hashes, and the environment no short keys.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from hashlib import sha256
from math import inf
from typing import NamedTuple

from aiosollol.core.model_names import full_name, is_valid_name, qualified_name
from aiosollol.errors import ConfigError, InvalidInput

KEYS_VARIABLE = "SOLLOL_API_KEYS"
ADMIN_KEYS_VARIABLE = "SOLLOL_ADMIN_KEYS"
PREFIX = "sk-sollol-"
LEAST_CHARACTERS = 20

_HOST = "registry.ollama.ai/"
_QUALIFIED = (_HOST, "library/")
_OWNER = b"aiosollol owner of jobs\0"
_HASH = re.compile(r"sha256:([0-9a-fA-F]{64})")
_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_NAME_RULE = "a name has up to 64 letters, digits and . _ - @"
_EXAMPLE = "NAME sha256:HASH [models=a,b*] [rate=N] [burst=N] [in_flight=N] [admin]"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key, stored as its hash.

    models: the models it may use, with ``*`` for any characters; empty allows all.
    rate: requests a second.
    burst: requests at once after a pause.
    in_flight: requests at the same time. For these three, 0 means the limit of all clients.
    is_admin: whether it may change the models of the nodes, and sees the jobs of all keys.
    is_named: whether the operator chose `name`; False for a position in a variable.
    """

    name: str
    digest: bytes = field(repr=False)
    models: tuple[str, ...] = ()
    rate: float = 0.0
    burst: int = 0
    in_flight: int = 0
    is_admin: bool = False
    is_named: bool = True

    @property
    def owner(self) -> str:
        """The owner of its jobs: its name, so that a job survives a change of the key itself.

        A key without a chosen name has a hash instead, as another key may take its position. The
        hash differs from `digest`, so that it cannot be used in a file of keys.
        """
        if self.is_named:
            return self.name
        return f"env:{sha256(_OWNER + self.digest).hexdigest()[:32]}"

    def may_use(self, model: str) -> bool:
        """Whether it may use this model, by any of the model's names."""
        return not self.models or any(_matches(model, pattern) for pattern in self.models)


class NewKey(NamedTuple):
    """A new key: the token for its user, and the line for the file of keys."""

    token: str
    line: str


def new_key(name: str, options: str = "") -> NewKey:
    """A new key of 256 random bits. Raises InvalidInput for an invalid name or options."""
    if not _NAME.fullmatch(name):
        raise InvalidInput(f"{name!r} is not a valid name for a key: {_NAME_RULE}")
    token = PREFIX + secrets.token_urlsafe(32)
    line = f"{name} sha256:{sha256(token.encode()).hexdigest()} {options}".strip()
    try:
        _parse_line(line, "the new key", 1)
    except ConfigError as error:
        raise InvalidInput(str(error)) from None
    return NewKey(token, line)


class KeyRing:
    """All keys. `find` takes as long for a nearly correct key as for any other."""

    def __init__(self, keys: Iterable[ApiKey] = ()) -> None:
        self._keys: dict[bytes, ApiKey] = {}
        names = set()
        for key in keys:
            if key.name in names or key.digest in self._keys:
                raise InvalidInput(f"the name or hash of the key {key.name!r} is there twice")
            names.add(key.name)
            self._keys[key.digest] = key

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[ApiKey]:
        return iter(self._keys.values())

    def __repr__(self) -> str:
        return f"<KeyRing of {len(self)}>"

    @property
    def has_admin(self) -> bool:
        """Whether any key may change the models of the nodes."""
        return any(key.is_admin for key in self)

    def find(self, token: str) -> ApiKey | None:
        """The key with this token, or None.

        A dictionary's look-up may take longer the more of the hash is correct, which reveals
        nothing about the token. The final comparison takes constant time.
        """
        digest = sha256(token.encode("utf-8", "surrogateescape")).digest()
        key = self._keys.get(digest)
        return key if key is not None and hmac.compare_digest(key.digest, digest) else None


def parse_keys(text: str, source: str) -> list[ApiKey]:
    """The keys in the text of a file.

    source: the file's name, for errors. Raises ConfigError with the number of a line, but never
    its text: it may contain a key.
    """
    keys: list[ApiKey] = []
    seen: dict[str | bytes, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        entry = line.partition("#")[0].strip()
        if not entry:
            continue
        key = _parse_line(entry, source, number)
        for mark, what in ((key.name, "name"), (key.digest, "hash")):
            if mark in seen:
                message = (
                    f"{source}, line {number}: has the same {what} as line {seen[mark]}; remove one"
                )
                raise ConfigError(message, source=source, line=number)
            seen[mark] = number
        keys.append(key)
    if not keys:
        message = f"{source} holds no key; make one with: aiosollol key NAME >> {source}"
        raise ConfigError(message, source=source)
    return keys


def keys_in_variable(text: str, variable: str, *, is_admin: bool = False) -> list[ApiKey]:
    """The keys in an environment variable: keys, or ``sha256:HASH``, separated by commas."""
    keys = []
    for number, entry in enumerate(filter(None, re.split(r"[,\s]+", text)), 1):
        match = _HASH.fullmatch(entry)
        if match is None and len(entry) < LEAST_CHARACTERS:
            message = (
                f"{variable}, key {number}: shorter than {LEAST_CHARACTERS} characters; "
                "make one with: aiosollol key NAME"
            )
            raise ConfigError(message, source=variable)
        digest = bytes.fromhex(match[1]) if match else sha256(entry.encode()).digest()
        name = f"{'admin' if is_admin else 'env'}-{number}"
        keys.append(ApiKey(name, digest, is_admin=is_admin, is_named=False))
    return keys


def _parse_line(entry: str, source: str, number: int) -> ApiKey:
    def wrong(why: str) -> ConfigError:
        message = f"{source}, line {number}: {why}; write {_EXAMPLE}"
        return ConfigError(message, source=source, line=number)

    name, *rest = entry.split()
    if not _NAME.fullmatch(name) or _HASH.fullmatch(name):
        raise wrong(_NAME_RULE)
    match = _HASH.fullmatch(rest[0]) if rest else None
    if match is None:
        raise wrong("the second word is not a hash (never put the key itself here)")
    options: dict[str, str] = {}
    for option in rest[1:]:
        word, _, value = option.partition("=")
        if word not in ("models", "rate", "burst", "in_flight", "admin") or word in options:
            raise wrong("an option is unknown or given twice")
        if (word == "admin") is bool(value):
            raise wrong(f"the option {word} takes {'no value' if value else 'a value'}")
        options[word] = value
    try:
        rate = float(options.get("rate", 0))
        burst, in_flight = int(options.get("burst", 0)), int(options.get("in_flight", 0))
    except ValueError:
        raise wrong("rate, burst and in_flight must be numbers") from None
    if not 0 <= rate < inf or burst < 0 or in_flight < 0:
        raise wrong("rate, burst and in_flight must be finite numbers of at least 0")
    return ApiKey(
        name,
        bytes.fromhex(match[1]),
        tuple(_pattern(model) for model in options.get("models", "").split(",") if model),
        rate,
        burst,
        in_flight,
        "admin" in options,
    )


def _pattern(model: str) -> str:
    return model.lower() if "*" in model else full_name(model)


def _matches(model: str, pattern: str) -> bool:
    """Whether a pattern of a key is for this model.

    Only one that begins with the default host or namespace is compared with a name that has them:
    ``*llama*`` is not meant for every model of ``registry.ollama.ai``.
    """
    if not is_valid_name(model):
        return fnmatchcase(model, pattern)
    name = full_name(model)
    if pattern.startswith(_QUALIFIED):
        qualified = qualified_name(model)
        name = qualified if pattern.startswith(_HOST) else qualified.removeprefix(_HOST)
    return fnmatchcase(name, pattern)
