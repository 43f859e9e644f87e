"""`SOLLOLConfig`: all settings of a service, with the original's names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, cast
from urllib.parse import urlsplit

from aiosollol.config.files import load_nodes, path_of
from aiosollol.config.resolve import read_toml
from aiosollol.config.setting_types import (
    COUNT,
    FLAG,
    NAMES,
    PATIENCE,
    SECONDS,
    Kind,
    did_you_mean,
    whole,
)
from aiosollol.config.settings import (
    ARGUMENT,
    TABLE,
    RoutingStrategy,
    Setting,
    unknown_setting,
    wrong,
)
from aiosollol.core.node import NodeLike, NodeSpec
from aiosollol.core.redaction import has_at_sign, safe_repr
from aiosollol.errors import InvalidInput

ORIGINAL_HOSTS = ("127.0.0.1:11434",)

NOT_IN_USE = ("ray_workers", "retry_backoff_multiplier")
"""Fields of the original that are checked but have no effect: Ray has as many workers as there are
slots for them, and the pool has its own rule for waits between retries."""

MAX_IN_FLIGHT = 1000
"""Requests in flight of one client, if `max_in_flight` is not set and clients are keys or addresses
of other machines. Further ones wait in the line of their client, so that the burst of one client
does not delay all others."""

_PORT = whole("a port from 0 to 65535; 0 takes a free one", 0, 65535)
_POSITIVE = whole("a whole number of at least 1", 1, 10**12)


def _check_text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    return value.strip()


def _check_listen(value: object) -> str:
    text = _check_text(value)
    if has_at_sign(text):  # a URL with a password would be shown in errors about the port
        raise ValueError
    return text


def _check_path(value: object) -> str:
    import os

    if not isinstance(value, str | os.PathLike):
        raise ValueError  # noqa: TRY004 - a wrong type is reported like a wrong value
    return _check_text(os.fspath(value))


def _check_hosts(value: object) -> tuple[NodeLike, ...]:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise ValueError  # noqa: TRY004
    hosts = tuple(cast("Iterable[NodeLike]", value))
    if not hosts:
        raise ValueError
    return hosts


def _check_names(value: object) -> tuple[str, ...]:
    return () if value in ([], ()) else NAMES.check(value) or ()


def _check_scheduler(value: object) -> str:
    text = _check_text(value)
    if has_at_sign(text) or not urlsplit(text).scheme or not urlsplit(text).netloc:
        raise ValueError
    return text


def _check_table(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError  # noqa: TRY004
    return MappingProxyType(dict(value))


_LISTEN = Kind("an address or a host name, such as '0.0.0.0'", _check_listen, str)
_PATH = Kind("a path", _check_path, str)
_HOSTS = Kind("a list of at least one node, such as ['10.0.0.2:11434']", _check_hosts, str)
_ORIGINS = Kind("a list of origins, such as ['https://chat.example.com']", _check_names, str)
_ALLOWED_HOSTS = Kind("a list of host names, such as ['chat.example.com']", _check_names, str)
_SCHEDULER = Kind(
    "an address such as 'tcp://10.0.0.1:8786', without a password", _check_scheduler, str
)
_POOL = Kind("a table of pool settings", _check_table, str)
_PROCESSES = whole("a whole number from 1 to 256", 1, 256)
_RATE = Kind("a number of requests a second, 0 for any number", PATIENCE.check, float)


def _field(kind: Kind[Any], default: Any, *, pool: str = "") -> Any:
    return field(default=default, metadata={"setting": Setting(kind, default), "pool": pool})


def _of_pool(name: str, default: Any = ..., kind: Kind[Any] | None = None) -> Any:
    """A setting of the pool, by default with the pool's default."""
    setting = TABLE[name]
    default = setting.default if default is ... else default
    return _field(kind or setting.kind, default, pool=name)


