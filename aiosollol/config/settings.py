"""Every setting of a pool, in one table: type, kind, default, and description.

To add one, add a line to `Settings` and a row to docs/configuration.md. Its variable, its key in
the file, its check, its error messages and its row in ``aiosollol config`` follow from that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Generic, Literal, NoReturn, TypedDict, TypeVar, cast

from aiosollol.config.setting_types import (
    CLUSTER,
    COUNT,
    FLAG,
    FRACTION,
    GAIN,
    NAMES,
    PATIENCE,
    SECONDS,
    TEXT,
    WEIGHT,
    Kind,
    did_you_mean,
    one_of,
    shortened,
)
from aiosollol.core.scheduling.live_traffic import LIVE_LATENCY_TARGET
from aiosollol.core.scheduling.planner import Policy, SameMachine
from aiosollol.errors import ConfigError


class PoolSettings(TypedDict, total=False):
    """The settings as keyword arguments of a pool, except `routing_strategy`, which is an argument
    of its own. None counts as not given."""

    auto_discover: bool | None
    discovery_timeout: float | None
    watch_network: bool | None
    trusted: Iterable[str] | None
    embed_timeout: float | None
    chat_timeout: float | None
    first_byte_timeout: float | None
    stall_timeout: float | None
    policy: Policy | None
    min_gain: float | None
    same_machine: SameMachine | None
    canary: bool | None
    max_retries: int | None
    retry_budget: float | None
    hedge_rate: float | None
    outage_patience: float | None
    max_waiting: int | None
    wait_timeout: float | None
    live_latency_target: float | None
    close_timeout: float | None
    metrics_interval: float | None
    check_interval: float | None
    enable_dask: bool | None
    dask_address: str | None
    dask_workers: int | None
    dask_threshold: int | None
    enable_ray: bool | None
    ray_address: str | None
    app_name: str | None
    app_weight: float | None


RoutingStrategy = Literal[
    "performance", "score", "round_robin", "priority", "least_loaded", "random"
]

PREFIX = "SOLLOL_"
ARGUMENT = "argument"

T = TypeVar("T")


class Setting(Generic[T]):
    """One row of the table. about: a description in one line."""

    __slots__ = ("about", "default", "kind", "name")

    def __init__(self, kind: Kind[T], default: T, about: str = "") -> None:
        self.name = ""
        self.kind = kind
        self.default = default
        self.about = about

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def named(self, name: str) -> Setting[T]:
        """Set the name and return self, for tables that are not classes."""
        self.name = name
        return self

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return f"{PREFIX}{self.name.upper()}"

    def check(self, value: object, *, source: str = ARGUMENT, line: int | None = None) -> T:
        """The value to store. Raises ConfigError, which says where it is and what to do."""
        try:
            return self.kind.check(value)
        except (ValueError, OverflowError):
            raise wrong(self._problem(self.name, value), source, line) from None

    def read(self, text: str) -> T:
        """The value of the environment variable's `text`. Raises ConfigError."""
        try:
            return self.kind.check(self.kind.read(text))
        except (ValueError, OverflowError):
            problem = self._problem(self.variable, text)
            raise ConfigError(problem, source=self.variable) from None

    def _problem(self, what: str, value: object) -> str:
        return f"{what} must be {self.kind.expected}, not {shortened(value)}"


def _setting(kind: Kind[T], default: T, about: str) -> T:
    # The cast is for the type checker: in the class it is a Setting, in an instance its value.
    return cast(T, Setting(kind, default, about))


