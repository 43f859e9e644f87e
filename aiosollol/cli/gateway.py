"""`aiosollol up` and `aiosollol key`: one address that is every Ollama, and who may use it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from aiosollol.cli.base import app, examples
from aiosollol.cli.output import Screen
from aiosollol.gateway.middleware.keys import new_key
from aiosollol.service import ConfigSource, run
from aiosollol.service.running import Running


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
        typer.Option(metavar="N", min=1, help="Processes that share the port. Default: 1."),
    ] = None,
    dask_workers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Let so many workers of Dask compute what is queued; needs the extra 'dask'. "
            "Default: none.",
            show_default=False,
        ),
    ] = None,
    hosts: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The nodes: a hosts.txt, or JSON.", show_default=False),
    ] = None,
    node: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="An Ollama server, as URL, host:port or host; may be given several times. "
            "Default: those in --hosts or --config, else $OLLAMA_HOST, else those in "
            "~/.config/aiosollol/nodes.json, else those that a search of the network finds.",
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="The address to listen on; 0.0.0.0 is every interface, which takes API keys. "
            "Default: 127.0.0.1.",
            show_default=False,
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, max=65535, help="0 takes a free one. Default: 8000."),
    ] = None,
    dask_scheduler: Annotated[
        str | None,
        typer.Option(metavar="URL", help="The same, by the workers of this Dask scheduler."),
    ] = None,
    autobatch: Annotated[
        bool | None,
        typer.Option(
            "--autobatch/--no-autobatch",
            help="Queue documents in a file and embed them in time. Default: yes.",
            show_default=False,
        ),
    ] = None,
    autobatch_interval: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="How long they wait at most. Default: 60."),
    ] = None,
    adaptive_metrics: Annotated[
        bool | None,
        typer.Option(
            "--adaptive-metrics/--no-adaptive-metrics",
            help="Look again and again at what nodes have loaded. Default: yes.",
            show_default=False,
        ),
    ] = None,
    adaptive_metrics_interval: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="How often. Default: 30.")
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Settings, as TOML; options count more. SIGHUP reads it again.",
            show_default=False,
        ),
    ] = None,
    api_keys: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Who may use it: the lines that 'aiosollol key' prints. $SOLLOL_API_KEYS adds "
            "to them.",
            show_default=False,
        ),
    ] = None,
    insecure: Annotated[
        bool | None,
        typer.Option("--insecure", help="Listen for other machines without API keys."),
    ] = None,
    allow_admin: Annotated[
        bool | None,
        typer.Option("--allow-admin", help="Let models be pulled, made, copied and deleted."),
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
        typer.Option(
            metavar="SECONDS",
            min=0,
            help="How long a request waits in line; then it is answered 503 (429 if others of "
            "its client were in its way). Default: 300.",
            show_default=False,
        ),
    ] = None,
    max_connections: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Connections at once, as far as the limit of open files allows; others wait. "
            "Default: 16384.",
            show_default=False,
        ),
    ] = None,
    max_body: Annotated[
        int | None,
        typer.Option(
            metavar="BYTES",
            min=1,
            help="The largest request; what is larger is answered 413. Default: 64 MiB.",
            show_default=False,
        ),
    ] = None,
    max_bodies: Annotated[
        int | None,
        typer.Option(
            metavar="BYTES",
            min=1,
            help="All requests together; large ones wait until there is room. Default: 1 GiB.",
            show_default=False,
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
        typer.Option(
            metavar="N",
            min=0,
            max=65535,
            help="Of 127.0.0.1; /metrics of --port has the same. Default: 9090.",
            show_default=False,
        ),
    ] = None,
    otel: Annotated[
        bool | None,
        typer.Option(
            "--otel/--no-otel",
            help="Spans for OpenTelemetry, which need the extra 'otel'. Default: no.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Serve all nodes under one address, as if they were one Ollama.

    It speaks Ollama's API, OpenAI's and Anthropic's. SIGTERM and Ctrl-C let running requests
    finish, a second one does not; the exit code is 0 after the first.
    """
    pass  # moved

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
    name: Annotated[str, typer.Argument(help="Whose it is, for the file and its errors.")],
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A model that it may use, with * for any characters; may be given several "
            "times. Default: all.",
        ),
    ] = None,
    rate: Annotated[
        float | None, typer.Option(metavar="N", min=0, help="Requests a second at most.")
    ] = None,
    in_flight: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Requests at once at most; others wait.")
    ] = None,
    admin: Annotated[
        bool,
        typer.Option(
            "--admin",
            help="It may pull, make, copy and delete models, and sees the jobs of all keys.",
        ),
    ] = False,
) -> None:
    """Make an API key for the gateway.

    The key goes to stderr, once. Its line for the file of keys goes to stdout; that has only what
    the key hashes to.
    """
    pass  # moved

    options = [
        f"models={','.join(model)}" if model else "",
        f"rate={rate:g}" if rate else "",
        f"in_flight={in_flight}" if in_flight else "",
        "admin" if admin else "",
    ]
    raise typer.Exit(print_key(name, " ".join(filter(None, options))))


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What `aiosollol up` was told.

    config: a TOML file with the names of `SOLLOLConfig`. nodes: URLs; hosts: a file of nodes. If
    there are neither, nor any in `config`, those count with which a pool begins.
    given: the other settings that were told, by their names in `SOLLOLConfig`; they count more
    than those in the file.
    """

    config: str | None = None
    nodes: Sequence[str] = ()
    hosts: str | None = None
    given: Mapping[str, Any] = field(default_factory=dict)


def run_up(options: UpOptions) -> int:
    """Serve until Ctrl-C or SIGTERM; the exit code.

    Raises ConfigError and InvalidInput where that cannot be. What is optional and cannot be is a
    warning: see `SOLLOL.start`.
    """
    screen = Screen(sys.stdout)
    with screen.log():
        code = run(source_of(options), lambda running: _tell(screen, running))
    screen.line("The gateway has ended.")
    return code


def source_of(options: UpOptions) -> ConfigSource:
    """Where the settings of a gateway come from. Raises ConfigError."""
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
    """Print a new key to stderr and its line for the file to stdout; the exit code.

    settings: of the key, as they stand in the file. Raises InvalidInput.
    """
    key = new_key(name, settings)
    print(f"The key of {name}, which is shown this once: {key.token}", file=sys.stderr, flush=True)
    print(key.line, flush=True)
    return 0


def _tell(screen: Screen, running: Running) -> None:
    for line in greeting(running):
        screen.line(line)


def greeting(running: Running) -> list[str]:
    """What a user is told once the gateway serves."""
    count = len(running.processes)
    by = f" ({count} processes: {', '.join(map(str, running.processes))})" if count > 1 else ""
    lines = [f"Listening on {running.url}{by}; Ctrl-C ends it."]
    if running.nodes is None:
        lines.append("Nodes: those in OLLAMA_HOST or the file of nodes, or what a search finds.")
    else:
        lines.append(f"Nodes: {', '.join(running.nodes)}")
    if running.metrics_url is not None:
        lines.append(f"Metrics: {running.metrics_url}")
    lines.append(f"Try: OLLAMA_HOST={running.url} ollama list, or open {running.url}/docs")
    return lines