@dataclass(frozen=True, kw_only=True, repr=False)
class SOLLOLConfig:
    """The settings of a service. Times are seconds.

    The first part has the original's names, and its defaults except for `gateway_host`, which was
    every interface. `hosts=None` stands for the initial nodes of a pool without named nodes. The
    fields in `NOT_IN_USE` are checked but have no effect.

    processes: that share the port; more than one only if the service is a program by itself.
    api_keys_file: see `gateway.middleware.keys`. ``SOLLOL_API_KEYS`` and ``SOLLOL_ADMIN_KEYS`` add
        keys.
    insecure: serve other machines without keys.
    allowed_hosts: further names of this machine in the Host of requests, checked on loopback
        without keys.
    allow_admin: allow to pull, create, copy and delete models.
    autobatch_max_documents, autobatch_max_bytes: of all queued documents.
    autobatch_owner_documents, autobatch_owner_bytes, autobatch_owner_jobs: of one key; jobs count
        until they expire.
    autobatch_path: the queue's file; None is a file in ``~/.local/state``.
    rate_limit, rate_burst: requests a second of one client, and in one burst.
    max_in_flight: requests in flight of one client, while further ones wait. None is
        `MAX_IN_FLIGHT` for a key or an address of another machine, and unlimited on loopback
        without keys.
    wait_timeout: how long a request waits for a node, or for others of its client, before it is
        refused.
    stop_timeout: for requests in flight when the service stops.
    header_timeout, idle_timeout, write_timeout, full_timeout, max_connections: see
        `ConnectionLimits`.
    body_timeout, max_body, max_bodies: see `Limits`.
    max_texts, max_answer_bytes: see `GatewayOptions`.
    otel: record spans with OpenTelemetry.
    enable_dask: compute queued documents with Dask, on `dask_workers` local workers, or on those of
        `dask_scheduler`, which turns it on too.
    pool: further settings of the pool, by name.

    Raises ConfigError for invalid values.
    """

    ray_workers: int = _field(COUNT, 2)
    dask_workers: int = _of_pool("dask_workers", 2)
    dask_scheduler: str | None = _of_pool("dask_address", kind=_SCHEDULER)
    hosts: Iterable[NodeLike] | None = _field(_HOSTS, ORIGINAL_HOSTS)
    gateway_port: int = _field(_PORT, 8000)
    gateway_host: str = _field(_LISTEN, "127.0.0.1")
    routing_strategy: RoutingStrategy = _of_pool("routing_strategy")  # noqa: RUF009
    autobatch_enabled: bool = _field(FLAG, True)
    autobatch_interval: float = _field(PATIENCE, 60.0)
    autobatch_min_batch_size: int = _field(_POSITIVE, 1)
    autobatch_max_batch_size: int = _field(_POSITIVE, 100)
    metrics_enabled: bool = _field(FLAG, True)
    metrics_port: int = _field(_PORT, 9090)
    adaptive_metrics_enabled: bool = _field(FLAG, True)
    adaptive_metrics_interval: float = _of_pool("metrics_interval")
    health_check_enabled: bool = _field(FLAG, True)
    health_check_interval: float = _of_pool("check_interval")
    max_retries: int = _of_pool("max_retries")
    retry_backoff_multiplier: float = _field(PATIENCE, 0.5)
    chat_timeout: float = _of_pool("chat_timeout")
    embedding_timeout: float = _of_pool("embed_timeout")

    processes: int = _field(_PROCESSES, 1)
    metrics_host: str = _field(_LISTEN, "127.0.0.1")
    api_keys_file: str | None = _field(_PATH, None)
    insecure: bool = _field(FLAG, False)
    allow_admin: bool = _field(FLAG, False)
    cors_origins: tuple[str, ...] = _field(_ORIGINS, ())
    allowed_hosts: tuple[str, ...] = _field(_ALLOWED_HOSTS, ())
    autobatch_path: str | None = _field(_PATH, None)
    autobatch_max_documents: int = _field(_POSITIVE, 1_000_000)
    autobatch_max_bytes: int = _field(_POSITIVE, 1 << 30)
    autobatch_owner_documents: int = _field(_POSITIVE, 250_000)
    autobatch_owner_bytes: int = _field(_POSITIVE, 256 << 20)
    autobatch_owner_jobs: int = _field(_POSITIVE, 10_000)
    max_body: int = _field(_POSITIVE, 64 << 20)
    max_bodies: int = _field(_POSITIVE, 256 << 20)
    max_texts: int = _field(_POSITIVE, 100_000)
    max_answer_bytes: int = _field(_POSITIVE, 256 << 20)
    max_in_flight: int | None = _field(_POSITIVE, None)
    rate_limit: float = _field(_RATE, 0.0)
    rate_burst: int = _field(COUNT, 0)
    wait_timeout: float = _of_pool("wait_timeout", 300.0)
    max_connections: int = _field(_POSITIVE, 16_384)
    full_timeout: float = _field(SECONDS, 10.0)
    header_timeout: float = _field(SECONDS, 10.0)
    body_timeout: float = _field(SECONDS, 30.0)
    idle_timeout: float = _field(SECONDS, 75.0)
    write_timeout: float = _field(SECONDS, 60.0)
    stop_timeout: float = _field(PATIENCE, 30.0)
    otel: bool = _field(FLAG, False)
    enable_dask: bool = _of_pool("enable_dask")
    pool: Mapping[str, Any] | None = _field(_POOL, None)

    def __post_init__(self) -> None:
        for name in NAMES_OF_FIELDS:
            object.__setattr__(self, name, check(name, getattr(self, name)))
        if self.autobatch_min_batch_size > self.autobatch_max_batch_size:
            raise wrong("autobatch_min_batch_size must be at most autobatch_max_batch_size")

    def __reduce__(self) -> tuple[Any, ...]:
        # `pool`, a view of a dictionary, cannot be pickled.
        values = {name: getattr(self, name) for name in NAMES_OF_FIELDS}
        return _rebuild, ({**values, "pool": self.pool and dict(self.pool)},)

    def __repr__(self) -> str:
        # Without the headers of nodes, which may contain tokens.
        changed = (
            f"{name}={safe_repr(getattr(self, name))}"
            for name in NAMES_OF_FIELDS
            if getattr(self, name) != _TABLE[name].default
        )
        return f"SOLLOLConfig({', '.join(changed)})"

    @property
    def uses_dask(self) -> bool:
        """Whether Dask computes queued documents."""
        return self.enable_dask or self.dask_scheduler is not None

    def pool_settings(self) -> dict[str, Any]:
        """The keyword arguments of the pool, except its nodes."""
        settings = {**(self.pool or {})}
        settings |= {name: getattr(self, own) for name, own in FROM_POOL.items()}
        settings["enable_dask"] = self.uses_dask
        never = 10.0**9
        if not self.adaptive_metrics_enabled:
            settings["metrics_interval"] = never
        if not self.health_check_enabled:
            settings["check_interval"] = never
        return settings


