"""The commands about the network and the settings. What one does is in the file of its name."""

from __future__ import annotations

from typing import Annotated

import typer

from aiosollol.cli.base import Json, app, examples

GpuName = Annotated[
    str, typer.Option(metavar="NAME", help="The GPU, if it is none of NVIDIA.", show_default=False)
]
VramGb = Annotated[
    float | None, typer.Option(metavar="N", help="Its memory in GiB.", show_default=False)
]
OllamaUrl = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="The Ollama. Default: $OLLAMA_HOST, else http://127.0.0.1:11434.",
        show_default=False,
    ),
]
AnnouncedName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="What it is announced as. Default: the name of this machine.",
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
        typer.Option("--watch", help="Go on until Ctrl-C: + is a node that came, - one that went."),
    ] = False,
    save: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Write the nodes to FILE, as JSON. If none is found, FILE stays as it is.",
        ),
    ] = None,
    subnet: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CIDR",
            help="Search this network in place of those of this machine; may be given several "
            "times.",
        ),
    ] = None,
    port: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            min=1,
            max=65535,
            help="Ask this port; may be given several times. Default: 11434.",
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="How long an address may take to answer.")
    ] = 0.5,
    zeroconf: Annotated[
        bool,
        typer.Option(
            "--zeroconf/--no-zeroconf", help="Listen to what nodes announce of themselves."
        ),
    ] = True,
    scan: Annotated[
        bool, typer.Option("--scan/--no-scan", help="Ask each address of the networks.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Find the Ollama servers on the network.

    Sends a TCP connection to each address of the private networks of this machine; see
    docs/discovery.md. The exit code is 1 if there is none.
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
            help="An address under which others reach it; may be given several times. "
            "Default: those of this machine on which it answers.",
        ),
    ] = None,
    gpu_name: GpuName = "",
    vram_gb: VramGb = None,
) -> None:
    """Announce an Ollama to the network, until Ctrl-C.

    Ollama does not do that itself. Pools then find it at once, on any port, without searching.
    """
    from aiosollol.cli.advertise import AdvertiseOptions, run_advertise

    options = AdvertiseOptions(
        url=url, name=name, addresses=address or (), gpu_name=gpu_name, vram_gb=vram_gb
    )
    raise typer.Exit(run_advertise(options))


@app.command(
    short_help="Tell pools how busy this machine is.",
    epilog=examples("aiosollol agent --host 0.0.0.0", "aiosollol agent --no-advertise --once"),
)
def agent(
    url: OllamaUrl = None,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS", help="The address to listen on; 0.0.0.0 is every interface."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(metavar="N", min=0, max=65535, help="0 takes a free one.")
    ] = 11435,
    name: AnnouncedName = None,
    is_advertised: Annotated[
        bool,
        typer.Option(
            "--advertise/--no-advertise", help="Announce the Ollama to the network as well."
        ),
    ] = True,
    gpu_name: GpuName = "",
    vram_gb: VramGb = None,
    once: Annotated[
        bool, typer.Option("--once", help="Print one report as JSON and end; nothing is sent.")
    ] = False,
) -> None:
    """Tell pools how busy this machine is, and that its Ollama is here.

    Serves GET /agent: load of the CPU, memory, and memory of the GPUs. Nothing else is told.
    Needs the extra 'agent'. Ctrl-C or SIGTERM ends it, with exit code 0.
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
    short_help="Show every setting, and where its value comes from.",
    epilog=examples("aiosollol config", "aiosollol config --json"),
)
def config(as_json: Json = False) -> None:
    """Show every setting: its value, where it came from, and what it is.

    Also which settings file and which file of nodes are read, and how many nodes that names.
    Nothing is sent. The exit code is 2 if a setting or a file is wrong.
    """
    from aiosollol.cli.config import show_config

    raise typer.Exit(show_config(as_json))
