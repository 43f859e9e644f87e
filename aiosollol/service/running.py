"""`run`: a service as a program by itself, in one or several processes, until a signal."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from aiosollol.errors import InvalidInput, MissingExtra, SollolError
from aiosollol.net.error_log import ErrorLog
from aiosollol.net.subprocess import follow, stdin_lines
from aiosollol.service import security
from aiosollol.service.config import ConfigSource, SOLLOLConfig
from aiosollol.service.sollol import SOLLOL
from aiosollol.telemetry.opentelemetry import is_recording

if TYPE_CHECKING:
    from aiosollol.gateway.serving.listener import Signals
    from aiosollol.gateway.serving.socket_folder import SocketFolder
    from aiosollol.gateway.serving.supervisor import Siblings

log = logging.getLogger("aiosollol")

_OTHER_FILES = 1024 + 64  # besides client connections: those of `ConnectionLimiter`, and some more
_SWITCH_SECONDS = 0.0005
"""How long a thread that reads a large body keeps the event loop waiting, several times in each
request. Python's default is 5 ms."""
_HURRY_SECONDS = 3.0  # from the second signal until the process exits in any case


@dataclass(frozen=True, slots=True)
class Running:
    """The state of a service, reported by `run` once it serves.

    metrics_url: None if metrics have no port of their own.
    nodes: their URLs; None if none are named.
    processes: their pids.
    """

    url: str
    metrics_url: str | None
    nodes: tuple[str, ...] | None
    processes: tuple[int, ...]


OnReady = Callable[[Running], None]


def run(source: ConfigSource, on_ready: OnReady | None = None) -> int:
    """Serve until SIGTERM or SIGINT, and return the exit code.

    SIGTERM, SIGINT: stop accepting connections, and finish the requests in flight. A second signal
    closes at once; the exit code is then 128 + its number. SIGHUP: read the settings and the keys
    again, without dropping requests.

    source: the settings.
    on_ready: called once it serves.

    Raises ConfigError and InvalidInput if it cannot serve. Optional parts that cannot be used cause
    a warning: see `SOLLOL.start`.
    """
    config = source.read()
    if config.otel:
        _warn_if_not_recording()
    raise_file_limit(config.max_connections + _OTHER_FILES)
    serve = _serve_many if config.processes > 1 else _serve_one
    return _run_loop(serve(source, config, on_ready))


def _warn_if_not_recording() -> None:
    with contextlib.suppress(MissingExtra):  # which has its own warning
        if not is_recording():
            log.warning(
                "otel is on, but no spans are recorded: start it as 'opentelemetry-instrument "
                "aiosollol up', which comes with opentelemetry-distro"
            )


def run_child() -> int:
    """In a process started by `run`: serve as described on stdin, until stdin ends."""
    from aiosollol.gateway.serving.socket_folder import remove
    from aiosollol.gateway.serving.supervisor import Siblings

    parent = os.getppid()
    brief = json.loads(_first_line())
    source = ConfigSource(**brief["source"])
    siblings = Siblings(brief["folder"], brief["count"])
    try:
        config = source.read()
        return _run_loop(_serve_one(source, config, None, siblings, brief["index"], brief["port"]))
    except SollolError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    finally:
        if os.getppid() != parent:  # it was killed, so it left its folder behind
            remove(brief["folder"])


def _run_loop(work: Coroutine[Any, Any, int]) -> int:
    factory: Callable[[], asyncio.AbstractEventLoop] | None
    try:
        import uvloop
    except ImportError:
        factory = None
    else:
        factory = uvloop.new_event_loop
    sys.setswitchinterval(_SWITCH_SECONDS)
    with asyncio.Runner(loop_factory=factory) as runner:
        loop = runner.get_loop()
        errors = ErrorLog("event loop", later=loop.call_later)
        loop.set_exception_handler(errors.on_loop_error)
        try:
            return runner.run(work)
        finally:
            errors.close()


async def _serve_one(
    source: ConfigSource,
    config: SOLLOLConfig,
    on_ready: OnReady | None,
    siblings: Siblings | None = None,
    index: int = 0,
    port: int | None = None,
) -> int:
    from aiosollol.gateway.serving.listener import Signals
    from aiosollol.gateway.serving.supervisor import announce_ready

    if port is not None:
        # The parent has chosen a free port if it was 0.
        source = replace(source, given={**source.given, "gateway_port": port})
        config = await asyncio.to_thread(source.read)
    sollol = SOLLOL(config, source=source, siblings=siblings, index=index)
    reloading = asyncio.Event()
    with Signals(reloading.set) as signals:
        if siblings is not None:
            follow(stdin_lines(), signals.end)  # the parent has ended
        reloader = asyncio.create_task(_keep_reloading(sollol, reloading))
        giving_up = asyncio.create_task(_give_up(signals))
        try:
            if await _unless_stopped(sollol.start(), signals.stop):
                if siblings is not None:
                    announce_ready()
                if on_ready is not None:
                    on_ready(_running(sollol))
                await signals.stop.wait()
            cut_off = await sollol.stop(signals.hurry)
            if cut_off:
                log.warning("%d requests were cut off", cut_off)
        finally:
            reloader.cancel()
            giving_up.cancel()
        return 128 + (signals.number or 0) if signals.hurry.is_set() else 0