NAMES_OF_FIELDS: tuple[str, ...] = tuple(each.name for each in fields(SOLLOLConfig))
_TABLE: Mapping[str, Setting[Any]] = {
    each.name: each.metadata["setting"].named(each.name) for each in fields(SOLLOLConfig)
}
FROM_POOL: Mapping[str, str] = {
    each.metadata["pool"]: each.name for each in fields(SOLLOLConfig) if each.metadata["pool"]
}
"""The settings of a pool that have their own field here, with the field's name."""


def _rebuild(values: dict[str, Any]) -> SOLLOLConfig:
    return SOLLOLConfig(**values)


def check(name: str, value: object, source: str = ARGUMENT, line: int | None = None) -> Any:
    """The checked value of a field. None is allowed if it is the default.

    Raises ConfigError.
    """
    setting = _TABLE[name]
    if value is None and (setting.default is None or name == "hosts"):
        return None
    checked = setting.check(value, source=source, line=line)
    special: Mapping[str, Callable[..., None]] = {"hosts": _check_nodes, "pool": _check_pool}
    if name in special:
        special[name](checked, source, line)
    return checked


def _check_nodes(hosts: Iterable[NodeLike], source: str, line: int | None) -> None:
    for host in hosts:
        try:
            NodeSpec.parse(host)
        except InvalidInput as error:
            raise wrong(f"hosts: {error}", source, line) from error


def _check_pool(settings: Mapping[str, Any], source: str, line: int | None) -> None:
    for name, value in settings.items():
        if name not in TABLE:
            raise unknown_setting(name, source=source, line=line)
        if name in FROM_POOL:
            raise wrong(
                f"{name} does not belong in 'pool': it is a setting of the service", source, line
            )
        TABLE[name].check(value, source=source, line=line)


@dataclass(frozen=True, kw_only=True)
class ConfigSource:
    """The source of settings: a TOML file with the names of `SOLLOLConfig`, and overrides.

    path: the file; None for none.
    hosts_file: a file of nodes, JSON or a hosts.txt, that overrides those in `path`.
    begins_as_pool: if no node is named at all, use the initial nodes of a pool instead of the
        original's.
    given: settings that override the files.
    """

    path: str | None = None
    hosts_file: str | None = None
    begins_as_pool: bool = False
    given: Mapping[str, Any] = field(default_factory=dict, repr=False)  # hosts have headers

    def read(self) -> SOLLOLConfig:
        """The current settings. Blocks while it reads files.

        Raises ConfigError with the file and the line.
        """
        values: dict[str, Any] = {"hosts": None} if self.begins_as_pool else {}
        if self.path is not None:
            values |= _read_file(self.path)
        if self.hosts_file is not None:
            values["hosts"] = load_nodes(self.hosts_file)
        return SOLLOLConfig(**{**values, **self.given})

    def as_data(self) -> dict[str, Any]:
        """The source as data for JSON, for a child process. `NodeSpec` objects become mappings."""
        given = dict(self.given)
        if given.get("hosts") is not None:
            given["hosts"] = [_plain(host) for host in given["hosts"]]
        if given.get("pool") is not None:
            given["pool"] = dict(given["pool"])
        return {
            "path": self.path,
            "hosts_file": self.hosts_file,
            "begins_as_pool": self.begins_as_pool,
            "given": given,
        }


def _plain(host: NodeLike) -> Any:
    if not isinstance(host, NodeSpec):
        return host
    values = {name: getattr(host, name) for name in host.__dataclass_fields__}
    values["headers"] = dict(host.headers) or None
    return {name: value for name, value in values.items() if value is not None}


def _read_file(name: str) -> dict[str, Any]:
    path = path_of(name)
    rows = read_toml(path, missing="name one that exists", example="gateway_port = 8000")
    values = {}
    for name, value, line in rows:
        if name not in _TABLE:
            hint = did_you_mean(name, _TABLE)
            raise wrong(f"unknown setting {name!r}{hint}", path, line)
        values[name] = check(name, value, path, line)
    return values
