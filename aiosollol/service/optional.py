"""The optional parts of a service: extras that may be missing, and the port for metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from aiosollol.errors import InvalidInput, MissingExtra
from aiosollol.gateway.metrics import check_extra as check_metrics
from aiosollol.pool.bootstrap import check_engine
from aiosollol.service.config import SOLLOLConfig
from aiosollol.service.security import is_loopback
from aiosollol.telemetry.opentelemetry import check_extra as check_otel

if TYPE_CHECKING:
    from aiosollol.gateway.metrics import Gather
    from aiosollol.gateway.serving.listener import Listener


class _Part(NamedTuple):
    """A part that needs an extra.

    is_on: whether the settings enable it.
    check: raises MissingExtra.
    off: the settings that turn it off.
    absent, remedy: the words of the warning before and after the extra to install.
    """

    is_on: Callable[[SOLLOLConfig], bool]
    check: Callable[[], None]
    off: dict[str, Any]
    absent: str
    remedy: str


_PARTS = (
    _Part(
        lambda config: config.metrics_enabled,
        check_metrics,
        {"metrics_enabled": False},
        "metrics are not served",
        "turn them off with --no-metrics (metrics_enabled = false)",
    ),
    _Part(
        lambda config: config.otel,
        check_otel,
        {"otel": False},
        "no spans are recorded",
        "turn them off with --no-otel (otel = false)",
    ),
    _Part(
        lambda config: config.uses_dask,
        lambda: check_engine("dask"),
        {"enable_dask": False, "dask_scheduler": None},
        "queued documents are computed without Dask",
        "leave out --dask-workers and --dask-scheduler (enable_dask, dask_scheduler)",
    ),
)


def without_missing(config: SOLLOLConfig) -> tuple[SOLLOLConfig, list[str]]:
    """The settings with the parts that are not installed turned off, and a warning for each."""
    warnings = []
    for part in _PARTS:
        if not part.is_on(config):
            continue
        try:
            part.check()
        except MissingExtra as error:
            config = replace(config, **part.off)
            warnings.append(f"{part.absent}: {error}, or {part.remedy}")
    return config, warnings


async def listen_for_metrics(
    gather: Gather, config: SOLLOLConfig
) -> tuple[Listener | None, list[str]]:
    """Serve metrics on their port. If it cannot be used: None, and a warning."""
    from aiosollol.gateway.metrics import metrics_app  # loads aiohttp
    from aiosollol.gateway.middleware.guard import Origins, local_only
    from aiosollol.gateway.serving.listener import METRICS, Listener

    origins = Origins(only_local=is_loopback(config.metrics_host), hosts=config.allowed_hosts)
    app = metrics_app(gather, local_only(origins))
    listener = Listener(app, name="metrics", settings=METRICS)
    try:
        await listener.start(config.metrics_host, config.metrics_port)
    except InvalidInput as error:
        return None, [f"metrics are served only on /metrics of the gateway: {error}"]
    return listener, []