class Settings:
    """The checked value of every setting: ``settings.embed_timeout``. Frozen.

    Settings that are not given, or None, have their defaults. Times are seconds.

    Raises ConfigError for an invalid value or an unknown name.
    """

    auto_discover: bool = _setting(FLAG, True, "search the network if no nodes are given")
    discovery_timeout: float = _setting(SECONDS, 0.5, "how long an address may take to answer")
    watch_network: bool = _setting(FLAG, False, "after a search, follow nodes that come and go")
    trusted: tuple[str, ...] | None = _setting(
        NAMES, None, "the only addresses, names or TLS fingerprints to accept as nodes"
    )
    embed_timeout: float = _setting(SECONDS, 60.0, "for one embedding request to one node")
    chat_timeout: float = _setting(SECONDS, 300.0, "for one chat or generate to one node")
    first_byte_timeout: float = _setting(
        SECONDS, 120.0, "for the first part of a streamed answer, once the model is loaded"
    )
    stall_timeout: float = _setting(SECONDS, 60.0, "for each further part of a streamed answer")
    policy: Policy = _setting(
        one_of(Policy), "adaptive", "how to spread a batch: by predicted times, or by thresholds"
    )
    min_gain: float = _setting(GAIN, 0.05, "the share of time that spreading a batch must save")
    same_machine: SameMachine = _setting(
        one_of(SameMachine), "measure", "nodes on one machine: measure, share the work, or use one"
    )
    canary: bool = _setting(
        FLAG, True, "embed two short texts on each node, and leave out one whose vectors differ"
    )
    routing_strategy: RoutingStrategy = _setting(
        one_of(RoutingStrategy), "performance", "which node answers a live request"
    )
    max_retries: int = _setting(COUNT, 3, "further attempts after the first one failed")
    retry_budget: float = _setting(FRACTION, 0.2, "retries may be this share of all requests")
    hedge_rate: float = _setting(
        FRACTION, 0.05, "hedged requests may be this share of all requests; 0 turns hedging off"
    )
    outage_patience: float = _setting(
        PATIENCE, 60.0, "how long to wait while every node fails in a way that passes"
    )
    max_waiting: int = _setting(COUNT, 100_000, "the most requests that wait for a node at once")
    wait_timeout: float = _setting(PATIENCE, 30.0, "how long a request waits for a node")
    live_latency_target: float = _setting(
        SECONDS, LIVE_LATENCY_TARGET, "for a chunk of a batch while there are live requests"
    )
    close_timeout: float = _setting(
        PATIENCE, 5.0, "how long calls in progress may take when the pool is closed"
    )
    metrics_interval: float = _setting(SECONDS, 30.0, "between two reads of a node's loaded models")
    check_interval: float = _setting(SECONDS, 120.0, "between two health checks of a node")
    enable_dask: bool = _setting(FLAG, False, "let Dask workers compute large batches")
    dask_address: str | None = _setting(
        CLUSTER,
        None,
        "the Dask scheduler, such as tcp://10.0.0.2:8786; none starts a local cluster",
    )
    dask_workers: int = _setting(COUNT, 0, "workers of a local Dask cluster; 0 is one per core")
    dask_threshold: int = _setting(COUNT, 1000, "texts from which a batch may use an engine")
    enable_ray: bool = _setting(FLAG, False, "share the nodes fairly with other programs, by Ray")
    ray_address: str | None = _setting(
        CLUSTER,
        None,
        "the Ray cluster: auto, host:port or ray://host:port; none starts a local one",
    )
    app_name: str | None = _setting(
        TEXT, None, "this program's name among those that share the nodes"
    )
    app_weight: float = _setting(WEIGHT, 1.0, "its weight when programs compete for shared nodes")

    def __init__(self, **values: Any) -> None:
        for name in values:
            if name not in TABLE:
                raise unknown_setting(name)
        for name, setting in TABLE.items():
            value = values.get(name)
            self.__dict__[name] = setting.default if value is None else setting.check(value)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"settings are frozen: {name} cannot be set")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"settings are frozen: {name} cannot be deleted")

    def __eq__(self, other: object) -> bool:
        return self.__dict__ == other.__dict__ if isinstance(other, Settings) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self.__dict__.values()))

    def __repr__(self) -> str:
        changed = (
            f"{name}={getattr(self, name)!r}"
            for name, setting in TABLE.items()
            if getattr(self, name) != setting.default
        )
        return f"Settings({', '.join(changed)})"


TABLE: Mapping[str, Setting[Any]] = {
    name: entry for name, entry in vars(Settings).items() if isinstance(entry, Setting)
}


DEFAULTS = Settings()


def unknown_setting(name: str, *, source: str = ARGUMENT, line: int | None = None) -> ConfigError:
    """The error for an unknown setting."""
    if name == "nodes" and source != ARGUMENT:
        hint = "; nodes have their own file, ~/.config/aiosollol/nodes.json"
    else:
        hint = did_you_mean(name.lower().removeprefix(PREFIX.lower()), TABLE)
    return wrong(f"unknown setting {name!r}{hint}", source, line)


def wrong(message: str, source: str = ARGUMENT, line: int | None = None) -> ConfigError:
    """A ConfigError, with the place of the mistake if it is in a file."""
    where = "" if source == ARGUMENT else f"{place(source, line)}: "
    return ConfigError(f"{where}{message}", source=source, line=line)


def place(source: str, line: int | None) -> str:
    """A place in a file, in words: ``/path/config.toml, line 3``."""
    return source if line is None else f"{source}, line {line}"


def shown(value: object) -> str:
    """A setting's value as shown to users: ``true``, ``0.5``, ``60``, ``none``, ``a, b``."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return f"{value:.15g}" if isinstance(value, float) else str(value)
