"""The commands discover, advertise, agent and config. Each is implemented in its own module."""

from __future__ import annotations

from typing import Annotated

import typer

from aiosollol.cli.base import Json, app, examples
from aiosollol.config.settings import DEFAULTS

GpuName = Annotated[
    str, typer.Option(metavar="NAME", help="GPU name, for non-NVIDIA GPUs.", show_default=False)
]
VramGb = Annotated[
    float | None,
    typer.Option(
        metavar="N", help="GPU memory in GiB, if NVML does not report it.", show_default=False
    ),
]
OllamaUrl = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="URL of the Ollama. Default: $OLLAMA_HOST, else http://127.0.0.1:11434.",
        show_default=False,
    ),
]
AnnouncedName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Announced name. Default: the host name.",
        show_default=False,
    ),
]


@app.command(
    epilog=examples(
        "aiosollol discover",
        "aiosollol discover --subnet 10.0.4.0/24 --port 11434 --port 8080",
        "aiosollol discover --save ~/.config/aiosollol/nodes.json",
    )
)
def discover(
    watch: Annotated[
        bool,
        typer.Option(
            "--watch", help="Keep searching until Ctrl-C: + is a new node, - a departed one."
        ),
    ] = False,
    save: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Write the nodes to FILE as JSON. If none is found, FILE is not changed.",
        ),
    ] = None,
    subnet: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CIDR",
            help="Search this network instead of this machine's networks; repeatable.",
        ),
    ] = None,
    port: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            min=1,
            max=65535,
            help="Port to try; repeatable. Default: 11434.",
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="Time limit for an address to answer.")
    ] = DEFAULTS.discovery_timeout,
    zeroconf: Annotated[
        bool,
        typer.Option("--zeroconf/--no-zeroconf", help="Listen for announcements of nodes."),
    ] = True,
    scan: Annotated[
        bool, typer.Option("--scan/--no-scan", help="Try every address of the networks.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Find the Ollama servers on the network.

    Opens a TCP connection to each address of this machine's private networks; see
    docs/discovery.md. The exit code is 1 if none is found.
    """
    from aiosollol.cli.discover import DiscoverOptions, run_discover
    from aiosollol.config.resolve import resolve

    options = DiscoverOptions(
        watch=watch,
        save=save,
        subnets=subnet or (),
        ports=port or (),
        timeout=timeout,
        use_zeroconf=zeroconf,
        use_scan=scan,
        trusted=resolve({}).settings.trusted,
        as_json=as_json,
    )
    raise typer.Exit(run_discover(options))


@app.command(
    epilog=examples(
        "aiosollol advertise", "aiosollol advertise --url http://10.0.0.2:8080 --name gpu-box"
    )
)
def advertise(
    url: OllamaUrl = None,
    name: AnnouncedName = None,
    address: Annotated[
        list[str] | None,
        typer.Option(
            metavar="IP",
            help="IP address at which others reach it; repeatable. "
            "Default: this machine's addresses on which it answers.",
        ),
    ] = None,
    gpu_name: GpuName = "",
    vram_gb: VramGb = None,
) -> None:
    """Announce an Ollama to the network until Ctrl-C.

    Pools then find it at once, on any port, without a search. Ollama does not announce itself.
    """
    from aiosollol.cli.advertise import AdvertiseOptions, run_advertise

    options = AdvertiseOptions(
        url=url, name=name, addresses=address or (), gpu_name=gpu_name, vram_gb=vram_gb
    )
    raise typer.Exit(run_advertise(options))


@app.command(
    short_help="Report the load of this machine to pools.",
    epilog=examples("aiosollol agent --host 0.0.0.0", "aiosollol agent --no-advertise --once"),
)
def agent(
    url: OllamaUrl = None,
    host: Annotated[
        str,
        typer.Option(metavar="ADDRESS", help="Address to listen on; 0.0.0.0 is all interfaces."),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(metavar="N", min=0, max=65535, help="Port to listen on; 0 picks a free one."),
    ] = 11435,
    name: AnnouncedName = None,
    is_advertised: Annotated[
        bool,
        typer.Option("--advertise/--no-advertise", help="Also announce the Ollama to the network."),
    ] = True,
    gpu_name: GpuName = "",
    vram_gb: VramGb = None,
    once: Annotated[
        bool, typer.Option("--once", help="Print one report as JSON and exit; sends nothing.")
    ] = False,
) -> None:
    """Report the load of this machine to pools, and announce its Ollama.

    Serves GET /agent: CPU load, memory and GPU memory, nothing else. Needs the extra 'agent'.
    Ctrl-C or SIGTERM ends it, with exit code 0.
    """
    from aiosollol.cli.agent import AgentOptions, run_agent

    options = AgentOptions(
        url=url,
        host=host,
        port=port,
        name=name,
        is_advertised=is_advertised,
        vram_gb=vram_gb,
        gpu_name=gpu_name,
        once=once,
    )
    raise typer.Exit(run_agent(options))


@app.command(
    short_help="Show every setting and where its value comes from.",
    epilog=examples("aiosollol config", "aiosollol config --json"),
)
def config(as_json: Json = False) -> None:
    """Show every setting: its value, where it comes from, and its meaning.

    Also shows which settings file and node file are read, and the number of nodes. Sends nothing.
    The exit code is 2 if a setting or a file is invalid.
    """
    from aiosollol.cli.config import show_config

    raise typer.Exit(show_config(as_json))
