"""`aiosollol up` and `aiosollol key`: the gateway and its API keys."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from aiosollol.cli.base import Screen, app, examples
from aiosollol.config.settings import shown
from aiosollol.gateway.middleware.keys import new_key
from aiosollol.service import ConfigSource, SOLLOLConfig, run
from aiosollol.service.running import Running

_DEFAULTS = SOLLOLConfig()


def _option(setting: str, text: str, *flags: str, **more: Any) -> Any:
    """An option for a setting of the service. text: of the help, with {} for the default."""
    value = getattr(_DEFAULTS, setting)
    if isinstance(value, bool):
        default = "on" if value else "off"
    elif isinstance(value, int) and value % (1 << 20) == 0 < value:
        default = f"{value >> 20} MiB" if value < 1 << 30 else f"{value >> 30} GiB"
    else:
        default = shown(value)
    return typer.Option(*flags, help=text.format(default), show_default=False, **more)


@app.command(
    short_help="Serve all nodes under one address.",
    epilog=examples(
        "aiosollol up --node 10.0.0.2 --node 10.0.0.3",
        "aiosollol up --hosts hosts.txt --host 0.0.0.0 --api-keys keys.txt --workers 4",
        "aiosollol up --config gateway.toml",
    ),
)
def up(
    workers: Annotated[
        int | None,
        _option(
            "processes", "Number of processes that share the port (default {}).", metavar="N", min=1
        ),
    ] = None,
    dask_workers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Number of Dask workers for queued jobs; needs the extra 'dask' (default none).",
            show_default=False,
        ),
    ] = None,
    hosts: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Node file: hosts.txt or JSON.", show_default=False),
    ] = None,
    node: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="An Ollama server, as URL, host:port or host; repeatable. "
            "Default: those in --hosts or --config, else $OLLAMA_HOST, else those in "
            "~/.config/aiosollol/nodes.json, else those that a search of the network finds.",
        ),
    ] = None,
    host: Annotated[
        str | None,
        _option(
            "gateway_host",
            "Address to listen on (default {}); 0.0.0.0 is all interfaces (requires API keys).",
            metavar="ADDRESS",
        ),
    ] = None,
    port: Annotated[
        int | None,
        _option(
            "gateway_port",
            "Port to listen on (default {}); 0 picks a free one.",
            metavar="N",
            min=0,
            max=65535,
        ),
    ] = None,
    dask_scheduler: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Dask scheduler whose workers run queued jobs."),
    ] = None,
    autobatch: Annotated[
        bool | None,
        _option(
            "autobatch_enabled",
            "Queue documents in a file and embed them in the background (default {}).",
            "--autobatch/--no-autobatch",
        ),
    ] = None,
    autobatch_interval: Annotated[
        float | None,
        _option(
            "autobatch_interval",
            "Maximum wait of a queued document (default {}).",
            metavar="SECONDS",
        ),
    ] = None,
    adaptive_metrics: Annotated[
        bool | None,
        _option(
            "adaptive_metrics_enabled",
            "Poll the nodes for their loaded models (default {}).",
            "--adaptive-metrics/--no-adaptive-metrics",
        ),
    ] = None,
    adaptive_metrics_interval: Annotated[
        float | None,
        _option(
            "adaptive_metrics_interval",
            "Interval of --adaptive-metrics (default {}).",
            metavar="SECONDS",
        ),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="TOML file of settings, reloaded on SIGHUP; options override it.",
            show_default=False,
        ),
    ] = None,
    api_keys: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="API key file: the lines printed by 'aiosollol key'. Keys in $SOLLOL_API_KEYS are "
            "added.",
            show_default=False,
        ),
    ] = None,
    insecure: Annotated[
        bool | None,
        typer.Option("--insecure", help="Accept requests from other machines without API keys."),
    ] = None,
    allow_admin: Annotated[
        bool | None,
        typer.Option("--allow-admin", help="Allow pull, create, copy and delete of models."),
    ] = None,
    cors_origins: Annotated[
        list[str] | None,
        _option(
            "cors_origins",
            "Origin whose web pages may use it, such as https://chat.example.com; * matches any "
            "characters. Repeatable. Without keys on loopback, those of this machine may too.",
            metavar="ORIGIN",
        ),
    ] = None,
    max_in_flight: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Requests of one client at once; others wait in line. A client is a key, or an "
            "address without keys. Default: 1000; any number on 127.0.0.1 without keys.",
            show_default=False,
        ),
    ] = None,
    rate_limit: Annotated[
        float | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Requests a second of one client; more are answered 429. Default: any number.",
            show_default=False,
        ),
    ] = None,
    rate_burst: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="How many of them at once after a pause. Default: as many as in a second.",
            show_default=False,
        ),
    ] = None,
    wait_timeout: Annotated[
        float | None,
        _option(
            "wait_timeout",
            "How long a request waits in line; then it is answered 503 (429 if others of "
            "its client were in its way). Default: {}.",
            metavar="SECONDS",
            min=0,
        ),
    ] = None,
    max_connections: Annotated[
        int | None,
        _option(
            "max_connections",
            "Connections at once, as far as the limit of open files allows; others wait. "
            "Default: {}.",
            metavar="N",
            min=1,
        ),
    ] = None,
    max_body: Annotated[
        int | None,
        _option(
            "max_body",
            "The largest request; what is larger is answered 413. Default: {}.",
            metavar="BYTES",
            min=1,
        ),
    ] = None,
    max_bodies: Annotated[
        int | None,
        _option(
            "max_bodies",
            "All requests together; large ones wait until there is room. Default: {}.",
            metavar="BYTES",
            min=1,
        ),
    ] = None,
    metrics: Annotated[
        bool | None,
        typer.Option(
            "--metrics/--no-metrics",
            help="Metrics for Prometheus; there are none without the extra 'gateway'. Default: "
            "yes.",
            show_default=False,
        ),
    ] = None,
    metrics_port: Annotated[
        int | None,
        _option(
            "metrics_port",
            "Of 127.0.0.1; /metrics of --port has the same. Default: {}.",
            metavar="N",
            min=0,
            max=65535,
        ),
    ] = None,
    otel: Annotated[
        bool | None,
        _option(
            "otel",
            "Record OpenTelemetry spans; needs the extra 'otel' (default {}).",
            "--otel/--no-otel",
        ),
    ] = None,
) -> None:
    """Serve all nodes under one address, as if they were one Ollama.

    Speaks the APIs of Ollama, OpenAI and Anthropic. SIGTERM or Ctrl-C lets running requests
    finish and exits with 0; a second one stops at once.
    """
    given = {
        "processes": workers,
        "enable_dask": True if dask_workers else None,
        "dask_workers": dask_workers,
        "gateway_host": host,
        "gateway_port": port,
        "dask_scheduler": dask_scheduler,
        "autobatch_enabled": autobatch,
        "autobatch_interval": autobatch_interval,
        "adaptive_metrics_enabled": adaptive_metrics,
        "adaptive_metrics_interval": adaptive_metrics_interval,
        "api_keys_file": api_keys,
        "insecure": insecure,
        "allow_admin": allow_admin,
        "cors_origins": cors_origins,
        "max_in_flight": max_in_flight,
        "rate_limit": rate_limit,
        "rate_burst": rate_burst,
        "wait_timeout": wait_timeout,
        "max_connections": max_connections,
        "max_body": max_body,
        "max_bodies": max_bodies,
        "metrics_enabled": metrics,
        "metrics_port": metrics_port,
        "otel": otel,
    }
    raise typer.Exit(run_up(UpOptions(config, node or (), hosts, given)))


@app.command(
    short_help="Make an API key for the gateway.",
    epilog=examples(
        "aiosollol key ann >> keys.txt", "aiosollol key ops --admin --rate 5 >> keys.txt"
    ),
)
def key(
    name: Annotated[str, typer.Argument(help="Name of the key's owner.")],
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Model that the key may use; * matches any characters. Repeatable (default all).",
        ),
    ] = None,
    rate: Annotated[
        float | None, typer.Option(metavar="N", min=0, help="Maximum requests per second.")
    ] = None,
    in_flight: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Requests at once at most; others wait.")
    ] = None,
    admin: Annotated[
        bool,
        typer.Option(
            "--admin",
            help="Allow pull, create, copy and delete of models, and access to all jobs.",
        ),
    ] = False,
) -> None:
    """Make an API key for the gateway.

    The key is printed once, to stderr. Its line for the key file, which holds only a hash of the
    key, goes to stdout.
    """
    options = [
        f"models={','.join(model)}" if model else "",
        f"rate={rate:g}" if rate else "",
        f"in_flight={in_flight}" if in_flight else "",
        "admin" if admin else "",
    ]
    raise typer.Exit(print_key(name, " ".join(filter(None, options))))


@dataclass(frozen=True, slots=True)
class UpOptions:
    """Options of `aiosollol up`.

    config: a TOML file with the fields of `SOLLOLConfig`.
    nodes: URLs.
    hosts: a node file. Without nodes here or in `config`, a pool's initial nodes are used.
    given: the other settings, by their names in `SOLLOLConfig`; they override the file.
    """

    config: str | None = None
    nodes: Sequence[str] = ()
    hosts: str | None = None
    given: Mapping[str, Any] = field(default_factory=dict)


def run_up(options: UpOptions) -> int:
    """Serve until Ctrl-C or SIGTERM, and return the exit code.

    Raises ConfigError and InvalidInput where that cannot be. What is optional and cannot be is a
    warning: see `SOLLOL.start`.
    """
    screen = Screen(sys.stdout)
    with screen.log():
        code = run(source_of(options), lambda running: _tell(screen, running))
    screen.line("The gateway has ended.")
    return code


def source_of(options: UpOptions) -> ConfigSource:
    """The source of the gateway's settings. Raises ConfigError."""
    given = {name: value for name, value in options.given.items() if value is not None}
    if options.nodes:
        given["hosts"] = list(options.nodes)
    return ConfigSource(
        path=options.config,
        hosts_file=None if options.nodes else options.hosts,
        begins_as_pool=True,
        given=given,
    )


def print_key(name: str, settings: str) -> int:
    """Print a new key to stderr and its line for the key file to stdout; return the exit code.

    settings: of the key, as written in the file. Raises InvalidInput if they are invalid.
    """
    key = new_key(name, settings)
    print(f"The key of {name}, shown only once: {key.token}", file=sys.stderr, flush=True)
    print(key.line, flush=True)
    return 0


def _tell(screen: Screen, running: Running) -> None:
    for line in greeting(running):
        screen.line(line)


def greeting(running: Running) -> list[str]:
    """The lines printed once the gateway serves."""
    count = len(running.processes)
    by = f" ({count} processes: {', '.join(map(str, running.processes))})" if count > 1 else ""
    lines = [f"Listening on {running.url}{by}; Ctrl-C ends it."]
    if running.nodes is None:
        lines.append("Nodes: from OLLAMA_HOST or the node file, or what a search finds.")
    else:
        lines.append(f"Nodes: {', '.join(running.nodes)}")
    if running.metrics_url is not None:
        lines.append(f"Metrics: {running.metrics_url}")
    lines.append(f"Try: OLLAMA_HOST={running.url} ollama list, or open {running.url}/docs")
    return lines