async def _unless_stopped(work: Coroutine[Any, Any, None], stop: asyncio.Event) -> bool:
    """Run `work` unless `stop` is set before it ends; return whether it has ended."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            working.cancel()
            await asyncio.wait([working])
            return False
        working.result()
        return True
    finally:
        stopping.cancel()


async def _keep_reloading(sollol: SOLLOL, wanted: asyncio.Event) -> None:
    while True:
        await wanted.wait()
        wanted.clear()
        if not sollol.is_running:
            continue
        try:
            update = await sollol.reload()
        except SollolError as error:
            log.warning("the settings are unchanged: %s", error)
        else:
            log.warning("the settings were read again: %s", update)


async def _give_up(signals: Signals) -> None:
    await signals.hurry.wait()
    await asyncio.sleep(_HURRY_SECONDS)
    os._exit(128 + (signals.number or 0))


async def _serve_many(source: ConfigSource, config: SOLLOLConfig, on_ready: OnReady | None) -> int:
    from aiosollol.gateway.serving.listener import Listener, Signals
    from aiosollol.gateway.serving.socket_folder import SocketFolder
    from aiosollol.gateway.serving.supervisor import Siblings, Supervisor
    from aiosollol.service.optional import listen_for_metrics, without_missing

    if not hasattr(socket, "SO_REUSEPORT"):
        raise InvalidInput("processes: this system cannot share a port; use 1")
    # Before any process starts, as each would report the same.
    keys = await asyncio.to_thread(security.read_keys, config)
    security.check_bind(config, keys)
    config, warnings = await asyncio.to_thread(without_missing, config)
    count = config.processes
    reserved = await asyncio.to_thread(reserve_port, config.gateway_host, config.gateway_port)
    folder: SocketFolder | None = None
    metrics: Listener | None = None
    try:
        folder = await asyncio.to_thread(SocketFolder)
        port = reserved.getsockname()[1]
        brief = {"source": source.as_data(), "folder": folder.name, "count": count, "port": port}
        supervisor = Supervisor(
            (sys.executable, "-m", "aiosollol.service"),
            count,
            lambda index: json.dumps({**brief, "index": index}).encode(),
            patience=config.stop_timeout,
        )
        if config.metrics_enabled:
            gather = Siblings(folder.name, count).gather
            metrics, more = await listen_for_metrics(gather, config)
            warnings += more
        for warning in warnings:
            log.warning("%s", warning)
        metrics_url = None if metrics is None else f"{metrics.url}/metrics"

        def tell() -> None:
            if on_ready is not None:
                shown = Listener.url_of(config.gateway_host, port)
                pids = tuple(pid for pid in supervisor.pids if pid is not None)
                on_ready(Running(shown, metrics_url, _urls(config), pids))

        with Signals(supervisor.reload) as signals:
            await supervisor.run(signals, tell)
            return 128 + (signals.number or 0) if signals.hurry.is_set() else 0
    finally:
        reserved.close()
        if metrics is not None:
            await metrics.stop(1.0)
        if folder is not None:
            await asyncio.to_thread(folder.cleanup)


def reserve_port(host: str, port: int) -> socket.socket:
    """A socket that reserves the port, without listening, so that only our processes share it.

    Raises InvalidInput if another program uses it, even one that would share it.
    """
    from aiosollol.gateway.serving.listener import GATEWAY, cannot_listen  # loads aiohttp

    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, socket.SOCK_STREAM) as alone:
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind(address)
            address = (*address[:1], alone.getsockname()[1], *address[2:])
            alone.listen(1)  # fails if another program listens and shares the port
        held = socket.socket(family, socket.SOCK_STREAM)
        try:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            held.bind(address)
        except BaseException:
            held.close()
            raise
    except (OSError, ValueError) as error:  # ValueError: an invalid host name
        raise cannot_listen(host, port, error, GATEWAY) from error
    return held


def raise_file_limit(wanted: int) -> None:
    """Raise the soft limit of open files to `wanted`, or near it: each connection is one.

    macOS has a limit below the hard one (``kern.maxfilesperproc``), which no call returns.
    """
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    while most > soft:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        except (OSError, ValueError):
            most = most // 2
        else:
            return


def _running(sollol: SOLLOL) -> Running:
    return Running(sollol.url, sollol.metrics_url, _urls(sollol.config), (os.getpid(),))


def _urls(config: SOLLOLConfig) -> tuple[str, ...] | None:
    nodes = security.nodes_of(config)
    return None if nodes is None else tuple(node.url for node in nodes)


def _first_line() -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)  # not more: the rest is for the event loop
        if not byte:
            raise SystemExit(1)
        line += byte
    return line
